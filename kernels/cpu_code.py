"""The code of the products on a CPU: generated as LLVM IR and compiled by llvmlite when it is first needed.

Compiling a function takes about a tenth of a second.
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


def generate(name: str, width: int, dtype: torch.dtype) -> str:
    """LLVM IR of a function: `product`, `segments` or `gradient`."""
    module = ir.Module(name)
    numbers = _Bf16Pairs if dtype == torch.bfloat16 else _Float32
    if name == "gradient":
        _emit_gradient(module, width // LANES, numbers)
    else:
        product = _emit_product(module, width // LANES, numbers)
        if name == "segments":
            _emit_segments(module, product)
    return str(module)


@cache
def compiled(name: str, width: int, dtype: torch.dtype) -> Callable[..., None]:
    """A function for tiles of one width and inputs of one type; it takes addresses and numbers: see _emit_..."""
    address, arguments = execute(generate(name, width, dtype), name)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)(address)


def execute(source: str, name: str) -> tuple[int, int]:
    """Compiles LLVM IR for this CPU; returns the address of a function of it, and how many arguments it takes."""
    module = binding.parse_assembly(source)
    module.verify()
    # LLVM's optimiser would find nothing more to do, and take longer than all the rest.
    engine = binding.create_mcjit_compiler(module, _target())
    engine.finalize_object()
    _engines.append(engine)
    return engine.get_function_address(name), len(list(module.get_function(name).arguments))


_engines: list[binding.ExecutionEngine] = []
"""They own the code."""


def _target() -> binding.TargetMachine:
    """This CPU, for one compilation, which takes it over."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    # Where compilers avoid the widest registers to keep the clock up, these products still gain from them.
    features = binding.get_host_cpu_features().flatten() + ",-prefer-256-bit" * has("avx512f")
    return target.create_target_machine(binding.get_host_cpu_name(), features, opt=3)


def at(build: ir.IRBuilder, base: ir.Value, distance: ir.Value) -> ir.Value:
    """The address that many bytes from a base."""
    return build.gep(base, [distance], source_etype=ir.IntType(8))


