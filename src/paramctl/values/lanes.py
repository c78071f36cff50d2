"""Values tier: from the bytes of a piece of a tensor to float32, float64 or integers, each exactly the element.

A lane is made for a dtype once, and takes pieces of at most so many elements: it keeps its scratch memory, so that
what it gives is good until the next piece.

Source: the OCP 8-bit floating point specification 1.0 and microscaling formats 1.0 (fp8, fp6, fp4, e8m0);
onnx's "Float stored in 8 bits" (the fnuz types); torch/headeronly/util/quint4x2.h and quint2x4.h (lowest bits first).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramctl.checkpoint import Param
from paramctl.errors import ParamctlError, shortened
from paramctl.values import blocks

Array = NDArray[Any]


class Lane(NamedTuple):
    """How pieces of a dtype become numbers.

    `stored` is numpy's type for what lies there, and `decode` makes of a flat array of these a flat array of numbers:
    `per_element` for each element as torch counts them.
    """

    stored: np.dtype[Any]
    decode: Callable[[Array], Array]
    per_element: int = 1
    is_complex: bool = False

    @property
    def number(self) -> str:
        """Numpy's code for what `decode` gives."""
        if self.stored.str[1:] in ("f4", "f8", "i8", "u8"):
            return self.stored.str[1:]
        return "f8" if self.stored.str[1:] in ("i4", "u4") else "f4"

    @property
    def is_exact_integer(self) -> bool:
        """Whether `decode` gives 64-bit integers, which are beyond float64."""
        return self.stored.kind in "iu" and self.stored.itemsize == 8


def lane(param: Param) -> Lane:
    """The lane of a tensor's dtype.

    Raises:
        ParamctlError: its numbers are not known.
    """
    name = param.dtype.name
    if name in _PLAIN:
        return Lane(np.dtype(_PLAIN[name]), _as_it_is)
    if name in _WIDENED:
        return Lane(
            np.dtype(_WIDENED[name]), _Widened(np.float32 if np.dtype(_WIDENED[name]).itemsize < 4 else np.float64)
        )
    if name in _COMPLEX:
        code, wide = _COMPLEX[name]
        return Lane(np.dtype(code), _as_it_is if wide is None else _Widened(wide), 2, is_complex=True)
    if name == "bool":
        return Lane(np.dtype("u1"), _Truths())
    if name == "bfloat16":
        return Lane(np.dtype("u2"), _BFloat16())
    if name == "float16":
        return Lane(np.dtype("u2"), _Float16())
    if name in _TABLES:
        table, bits = _TABLES[name]
        numbers = table()
        per_byte = 1 if bits in (6, 8) else 8 // bits
        if bits == 6:
            return Lane(np.dtype("u1"), _Sixes(numbers))
        per_element = per_byte if param.dtype.block_numel == 1 else 1
        return Lane(np.dtype("u1"), _Looked(numbers) if bits == 8 else _Packed(numbers, bits), per_element)
    if blocks.knows(name):
        return Lane(np.dtype("u1"), _Blocks(param))
    raise ParamctlError(f"{shortened(param.name)}: values of {name} are not read yet")


def codes(param: Param) -> Lane:
    """The lane of the bits of any dtype, each number of an element an unsigned integer; of blocks their bytes."""
    dtype = param.dtype
    if dtype.block_numel > 1:
        return Lane(np.dtype("u1"), _as_it_is)
    parts = 2 if dtype.kind == "complex" else 1
    return Lane(np.dtype(f"u{dtype.block_nbytes // parts}"), _as_it_is, parts, is_complex=parts == 2)


_PLAIN = {"float32": "f4", "float64": "f8", "int64": "i8", "uint64": "u8"}
_WIDENED = {
    "uint8": "u1", "int8": "i1", "uint16": "u2", "int16": "i2", "uint32": "u4", "int32": "i4",
    "quint8": "u1", "qint8": "i1", "qint32": "i4", "bits8": "u1", "bits16": "u2", "bits1x8": "u1", "bits2x4": "u1",
    "bits4x2": "u1", **{f"uint{bits}": "u1" for bits in range(1, 8)}, **{f"int{bits}": "i1" for bits in range(1, 8)},
}  # fmt: skip
_COMPLEX: dict[str, tuple[str, type[np.floating[Any]] | None]] = {  # two of these an element
    "complex32": ("f2", np.float32),
    "complex64": ("f4", None),
    "complex128": ("f8", None),
}


def _as_it_is(piece: Array) -> Array:
    return piece


