"""Header tier: the element types of tensors, by torch's names."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["float", "int", "uint", "bool", "complex", "quantized"]


class DType(NamedTuple):
    """How elements lie in bytes: `block_nbytes` bytes hold `block_numel` elements."""

    name: str
    kind: Kind
    block_nbytes: int
    block_numel: int = 1

    def nbytes(self, numel: int) -> int:
        """Bytes that `numel` elements take, a part of a block counted whole."""
        return -(-numel // self.block_numel) * self.block_nbytes

    def __str__(self) -> str:
        return self.name


DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        DType("float64", "float", 8),
        DType("float32", "float", 4),
        DType("float16", "float", 2),
        DType("bfloat16", "float", 2),
        DType("float8_e4m3fn", "float", 1),
        DType("float8_e4m3fnuz", "float", 1),
        DType("float8_e5m2", "float", 1),
        DType("float8_e5m2fnuz", "float", 1),
        DType("float8_e8m0fnu", "float", 1),
        DType("float4_e2m1fn", "float", 1, 2),
        DType("float4_e2m1fn_x2", "float", 1),  # torch counts the pair as one element
        DType("float6_e2m3fn", "float", 3, 4),
        DType("float6_e3m2fn", "float", 3, 4),
        DType("complex32", "complex", 4),
        DType("complex64", "complex", 8),
        DType("complex128", "complex", 16),
        DType("int64", "int", 8),
        DType("int32", "int", 4),
        DType("int16", "int", 2),
        DType("int8", "int", 1),
        DType("uint64", "uint", 8),
        DType("uint32", "uint", 4),
        DType("uint16", "uint", 2),
        DType("uint8", "uint", 1),
        DType("bool", "bool", 1),
        DType("qint32", "quantized", 4),
        DType("qint8", "quantized", 1),
        DType("quint8", "quantized", 1),
        DType("quint4x2", "quantized", 1, 2),
        DType("quint2x4", "quantized", 1, 4),
        DType("bits8", "uint", 1),
        DType("bits16", "uint", 2),
        DType("bits1x8", "uint", 1),  # torch counts the eight as one element, and likewise below
        DType("bits2x4", "uint", 1),
        DType("bits4x2", "uint", 1),
        *(DType(f"uint{bits}", "uint", 1) for bits in range(1, 8)),  # torch gives each of these a byte of its own
        *(DType(f"int{bits}", "int", 1) for bits in range(1, 8)),
        DType("q4_0", "quantized", 18, 32),  # the blocks of ggml, ggml-common.h
        DType("q4_1", "quantized", 20, 32),
        DType("q5_0", "quantized", 22, 32),
        DType("q5_1", "quantized", 24, 32),
        DType("q8_0", "quantized", 34, 32),
        DType("q8_1", "quantized", 36, 32),  # two float16 and 32 int8; gguf-py says 40
        DType("q2_k", "quantized", 84, 256),
        DType("q3_k", "quantized", 110, 256),
        DType("q4_k", "quantized", 144, 256),
        DType("q5_k", "quantized", 176, 256),
        DType("q6_k", "quantized", 210, 256),
        DType("q8_k", "quantized", 292, 256),
        DType("iq1_s", "quantized", 50, 256),
        DType("iq1_m", "quantized", 56, 256),
        DType("iq2_xxs", "quantized", 66, 256),
        DType("iq2_xs", "quantized", 74, 256),
        DType("iq2_s", "quantized", 82, 256),
        DType("iq3_xxs", "quantized", 98, 256),
        DType("iq3_s", "quantized", 110, 256),
        DType("iq4_nl", "quantized", 18, 32),
        DType("iq4_xs", "quantized", 136, 256),
        DType("tq1_0", "quantized", 54, 256),
        DType("tq2_0", "quantized", 66, 256),
        DType("mxfp4", "quantized", 17, 32),
        DType("nvfp4", "quantized", 36, 64),
        DType("q1_0", "quantized", 18, 128),
        DType("q4_0_4_4", "quantized", 18, 32),  # rows of blocks interleaved, and likewise below
        DType("q4_0_4_8", "quantized", 18, 32),
        DType("q4_0_8_8", "quantized", 18, 32),
        DType("iq4_nl_4_4", "quantized", 18, 32),
        DType("iq4_nl_4_8", "quantized", 18, 32),
        DType("iq4_nl_8_8", "quantized", 18, 32),
    )
}
