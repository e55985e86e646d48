"""The code of the thin products: generated as LLVM IR and compiled by llvmlite when it is first needed.

Compiling takes a tenth of a second for each width of a tile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from llvmlite import binding, ir

LANES = 16
"""Columns in one vector: float32 in 512 bits. LLVM splits it where registers are narrower."""
CHUNK = 256
"""Steps summed in one register before they are added to the total, which keeps rounding errors small."""
UNROLL = 8
"""Steps without a jump."""
ENTRY = 4
"""Bytes of what a step multiplies: one float32 or two bf16."""

_INT, _INT32, _POINTER, _FLOAT = ir.IntType(64), ir.IntType(32), ir.PointerType(), ir.FloatType()
_SUMS = ir.VectorType(_FLOAT, LANES)
_Carried = list[ir.Value]


def has(feature: str) -> bool:
    """Whether this CPU has a feature, by LLVM's name."""
    return bool(binding.get_host_cpu_features().get(feature))


@cache
def tile() -> tuple[int, int]:
    """Rows and columns whose sums fit into the registers: 32 of 512 bits, or 16 of 256."""
    return (8, 2 * LANES) if has("avx512f") else (4, LANES)


class Compiled:
    """The two products for tiles of one width and inputs of one type."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        parsed = binding.parse_assembly(generate(width, dtype))
        parsed.verify()
        # LLVM's optimiser would find nothing more to do, and take longer than all the rest.
        self._engine = binding.create_mcjit_compiler(parsed, _target())  # owns the code
        self._engine.finalize_object()
        self.product = self._function("product", 9)
        self.segments = self._function("segments", 9)

    def _function(self, name: str, arguments: int) -> Callable[..., None]:
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)
        return kind(self._engine.get_function_address(name))


compiled = cache(Compiled)


def generate(width: int, dtype: torch.dtype) -> str:
    """LLVM IR of the two products."""
    module = ir.Module("headwater-thin")
    product = _emit_product(module, width // LANES, _Bf16Pairs if dtype == torch.bfloat16 else _Float32)
    _emit_segments(module, product)
    return str(module)


def _target() -> binding.TargetMachine:
    """This CPU, for one compilation, which takes it over."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    # Where compilers avoid the widest registers to keep the clock up, these products still gain from them.
    features = binding.get_host_cpu_features().flatten() + ",-prefer-256-bit" * has("avx512f")
    return target.create_target_machine(binding.get_host_cpu_name(), features, opt=3)


def _at(build: ir.IRBuilder, base: ir.Value, distance: ir.Value) -> ir.Value:
    """The address that many bytes from a base."""
    return build.gep(base, [distance], source_etype=ir.IntType(8))


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


class _Float32:
    """A step of float32: one entry of x times a row of the factor."""

    entry, operand = _FLOAT, _SUMS

    def __init__(self, module: ir.Module) -> None:
        self.fma = ir.Function(module, ir.FunctionType(_SUMS, [_SUMS] * 3), f"llvm.fma.v{LANES}f32")

    def add(self, build: ir.IRBuilder, spread: ir.Value, factor: ir.Value, sums: ir.Value) -> ir.Value:
        return build.call(self.fma, [spread, factor, sums])


