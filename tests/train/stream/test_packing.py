import numpy as np
import pytest

from headwater.train.corpus.packing import pack


@pytest.mark.parametrize(("count", "seq_len"), [(0, 9), (1, 64), (997, 256), (500, 67)])
def test_every_passage_is_packed_once_and_nothing_overflows(count, seq_len):
    lengths = np.random.default_rng(count).integers(1, min(64, seq_len) + 1, count)
    packed = pack(lengths, seq_len)
    assert sorted(place for sequence in packed for place in sequence) == list(range(count))
    assert all(0 < sum(lengths[sequence]) <= seq_len for sequence in packed)


def test_sequences_are_nearly_full():
    lengths = np.random.default_rng(0).integers(12, 65, 3000)
    assert lengths.sum() / (len(pack(lengths, 256)) * 256) > 0.95


def test_groups_are_kept_apart():
    rng = np.random.default_rng(0)
    lengths, groups = rng.integers(10, 30, 400), rng.integers(0, 20, 400).tolist()
    packed = pack(lengths, 128, groups)
    assert sorted(place for sequence in packed for place in sequence) == list(range(400))
    assert all(len({groups[place] for place in sequence}) == len(sequence) for sequence in packed)
    # Without groups they do meet: the condition is what keeps them apart.
    assert any(len({groups[place] for place in sequence}) < len(sequence) for sequence in pack(lengths, 128))


def test_a_passage_longer_than_a_sequence_is_refused():
    with pytest.raises(ValueError, match="65 tokens does not fit"):
        pack(np.array([3, 65]), 64)