def loop(
    build: ir.IRBuilder,
    start: ir.Value,
    stop: ir.Value,
    step: int | ir.Value,
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
    following = build.add(index, _INT(step) if isinstance(step, int) else step)
    last = build.block
    build.branch(head)
    for phi, first, then in zip([index, *values], [start, *carried], [following, *results], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(then, last)
    build.position_at_end(after)
    return values


def declare(module: ir.Module, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)


class _Float32:
    """A step of float32: one entry of x times a row of the factor."""

    entry, operand, number, per_step = _FLOAT, _SUMS, _FLOAT, 1

    def __init__(self, module: ir.Module) -> None:
        self.fma = declare(module, f"llvm.fma.v{LANES}f32", _SUMS, [_SUMS] * 3)

    def add(self, build: ir.IRBuilder, spread: ir.Value, factor: ir.Value, sums: ir.Value) -> ir.Value:
        return build.call(self.fma, [spread, factor, sums])


class _Bf16Pairs:
    """A step of bf16: two entries of x times two rows of the factor, whose columns lie in pairs."""

    class _Bfloat(ir.Type):
        def _to_string(self) -> str:
            return "bfloat"

    entry, operand, number, per_step = _INT32, ir.VectorType(_Bfloat(), 2 * LANES), ir.IntType(16), 2

    def __init__(self, module: ir.Module) -> None:
        self.dot = declare(module, "llvm.x86.avx512bf16.dpbf16ps.512", _SUMS, [_SUMS, self.operand, self.operand])

    def add(self, build: ir.IRBuilder, spread: ir.Value, factor: ir.Value, sums: ir.Value) -> ir.Value:
        return build.call(self.dot, [sums, build.bitcast(spread, self.operand), factor])


class _Tile:
    """Sums of some rows and vectors of columns, in registers: the inner part of every product."""

    def __init__(self, build: ir.IRBuilder, numbers: type[_Float32] | type[_Bf16Pairs], vectors: int) -> None:
        self.build, self.vectors = build, vectors
        self.numbers = numbers(build.module)
        self.prefetch = declare(build.module, "llvm.prefetch.p0", ir.VoidType(), [_POINTER, *[_INT32] * 3])
        self.zero = ir.Constant(_SUMS, [0.0] * LANES)
        self.everywhere = ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES)
        self.empty = ir.Constant(ir.VectorType(numbers.entry, LANES), ir.Undefined)

    def column(self, base: ir.Value, number: int) -> ir.Value:
        return at(self.build, base, _INT(number * LANES * ENTRY))

    def sums(
        self,
        lines: list[ir.Value],
        x_step: ir.Value,
        f: ir.Value,
        f_step: ir.Value,
        steps: ir.Value,
        below: ir.Value | None = None,
    ) -> _Carried:
        """Sums over steps s of line[s] f[s, c], line by line; what lies `below` each line is fetched meanwhile."""
        build = self.build
        zeros = [self.zero] * (len(lines) * self.vectors)

        def one(step: ir.Value, sums: _Carried) -> _Carried:
            columns = at(build, f, build.mul(step, f_step))
            operand = self.numbers.operand
            factors = [build.load(self.column(columns, v), align=ENTRY, typ=operand) for v in range(self.vectors)]
            results: _Carried = []
            for line in lines:
                entry = build.load(at(build, line, build.mul(step, x_step)), align=2, typ=self.numbers.entry)
                single = build.insert_element(self.empty, entry, _INT32(0))
                spread = build.shuffle_vector(single, self.empty, self.everywhere)
                results += [
                    self.numbers.add(build, spread, factor, sums[len(results) + v]) for v, factor in enumerate(factors)
                ]
            return results

        def unrolled(step: ir.Value, sums: _Carried) -> _Carried:
            for line in lines if below is not None else ():
                ahead = at(build, line, build.add(build.mul(step, x_step), below))
                build.call(self.prefetch, [ahead, *map(_INT32, (0, 2, 1))])  # to read, to the second cache
            for u in range(UNROLL):
                sums = one(build.add(step, _INT(u)), sums)
            return sums

        def chunk(start: ir.Value, totals: _Carried) -> _Carried:
            stop = build.add(start, _INT(CHUNK))
            stop = build.select(build.icmp_signed("<", stop, steps), stop, steps)
            whole = build.add(start, build.and_(build.sub(stop, start), _INT(-UNROLL)))
            sums = loop(build, start, whole, UNROLL, zeros, unrolled)
            sums = loop(build, whole, stop, 1, sums, one)
            return [build.fadd(total, sum) for total, sum in zip(totals, sums, strict=True)]

        return loop(build, _INT(0), steps, CHUNK, zeros, chunk)


def _blocks(build: ir.IRBuilder, rows: ir.Value, block: Callable[[ir.Value, int], None]) -> None:
    """block(first, count) for all rows: as many at a time as the registers hold, then those left over."""

    def body(count: int) -> Callable[[ir.Value, _Carried], _Carried]:
        def rows_from(first: ir.Value, _: _Carried) -> _Carried:
            block(first, count)
            return []

        return rows_from

    together, _ = tile()
    whole = build.and_(rows, _INT(-together))
    loop(build, _INT(0), whole, together, [], body(together))
    loop(build, whole, rows, 1, [], body(1))


def _emit_product(module: ir.Module, vectors: int, numbers: type[_Float32] | type[_Bf16Pairs]) -> ir.Function:
    """product(x, x_row, x_step, f, f_step, out, out_row, rows, steps): columns c of these many vectors of

    out[r, c] = sum over steps s of x[r, s] * f[s, c]

    with the distances of rows and steps in bytes.
    """
    signature = [_POINTER, _INT, _INT, _POINTER, _INT, _POINTER, _INT, _INT, _INT]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), "product")
    x, x_row, x_step, f, f_step, out, out_row, rows, steps = function.args
    build = ir.IRBuilder(function.append_basic_block())
    inner = _Tile(build, numbers, vectors)

    def block(first: ir.Value, count: int) -> None:
        lines = [at(build, x, build.mul(build.add(first, _INT(r)), x_row)) for r in range(count)]
        sums = inner.sums(lines, x_step, f, f_step, steps, build.mul(x_row, _INT(count)))
        for r in range(count):
            target = at(build, out, build.mul(build.add(first, _INT(r)), out_row))
            for v in range(vectors):
                build.store(sums[r * vectors + v], inner.column(target, v), align=ENTRY)

    _blocks(build, rows, block)
    build.ret_void()
    return function


def _emit_segments(module: ir.Module, product: ir.Function) -> None:
    """segments(y, y_row, y_move, z, z_row, bounds, count, out, kO, out_row): y_b^T z_b of segments, one after another.

    y_b lies y_move bytes on from y for every token before the segment.
    """
    signature = [_POINTER, _INT, _INT, _POINTER, _INT, _POINTER, _INT, _POINTER, _INT, _INT]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), "segments")
    y, y_row, y_move, z, z_row, bounds, count, out, kO, out_row = function.args
    build = ir.IRBuilder(function.append_basic_block())

    def segment(b: ir.Value, _: _Carried) -> _Carried:
        bound = at(build, bounds, build.mul(b, _INT(8)))
        start, stop = (build.load(at(build, bound, _INT(8 * i)), typ=_INT) for i in (0, 1))
        target = at(build, out, build.mul(b, build.mul(kO, out_row)))
        y_b, z_b = (at(build, base, build.mul(start, row)) for base, row in ((y, y_move), (z, z_row)))
        build.call(product, [y_b, _INT(ENTRY), y_row, z_b, z_row, target, out_row, kO, build.sub(stop, start)])
        return []

    loop(build, _INT(0), count, 1, [], segment)
    build.ret_void()


