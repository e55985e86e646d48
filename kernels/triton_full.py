"""The projection with an elementwise correction on a GPU: one fused kernel that never writes a gradient to memory.

It has the shape of attention. For one strip of the inputs and one segment, tile after tile of the outputs: the tile of
the transposed gradient is accumulated over the segment's tokens in registers, multiplied by the correction, and
contracted with the left signs. `finish_kernel` contracts what is left with the right signs. There are no atomics, sums
have a fixed order, and how the outputs are split over programs depends on the layer alone: so a row has the same bits
every time, whatever its segment is packed with.

Not yet run on a GPU: tested in Triton's interpreter and compiled for each architecture (`compile_check`).

Shapes: T tokens, O outputs, I inputs, B segments, kO x kI the projected gradient (both padded to powers of two of at
least 16 here); S, P and Q are tiles of tokens, inputs and outputs, R is a tile of kO.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_common import PARTS, chunks, pad_side, sign_dot


@dataclass(frozen=True, slots=True)
class FullConfig:
    """How the fused kernel is tiled."""

    inputs: int = 128
    outputs: int = 128
    tokens: int = 64
    stages: int = 3
    warps: int = 8
    descriptors: bool = False
    """Tensor descriptors (TMA): bound at the segment's last row, so the hardware fills in the zeros."""


OUTPUTS_PER_PROGRAM = 1024
MOST_SPLITS = 4
HALF_BYTES = 1 << 28
"""Of the halves in memory at once: with a segment for each token all of them would be tens of gigabytes."""
GROUP = 16
"""Segments that go through the correction together: it is read from memory once for all of them, and the output
gradients of so many passages of a hundred tokens, which they share with the next strips, stay in the second cache."""
FINISH = {"INPUTS": 64, "num_warps": 2, "num_stages": 2}


def choose_config(arch: str, dtype: torch.dtype, side: int, descriptors: bool) -> FullConfig:
    """The tiling for an architecture ("sm_90", "gfx942", ...), an input type and a padded left side.

    Chosen by compiling (`compile_check`): no stack and no spills anywhere, and at sm_90 and sm_100 two programs or more
    on each multiprocessor with descriptors. Nothing is tuned at run time.
    """
    if dtype == torch.float32:
        return FullConfig(64, 32 if arch.startswith(("sm_8", "sm_12")) else 64, 32, stages=2, warps=4)
    if descriptors:
        if side > 32:
            narrow = arch.startswith("sm_12") and dtype == torch.float16
            return FullConfig(64, 64 if narrow else 128, 64, stages=3, warps=4, descriptors=True)
        # Blackwell's sums lie in memory of the tensor cores; for the rest bf16 needs few threads with many registers.
        few = arch.startswith("sm_10") and dtype == torch.bfloat16
        return FullConfig(warps=4 if few else 8, descriptors=True)
    # Products in several parts (float16) keep more alive at once.
    outputs = 64 if dtype == torch.float16 else 128
    if arch == "sm_90":
        return FullConfig(outputs=outputs)
    return FullConfig(outputs=outputs, tokens=32, stages=2)


