"""The projection without or with a rank-1 correction on a GPU: two thin products and one small product per segment.

The thin products are bound by reading delta and a once, which cuBLAS does as well; but it picks another algorithm, with
other bits, for another number of tokens. These kernels sum each token's product in one order, and each segment's too:
a row has the same bits whatever its segment is packed with.

Not yet run on a GPU: tested in Triton's interpreter and compiled for each architecture (`compile_check`).

Shapes: T tokens, K features (outputs or inputs), N columns of stacked factors, B segments, kO x kI the projected
gradient; S is a tile of tokens, F one of features.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_common import pad_side

THIN = {"TOKENS": 64, "FEATURES": 64, "COLUMNS": 64, "num_warps": 4, "num_stages": 4}
THIN_FLOAT32 = {"TOKENS": 64, "FEATURES": 32, "COLUMNS": 32, "num_warps": 4, "num_stages": 2}
THIN_SM_100 = {**THIN, "num_warps": 8}
THIN_FLOAT32_SM_120 = {**THIN_FLOAT32, "FEATURES": 16}
SEGMENT = {"TOKENS": 32, "SIDE": 16, "num_warps": 2, "num_stages": 2}


@triton.jit
def thin_kernel(
    x_ptr,
    factor_ptr,
    result_ptr,
    tokens,
    x_stride,
    features,
    columns,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Result [T, N] float32 = x [T, K] factor [K, N]."""
    # One axis for both: the others end at 65,535.
    across = tl.cdiv(columns, COLUMNS)
    token_S = tl.program_id(0) // across * TOKENS + tl.arange(0, TOKENS)
    column_N = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    inside_S = (token_S < tokens)[:, None]
    inside_N = (column_N < columns)[None, :]
    row_S = token_S.to(tl.int64)[:, None]
    sum_SN = tl.zeros([TOKENS, COLUMNS], tl.float32)
    for feature_first in range(0, features, FEATURES):
        feature_F = feature_first + tl.arange(0, FEATURES)
        inside_F = feature_F < features
        x_SF = tl.load(x_ptr + row_S * x_stride + feature_F[None, :], mask=inside_S & inside_F[None, :], other=0.0)
        factor_FN = tl.load(
            factor_ptr + feature_F.to(tl.int64)[:, None] * columns + column_N[None, :],
            mask=inside_F[:, None] & inside_N,
            other=0.0,
        )
        sum_SN = tl.dot(x_SF, factor_FN, sum_SN, input_precision=PRECISION)
    tl.store(result_ptr + row_S * columns + column_N[None, :], sum_SN, mask=inside_S & inside_N)


@triton.jit
def segment_kernel(
    y_ptr,
    z_ptr,
    bounds_ptr,
    row_ptr,
    scale,
    tokens,
    y_stride,
    z_stride,
    kO,
    kI,
    TOKENS: tl.constexpr,
    SIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows [B, kO, kI] float32: scale y_b^T z_b; kO and kI are multiples of SIDE."""
    segment = tl.program_id(0)
    side_O = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    side_I = tl.program_id(2) * SIDE + tl.arange(0, SIDE)
    first = tl.load(bounds_ptr + segment)
    last = tl.minimum(tl.load(bounds_ptr + segment + 1), tokens)
    row_OI = tl.zeros([SIDE, SIDE], tl.float32)
    for token_first in range(first, last, TOKENS):
        token_S = token_first + tl.arange(0, TOKENS)
        inside_S = (token_S < last)[:, None]
        place_S = token_S.to(tl.int64)[:, None]
        y_SO = tl.load(y_ptr + place_S * y_stride + side_O[None, :], mask=inside_S, other=0.0)
        z_SI = tl.load(z_ptr + place_S * z_stride + side_I[None, :], mask=inside_S, other=0.0)
        row_OI = tl.dot(tl.trans(y_SO), z_SI, row_OI, input_precision=PRECISION)
    place = row_ptr + segment.to(tl.int64) * kO * kI
    tl.store(place + side_O[:, None] * kI + side_I[None, :], row_OI * scale)


def choose_thin(arch: str, dtype: torch.dtype) -> dict[str, int]:
    """The tiling of `thin_kernel` for an architecture and an input type, chosen as `choose_config` is."""
    if dtype == torch.float32:
        return THIN_FLOAT32_SM_120 if arch.startswith("sm_12") else THIN_FLOAT32
    return THIN_SM_100 if arch.startswith("sm_10") else THIN


class ThinFactor:
    """A folded projection [K, N] in the type of the inputs; a power of two is taken out so that float16 can hold it."""

    def __init__(self, factor_KN: Tensor, dtype: torch.dtype) -> None:
        largest = factor_KN.abs().max().item() if factor_KN.numel() else 0.0
        self.scale = 2.0 ** torch.tensor(largest).log2().floor().item() if 0 < largest < float("inf") else 1.0
        self.factor_KN = pad_side((factor_KN.float() / self.scale).to(dtype))

    def products(self, x_TK: Tensor, precision: str = "tf32x3", arch: str = "") -> Tensor:
        """[T, N'] float32: x factor / scale, with N' the padded number of columns."""
        (features, columns), tokens = self.factor_KN.shape, x_TK.shape[0]
        options = choose_thin(arch, x_TK.dtype)
        result_TN = x_TK.new_empty(tokens, columns, dtype=torch.float32)
        grid = (triton.cdiv(columns, options["COLUMNS"]) * triton.cdiv(tokens, options["TOKENS"]),)
        if tokens:
            arguments = (x_TK, self.factor_KN, result_TN, tokens, x_TK.stride(0), features, columns)
            thin_kernel[grid](*arguments, PRECISION=precision, **options)
        return result_TN


def segment_products(y_Tk: Tensor, z_Tk: Tensor, bounds_B: Tensor, scale: float, precision: str = "tf32x3") -> Tensor:
    """[B, kO, kI] float32: scale y_b^T z_b; widths are multiples of 16, `bounds_B` is int32 on the device."""
    segments, kO, kI = len(bounds_B) - 1, y_Tk.shape[1], z_Tk.shape[1]
    rows_Bkk = y_Tk.new_empty(segments, kO, kI)
    grid = (segments, kO // SEGMENT["SIDE"], kI // SEGMENT["SIDE"])
    if segments:
        arguments = (y_Tk, z_Tk, bounds_B, rows_Bkk, scale, y_Tk.shape[0], y_Tk.stride(0), z_Tk.stride(0), kO, kI)
        segment_kernel[grid](*arguments, PRECISION=precision, **SEGMENT)
    return rows_Bkk
