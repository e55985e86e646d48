"""What can be wrong with an index or with the rows that go into it."""

from __future__ import annotations

from headwater.configs.errors import CorruptError, MissingError, UserError


class TruncatedShardError(CorruptError):
    """A shard file that is shorter or longer than its header says."""


class ChangedBytesError(CorruptError):
    """A shard or index file whose hash is not the recorded one."""


class CoverageError(CorruptError):
    """An index in which a passage is missing, or present more than once."""


class MissingShardError(MissingError):
    """A shard that the index lists, or that is needed, and that is not there."""


class IncompleteIndexError(UserError):
    """An index whose build has not finished, used where every passage is needed."""
