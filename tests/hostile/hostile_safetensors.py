"""safetensors files that break one rule of the format each, and some that keep them all and are hostile anyway.

Source: safetensors/safetensors/src/tensor.rs (`Metadata::validate`, `SafeTensorError`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

from formats.file_builders import entry, safetensors

E = json.dumps(entry()).encode()
TB = 1 << 40


def raw(header: bytes, data: bytes = bytes(8)) -> bytes:
    return safetensors(header, data)


def one(data: bytes = bytes(8), **fields: Any) -> bytes:
    """A file of one tensor called a, with fields changed, or left out where they are None."""
    changed = entry() | {"data_offsets" if key == "offsets" else key: value for key, value in fields.items()}
    return safetensors({"a": {key: value for key, value in changed.items() if value is not None}}, data)


def text_field(field: str, text: bytes, data: bytes = bytes(8)) -> bytes:
    fields = {"dtype": b'"F32"', "shape": b"[2]", "data_offsets": b"[0,8]"} | {field: text}
    return raw(b'{"a":{%s}}' % b",".join(b'"%s":%s' % (key.encode(), fields[key]) for key in fields), data)


def length(value: int, rest: bytes = b"{}") -> bytes:
    return struct.pack("<Q", value) + rest


_BYTES: dict[str, bytes] = {
    "empty_file": b"",
    "one_byte": b"{",
    "seven_bytes": bytes(7),
    "length_alone": length(2, b""),
    "length_zero": length(0, b""),
    "length_zero_before_a_header": length(0),
    "length_one": length(1, b"{"),
    "length_one_more_than_the_file": length(3),
    "length_one_less_than_the_header": length(1),
    "length_2_63": length(1 << 63),
    "length_2_64_minus_1": length((1 << 64) - 1),
    "length_of_eight_more_wraps": length((1 << 64) - 8),
    "length_beyond_100_megabytes": length(100_000_001),
    "length_big_endian": struct.pack(">Q", 2) + b"{}",
    "header_not_utf8": raw(b'{"\xff":1}'),
    "header_utf16": raw('{"a":1}'.encode("utf-16")),
    "header_with_a_bom": raw(b"\xef\xbb\xbf{}", b""),
    "header_leading_space": raw(b" {}", b""),
    "header_trailing_nuls": raw(b"{}\0\0\0\0", b""),
    "header_trailing_garbage": raw(b"{}x", b""),
    "header_null": raw(b"null", b""),
    "header_list": raw(b"[]", b""),
    "header_string": raw(b'"a"', b""),
    "header_number": raw(b"1", b""),
    "header_cut_in_a_string": raw(b'{"a', b""),
    "header_cut_in_an_entry": raw(b'{"a":{"dtype":"F32"', b""),
    "header_trailing_comma": raw(b'{"a":%s,}' % E),
    "header_comment": raw(b'{/**/"a":%s}' % E),
    "header_single_quotes": raw(b"{'a':%s}" % E),
    "header_unquoted_name": raw(b"{a:%s}" % E),
    "header_raw_control_character": raw(b'{"a\x1b[2J":%s}' % E),
    "header_raw_newline_in_a_name": raw(b'{"a\n":%s}' % E),
    "header_lone_surrogate": raw(b'{"\\ud800":%s}' % E),
    "header_bad_escape": raw(b'{"\\x41":%s}' % E),
    "header_nested_objects_100_000": raw(b'{"a":' * 100_000),
    "header_nested_lists_closed": raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "header_nested_in_shape": text_field("shape", b"[" * 50_000 + b"]" * 50_000),
    "header_nested_in_metadata": raw(b'{"__metadata__":{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}}"),
    "name_twice": raw(b'{"a":%s,"a":%s}' % (E, E)),
    "name_twice_by_an_escape": raw(b'{"a":%s,"\\u0061":%s}' % (E, E)),
    "metadata_twice": raw(b'{"__metadata__":{},"__metadata__":{},"a":%s}' % E),
    "metadata_key_twice": raw(b'{"__metadata__":{"x":"1","x":"2"},"a":%s}' % E),
    "field_twice": raw(b'{"a":{"dtype":"F16","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "metadata_null": safetensors({"__metadata__": None}),
    "metadata_list": safetensors({"__metadata__": []}),
    "metadata_string": safetensors({"__metadata__": "a"}),
    "metadata_of_numbers": safetensors({"__metadata__": {"a": 1}}),
    "metadata_of_null": safetensors({"__metadata__": {"a": None}}),
    "metadata_of_objects": safetensors({"__metadata__": {"a": {}}}),
    "metadata_of_escape_codes": safetensors({"__metadata__": {"\x1b]0;t\x07": "\x9b31m\u202e\r"}}),
    "metadata_of_a_megabyte": safetensors({"__metadata__": {"a": "x" * (1 << 20)}}),
    "metadata_tie_to_a_stranger": safetensors({"__metadata__": {"b": "nowhere"}, "a": entry()}, bytes(8)),
    "metadata_tie_in_a_circle": safetensors({"__metadata__": {"b": "c", "c": "b", "d": "d"}, "a": entry()}, bytes(8)),
    "metadata_ties_by_the_ten_thousand": safetensors(
        {"__metadata__": {f"n{i}": "a" for i in range(10_000)}, "a": entry()}, bytes(8)
    ),
    "entry_null": safetensors({"a": None}),
    "entry_list": safetensors({"a": []}),
    "entry_string": safetensors({"a": "F32"}),
    "entry_number": safetensors({"a": 1}),
    "entry_empty": safetensors({"a": {}}),
    "entry_unknown_field": one(extra=1),
    "no_dtype": one(dtype=None),
    "no_shape": one(shape=None),
    "no_offsets": one(offsets=None),
    "dtype_unknown": one(dtype="F31"),
    "dtype_lower_case": one(dtype="f32"),
    "dtype_number": one(dtype=32),
    "dtype_list": one(dtype=["F32"]),
    "dtype_object": one(dtype={}),
    "dtype_empty": one(dtype=""),
    "dtype_of_escape_codes": one(dtype="\x1b[31mF32"),
    "dtype_of_a_megabyte": one(dtype="F" * (1 << 20)),
    "dtype_half_a_byte_odd": one(bytes(1), dtype="F4", shape=[1], offsets=[0, 1]),
    "shape_string": one(shape="2"),
    "shape_object": one(shape={}),
    "shape_number": one(shape=2),
    "shape_negative": one(shape=[-2]),
    "shape_two_negatives": one(shape=[-2, -1]),
    "shape_float": one(shape=[2.0]),
    "shape_true": one(shape=[True, 2]),
    "shape_of_null": one(shape=[None]),
    "shape_of_strings": one(shape=["2"]),
    "shape_nan": text_field("shape", b"[NaN]"),
    "shape_infinite": text_field("shape", b"[Infinity]"),
    "shape_1e400": text_field("shape", b"[1e400]"),
    "shape_2_64": text_field("shape", b"[18446744073709551616]"),
    "shape_of_10_000_digits": text_field("shape", b"[" + b"9" * 10_000 + b"]"),
    "shape_of_terabytes": one(shape=[TB]),
    "shape_product_wraps_to_2": one(shape=[1 << 63, 2, 2]),
    "shape_product_wraps_to_0": one(shape=[1 << 32, 1 << 32], offsets=[0, 0], data=b""),
    "shape_empty_of_2_80": one(shape=[TB, TB, 0], offsets=[0, 0], data=b""),
    "shape_empty_of_2_62": one(shape=[1 << 62, 0], offsets=[0, 0], data=b""),
    "shape_of_10_000_axes": one(shape=[1] * 9_999 + [2]),
    "shape_of_70_axes": one(shape=[1] * 69 + [2]),
    "offsets_string": one(offsets="0,8"),
    "offsets_empty": one(offsets=[]),
    "offsets_one": one(offsets=[0]),
    "offsets_three": one(offsets=[0, 4, 8]),
    "offsets_nested": one(offsets=[[0, 8]]),
    "offsets_floats": one(offsets=[0.0, 8.0]),
    "offsets_negative": one(offsets=[-8, 0]),
    "offsets_backwards": one(offsets=[8, 0]),
    "offsets_of_true": one(offsets=[False, 8]),
    "offsets_of_null": one(offsets=[None, None]),
    "offsets_beyond_the_file": one(offsets=[8, 16]),
    "offsets_one_beyond_the_file": one(bytes(7)),
    "offsets_2_64": one(offsets=[1 << 64, (1 << 64) + 8]),
    "offsets_of_10_000_digits": text_field("data_offsets", b"[0," + b"9" * 10_000 + b"]"),
    "offsets_of_terabytes_as_the_shape": one(shape=[TB], offsets=[0, 4 * TB]),
    "gap_before_the_first": one(bytes(16), offsets=[8, 16]),
    "header_gap": safetensors({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)),
    "overlap": safetensors({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "same_range_twice": safetensors({"a": entry(), "b": entry()}, bytes(8)),
    "range_within_a_range": safetensors(
        {"a": entry(shape=(4,), offsets=(0, 16)), "b": entry(offsets=(4, 12))}, bytes(16)
    ),
    "bytes_behind_the_last": one(bytes(9)),
    "bytes_behind_no_tensor": safetensors({}, bytes(8)),
    "size_less_than_the_offsets": one(shape=[1]),
    "size_more_than_the_offsets": one(shape=[3]),
    "a_scalar_of_two": one(shape=[]),
    "name_empty": safetensors({"": entry()}, bytes(8)),
    "name_of_nul": safetensors({"a\0b": entry()}, bytes(8)),
    "name_with_escape_codes": safetensors({"\x1b[2J\x1b]0;t\x07\x9b": entry()}, bytes(8)),
    "name_with_newlines": safetensors({"a\r\nb\x0b\x0c": entry()}, bytes(8)),
    "name_bidirectional": safetensors({"\u202egnp.\u2066": entry()}, bytes(8)),
    "name_of_a_megabyte": safetensors({"x" * (1 << 20): entry()}, bytes(8)),
    "name_of_100_000_dots": safetensors({"." * 100_000: entry()}, bytes(8)),
    "name_of_5_000_levels": safetensors({"a." * 5_000 + "w": entry()}, bytes(8)),
    "names_of_many_levels": safetensors(
        {f"{i}." + "a." * 400 + "w": entry(offsets=(8 * i, 8 * i + 8)) for i in range(200)}, bytes(1600)
    ),
    "name_of_digits": safetensors({"9" * 5_000 + ".w": entry()}, bytes(8)),
    "name_that_is_a_prefix": safetensors({"a": entry(), "a.b": entry(offsets=(8, 16))}, bytes(16)),
    "names_of_20_000_empty_tensors": safetensors({f"l.{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(20_000)}),
}
FILES: dict[str, Callable[[], bytes]] = {f"safetensors_{key}": (lambda data=data: data) for key, data in _BYTES.items()}