class _Scratch:
    """Memory for one piece, kept from piece to piece."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        self._held = np.empty(0, self._dtype)

    def of(self, size: int) -> Array:
        if len(self._held) < size:
            self._held = np.empty(size, self._dtype)
        return self._held[:size]


class _Widened:
    def __init__(self, dtype: Any) -> None:
        self._scratch = _Scratch(dtype)

    def __call__(self, piece: Array) -> Array:
        out = self._scratch.of(piece.size)
        with np.errstate(invalid="ignore"):  # signalling NaN
            np.copyto(out, piece)
        return out


class _Truths:
    """1 for a byte that has any bit, as torch takes them."""

    def __init__(self) -> None:
        self._scratch = _Scratch(np.float32)

    def __call__(self, piece: Array) -> Array:
        return np.not_equal(piece, 0, out=self._scratch.of(piece.size), casting="unsafe")


class _BFloat16:
    """The upper half of a float32."""

    def __init__(self) -> None:
        self._scratch = _Scratch(np.uint32)

    def __call__(self, piece: Array) -> Array:
        out = self._scratch.of(piece.size)
        np.left_shift(piece, 16, out=out, dtype=np.uint32)
        return out.view(np.float32)


class _Float16:
    """Sign, exponent and fraction moved to where float32 has them, and the exponent's bias made right by a product.

    Subnormals come out right by that product; an exponent of ones does not, and is left to numpy, which is slower.
    """

    def __init__(self) -> None:
        self._bits, self._moved = _Scratch(np.uint32), _Scratch(np.uint32)
        self._halves = _Scratch(np.uint16)

    def __call__(self, piece: Array) -> Array:
        bits, moved = self._bits.of(piece.size), self._moved.of(piece.size)
        magnitude = np.bitwise_and(piece, 0x7FFF, out=self._halves.of(piece.size))
        out = moved.view(np.float32)
        if piece.size and int(magnitude.max()) >= 0x7C00:
            with np.errstate(invalid="ignore"):
                np.copyto(out, piece.view(np.float16))
            return out
        np.left_shift(piece, 16, out=bits, dtype=np.uint32)
        np.right_shift(bits.view(np.int32), 3, out=moved.view(np.int32))  # the sign fills what it leaves behind
        np.bitwise_and(moved, 0x8FFFE000, out=moved)
        return np.multiply(out, np.float32(2.0**112), out=out)


class _Looked:
    """One of 256 numbers for each byte."""

    def __init__(self, numbers: Array) -> None:
        self._numbers, self._scratch = numbers, _Scratch(np.float32)

    def __call__(self, piece: Array) -> Array:
        out = self._scratch.of(piece.size)
        np.take(self._numbers, piece, out=out, mode="wrap")
        return out


class _Packed:
    """Several numbers in a byte, the lowest bits first."""

    def __init__(self, numbers: Array, bits: int) -> None:
        codes = np.arange(256)[:, None] >> np.arange(0, 8, bits) & (1 << bits) - 1
        self._numbers = numbers[codes]

    def __call__(self, piece: Array) -> Array:
        made: Array = self._numbers[piece].reshape(-1)
        return made


class _Sixes:
    """Four numbers of six bits in three bytes, the lowest bits first."""

    def __init__(self, numbers: Array) -> None:
        self._numbers = numbers

    def __call__(self, piece: Array) -> Array:
        triples = piece.reshape(-1, 3).astype(np.uint32)
        words = triples[:, 0] | triples[:, 1] << 8 | triples[:, 2] << 16
        made: Array = self._numbers[words[:, None] >> np.arange(0, 24, 6, dtype=np.uint32) & 63].reshape(-1)
        return made


class _Blocks:
    """The blocks of ggml."""

    def __init__(self, param: Param) -> None:
        self._dtype = param.dtype
        self._order = ">" if param.storage.byteorder == "big" else "<"

    def __call__(self, piece: Array) -> Array:
        raw = piece.reshape(-1, self._dtype.block_nbytes)
        return blocks.dequantized(self._dtype.name, raw, self._dtype.block_numel, order=self._order).reshape(-1)


# ----------------------------------------------------------------------------- small floats, every number of them


def _floats(exponent_bits: int, fraction_bits: int, bias: int) -> Array:
    """Every number of a small float type, by its code: no infinity, no NaN."""
    codes = np.arange(1 << 1 + exponent_bits + fraction_bits)
    sign = np.where(codes >> exponent_bits + fraction_bits, -1.0, 1.0)
    exponent = codes >> fraction_bits & (1 << exponent_bits) - 1
    fraction = (codes & (1 << fraction_bits) - 1) / (1 << fraction_bits)
    scale = np.ldexp(1.0, np.maximum(exponent, 1) - bias)
    numbers: Array = (sign * np.where(exponent == 0, fraction, 1 + fraction) * scale).astype(np.float32)
    return numbers


def _e4m3fn() -> Array:
    numbers = _floats(4, 3, 7)
    numbers[[0x7F, 0xFF]] = np.nan
    return numbers


def _e5m2() -> Array:
    numbers = _floats(5, 2, 15)
    numbers[[0x7C, 0xFC]] = np.inf, -np.inf
    numbers[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
    return numbers


def _fnuz(exponent_bits: int, fraction_bits: int, bias: int) -> Array:
    numbers = _floats(exponent_bits, fraction_bits, bias)
    numbers[0x80] = np.nan
    return numbers


def _e8m0fnu() -> Array:
    return np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan).astype(np.float32)


_TABLES: dict[str, tuple[Callable[[], Array], int]] = {  # the numbers of the codes, and how many bits a code has
    "float8_e4m3fn": (_e4m3fn, 8),
    "float8_e4m3fnuz": (lambda: _fnuz(4, 3, 8), 8),
    "float8_e5m2": (_e5m2, 8),
    "float8_e5m2fnuz": (lambda: _fnuz(5, 2, 16), 8),
    "float8_e8m0fnu": (_e8m0fnu, 8),
    "float6_e2m3fn": (lambda: _floats(2, 3, 1), 6),
    "float6_e3m2fn": (lambda: _floats(3, 2, 3), 6),
    "float4_e2m1fn": (lambda: _floats(2, 1, 1), 4),
    "float4_e2m1fn_x2": (lambda: _floats(2, 1, 1), 4),
    "quint4x2": (lambda: np.arange(16, dtype=np.float32), 4),
    "quint2x4": (lambda: np.arange(4, dtype=np.float32), 2),
}
