"""Products with a thin side, compiled for this machine's CPU.

Projections and segment products have a result that is 16 to 64 wide. BLAS libraries are made for wide ones: their
packing costs more than such a product, and rows of a power of two lie where they push each other out of the first
cache. Here the sums of a tile of a few rows and columns stay in registers while both operands stream by once, and the
next rows are fetched in the meantime. The code is generated as LLVM IR and compiled by llvmlite when it is first
needed, which takes a tenth of a second.

Every entry of a result is summed by itself, over steps 0, 1, 2, ... in chunks of `CHUNK`: its bits depend on its own
row and column alone, not on what is computed beside it nor on the number of threads.

Shapes: T tokens, K summed entries, k columns, B segments, kO x kI the projected gradient.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from llvmlite import binding, ir
from torch import Tensor

LANES = 16
"""Columns in one vector: float32 in 512 bits. LLVM splits it where registers are narrower."""
CHUNK = 256
"""Steps summed in one register before they are added to the total, which keeps rounding errors small."""
UNROLL = 8
"""Steps without a jump."""
THREAD_WORK = 1 << 21
"""Least multiplications that are worth a thread."""

_INT, _POINTER, _FLOAT = ir.IntType(64), ir.PointerType(), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_Carried = list[ir.Value]


def product(x_TK: Tensor, factor_Kk: Tensor, out_Tk: Tensor | None = None) -> Tensor:
    """x factor, [T, k] float32, from float32; factor and out are contiguous and k is a multiple of `LANES`."""
    (tokens, steps), columns = x_TK.shape, factor_Kk.shape[1]
    x_TK = x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()
    result_Tk = torch.empty(tokens, columns) if out_Tk is None else out_Tk
    for first, width in _pieces(columns):
        run = _compiled(width).product

        def rows(start: int, stop: int, first: int = first, run: Callable[..., None] = run) -> None:
            out = _address(result_Tk, start * columns + first)
            x = _address(x_TK, start * x_TK.stride(0))
            run(x, x_TK.stride(0), 1, _address(factor_Kk, first), columns, out, columns, stop - start, steps)

        _share_out(tokens, steps * width, rows)
    return result_Tk


def segment_products(y_Tk: Tensor, z_Tk: Tensor, bounds: list[int]) -> Tensor:
    """[B, kO, kI] float32: y_b^T z_b for the segments between bounds; kI is a multiple of `LANES`."""
    segments, kO, kI = len(bounds) - 1, y_Tk.shape[1], z_Tk.shape[1]
    rows_Bkk = torch.empty(segments, kO, kI)
    starts = torch.tensor(bounds)
    tokens = (bounds[-1] - bounds[0]) // max(1, segments)
    for first, width in _pieces(kI):
        run = _compiled(width).segments

        def some(start: int, stop: int, first: int = first, run: Callable[..., None] = run) -> None:
            out = _address(rows_Bkk, start * kO * kI + first)
            y, z = y_Tk.data_ptr(), _address(z_Tk, first)
            where = starts.data_ptr() + start * starts.element_size()
            run(y, y_Tk.stride(0), z, z_Tk.stride(0), where, stop - start, out, kO, kI)

        _share_out(segments, tokens * kO * width, some)
    return rows_Bkk


def _address(tensor: Tensor, offset: int) -> int:
    return tensor.data_ptr() + offset * tensor.element_size()


def _pieces(columns: int) -> list[tuple[int, int]]:
    """First column and width of each tile."""
    _, widest = _tile()
    return [(first, min(widest, columns - first)) for first in range(0, columns, widest)]


def _share_out(count: int, work: int, run: Callable[[int, int], None]) -> None:
    """Calls run(start, stop) for parts of 0..count, each of `work` multiplications, in threads if that pays."""
    threads = min(torch.get_num_threads(), max(1, count * work // THREAD_WORK))
    if threads == 1:
        run(0, count)
        return
    share = -(-count // threads)
    others = [_threads().submit(run, start, min(start + share, count)) for start in range(share, count, share)]
    run(0, min(share, count))
    for other in others:
        other.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "headwater-thin")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads


def _target() -> binding.TargetMachine:
    """This CPU, for one compilation, which takes it over."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    # Where compilers avoid the widest registers to keep the clock up, these products still gain from them.
    features = binding.get_host_cpu_features().flatten() + ",-prefer-256-bit" * _has("avx512f")
    return target.create_target_machine(binding.get_host_cpu_name(), features, opt=3)


def _has(feature: str) -> bool:
    return bool(binding.get_host_cpu_features().get(feature))


@cache
def _tile() -> tuple[int, int]:
    """Rows and columns whose sums fit into the registers: 32 of 512 bits, or 16 of 256."""
    return (8, 2 * LANES) if _has("avx512f") else (4, LANES)


class _Compiled:
    """The two products for tiles of one width."""

    def __init__(self, width: int) -> None:
        module = ir.Module(f"headwater-thin-{width}")
        product = _emit_product(module, width // LANES)
        _emit_segments(module, product)
        parsed = binding.parse_assembly(str(module))
        parsed.verify()
        # LLVM's optimiser would find nothing more to do, and take longer than all the rest.
        self._engine = binding.create_mcjit_compiler(parsed, _target())  # owns the code
        self._engine.finalize_object()
        self.product = self._function("product", 9)
        self.segments = self._function("segments", 9)

    def _function(self, name: str, arguments: int) -> Callable[..., None]:
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)
        return kind(self._engine.get_function_address(name))


_compiled = cache(_Compiled)


