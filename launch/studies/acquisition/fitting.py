"""Whether the records fit into a base model's sequences, looked at before it is trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from headwater.configs import UserError
from headwater.train.facts.fictional import PROBLEMS

if TYPE_CHECKING:
    from headwater.train.facts.injection import Schedule
    from headwater.train.facts.types import FactPassage
    from headwater.train.tokenizer import TextTokenizer


def check_fit(
    passages: Sequence[FactPassage],
    schedule: Schedule,
    tokenizer: TextTokenizer,
    *,
    seq_len: int,
    batch: int,
    end: int | None = None,
) -> None:
    """Refuses passages that are longer than a sequence, and steps that show more than a batch holds.

    Args:
        end: the token after each passage, if there is one.

    Raises:
        UserError: naming all of them.
    """
    from headwater.train.corpus.encoding import encode_documents
    from headwater.train.stream.dealing import deal

    encoded = encode_documents(tokenizer, [passage.text for passage in passages], end)
    length = {passage.id: len(tokens) + 1 for passage, tokens in zip(passages, encoded, strict=True)}
    wrong = [f"{name}: {tokens} tokens" for name, tokens in length.items() if tokens > seq_len]
    if not wrong:
        bounds = [*np.flatnonzero(np.diff(schedule.steps, prepend=-1)).tolist(), len(schedule)]
        for begin, after in itertools.pairwise(bounds):
            shown = [length[name] for name in schedule.passage_ids[begin:after]]
            if deal(shown, seq_len, batch) is None:
                wrong.append(f"step {schedule.steps[begin]}: {len(shown)} passages of {sum(shown)} tokens")
    if wrong:
        longest = max(length.values())
        raise UserError(
            "the records do not fit into the base model's sequences",
            got="; ".join(wrong[:PROBLEMS]) + (f"; and {len(wrong) - PROBLEMS} more" if len(wrong) > PROBLEMS else ""),
            expected=f"passages of at most {seq_len} tokens, and of a step what {batch} sequences hold",
            fix=f"set corpus.seq_len={-(-longest // 64) * 64} or more, or a larger train.global_batch or spread",
        )