def _emit_pack(module: ir.Module, numbers: type[_Float32] | type[_Bf16Pairs], width: int) -> ir.Function:
    """pack(x, x_row, tokens, columns, out): the first `width` columns of x, as steps, with zeros behind the last."""
    signature = [_POINTER, _INT, _INT, _INT, _POINTER]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), f"pack_{width}")
    x, x_row, tokens, columns, out = function.args
    build = ir.IRBuilder(function.append_basic_block())
    number, per_step = numbers.number, numbers.per_step
    size = ENTRY // per_step
    whole = build.icmp_signed(">=", columns, _INT(width))
    vectors = build.select(whole, build.sdiv(tokens, _INT(per_step)), _INT(0))  # steps that are copied as vectors
    order = [r * width + c for c in range(width) for r in range(per_step)]
    interleaved = ir.Constant(ir.VectorType(_INT32, len(order)), order)

    def row(token: ir.Value, column: ir.Value) -> ir.Value:
        return at(build, at(build, x, build.mul(token, x_row)), build.mul(column, _INT(size)))

    def copy(step: ir.Value, _: _Carried) -> _Carried:
        first = build.mul(step, _INT(per_step))
        rows = [row(build.add(first, _INT(r)), _INT(0)) for r in range(per_step)]
        values = [build.load(address, align=size, typ=ir.VectorType(number, width)) for address in rows]
        both = build.shuffle_vector(values[0], values[-1], interleaved) if per_step == 2 else values[0]
        build.store(both, at(build, out, build.mul(step, _INT(width * ENTRY))), align=ENTRY)
        return []

    def one_by_one(token: ir.Value, _: _Carried) -> _Carried:
        step, place = build.sdiv(token, _INT(per_step)), build.srem(token, _INT(per_step))
        target = at(build, at(build, out, build.mul(step, _INT(width * ENTRY))), build.mul(place, _INT(size)))
        there = build.icmp_signed("<", token, tokens)
        until = build.select(there, build.select(whole, _INT(width), columns), _INT(0))

        def put(value: Callable[[ir.Value], ir.Value]) -> Callable[[ir.Value, _Carried], _Carried]:
            return lambda c, _: build.store(value(c), at(build, target, build.mul(c, _INT(ENTRY))), align=size) and []

        loop(build, _INT(0), until, 1, [], put(lambda c: build.load(row(token, c), align=size, typ=number)))
        loop(build, until, _INT(width), 1, [], put(lambda c: ir.Constant(number, 0)))
        return []

    loop(build, _INT(0), vectors, 1, [], copy)
    last = build.mul(_times(build, tokens, per_step), _INT(per_step))
    loop(build, build.mul(vectors, _INT(per_step)), last, 1, [], one_by_one)
    build.ret_void()
    return function


def _times(build: ir.IRBuilder, count: ir.Value, each: int) -> ir.Value:
    """How many of `each` make up at least `count`."""
    return build.sdiv(build.add(count, _INT(each - 1)), _INT(each))


