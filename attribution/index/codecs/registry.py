"""The codecs: floating point, int8, int4 and sign (packed.py), and a few products of signs (factors.py)."""

from __future__ import annotations

from headwater.attribution.index.codecs.base import Codec
from headwater.attribution.index.codecs.factors import Factors4Codec, Factors8Codec, Factors16Codec
from headwater.attribution.index.codecs.int8 import Int8Codec
from headwater.attribution.index.codecs.packed import Int4Codec, PackedCodec, SignCodec
from headwater.attribution.index.codecs.plain import BFloat16Codec, Float32Codec
from headwater.attribution.index.codecs.rotation import VERSION
from headwater.attribution.rows.layout import RowLayout
from headwater.configs.errors import UserError

CODECS: dict[str, type[Codec]] = {
    codec.name: codec
    for codec in (
        Float32Codec,
        BFloat16Codec,
        Int8Codec,
        Int4Codec,
        SignCodec,
        Factors16Codec,
        Factors8Codec,
        Factors4Codec,
    )
}


def make_codec(name: str, layout: RowLayout, rotation: int = VERSION) -> Codec:
    """The codec of that name.

    Args:
        rotation: version of the map that packed codecs spread numbers with.

    Raises:
        UserError: there is none.
    """
    if name not in CODECS:
        raise UserError("unknown codec", got=name, expected=", ".join(CODECS), fix="choose one of these")
    codec = CODECS[name]
    return codec(layout, rotation) if issubclass(codec, PackedCodec) else codec(layout)
