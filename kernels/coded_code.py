"""The code of products with rows stored in few bits on a CPU: LLVM IR, like that of the projections (cpu_code.py).

Codes are bytes that hold 8 / bits numbers each, module by module: byte k of a module of w bytes holds the numbers k,
k + w, k + 2w, ..., the first in its lowest bits. `SPAN` bytes at a time are multiplied with bytes of the vectors, which
lie in the same order, each of these parts padded with zeros to a multiple of `SPAN`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

from llvmlite import ir

from .cpu_code import at, declare, execute, has, loop

SPAN = 64
"""Bytes that are multiplied at once: a vector of 512 bits. LLVM splits it where registers are narrower."""
GROUP = 16
"""Vectors whose sums lie in one register."""
TOGETHER = 12
"""Rows whose sums with two groups of vectors fit into the registers."""
FIELDS = 8
"""64-bit numbers that describe a module, and a tile of vectors: see `_emit_few` and `_emit_many`."""

_BYTE, _INT, _INT32, _POINTER, _FLOAT = ir.IntType(8), ir.IntType(64), ir.IntType(32), ir.PointerType(), ir.FloatType()
_BYTES, _SUMS = ir.VectorType(_BYTE, SPAN), ir.VectorType(_INT32, GROUP)
_FLOATS = ir.VectorType(_FLOAT, GROUP)


def generate(name: str, bits: int, planes: int, dot: str) -> str:
    """LLVM IR of a function, `few` or `many`.

    Args:
        bits: of a stored number: 1, 2, 4, or 8 with its sign.
        planes: bytes of a vector's number.
        dot: `vnni` for the processor's own instruction; `plain` for what every processor has.
    """
    module = ir.Module(name)
    if name == "few":
        _emit_few(module, _Numbers(bits, planes, dot))
    else:
        _emit_many(module, _Numbers(bits, planes, dot))
    return str(module)


@cache
def compiled(name: str, bits: int, planes: int, dot: str) -> Callable[..., None]:
    """The function, which takes addresses and numbers."""
    address, arguments = execute(generate(name, bits, planes, dot), name)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)(address)


def best_dot() -> str:
    """How this processor multiplies bytes fastest."""
    return "vnni" if has("avx512vnni") and has("avx512bw") else "plain"


class _Numbers:
    """How codes and vectors are multiplied."""

    def __init__(self, bits: int, planes: int, dot: str) -> None:
        self.bits, self.planes, self.dot = bits, planes, dot
        self.parts = 8 // bits
        """Numbers in a byte."""

    def numbers(self, build: ir.IRBuilder, code: ir.Value) -> list[ir.Value]:
        """The numbers of some bytes of codes, as unsigned bytes, part by part."""
        if self.bits == 8:
            return [build.xor(code, _spread(_BYTES, 128))]
        mask = _spread(_BYTES, (1 << self.bits) - 1)
        shifted = [build.lshr(code, _spread(_BYTES, part * self.bits)) for part in range(self.parts)]
        return [build.and_(value, mask) for value in shifted]

    def masked(self, build: ir.IRBuilder, code: ir.Value) -> list[ir.Value]:
        """The same, each still in its place, which makes it 2^(part bits) times as large."""
        if self.bits == 8:
            return self.numbers(build, code)
        mask = (1 << self.bits) - 1
        return [build.and_(code, _spread(_BYTES, mask << (part * self.bits))) for part in range(self.parts)]

    def add(self, build: ir.IRBuilder, sums: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """sums[i] + the products of bytes 4i to 4i + 3."""
        if self.dot == "vnni":
            name = "llvm.x86.avx512.vpdpbusd.512"
            return build.call(declare(build.module, name, _SUMS, [_SUMS, _BYTES, _BYTES]), [sums, unsigned, signed])
        pairs = ir.VectorType(ir.IntType(16), SPAN // 2)
        u, s = build.bitcast(unsigned, pairs), build.bitcast(signed, pairs)
        eight, sixteen = _spread(pairs, 8), _spread(_SUMS, 16)
        low = build.mul(build.and_(u, _spread(pairs, 255)), build.ashr(build.shl(s, eight), eight))
        high = build.mul(build.lshr(u, eight), build.ashr(s, eight))
        for product in (low, high):  # 255 * 128 fits into 16 bits with a sign
            both = build.bitcast(product, _SUMS)
            sums = build.add(sums, build.ashr(build.shl(both, sixteen), sixteen))
            sums = build.add(sums, build.ashr(both, sixteen))
        return sums


def _spread(kind: ir.VectorType, number: int) -> ir.Constant:
    return ir.Constant(kind, [ir.Constant(kind.element, number)] * kind.count)


def _everywhere(build: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    """A vector of one value."""
    empty = ir.Constant(kind, ir.Undefined)
    single = build.insert_element(empty, value, _INT32(0))
    return build.shuffle_vector(single, empty, ir.Constant(ir.VectorType(_INT32, kind.count), [0] * kind.count))


def _load(build: ir.IRBuilder, base: ir.Value, distance: int, kind: ir.Type) -> ir.Value:
    return build.load(at(build, base, _INT(distance)), align=1, typ=kind)


def _tail(build: ir.IRBuilder, address: ir.Value, count: ir.Value) -> ir.Value:
    """The first `count` < SPAN bytes, with zeros behind them: what lies there is not touched."""
    places = ir.Constant(_BYTES, [ir.Constant(_BYTE, place) for place in range(SPAN)])
    there = build.icmp_unsigned("<", places, _everywhere(build, build.trunc(count, _BYTE), _BYTES))
    mask = ir.VectorType(ir.IntType(1), SPAN)
    load = declare(build.module, "llvm.masked.load.v64i8.p0", _BYTES, [_POINTER, mask, _BYTES])
    return build.call(load, [address, there, _spread(_BYTES, 0)])


def _scale_of(build: ir.IRBuilder, scale: ir.Value, number: ir.Value) -> ir.Value:
    """A bf16 number as float32."""
    half = build.load(at(build, scale, build.mul(number, _INT(2))), align=2, typ=ir.IntType(16))
    return build.bitcast(build.shl(build.zext(half, _INT32), _INT32(16)), _FLOAT)


def _emit_few(module: ir.Module, numbers: _Numbers) -> None:
    """few(code, code_row, scale, scale_row, rows, modules, count, vectors, gain, out, out_row):

    out[n, q] += sum over modules m of scale[n, m] times row n's numbers of m times vector q's, for a few vectors q;
    to out[n, vectors] the squares of the products with a module's further vectors are added.

    `modules` holds for each its first byte in a row, its bytes, the address of its vectors (vector by vector, plane by
    plane, part by part), that of their scales (float32), that of what is taken off their sums (int32, by plane), and
    how many further vectors there are. Rows are taken two at a time, or four where a byte holds few numbers.
    """
    signature = [_POINTER, _INT, _POINTER, _INT, _INT, _POINTER, _INT, _INT, _INT32, _POINTER, _INT]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), "few")
    code, code_row, scale, scale_row, rows, modules, count, vectors, gain, out, out_row = function.args
    build = ir.IRBuilder(function.append_basic_block())
    reduce = declare(module, "llvm.vector.reduce.add.v16i32", _INT32, [_SUMS])
    fma = declare(module, "llvm.fma.f32", _FLOAT, [_FLOAT] * 3)

    def products(lines: list[ir.Value], width: ir.Value, vector: ir.Value) -> list[list[ir.Value]]:
        """Whole sums of each line, plane by plane."""
        padded = build.and_(build.add(width, _INT(SPAN - 1)), _INT(-SPAN))
        whole = build.and_(width, _INT(-SPAN))
        starts = [build.mul(padded, _INT(place)) for place in range(numbers.planes * numbers.parts)]
        zeros = [_spread(_SUMS, 0)] * (len(lines) * len(starts))

        def add(k: ir.Value, sums: list[ir.Value], codes: list[ir.Value]) -> list[ir.Value]:
            masked = [numbers.masked(build, value) for value in codes]
            here = at(build, vector, k)
            results = []
            for place, start in enumerate(starts):
                operand = build.load(at(build, here, start), align=1, typ=_BYTES)
                for line, parts in enumerate(masked):
                    sum_ = sums[place * len(lines) + line]
                    results.append(numbers.add(build, sum_, parts[place % numbers.parts], operand))
            return results

        def body(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            return add(k, sums, [build.load(at(build, line, k), align=1, typ=_BYTES) for line in lines])

        def rest(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            return add(k, sums, [_tail(build, at(build, line, k), build.sub(width, k)) for line in lines])

        sums = loop(build, _INT(0), whole, SPAN, zeros, body)
        sums = loop(build, whole, width, SPAN, sums, rest)
        found = []
        for line in range(len(lines)):
            planes = []
            for plane in range(numbers.planes):
                total = _spread(_SUMS, 0)
                for part in range(numbers.parts):
                    place = (plane * numbers.parts + part) * len(lines) + line
                    total = build.add(total, build.ashr(sums[place], _spread(_SUMS, part * numbers.bits)))
                planes.append(build.call(reduce, [total]))
            found.append(planes)
        return found

    def together(many: int) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
        def some(first: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            numbers_of = [build.add(first, _INT(r)) for r in range(many)]
            lines = [at(build, code, build.mul(number, code_row)) for number in numbers_of]
            scales = [at(build, scale, build.mul(number, scale_row)) for number in numbers_of]
            outs = [at(build, out, build.mul(number, out_row)) for number in numbers_of]

            def one(m: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
                about = at(build, modules, build.mul(m, _INT(8 * FIELDS)))
                start, width = (_load(build, about, 8 * place, _INT) for place in (0, 1))
                packed, factors, off = (_load(build, about, 8 * place, _POINTER) for place in (2, 3, 4))
                padded = build.and_(build.add(width, _INT(SPAN - 1)), _INT(-SPAN))
                stride = build.mul(padded, _INT(numbers.planes * numbers.parts))
                parts = [at(build, line, start) for line in lines]
                scale_m = [_scale_of(build, address, m) for address in scales]

                def values(q: ir.Value) -> list[ir.Value]:
                    """Of each line its product with a vector."""
                    found = products(parts, width, at(build, packed, build.mul(q, stride)))
                    factor = build.load(at(build, factors, build.mul(q, _INT(4))), align=4, typ=_FLOAT)
                    taken = at(build, off, build.mul(q, _INT(4 * numbers.planes)))
                    results = []
                    for planes, scale_1 in zip(found, scale_m, strict=True):
                        value = ir.Constant(_FLOAT, 0.0)
                        for plane, total in enumerate(planes):
                            exact = build.sub(build.mul(total, gain), _load(build, taken, 4 * plane, _INT32))
                            high = build.fmul(value, ir.Constant(_FLOAT, 128.0))
                            value = build.fadd(high, build.sitofp(exact, _FLOAT))
                        results.append(build.fmul(build.fmul(value, factor), scale_1))
                    return results

                def added(column: ir.Value, each: list[tuple[ir.Value, ir.Value]]) -> list[ir.Value]:
                    for target, (left, right) in zip(outs, each, strict=True):
                        place = at(build, target, build.mul(column, _INT(4)))
                        before = build.load(place, align=4, typ=_FLOAT)
                        build.store(build.call(fma, [left, right, before]), place, align=4)
                    return []

                one_float = ir.Constant(_FLOAT, 1.0)
                further = build.add(vectors, _load(build, about, 40, _INT))
                loop(build, _INT(0), vectors, 1, [], lambda q, _: added(q, [(value, one_float) for value in values(q)]))
                loop(
                    build, vectors, further, 1, [], lambda q, _: added(vectors, [(value, value) for value in values(q)])
                )
                return []

            loop(build, _INT(0), count, 1, [], one)
            return []

        return some

    at_once = 2 if numbers.parts * numbers.planes > 4 else 4
    whole = build.and_(rows, _INT(-at_once))
    loop(build, _INT(0), whole, at_once, [], together(at_once))
    loop(build, whole, rows, 1, [], together(1))
    build.ret_void()


def _emit_decode(module: ir.Module, numbers: _Numbers) -> ir.Function:
    """decode(code, code_row, rows, width, out, out_row): numbers as unsigned bytes, part by part, each padded."""
    signature = [_POINTER, _INT, _INT, _INT, _POINTER, _INT]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), "decode")
    code, code_row, rows, width, out, out_row = function.args
    build = ir.IRBuilder(function.append_basic_block())
    padded = build.and_(build.add(width, _INT(SPAN - 1)), _INT(-SPAN))
    whole = build.and_(width, _INT(-SPAN))

    def row(n: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        line, target = (
            at(build, base, build.mul(n, distance)) for base, distance in ((code, code_row), (out, out_row))
        )

        def put(k: ir.Value, value: ir.Value) -> list[ir.Value]:
            for part, decoded in enumerate(numbers.numbers(build, value)):
                place = build.add(k, build.mul(padded, _INT(part)))
                build.store(decoded, at(build, target, place), align=1)
            return []

        loop(build, _INT(0), whole, SPAN, [], lambda k, _: put(k, _load(build, at(build, line, k), 0, _BYTES)))
        loop(
            build,
            whole,
            width,
            SPAN,
            [],
            lambda k, _: put(k, _tail(build, at(build, line, k), build.sub(width, k))),
        )
        return []

    loop(build, _INT(0), rows, 1, [], row)
    build.ret_void()
    return function


def _emit_many(module: ir.Module, numbers: _Numbers) -> None:
    """many(code, code_row, scale, scale_row, rows, together, modules, count, gain, scratch, out, out_row, along):

    As `few`, for many vectors, whose products may also be squared and added up; `together` rows are decoded at a time.

    `modules` holds for each its first byte in a row, its bytes, how many tiles of two groups of vectors it has, and
    their address. A tile holds the address of its numbers ([steps, 2, GROUP, 4] bytes), that of its groups' scales
    (float32 [2, GROUP]), that of what is taken off their sums (int32 [2, GROUP]), its kind, and its column in `out`.
    Kinds: 0, two groups, added to `out`; 1, the two planes of one group, added to `out`; 2, two groups, whose squares
    are added to the GROUP numbers of each row from column `along` on.
    """
    signature = [_POINTER, _INT, _POINTER, _INT, _INT, _INT, _POINTER, _INT, _INT32, _POINTER, _POINTER, _INT, _INT]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), "many")
    code, code_row, scale, scale_row, rows, together, modules, count, gain, scratch, out, out_row, along = function.args
    decode = _emit_decode(module, numbers)
    tile = {many: _emit_tile(module, numbers, many) for many in (TOGETHER, 1)}
    build = ir.IRBuilder(function.append_basic_block())
    decoded = at(build, scratch, _INT(TOGETHER * 2 * GROUP * 4))

    def block(first: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        left = build.sub(rows, first)
        here = build.select(build.icmp_signed("<", left, together), left, together)
        code_here, scale_here, out_here = (
            at(build, base, build.mul(first, distance))
            for base, distance in ((code, code_row), (scale, scale_row), (out, out_row))
        )

        def one(m: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            about = at(build, modules, build.mul(m, _INT(8 * FIELDS)))
            start, width, tiles = (_load(build, about, 8 * place, _INT) for place in (0, 1, 2))
            table = _load(build, about, 24, _POINTER)
            padded = build.and_(build.add(width, _INT(SPAN - 1)), _INT(-SPAN))
            length = build.mul(padded, _INT(numbers.parts))
            build.call(decode, [at(build, code_here, start), code_row, here, width, decoded, length])

            def vectors(t: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
                entry = at(build, table, build.mul(t, _INT(8 * FIELDS)))

                def some(many: int) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
                    def lines(n: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
                        line = at(build, decoded, build.mul(n, length))
                        scale_n = at(build, at(build, scale_here, build.mul(n, scale_row)), build.mul(m, _INT(2)))
                        target = at(build, out_here, build.mul(n, out_row))
                        build.call(
                            tile[many],
                            [line, length, entry, scale_n, scale_row, gain, scratch, target, out_row, along],
                        )
                        return []

                    return lines

                whole = build.mul(build.udiv(here, _INT(TOGETHER)), _INT(TOGETHER))
                loop(build, _INT(0), whole, TOGETHER, [], some(TOGETHER))
                loop(build, whole, here, 1, [], some(1))
                return []

            loop(build, _INT(0), tiles, 1, [], vectors)
            return []

        loop(build, _INT(0), count, 1, [], one)
        return []

    loop(build, _INT(0), rows, together, [], block)
    build.ret_void()


def _emit_tile(module: ir.Module, numbers: _Numbers, many: int) -> ir.Function:
    """tile_N(line, length, tile, scale, scale_row, gain, scratch, out, out_row, along): some rows, one tile."""
    signature = [_POINTER, _INT, _POINTER, _POINTER, _INT, _INT32, _POINTER, _POINTER, _INT, _INT]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), f"tile_{many}")
    line, length, tile, scale, scale_row, gain, scratch, out, out_row, along = function.args
    build = ir.IRBuilder(function.append_basic_block())
    packed, factors, off = (_load(build, tile, 8 * place, _POINTER) for place in range(3))
    kind, column = (_load(build, tile, 8 * place, _INT) for place in (3, 4))
    lines = [at(build, line, build.mul(length, _INT(r))) for r in range(many)]

    def step(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        operands = at(build, packed, build.mul(k, _INT(2 * GROUP)))
        both = [_load(build, operands, SPAN * group, _BYTES) for group in (0, 1)]
        results = []
        for r, each in enumerate(lines):
            four = build.load(at(build, each, k), align=1, typ=_INT32)
            spread = build.bitcast(_everywhere(build, four, _SUMS), _BYTES)
            results += [numbers.add(build, sums[2 * r + group], spread, both[group]) for group in (0, 1)]
        return results

    sums = loop(build, _INT(0), length, 4, [_spread(_SUMS, 0)] * (2 * many), step)
    for place, value in enumerate(sums):
        build.store(value, at(build, scratch, _INT(4 * GROUP * place)), align=4)
    gains = _everywhere(build, gain, _SUMS)
    taken = [_load(build, off, 4 * GROUP * group, _SUMS) for group in (0, 1)]
    factor = [_load(build, factors, 4 * GROUP * group, _FLOATS) for group in (0, 1)]
    fma = declare(module, "llvm.fma.v16f32", _FLOATS, [_FLOATS] * 3)

    def finished(r: ir.Value) -> tuple[list[ir.Value], ir.Value, ir.Value]:
        """Of a row: the two groups' whole numbers as float32, its scale, and where it goes."""
        place = at(build, scratch, build.mul(r, _INT(8 * GROUP)))
        found = [_load(build, place, 4 * GROUP * group, _SUMS) for group in (0, 1)]
        exact = [build.sub(build.mul(value, gains), less) for value, less in zip(found, taken, strict=True)]
        scale_r = _scale_of(build, at(build, scale, build.mul(r, scale_row)), _INT(0))
        target = at(build, out, build.mul(r, out_row))
        return [build.sitofp(value, _FLOATS) for value in exact], _everywhere(build, scale_r, _FLOATS), target

    def added(target: ir.Value, place: ir.Value, value: ir.Value, times: ir.Value) -> None:
        address = at(build, target, build.mul(place, _INT(4)))
        build.store(build.call(fma, [value, times, build.load(address, align=4, typ=_FLOATS)]), address, align=4)

    def alone(r: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        values, scales, target = finished(r)
        for group in (0, 1):
            place = build.add(column, _INT(GROUP * group))
            added(target, place, build.fmul(values[group], factor[group]), scales)
        return []

    def planes(r: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        (high, low), scales, target = finished(r)
        hundred = ir.Constant(_FLOATS, [ir.Constant(_FLOAT, 128.0)] * GROUP)
        added(target, column, build.fmul(build.call(fma, [high, hundred, low]), factor[0]), scales)
        return []

    def squares(r: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        values, scales, target = finished(r)
        for group in (0, 1):
            value = build.fmul(build.fmul(values[group], factor[group]), scales)
            added(target, along, value, value)
        return []

    for number, finish in enumerate((alone, planes, squares)):
        mine = build.icmp_signed("==", kind, _INT(number))
        loop(build, _INT(0), build.select(mine, _INT(many), _INT(0)), 1, [], finish)
    build.ret_void()
    return function