def _emit_gradient(module: ir.Module, vectors: int, numbers: type[_Float32] | type[_Bf16Pairs]) -> None:
    """gradient(delta, delta_row, outputs, a, a_row, inputs, bounds, places, segments, w, w_panel, right, half,
    half_move, columns, scratch):

    half_b[o, c] += sum over i of (sum over the tokens t of segment b of delta[t, o] a[t, i]) w[o, i] right[i, c]

    A segment begins at a token of `bounds` and at a step of `places`. w is in tiles, those of one panel of columns
    behind each other; each is read once for all segments. A panel of a, the strips of delta and one tile of the inner
    sum are copied into `scratch`, where they lie together and stay in the caches.
    """
    signature = [_POINTER, _INT, _INT, _POINTER, _INT, _INT, _POINTER, _POINTER, _INT, _POINTER, _INT]
    signature += [_POINTER, _POINTER, _INT, _INT, _POINTER]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), "gradient")
    delta, delta_row, outputs, a, a_row, inputs, bounds, places, segments, w, w_panel = function.args[:11]
    right, half, half_move, columns, scratch = function.args[11:]
    build = ir.IRBuilder(function.append_basic_block())
    inner, outer = _Tile(build, numbers, vectors), _Tile(build, _Float32, 1)
    (rows, _), width = tile(), vectors * LANES
    pack_a, pack_delta = _emit_pack(module, numbers, width), _emit_pack(module, numbers, rows)
    size = ENTRY // numbers.per_step
    strips, panels = _times(build, outputs, rows), _times(build, inputs, width)

    def between(ends: ir.Value, number: ir.Value) -> tuple[ir.Value, ir.Value]:
        where = at(build, ends, build.mul(number, _INT(8)))
        first, last = (build.load(at(build, where, _INT(8 * n)), typ=_INT) for n in (0, 1))
        return first, build.sub(last, first)

    steps = build.load(at(build, places, build.mul(segments, _INT(8))), typ=_INT)
    a_packed = at(build, scratch, _INT(rows * width * ENTRY))
    delta_packed = at(build, a_packed, build.mul(steps, _INT(width * ENTRY)))
    strip_bytes = build.mul(steps, _INT(rows * ENTRY))
    half_row = build.mul(columns, _INT(ENTRY))

    def pack(run: ir.Function, x: ir.Value, x_row: ir.Value, left: ir.Value, out: ir.Value, wide: int) -> None:
        """Lays out some columns of every segment's tokens, of which so many are left."""

        def segment(number: ir.Value, _: _Carried) -> _Carried:
            (token, tokens), (place, _) = between(bounds, number), between(places, number)
            target = at(build, out, build.mul(place, _INT(wide * ENTRY)))
            build.call(run, [at(build, x, build.mul(token, x_row)), x_row, tokens, left, target])
            return []

        loop(build, _INT(0), segments, 1, [], segment)

    def pack_strip(number: ir.Value, _: _Carried) -> _Carried:
        first = build.mul(number, _INT(rows))
        source = at(build, delta, build.mul(first, _INT(size)))
        target = at(build, delta_packed, build.mul(number, strip_bytes))
        pack(pack_delta, source, delta_row, build.sub(outputs, first), target, rows)
        return []

    def panel(number: ir.Value, _: _Carried) -> _Carried:
        first = build.mul(number, _INT(width))
        source = at(build, a, build.mul(first, _INT(size)))
        pack(pack_a, source, a_row, build.sub(inputs, first), a_packed, width)
        right_here = at(build, right, build.mul(first, half_row))
        w_tiles = at(build, w, build.mul(number, w_panel))

        def strip(number: ir.Value, _: _Carried) -> _Carried:
            delta_here = at(build, delta_packed, build.mul(number, strip_bytes))
            w_here = at(build, w_tiles, build.mul(number, _INT(rows * width * ENTRY)))
            half_strip = at(build, half, build.mul(build.mul(number, _INT(rows)), half_row))

            def segment(number: ir.Value, _: _Carried) -> _Carried:
                place, own_steps = between(places, number)
                delta_segment = at(build, delta_here, build.mul(place, _INT(rows * ENTRY)))
                a_segment = at(build, a_packed, build.mul(place, _INT(width * ENTRY)))
                lines = [at(build, delta_segment, _INT(r * ENTRY)) for r in range(rows)]
                sums = inner.sums(lines, _INT(rows * ENTRY), a_segment, _INT(width * ENTRY), own_steps)
                for v, value in enumerate(sums):
                    factor = build.load(inner.column(w_here, v), align=ENTRY, typ=_SUMS)
                    build.store(build.fmul(value, factor), inner.column(scratch, v), align=ENTRY)
                lines = [at(build, scratch, _INT(r * width * ENTRY)) for r in range(rows)]
                half_here = at(build, half_strip, build.mul(number, half_move))

                def contract(column: ir.Value, _: _Carried) -> _Carried:
                    distance = build.mul(column, _INT(ENTRY))
                    parts = outer.sums(lines, _INT(ENTRY), at(build, right_here, distance), half_row, _INT(width))
                    for r, part in enumerate(parts):
                        target = at(build, half_here, build.add(build.mul(half_row, _INT(r)), distance))
                        build.store(build.fadd(build.load(target, align=ENTRY, typ=_SUMS), part), target, align=ENTRY)
                    return []

                return loop(build, _INT(0), columns, LANES, [], contract)

            return loop(build, _INT(0), segments, 1, [], segment)

        return loop(build, _INT(0), strips, 1, [], strip)

    loop(build, _INT(0), strips, 1, [], pack_strip)
    loop(build, _INT(0), panels, 1, [], panel)
    build.ret_void()