class _Bf16Pairs:
    """A step of bf16: two entries of x times two rows of the factor, whose columns lie in pairs."""

    class _Bfloat(ir.Type):
        def _to_string(self) -> str:
            return "bfloat"

    entry, operand = ir.IntType(32), ir.VectorType(_Bfloat(), 2 * LANES)

    def __init__(self, module: ir.Module) -> None:
        kind = ir.FunctionType(_SUMS, [_SUMS, self.operand, self.operand])
        self.dot = ir.Function(module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")

    def add(self, build: ir.IRBuilder, spread: ir.Value, factor: ir.Value, sums: ir.Value) -> ir.Value:
        return build.call(self.dot, [sums, build.bitcast(spread, self.operand), factor])


def _emit_product(module: ir.Module, vectors: int, numbers: type[_Float32] | type[_Bf16Pairs]) -> ir.Function:
    """product(x, x_row, x_step, f, f_step, out, out_row, rows, steps): columns c of these many vectors of

    out[r, c] = sum over steps s of x[r, s] * f[s, c]

    with the distances of rows and steps in bytes.
    """
    signature = [_POINTER, _INT, _INT, _POINTER, _INT, _POINTER, _INT, _INT, _INT]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), "product")
    x, x_row, x_step, f, f_step, out, out_row, rows, steps = function.args
    build = ir.IRBuilder(function.append_basic_block())
    multiply = numbers(module)
    prefetch_type = ir.FunctionType(ir.VoidType(), [_POINTER, *[_INT32] * 3])
    prefetch = ir.Function(module, prefetch_type, "llvm.prefetch.p0")
    zero = ir.Constant(_SUMS, [0.0] * LANES)
    everywhere = ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES)
    empty = ir.Constant(ir.VectorType(numbers.entry, LANES), ir.Undefined)

    def column(base: ir.Value, number: int) -> ir.Value:
        return _at(build, base, _INT(number * LANES * ENTRY))

    def one_step(lines: list[ir.Value], step: ir.Value, sums: _Carried) -> _Carried:
        columns = _at(build, f, build.mul(step, f_step))
        factors = [build.load(column(columns, v), align=ENTRY, typ=numbers.operand) for v in range(vectors)]
        results = []
        for r, line in enumerate(lines):
            entry = build.load(_at(build, line, build.mul(step, x_step)), align=2, typ=numbers.entry)
            spread = build.shuffle_vector(build.insert_element(empty, entry, _INT32(0)), empty, everywhere)
            results += [multiply.add(build, spread, factors[v], sums[r * vectors + v]) for v in range(vectors)]
        return results

    def block(count: int) -> Callable[[ir.Value, _Carried], _Carried]:
        """`count` rows from one on."""

        def rows_from(first: ir.Value, _: _Carried) -> _Carried:
            lines = [_at(build, x, build.mul(build.add(first, _INT(r)), x_row)) for r in range(count)]
            below = build.mul(x_row, _INT(count))
            zeros = [zero] * (count * vectors)

            def unrolled(step: ir.Value, sums: _Carried) -> _Carried:
                for line in lines:
                    ahead = _at(build, line, build.add(build.mul(step, x_step), below))
                    build.call(prefetch, [ahead, *map(_INT32, (0, 2, 1))])  # to read, to the second cache
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
                target = _at(build, out, build.mul(build.add(first, _INT(r)), out_row))
                for v in range(vectors):
                    build.store(totals[r * vectors + v], column(target, v), align=ENTRY)
            return []

        return rows_from

    together, _ = tile()
    whole = build.and_(rows, _INT(-together))
    _loop(build, _INT(0), whole, together, [], block(together))
    _loop(build, whole, rows, 1, [], block(1))
    build.ret_void()
    return function


def _emit_segments(module: ir.Module, product: ir.Function) -> None:
    """segments(y, y_row, z, z_row, bounds, count, out, kO, out_row): y_b^T z_b of every segment, one after another."""
    signature = [_POINTER, _INT, _POINTER, _INT, _POINTER, _INT, _POINTER, _INT, _INT]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), "segments")
    y, y_row, z, z_row, bounds, count, out, kO, out_row = function.args
    build = ir.IRBuilder(function.append_basic_block())

    def segment(b: ir.Value, _: _Carried) -> _Carried:
        bound = _at(build, bounds, build.mul(b, _INT(8)))
        start, stop = (build.load(_at(build, bound, _INT(8 * i)), typ=_INT) for i in (0, 1))
        target = _at(build, out, build.mul(b, build.mul(kO, out_row)))
        y_b, z_b = (_at(build, base, build.mul(start, row)) for base, row in ((y, y_row), (z, z_row)))
        build.call(product, [y_b, _INT(ENTRY), y_row, z_b, z_row, target, out_row, kO, build.sub(stop, start)])
        return []

    _loop(build, _INT(0), count, 1, [], segment)
    build.ret_void()
