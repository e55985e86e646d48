"""Random +-1 matrices that every device, process and slice agrees on.

    signs(seed=0, key="blocks.3.mlp.up.output", n=4096, k=32, start=1024, stop=2048)

A sign is one bit of Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a generator
without state: the value of an entry is a function of (seed, key, row, column) alone. So a tensor-parallel rank
makes only the rows it holds, and asking for more columns keeps the ones there were.

Shapes: n rows of the whole matrix, k columns.
"""

import hashlib

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF
_BITS_PER_CALL = 128
_ROWS_PER_CHUNK = 1 << 16


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of `constant * word`; int64 wraps around, which leaves all 64 bits of the product right."""
    product = word * constant
    return (product >> 32) & _WORD, product & _WORD


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox over int64 tensors that hold 32-bit words; returns four such tensors."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _philox_key(seed: int, key: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}\x00{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _chunk(
    philox_key: tuple[int, int], start: int, stop: int, k: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    row = torch.arange(start, stop, device=device, dtype=torch.int64)[:, None]
    block = torch.arange(-(-k // _BITS_PER_CALL), device=device, dtype=torch.int64)[None, :]
    zero = torch.zeros((), device=device, dtype=torch.int64)
    words = philox4x32((row & _WORD, row >> 32, block, zero), philox_key)
    words_RBW = torch.stack(torch.broadcast_tensors(*words), dim=-1)
    bit = torch.arange(32, device=device, dtype=torch.int64)
    bits_RC = ((words_RBW[..., None] >> bit) & 1).reshape(stop - start, -1)
    return (bits_RC[:, :k] * 2 - 1).to(dtype)


def signs(
    seed: int,
    key: str,
    n: int,
    k: int,
    *,
    start: int = 0,
    stop: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Rows `start` to `stop` of the [n, k] matrix of +-1 that belongs to (seed, key).

    Args:
        seed: any int; another seed is another matrix.
        key: the name of the dimension the rows stand for. Layers that name it alike share the matrix.
        n: rows of the whole matrix.
        k: columns. The first columns of a wider matrix are the narrower one.
        start, stop: the rows to make, 0 <= start <= stop <= n; `stop` defaults to n.
        dtype, device: of the result; +-1 is exact in every floating type, and every device makes the same bits.

    Returns:
        [stop - start, k] of +-1.

    Raises:
        ValueError: n or k is negative, or the rows asked for are not in the matrix.
    """
    stop = n if stop is None else stop
    if n < 0 or k < 0:
        raise ValueError(f"signs: n and k must not be negative, got n={n}, k={k}")
    if not 0 <= start <= stop <= n:
        raise ValueError(
            f"signs: rows {start} to {stop} are not within the matrix of n={n} rows; give 0 <= start <= stop <= n"
        )
    device = torch.device(device)
    result_nk = torch.empty(stop - start, k, dtype=dtype, device=device)
    philox_key = _philox_key(seed, key)
    for first in range(start, stop, _ROWS_PER_CHUNK):
        last = min(first + _ROWS_PER_CHUNK, stop)
        result_nk[first - start : last - start] = _chunk(philox_key, first, last, k, dtype, device)
    return result_nk