@triton.jit
def full_kernel(
    delta_ptr,
    a_ptr,
    bounds_ptr,
    left_ptr,
    w_IO_ptr,
    half_ptr,
    tokens,
    delta_stride,
    a_stride,
    outputs,
    inputs,
    segments,
    group,
    outputs_per_program,
    kO: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TOKENS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Halves [O splits, B, I, kO] float32: (a^T delta * w^T) left, over the outputs of each split."""
    # The segments of a group run side by side on one strip, then on the next: what one of them reads of the correction
    # the others find in the second cache. A place behind the last segment makes that one once more, the same bits: to
    # return there would cost registers. The third axis ends at 65,535 groups.
    segment = tl.minimum(tl.program_id(2) * group + tl.program_id(0) % group, segments - 1)
    input_first = tl.program_id(0) // group * INPUTS
    split = tl.program_id(1)
    first = tl.load(bounds_ptr + segment)
    length = tl.minimum(tl.load(bounds_ptr + segment + 1), tokens) - first
    delta_ptr += first.to(tl.int64) * delta_stride
    a_ptr += first.to(tl.int64) * a_stride
    input_P = input_first + tl.arange(0, INPUTS)
    side_k = tl.arange(0, kO)
    if DESCRIPTORS:
        # A descriptor needs at least one row; an empty segment makes no turn of the token loop.
        rows = tl.maximum(length, 1)
        delta_tiles = tl.make_tensor_descriptor(delta_ptr, [rows, outputs], [delta_stride, 1], [TOKENS, OUTPUTS])
        a_tiles = tl.make_tensor_descriptor(a_ptr, [rows, inputs], [a_stride, 1], [TOKENS, INPUTS])
        w_tiles = tl.make_tensor_descriptor(w_IO_ptr, [inputs, outputs], [outputs, 1], [INPUTS, OUTPUTS])
        left_tiles = tl.make_tensor_descriptor(left_ptr, [outputs, kO], [kO, 1], [OUTPUTS, kO])

    half_Pk = tl.zeros([INPUTS, kO], tl.float32)
    output_last = tl.minimum((split + 1) * outputs_per_program, outputs)
    for output_first in range(split * outputs_per_program, output_last, OUTPUTS):
        output_Q = output_first + tl.arange(0, OUTPUTS)
        gradient_PQ = tl.zeros([INPUTS, OUTPUTS], tl.float32)
        for token_first in range(0, length, TOKENS):
            if DESCRIPTORS:
                a_SP = a_tiles.load([token_first, input_first])
                delta_SQ = delta_tiles.load([token_first, output_first])
            else:
                token_S = token_first + tl.arange(0, TOKENS)
                row_S = token_S.to(tl.int64)[:, None]
                inside_S = (token_S < length)[:, None]
                a_SP = tl.load(
                    a_ptr + row_S * a_stride + input_P[None, :],
                    mask=inside_S & (input_P < inputs)[None, :],
                    other=0.0,
                )
                delta_SQ = tl.load(
                    delta_ptr + row_S * delta_stride + output_Q[None, :],
                    mask=inside_S & (output_Q < outputs)[None, :],
                    other=0.0,
                )
            gradient_PQ = tl.dot(tl.trans(a_SP), delta_SQ, gradient_PQ, input_precision=PRECISION)
        if DESCRIPTORS:
            w_PQ = w_tiles.load([input_first, output_first])
            left_Qk = left_tiles.load([output_first, 0])
        else:
            inside_Q = output_Q < outputs
            w_PQ = tl.load(
                w_IO_ptr + input_P.to(tl.int64)[:, None] * outputs + output_Q[None, :],
                mask=(input_P < inputs)[:, None] & inside_Q[None, :],
                other=0.0,
            )
            left_Qk = tl.load(left_ptr + output_Q[:, None] * kO + side_k[None, :], mask=inside_Q[:, None], other=0.0)
        half_Pk = sign_dot(gradient_PQ * w_PQ.to(tl.float32), left_Qk, half_Pk, PARTS)

    row_P = (split * segments + segment).to(tl.int64) * inputs + input_P
    tl.store(half_ptr + row_P[:, None] * kO + side_k[None, :], half_Pk, mask=(input_P < inputs)[:, None])


@triton.jit
def finish_kernel(
    half_ptr,
    right_ptr,
    row_ptr,
    splits,
    segments,
    inputs,
    kO: tl.constexpr,
    kI: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Rows [B, kO, kI] float32: the sum of the halves, transposed, times the right signs."""
    segment = tl.program_id(0)
    side_R = tl.program_id(1) * 16 + tl.arange(0, 16)
    side_I = tl.arange(0, kI)
    row_RI = tl.zeros([16, kI], tl.float32)
    for input_first in range(0, inputs, INPUTS):
        input_P = input_first + tl.arange(0, INPUTS)
        inside_P = input_P < inputs
        half_RP = tl.zeros([16, INPUTS], tl.float32)
        for split in range(splits):
            place_P = (split * segments + segment).to(tl.int64) * inputs + input_P
            half_RP += tl.load(half_ptr + place_P[None, :] * kO + side_R[:, None], mask=inside_P[None, :], other=0.0)
        right_PI = tl.load(right_ptr + input_P[:, None] * kI + side_I[None, :], mask=inside_P[:, None], other=0.0)
        row_RI = sign_dot(half_RP, right_PI, row_RI, 3)
    tl.store(row_ptr + segment.to(tl.int64) * kO * kI + side_R[:, None] * kI + side_I[None, :], row_RI)


class FullLayer:
    """One layer's factors as the kernels read them: w in the type of the inputs for bf16, else in float32."""

    def __init__(self, left_Ok: Tensor, right_Ik: Tensor, w_OI: Tensor, dtype: torch.dtype) -> None:
        self.sides = left_Ok.shape[1], right_Ik.shape[1]
        self.lefts_Ok = [pad_side(piece.bfloat16()) for piece in chunks(left_Ok)]
        self.rights_Ik = [pad_side(piece.bfloat16()) for piece in chunks(right_Ik)]
        self.w_IO = w_OI.T.to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32).contiguous()
        self.parts = PARTS[dtype]

    def aligned(self, delta_TO: Tensor, a_TI: Tensor) -> bool:
        """Whether tensor descriptors can address all operands: 16-byte aligned bases and rows."""
        operands = (delta_TO, a_TI, self.w_IO, *self.lefts_Ok)
        return all(x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0 for x in operands)

    def rows(
        self, delta_TO: Tensor, a_TI: Tensor, bounds_B: Tensor, config: FullConfig, precision: str = "tf32x3"
    ) -> Tensor:
        """[B, kO, kI] float32.

        Args:
            delta_TO, a_TI: [T, O] and [T, I], with rows that are contiguous.
            bounds_B: int32 [B + 1] on the device; trusted to rise, and cut at T.
            config: how to tile.
            precision: of products of float32 with float32 ("tf32x3" on NVIDIA, "ieee" on AMD).
        """
        if config.descriptors and a_TI.is_cuda:
            allocate_descriptors(a_TI.device)
        inputs, outputs = self.w_IO.shape
        splits = triton.cdiv(outputs, outputs_per_program(outputs, config))
        pieces = []
        for left_Ok in self.lefts_Ok:
            # A multiple of 4, so that each block's bounds begin at an address of the same alignment.
            block = max(HALF_BYTES // (4 * splits * inputs * left_Ok.shape[1]) // 4 * 4, 4)
            blocks = []
            for start in range(0, len(bounds_B) - 1, block):
                half = self._half(delta_TO, a_TI, bounds_B[start : start + block + 1], left_Ok, config, precision)
                blocks.append(torch.cat([self._finish(half, right_Ik) for right_Ik in self.rights_Ik], 2))
            pieces.append(torch.cat(blocks) if blocks else self._no_rows(left_Ok))
        kO, kI = self.sides
        return torch.cat(pieces, 1)[:, :kO, :kI]

    def _no_rows(self, left_Ok: Tensor) -> Tensor:
        width = sum(right_Ik.shape[1] for right_Ik in self.rights_Ik)
        return left_Ok.new_empty(0, left_Ok.shape[1], width, dtype=torch.float32)

    def _half(
        self,
        delta_TO: Tensor,
        a_TI: Tensor,
        bounds_B: Tensor,
        left_Ok: Tensor,
        config: FullConfig,
        precision: str,
    ) -> Tensor:
        """What `full_kernel` makes of some segments: [splits, B, I, kO] float32."""
        segments, (inputs, outputs) = len(bounds_B) - 1, self.w_IO.shape
        per_program = outputs_per_program(outputs, config)
        splits, kO = triton.cdiv(outputs, per_program), left_Ok.shape[1]
        groups = triton.cdiv(segments, GROUP)
        group = triton.cdiv(segments, groups)  # as even as they can be: the last has few places to spare
        half = a_TI.new_empty(splits, segments, inputs, kO, dtype=torch.float32)
        full_kernel[(triton.cdiv(inputs, config.inputs) * group, splits, groups)](
            delta_TO,
            a_TI,
            bounds_B,
            left_Ok,
            self.w_IO,
            half,
            a_TI.shape[0],
            delta_TO.stride(0),
            a_TI.stride(0),
            outputs,
            inputs,
            segments,
            group,
            per_program,
            kO=kO,
            INPUTS=config.inputs,
            OUTPUTS=config.outputs,
            TOKENS=config.tokens,
            DESCRIPTORS=config.descriptors,
            PRECISION=precision,
            PARTS=self.parts,
            num_warps=config.warps,
            num_stages=config.stages,
        )
        return half

    @staticmethod
    def _finish(half: Tensor, right_Ik: Tensor) -> Tensor:
        splits, segments, inputs, kO = half.shape
        kI = right_Ik.shape[1]
        rows_Bkk = half.new_empty(segments, kO, kI)
        finish_kernel[(segments, kO // 16)](half, right_Ik, rows_Bkk, splits, segments, inputs, kO=kO, kI=kI, **FINISH)
        return rows_Bkk


def outputs_per_program(outputs: int, config: FullConfig) -> int:
    """How many outputs one program goes through: by the layer alone, so that a row has the same bits in any company."""
    return max(OUTPUTS_PER_PROGRAM, -(-outputs // (MOST_SPLITS * config.outputs)) * config.outputs)


def allocate_descriptors(device: torch.device) -> None:
    """Lets the kernels that this thread launches make descriptors: they do so in memory that Triton asks for at each
    launch, of a function that is known to one thread alone."""
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, device=device, dtype=torch.int8))
