"""Values tier: the numbers that ggml's blocks of quantized elements stand for, as float32.

A block holds a scale or a few, and small integers; an element is their product, some less a minimum. Products and
differences are taken in float32 in ggml's order, so that every bit is the same as there.

Source: ggml/src/ggml-common.h (the blocks); ggml/src/ggml-quants.c (`dequantize_row_*`). The types whose integers are
numbers of a codebook (iq1, iq2, iq3) are left to the gguf library, which has the codebooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paramctl.errors import MissingLibraryError

Array = NDArray[Any]
Layout = Callable[[Array, str], Array]  # bytes (n, block_nbytes) and a byte order, to elements (n, block_numel)

_CHUNK_NUMEL = 1 << 20
_CODEBOOKS = frozenset(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"))
_NONLINEAR = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
_CRUMBS = np.array([0, 2, 4, 6], np.uint8)[:, None]
_POWERS_OF_3 = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]


def knows(name: str) -> bool:
    """Whether a dtype is one of ggml's whose blocks can be read."""
    return name in LAYOUTS or name in _CODEBOOKS


def dequantized(name: str, raw: Array, block_numel: int, *, order: str = "<") -> Array:
    """The elements of blocks of bytes (n, block_nbytes), one after another, by a chunk that fits the cache."""
    layout = LAYOUTS.get(name) or _of_library(name)
    made = np.empty((len(raw), block_numel), np.float32)
    step = max(1, _CHUNK_NUMEL // block_numel)
    with np.errstate(all="ignore"):  # scales that are infinite or no numbers are the file's
        for start in range(0, len(raw), step):
            made[start : start + step] = layout(raw[start : start + step], order)
    return made.reshape(-1)


def _of_library(name: str) -> Layout:
    try:
        from gguf import GGMLQuantizationType, quants  # noqa: PLC0415 - 60 ms that only a codebook pays
    except ImportError:
        raise MissingLibraryError(
            f"values of {name} need gguf, which is not installed", hint="pip install gguf"
        ) from None
    kind = GGMLQuantizationType[name.upper()]

    def layout(raw: Array, order: str) -> Array:
        if order == ">":
            raise MissingLibraryError(f"values of {name} are read in little-endian order only")
        made: Array = quants.dequantize(raw, kind)
        return made

    return layout


def _half(raw: Array, at: int, order: str) -> Array:
    """The float16 at byte `at` of each block, as a column."""
    return raw[:, at : at + 2].copy().view(order + "f2").astype(np.float32)


def _signed(raw: Array) -> Array:
    return raw.copy().view(np.int8).astype(np.float32)


def _nibbles(raw: Array, group: int) -> Array:
    """The low halves of each `group` bytes, then their high halves."""
    grouped = raw.reshape(len(raw), -1, 1, group)
    return np.concatenate([grouped & 15, grouped >> 4], axis=2).reshape(len(raw), -1)


def _crumbs(raw: Array) -> Array:
    """Of each 32 bytes their lowest two bits, then the next two, and so on."""
    return (raw.reshape(len(raw), -1, 1, 32) >> _CRUMBS & 3).reshape(len(raw), -1)


def _bits(raw: Array, order: str) -> Array:
    """The 32 bits of a number, lowest first."""
    return raw.copy().view(order + "u4") >> np.arange(32, dtype=np.uint32) & 1


def _scaled(scales: Array, numbers: Array) -> Array:
    """Numbers times the scale of the group that they are of; `scales` has a column for each group."""
    grouped = numbers.reshape(len(numbers), scales.shape[1], -1)
    return (scales[:, :, None] * grouped.astype(np.float32)).reshape(len(numbers), -1)


def _less(numbers: Array, minima: Array) -> Array:
    """Numbers less the minimum of the group that they are of."""
    grouped = numbers.reshape(len(numbers), minima.shape[1], -1)
    return (grouped - minima[:, :, None]).reshape(len(numbers), -1)


def _q4_0(raw: Array, order: str) -> Array:
    return (_nibbles(raw[:, 2:], 16).astype(np.float32) - np.float32(8)) * _half(raw, 0, order)


def _q4_1(raw: Array, order: str) -> Array:
    return _nibbles(raw[:, 4:], 16).astype(np.float32) * _half(raw, 0, order) + _half(raw, 2, order)


def _q5_0(raw: Array, order: str) -> Array:
    numbers: Array = _nibbles(raw[:, 6:], 16) | _bits(raw[:, 2:6], order) << 4
    return (numbers.astype(np.float32) - np.float32(16)) * _half(raw, 0, order)


def _q5_1(raw: Array, order: str) -> Array:
    numbers: Array = _nibbles(raw[:, 8:], 16) | _bits(raw[:, 4:8], order) << 4
    return numbers.astype(np.float32) * _half(raw, 0, order) + _half(raw, 2, order)


def _q8_0(raw: Array, order: str) -> Array:
    return _signed(raw[:, 2:]) * _half(raw, 0, order)


def _q8_1(raw: Array, order: str) -> Array:
    return _signed(raw[:, 4:]) * _half(raw, 0, order)


def _q2_k(raw: Array, order: str) -> Array:
    scales = raw[:, :16]
    step = _half(raw, 80, order) * (scales & 15).astype(np.float32)
    least = _half(raw, 82, order) * (scales >> 4).astype(np.float32)
    return _less(_scaled(step, _crumbs(raw[:, 16:80])), least)


def _q3_k(raw: Array, order: str) -> Array:
    packed = raw[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = (packed[:, None, 8:] >> _CRUMBS & 3).reshape(len(raw), 16)
    step = _half(raw, 108, order) * ((low | high << 4).astype(np.float32) - np.float32(32))
    is_high = (raw[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1).reshape(len(raw), 256)
    return _scaled(step, _crumbs(raw[:, 32:96]).astype(np.int8) - 4 * (1 - is_high.astype(np.int8)))


def _scales_and_minima(packed: Array) -> tuple[Array, Array]:
    """Eight scales and eight minima of six bits each, in twelve bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(raw: Array, order: str) -> Array:
    scales, minima = _scales_and_minima(raw[:, 4:16])
    step, least = _half(raw, 0, order) * scales, _half(raw, 2, order) * minima
    return _less(_scaled(step, _nibbles(raw[:, 16:], 32)), least)


def _q5_k(raw: Array, order: str) -> Array:
    scales, minima = _scales_and_minima(raw[:, 4:16])
    step, least = _half(raw, 0, order) * scales, _half(raw, 2, order) * minima
    high = (raw[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1).reshape(len(raw), 256)
    return _less(_scaled(step, _nibbles(raw[:, 48:], 32) | high << 4), least)


def _q6_k(raw: Array, order: str) -> Array:
    numbers = _nibbles(raw[:, :128], 64) | _crumbs(raw[:, 128:192]) << 4
    step = _half(raw, 208, order) * _signed(raw[:, 192:208])
    return _scaled(step, numbers.astype(np.float32) - np.float32(32))


def _q8_k(raw: Array, order: str) -> Array:
    return raw[:, :4].copy().view(order + "f4").astype(np.float32) * _signed(raw[:, 4:260])


def _iq4_nl(raw: Array, order: str) -> Array:
    return _half(raw, 0, order) * _NONLINEAR[_nibbles(raw[:, 2:], 16)]


def _iq4_xs(raw: Array, order: str) -> Array:
    high = raw[:, 2:4].copy().view(order + "u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    low = np.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], axis=2).reshape(len(raw), 8)
    step = _half(raw, 0, order) * ((low | high << 4).astype(np.float32) - np.float32(32))
    return _scaled(step, _NONLINEAR[_nibbles(raw[:, 8:], 16)])


def _tq1_0(raw: Array, order: str) -> Array:
    """Five digits of base 3 in a byte, as the fraction of 256 that has them behind its point."""
    parts = []
    for begin, end, digits in ((0, 32, 5), (32, 48, 5), (48, 52, 4)):
        shifted = raw[:, None, begin:end] * _POWERS_OF_3[:digits]  # modulo 256
        parts.append((shifted.astype(np.uint16) * 3 >> 8).reshape(len(raw), -1))
    return (np.concatenate(parts, axis=1).astype(np.float32) - np.float32(1)) * _half(raw, 52, order)


def _tq2_0(raw: Array, order: str) -> Array:
    return (_crumbs(raw[:, :64]).astype(np.float32) - np.float32(1)) * _half(raw, 64, order)


def _mxfp4(raw: Array, order: str) -> Array:
    del order  # single bytes
    exponent = raw[:, :1].astype(np.int32) - 128  # one less than E8M0's bias: the numbers are doubled
    return _E2M1_DOUBLED[_nibbles(raw[:, 1:], 16)] * np.ldexp(np.float32(1), exponent)


def _nvfp4(raw: Array, order: str) -> Array:
    del order
    exponent, mantissa = (raw[:, :4] >> 3 & 15).astype(np.int32), (raw[:, :4] & 7).astype(np.float32)
    normal = np.ldexp(np.float32(1) + mantissa / np.float32(8), exponent - 8)
    step = np.where(exponent == 0, np.ldexp(mantissa, -10), normal).astype(np.float32)
    step[(raw[:, :4] == 0x7F) | (raw[:, :4] == 0)] = 0
    return _scaled(step, _E2M1_DOUBLED[_nibbles(raw[:, 4:], 8)])


LAYOUTS: dict[str, Layout] = {
    "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "q8_0": _q8_0, "q8_1": _q8_1,
    "q2_k": _q2_k, "q3_k": _q3_k, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k, "q8_k": _q8_k,
    "iq4_nl": _iq4_nl, "iq4_xs": _iq4_xs, "tq1_0": _tq1_0, "tq2_0": _tq2_0, "mxfp4": _mxfp4, "nvfp4": _nvfp4,
}  # fmt: skip
