"""Reading ahead, writing behind, and which rank collects what."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from headwater.attribution.rows.ahead import Behind, ahead
from headwater.attribution.rows.dealing import dealt, tokens_of


def test_the_next_is_read_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(5)]

    def read(item: int) -> int:
        begun[item].set()
        return item * item

    for item, made in ahead(range(5), read):
        assert made == item * item
        if item < 4:
            assert begun[item + 1].wait(5)
        assert not any(each.is_set() for each in begun[item + 2 :]), "no more than one"
    assert list(ahead([], read)) == []


def test_what_reading_raises_comes_in_its_turn() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise KeyError(item)
        return item

    seen = []
    with pytest.raises(KeyError):
        seen.extend(item for item, _ in ahead(range(4), read))
    assert seen == [] or seen == [0, 1]


def test_writing_goes_on_behind_in_order_and_one_at_a_time() -> None:
    done: list[int] = []
    gate = threading.Event()
    with Behind() as behind:
        behind.run(lambda: gate.wait(5) and done.append(0))
        assert done == []
        gate.set()
        behind.run(done.append, 1)
        behind.run(done.append, 2)
    assert done == [0, 1, 2]


def test_what_writing_raises_is_not_lost() -> None:
    def fail() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"), Behind() as behind:
        behind.run(fail)
    with Behind() as behind:
        behind.run(fail)
        with pytest.raises(OSError, match="full"):
            behind.run(list)
    with pytest.raises(KeyError), Behind() as behind:  # what went wrong first
        raise behind.run(fail) or KeyError()


class Passages:
    """Passages of known lengths, which are asked for in parts."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths, self.most = lengths, 0

    def lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        self.most = max(self.most, len(numbers))
        return self.lengths[numbers]


def test_ranks_collect_about_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus whose second half has long documents: dealt by turns one rank would have 1.3 times the mean."""
    monkeypatch.setattr("headwater.attribution.rows.dealing.READ_AT_ONCE", 70)
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(1, 20, 500), rng.integers(100, 900, 507)])
    passages: Any = Passages(lengths)
    spans = list(pairwise([*range(0, 1007, 13), 1007]))
    tokens = np.array(tokens_of(passages, spans))
    assert tokens.tolist() == [int(lengths[a:b].sum()) for a, b in spans]
    assert 70 <= passages.most < 70 + 13
    assert tokens_of(passages, [(20, 27), (3, 4)]) == [lengths[20:27].sum(), lengths[3]]
    assert tokens_of(passages, []) == []
    for ranks in (1, 3, 8):
        shares = dealt(tokens.tolist(), ranks)
        assert sorted(part for share in shares for part in share) == list(range(len(tokens)))
        assert all(share == sorted(share) for share in shares)
        loads = [tokens[share].sum() for share in shares]
        assert max(loads) <= 1.05 * np.mean(loads)
    by_turns = [tokens[rank::8].sum() for rank in range(8)]
    assert max(by_turns) > 1.05 * np.mean(by_turns)
    assert dealt([], 2) == [[], []]
