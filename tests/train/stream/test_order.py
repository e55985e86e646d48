import numpy as np
import pytest

from headwater.train.stream.corpus import SourceSpan
from headwater.train.stream.order import BLOCK, SequenceOrder, block_quotas, hashed, mix, permuted


def splitmix(value):
    """The finalizer of SplitMix64 in Python integers."""
    mask = (1 << 64) - 1
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def test_mixing_is_splitmix():
    values = [0, 1, 12345, (1 << 64) - 1]
    assert mix(np.array(values, dtype=np.uint64)).tolist() == [splitmix(value) for value in values]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 750, 4097])
def test_a_permutation_hits_everything_once(size):
    images = permuted(np.arange(size), size, hashed(3, size))
    assert sorted(images.tolist()) == list(range(size))
    # Any part of it can be computed alone.
    some = np.arange(0, size, 3)
    assert permuted(some, size, hashed(3, size)).tolist() == images[some].tolist()


def test_permutations_look_random():
    size = 1009
    images = permuted(np.arange(size), size, hashed(0, 1))
    other = permuted(np.arange(size), size, hashed(0, 2))
    # A uniformly random permutation has one fixed point and one agreement with another on average, and no trend.
    assert (images == np.arange(size)).sum() < 8
    assert (images == other).sum() < 8
    assert abs(np.corrcoef(images, np.arange(size))[0, 1]) < 0.12
    assert abs(np.corrcoef(images[1:], images[:-1])[0, 1]) < 0.12


def test_every_epoch_visits_every_sequence_once_in_another_order():
    order = SequenceOrder([SourceSpan("a", 1.0, 0, 1501)], seed=5)
    visited = order.sequences(np.arange(1501 * 4)).reshape(4, 1501)
    assert all(sorted(epoch.tolist()) == list(range(1501)) for epoch in visited)
    assert len({tuple(epoch.tolist()) for epoch in visited}) == 4
    assert SequenceOrder(order.sources, seed=6).sequences(np.arange(1501)).tolist() != visited[0].tolist()


def test_places_can_be_asked_for_in_any_portions():
    order = SequenceOrder([SourceSpan("a", 1.0, 0, 300), SourceSpan("b", 2.5, 300, 100)], seed=1)
    places = np.arange(3 * BLOCK)
    whole = order.sequences(places)
    assert np.concatenate([order.sequences(part) for part in np.array_split(places, 61)]).tolist() == whole.tolist()
    assert order.sequences(places[::-7]).tolist() == whole[::-7].tolist()


def test_sources_get_their_shares_and_are_each_visited_evenly():
    spans = [SourceSpan("a", 1.0, 0, 300), SourceSpan("b", 3.0, 300, 100), SourceSpan("unused", 0.0, 400, 50)]
    visited = SequenceOrder(spans, seed=1).sequences(np.arange(4 * BLOCK))
    counts = np.bincount(visited, minlength=450)
    assert counts[:300].sum() == counts[300:400].sum() == 2 * BLOCK  # 300 x 1 = 100 x 3
    assert counts[400:].sum() == 0
    assert np.ptp(counts[:300]) <= 1
    assert np.ptp(counts[300:400]) <= 1
    # The sources are mixed, not read in runs.
    is_second = visited[:BLOCK] >= 300
    assert 0.4 < is_second[:500].mean() < 0.6


def test_equal_weights_are_one_source():
    spans = [SourceSpan("a", 2.0, 0, 300), SourceSpan("b", 2.0, 300, 101)]
    assert sorted(SequenceOrder(spans, seed=1).sequences(np.arange(401)).tolist()) == list(range(401))


def test_quotas_fill_a_block():
    for shares in ([1.0], [1.0, 1e-9], [1, 2, 3, 4, 5, 6, 7], [0.1] * 100):
        quotas = block_quotas(list(map(float, shares)))
        assert quotas.sum() == BLOCK
        assert quotas.min() >= 1


@pytest.mark.parametrize("window", [1, 2, 3, 7, 50])
def test_a_window_visits_everything_once_and_few_shards_at_a_time(window):
    starts = np.array([0, 40, 90, 97, 150, 260, 300, 340])
    order = SequenceOrder([SourceSpan("a", 1.0, 0, 340)], 3, starts, window)
    visited = order.sequences(np.arange(340 * 3)).reshape(3, 340)
    assert all(sorted(epoch.tolist()) == list(range(340)) for epoch in visited)
    assert len({tuple(epoch.tolist()) for epoch in visited}) == 3
    for epoch in visited:
        shards = np.searchsorted(starts, epoch, side="right") - 1
        # A shard is done with before the one after the next window is begun.
        spans = [
            (int(np.flatnonzero(shards == shard)[0]), int(np.flatnonzero(shards == shard)[-1])) for shard in range(7)
        ]
        at_once = max(sum(first <= place <= last for first, last in spans) for place in range(340))
        assert at_once <= min(window, 7)
    parts = [order.sequences(part) for part in np.array_split(np.arange(340 * 3), 17)]
    assert np.concatenate(parts).tolist() == visited.ravel().tolist()


def test_a_window_works_within_each_source():
    starts = np.array([0, 100, 200, 300, 350, 400])
    spans = [SourceSpan("a", 1.0, 0, 300), SourceSpan("b", 3.0, 300, 100)]
    counts = np.bincount(SequenceOrder(spans, 1, starts, window=1).sequences(np.arange(4 * BLOCK)), minlength=400)
    assert counts[:300].sum() == counts[300:].sum() == 2 * BLOCK
    assert np.ptp(counts[:300]) <= 1
    assert np.ptp(counts[300:]) <= 1