def _loop(
    build: ir.IRBuilder,
    start: ir.Value,
    stop: ir.Value,
    step: int,
    carried: _Carried,
    body: Callable[[ir.Value, _Carried], _Carried],
) -> _Carried:
    """for (i = start; i < stop; i += step) carried = body(i, carried); returns what is carried at the end."""
    before = build.block
    head, inside, after = (build.append_basic_block(name) for name in ("head", "body", "after"))
    build.branch(head)
    build.position_at_end(head)
    index = build.phi(_INT)
    values = [build.phi(value.type) for value in carried]
    build.cbranch(build.icmp_signed("<", index, stop), inside, after)
    build.position_at_end(inside)
    results = body(index, values)
    following = build.add(index, _INT(step))
    last = build.block
    build.branch(head)
    for phi, first, then in zip([index, *values], [start, *carried], [following, *results], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(then, last)
    build.position_at_end(after)
    return values


def _emit_product(module: ir.Module, vectors: int) -> ir.Function:
    """product(x, x_row, x_step, f, f_step, out, out_row, rows, steps): columns c of these many vectors of

    out[r * out_row + c] = sum over s of x[r * x_row + s * x_step] * f[s * f_step + c]
    """
    signature = [_POINTER, _INT, _INT, _POINTER, _INT, _POINTER, _INT, _INT, _INT]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), "product")
    x, x_row, x_step, f, f_step, out, out_row, rows, steps = function.args
    build = ir.IRBuilder(function.append_basic_block())
    prefetch_type = ir.FunctionType(ir.VoidType(), [_POINTER, *[ir.IntType(32)] * 3])
    prefetch = ir.Function(module, prefetch_type, "llvm.prefetch.p0")
    fma = ir.Function(module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{LANES}f32")
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    empty = ir.Constant(_VECTOR, ir.Undefined)

    def at(base: ir.Value, offset: ir.Value) -> ir.Value:
        return build.gep(base, [offset], source_etype=_FLOAT)

    def aligned_load(address: ir.Value, kind: ir.Type) -> ir.Value:
        return build.load(address, align=4, typ=kind)

    def one_step(lines: list[ir.Value], step: ir.Value, sums: _Carried) -> _Carried:
        columns = at(f, build.mul(step, f_step))
        factors = [aligned_load(at(columns, _INT(v * LANES)), _VECTOR) for v in range(vectors)]
        results = []
        for r, line in enumerate(lines):
            entry = aligned_load(at(line, build.mul(step, x_step)), _FLOAT)
            single = build.insert_element(empty, entry, ir.IntType(32)(0))
            spread = build.shuffle_vector(single, empty, everywhere)
            results += [build.call(fma, [spread, factors[v], sums[r * vectors + v]]) for v in range(vectors)]
        return results

    def block(count: int) -> Callable[[ir.Value, _Carried], _Carried]:
        """`count` rows from one on."""

        def rows_from(first: ir.Value, _: _Carried) -> _Carried:
            lines = [at(x, build.mul(build.add(first, _INT(r)), x_row)) for r in range(count)]
            below = build.mul(x_row, _INT(count))
            zeros = [zero] * (count * vectors)

            def unrolled(step: ir.Value, sums: _Carried) -> _Carried:
                for line in lines:
                    ahead = at(line, build.add(build.mul(step, x_step), below))
                    build.call(prefetch, [ahead, *map(ir.IntType(32), (0, 2, 1))])  # to read, to the second cache
                for u in range(UNROLL):
                    sums = one_step(lines, build.add(step, _INT(u)), sums)
                return sums

            def chunk(start: ir.Value, totals: _Carried) -> _Carried:
                stop = build.add(start, _INT(CHUNK))
                stop = build.select(build.icmp_signed("<", stop, steps), stop, steps)
                whole = build.add(start, build.and_(build.sub(stop, start), _INT(-UNROLL)))
                sums = _loop(build, start, whole, UNROLL, zeros, unrolled)
                sums = _loop(build, whole, stop, 1, sums, lambda step, sums: one_step(lines, step, sums))
                return [build.fadd(total, sum) for total, sum in zip(totals, sums, strict=True)]

            totals = _loop(build, _INT(0), steps, CHUNK, zeros, chunk)
            for r in range(count):
                target = at(out, build.mul(build.add(first, _INT(r)), out_row))
                for v in range(vectors):
                    build.store(totals[r * vectors + v], at(target, _INT(v * LANES)), align=4)
            return []

        return rows_from

    together, _ = _tile()
    whole = build.and_(rows, _INT(-together))
    _loop(build, _INT(0), whole, together, [], block(together))
    _loop(build, whole, rows, 1, [], block(1))
    build.ret_void()
    return function


def _emit_segments(module: ir.Module, product: ir.Function) -> None:
    """segments(y, y_row, z, z_row, bounds, count, out, kO, kI): y_b^T z_b of each segment, one behind the other."""
    signature = [_POINTER, _INT, _POINTER, _INT, _POINTER, _INT, _POINTER, _INT, _INT]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), "segments")
    y, y_row, z, z_row, bounds, count, out, kO, kI = function.args
    build = ir.IRBuilder(function.append_basic_block())

    def segment(b: ir.Value, _: _Carried) -> _Carried:
        start, stop = (
            build.load(build.gep(bounds, [build.add(b, _INT(i))], source_etype=_INT), typ=_INT) for i in (0, 1)
        )
        tokens_y, tokens_z = (
            build.gep(base, [build.mul(start, row)], source_etype=_FLOAT) for base, row in ((y, y_row), (z, z_row))
        )
        target = build.gep(out, [build.mul(b, build.mul(kO, kI))], source_etype=_FLOAT)
        build.call(product, [tokens_y, _INT(1), y_row, tokens_z, z_row, target, kI, kO, build.sub(stop, start)])
        return []

    _loop(build, _INT(0), count, 1, [], segment)
    build.ret_void()
