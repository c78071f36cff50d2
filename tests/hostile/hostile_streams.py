"""GGUF files that lie, and files of nothing that is known."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

from gguf_bytes import array_of, key, tensor, text
from gguf_bytes import file as gguf

E60 = 1 << 60


def alignment(value: int) -> bytes:
    return key("general.alignment", 4, struct.pack("<I", value))


ARRAYS = b"".join(struct.pack("<IQ", 9, 1) for _ in range(40_000))
_GGUF: dict[str, bytes] = {
    "magic_alone": b"GGUF",
    "version_alone": b"GGUF\x03\0\0\0",
    "version_0": gguf(version=0),
    "version_1": gguf(version=1),
    "version_4": gguf(version=4),
    "version_2_31": gguf(version=1 << 31),
    "no_tensor": gguf(),
    "tensor_count_2_60": gguf(tensor(), tensors=E60),
    "tensor_count_2_64": gguf(tensor(), tensors=(1 << 64) - 1),
    "tensor_count_one_more": gguf(tensor(), tensors=2),
    "tensor_count_one_less": gguf(tensor(), tensors=0),
    "key_count_2_60": gguf(tensor(), tensors=1, keys=E60),
    "counts_wrap": gguf(tensor(), tensors=1 << 63, keys=1 << 63),
    "key_name_2_60": gguf(struct.pack("<Q", E60), keys=1),
    "key_name_2_64": gguf(struct.pack("<Q", (1 << 64) - 1), keys=1),
    "key_twice": gguf(key("a", 4, bytes(4)), key("a", 4, bytes(4)), keys=2),
    "key_type_99": gguf(key("a", 99, bytes(8)), keys=1),
    "key_type_2_32": gguf(key("a", 0xFFFFFFFF, bytes(8)), keys=1),
    "key_of_escape_codes": gguf(key("\x1b[2J\n", 8, text("\x1b]0;t\x07\x9b")), keys=1),
    "key_not_utf8": gguf(text(b"\xff\xfe") + struct.pack("<I", 8) + text(b"\xff\xed\xa0\x80"), keys=1),
    "key_empty": gguf(key("", 8, text("")), keys=1),
    "bool_of_2": gguf(key("a", 7, b"\x02"), keys=1),
    "float_nan": gguf(key("a", 6, b"\0\0\xc0\x7f"), key("b", 12, b"\xff" * 8), keys=2),
    "string_2_60": gguf(key("a", 8, struct.pack("<Q", E60)), keys=1),
    "string_2_64": gguf(key("a", 8, b"\xff" * 8), keys=1),
    "string_of_2_megabytes": gguf(key("a", 8, text("x" * (2 << 20))), keys=1),
    "string_of_nul": gguf(key("a", 8, text("\0" * 1000)), keys=1),
    "array_count_2_60": gguf(key("a", 9, array_of(4, E60)), keys=1),
    "array_count_wraps": gguf(key("a", 9, array_of(4, (1 << 62) + 1)), keys=1),
    "array_of_strings_2_60": gguf(key("a", 9, array_of(8, E60)), keys=1),
    "array_of_strings_that_lie": gguf(key("a", 9, array_of(8, 9, struct.pack("<9Q", *[E60] * 9))), keys=1),
    "array_of_strings_that_wrap": gguf(key("a", 9, array_of(8, 20, b"\xff" * 160)), keys=1),
    "array_of_empty_strings_million": gguf(key("a", 9, array_of(8, 1_000_000, bytes(8_000_000))), keys=1),
    "array_type_99": gguf(key("a", 9, array_of(99, 1)), keys=1),
    "arrays_in_arrays": gguf(key("a", 9, ARRAYS), keys=1),
    "arrays_in_arrays_side_by_side": gguf(key("a", 9, array_of(9, 100_000, array_of(4, 0) * 100_000)), keys=1),
    "arrays_of_nothing_2_60": gguf(key("a", 9, array_of(9, E60)), keys=1),
    "alignment_0": gguf(alignment(0), tensor(), keys=1),
    "alignment_3": gguf(alignment(3), tensor(), keys=1),
    "alignment_1": gguf(alignment(1), tensor(), keys=1),
    "alignment_2_31": gguf(alignment(1 << 31), tensor(), keys=1),
    "alignment_2_63": gguf(key("general.alignment", 10, struct.pack("<Q", 1 << 63)), tensor(), keys=1),
    "alignment_negative": gguf(key("general.alignment", 5, b"\xff" * 4), tensor(), keys=1),
    "alignment_a_text": gguf(key("general.alignment", 8, text("32")), tensor(), keys=1),
    "name_2_60": gguf(struct.pack("<Q", E60), tensors=1),
    "name_twice": gguf(tensor(), tensor(offset=32)),
    "name_empty": gguf(tensor("")),
    "name_with_escape_codes": gguf(tensor("\x1b[2J\x9b31m\r\n")),
    "name_not_utf8": gguf(tensor(b"\xff\xfe")),
    "name_of_60_000_dots": gguf(tensor("." * 60_000)),
    "dimensions_65": gguf(tensor(dims=(1,) * 65)),
    "dimensions_64": gguf(tensor(dims=(1,) * 64)),
    "dimensions_2_32": gguf(text("w") + b"\xff\xff\xff\xff" + bytes(64), tensors=1),
    "dimensions_0": gguf(tensor(dims=())),
    "size_of_terabytes": gguf(tensor(dims=(1 << 40,))),
    "size_2_63": gguf(tensor(dims=(1 << 63,))),
    "size_wraps": gguf(tensor(dims=(1 << 32, 1 << 32))),
    "size_wraps_to_2": gguf(tensor(dims=(1 << 62, 8))),
    "size_empty_of_2_80": gguf(tensor(dims=(1 << 40, 1 << 40, 0))),
    "size_empty_of_2_62": gguf(tensor(dims=(0, 1 << 62))),
    "rows_that_are_no_blocks": gguf(tensor(dims=(31,), code=2)),
    "type_4_which_was_removed": gguf(tensor(code=4)),
    "type_2_32": gguf(tensor(code=0xFFFFFFFF)),
    "offset_unaligned": gguf(tensor(offset=1)),
    "offset_beyond": gguf(tensor(offset=1 << 40)),
    "offset_2_64": gguf(tensor(offset=(1 << 64) - 32)),
    "overlap": gguf(tensor(), tensor("v")),
    "overlap_by_a_part": gguf(tensor(dims=(16,)), tensor("v", offset=32)),
    "no_data": gguf(tensor(), data=b""),
    "data_one_byte_short": gguf(tensor(dims=(16,)), data=bytes(63)),
    "empty_tensors_20_000": gguf(*(tensor(f"l.{i}", (0,)) for i in range(20_000))),
    "quantized_scales_of_nan": gguf(tensor(dims=(32,), code=2), data=b"\xff" * 64),
    "quantized_of_every_bit": gguf(tensor(dims=(256,), code=14), data=b"\xff" * 256),
    "codebook_type": gguf(tensor(dims=(256,), code=16), data=bytes(256)),
}
_STRANGERS: dict[str, bytes] = {
    "nuls": bytes(4096),
    "one_nul": b"\0",
    "random_bytes": bytes(i * 131 % 251 for i in range(4096)),
    "text_of_escape_codes": b"\x1b[2J\x1b]0;title\x07\x9b31m" * 20,
    "html_of_escape_codes": b"<!DOCTYPE html><title>\x1b[2J404\n</title>",
    "git_lfs_pointer_of_escape_codes": b"version https://git-lfs.github.com/spec/v1\noid sha256:\x1b[2J\nsize 9\n",
    "git_lfs_pointer_size_of_10_000_digits": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize " + b"9" * 10_000,
    "gzip_bomb": gzip.compress(gzip.compress(bytes(8 << 20))),
    "gzip_cut": gzip.compress(b"x" * 100)[:20],
    "gzip_header_alone": b"\x1f\x8b",
    "gzip_name_of_escape_codes": b"\x1f\x8b\x08\x08" + bytes(6) + b"\x1b[2J\0",
    "xz_bomb": lzma.compress(bytes(8 << 20)),
    "bzip2_bomb": bz2.compress(bytes(8 << 20)),
    "zstd_header_alone": b"\x28\xb5\x2f\xfd",
    "hdf5_header_alone": b"\x89HDF\r\n\x1a\n",
    "onnx_like": b"\x08\x07\x12\x07pytorch\x1a\x05\x1b[2J",
    "json_bomb": b'{"a":' * 200_000,
    "json_index_bomb": b'{"weight_map":' + b"[" * 200_000,
    "json_of_a_megabyte_of_names": b'{"weight_map":{' + b",".join(b'"n%d":"../x"' % i for i in range(50_000)) + b"}}",
    "json_index_to_itself": b'{"weight_map":{"a":"m"}}',
    "json_index_absolute": b'{"weight_map":{"a":"/etc/passwd"}}',
    "json_index_of_escape_codes": b'{"weight_map":{"a":"\\u001b[2J"}}',
    "pickle_alone_that_calls": b"\x80\x02cos\nsystem\nX\x0c\0\0\0touch canary\x85R.",
    "pickle_alone_of_protocol_0": b"cos\nsystem\n(S'touch canary'\ntR.",
    "pickle_alone_bomb": b"\x80\x02" + b"]" * 1_000_000,
    "python_code": b"open('canary', 'w')\n",
    "shebang": b"#!/bin/sh\ntouch canary\n",
    "yaml_that_calls": b"!!python/object/apply:os.system ['touch canary']\n",
    "toml": b"[tool]\n",
    "seven_zip": b"7z\xbc\xaf\x27\x1c" + bytes(100),
    "rar": b"Rar!\x1a\x07\x01\0",
    "elf": b"\x7fELF" + bytes(100),
    "pdf": b"%PDF-1.7\n\x1b[2J",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(30),
}  # fmt: skip
FILES: dict[str, Callable[[], bytes]] = {f"gguf_{name}": (lambda data=data: data) for name, data in _GGUF.items()}
FILES |= {f"stranger_{name}": (lambda data=data: data) for name, data in _STRANGERS.items()}
