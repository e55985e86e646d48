"""Attention within segments against a float64 reference made one passage at a time."""

from __future__ import annotations

import pytest
import torch

from headwater.train.attention import SegmentRotary, Segments, attend_padded, rotary_frequencies
from headwater.train.settings import ModelSettings


def reference(query, key, value, lengths):
    """One passage, one head, one query at a time, float64."""
    tokens, heads, width = query.shape
    shared = heads // key.shape[1]
    out = torch.empty(tokens, heads, width, dtype=torch.float64)
    start = 0
    for length in lengths:
        for head in range(heads):
            q = query[start : start + length, head].double()
            k, v = key[start : start + length, head // shared].double(), value[start : start + length, head // shared]
            for place in range(length):
                weights = torch.softmax(k[: place + 1] @ q[place] / width**0.5, dim=0)
                out[start + place, head] = weights @ v[: place + 1].double()
        start += length
    return out.reshape(tokens, heads * width)


def random_heads(lengths, heads, groups, width):
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = sum(lengths)
    return [torch.randn(tokens, n, width, generator=generator) for n in (heads, groups, groups)]


@pytest.mark.parametrize(
    ("lengths", "heads", "groups", "width"),
    [([1], 1, 1, 2), ([7], 4, 2, 6), ([16, 17], 4, 4, 8), ([3, 33, 1, 15], 6, 2, 4), ([5, 1, 1, 30], 4, 1, 10)],
)
def test_equals_the_reference(lengths, heads, groups, width):
    query, key, value = random_heads(lengths, heads, groups, width)
    out = attend_padded(query, key, value, Segments.from_lengths(torch.tensor(lengths)))
    torch.testing.assert_close(out.double(), reference(query, key, value, lengths), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gradients_equal_autograd_of_scaled_dot_product_attention(groups):
    lengths, heads, width = [9, 20, 2], 4, 6
    inputs = [x.requires_grad_() for x in random_heads(lengths, heads, groups, width)]
    out = attend_padded(*inputs, Segments.from_lengths(torch.tensor(lengths)))
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(out, inputs, pull)
    doubled = [x.detach().double().requires_grad_() for x in inputs]
    parts, start = [], 0
    for length in lengths:
        q, k, v = (x[start : start + length].transpose(0, 1)[None] for x in doubled)
        part = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        parts.append(part[0].transpose(0, 1).reshape(length, -1))
        start += length
    expected = torch.autograd.grad(torch.cat(parts), doubled, pull.double())
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


def test_nothing_of_a_neighbour_is_read():
    """NaN in a segment stays in it, in the output and in the gradients."""
    lengths = [5, 18, 9]
    clean = random_heads(lengths, 4, 2, 6)
    poisoned = [x.clone() for x in clean]
    for x in poisoned:
        x[5:23] = float("nan")
    segments = Segments.from_lengths(torch.tensor(lengths))
    kept = torch.tensor([True] * 5 + [False] * 18 + [True] * 9)
    for x in (*clean, *poisoned):
        x.requires_grad_()
    out, dirty = attend_padded(*clean, segments), attend_padded(*poisoned, segments)
    assert torch.equal(out[kept], dirty[kept])
    assert dirty[~kept].isnan().all()
    got = torch.autograd.grad(dirty[kept].sum(), poisoned)
    expected = torch.autograd.grad(out[kept].sum(), clean)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one[kept], other[kept])


def test_the_mask_is_causal():
    """Changing a later token changes nothing before it (and does change what comes after)."""
    query, key, value = random_heads([12], 2, 2, 4)
    segments = Segments.from_lengths(torch.tensor([12]))
    before = attend_padded(query, key, value, segments)
    key[7], value[7] = 5.0, 5.0
    after = attend_padded(query, key, value, segments)
    assert torch.equal(before[:7], after[:7])
    assert not torch.isclose(before[7:], after[7:]).all(dim=1).any()


def test_segments_of_known_lengths():
    segments = Segments.from_lengths(torch.tensor([3, 1, 17]))
    assert segments.cu_seqlens.tolist() == [0, 3, 4, 21]
    assert segments.positions_T.tolist() == [0, 1, 2, 0, *range(17)]
    assert segments.gather_NL.shape == (3, 32)
    assert segments.gather_NL[0].tolist() == [0, 1, 2] + [2] * 29
    assert segments.gather_NL.reshape(-1)[segments.scatter_T].tolist() == list(range(21))


def test_rotary_angles_restart_with_each_segment():
    rotary = SegmentRotary(rotary_frequencies(ModelSettings(hidden=6, heads=1, kv_heads=1, rope_base=100.0)))
    rotary.positions_T = Segments.from_lengths(torch.tensor([2, 3])).positions_T
    angles = rotary(5)[:, 0, 0]
    assert torch.equal(angles[:2], angles[2:4])
    frequencies = torch.tensor([1.0, 100.0 ** (-1 / 3), 100.0 ** (-2 / 3)])
    torch.testing.assert_close(angles[4], torch.cat([2 * frequencies, 2 * frequencies]))
