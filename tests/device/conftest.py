"""The pretended device, for a whole test or a part of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .pretended import Pretended
from .rehearsed import rehearsal


@pytest.fixture
def device() -> Iterator[Pretended]:
    with rehearsal() as device:
        yield device
