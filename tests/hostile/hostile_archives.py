"""Zips that lie, of torch, numpy and TorchScript, and tars of torch 0.1 that do."""

from __future__ import annotations

import io
import itertools
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

from formats.file_builders import glob, state, storage, tensor, text, torch_zip

PICKLED = state(("w", tensor()))
NAMED = torch_zip(PICKLED)
OBJECTS = b"\x80\x02" + glob("a", "B") + b"q\x050" + b"h\x05)R" * 1_000_000 + b"."
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def deflated(size: int, unit: bytes) -> bytes:
    """`size` bytes of one repeated, deflated."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    whole, rest = divmod(size, len(unit) << 16)
    made = b"".join(packer.compress(unit * 65_536) for _ in range(whole))
    return made + packer.compress(unit * (rest // len(unit))) + packer.flush()


def archive(*members: tuple[str | bytes, bytes, int, int]) -> bytes:
    """A zip byte by byte: each member its name, what is stored of it, its method, and the size that it says."""
    made, directory = bytearray(), bytearray()
    for name, stored, method, nbytes in members:
        raw = name.encode() if isinstance(name, str) else name
        crc = zlib.crc32(stored) if method == 0 else 0
        fields = struct.pack("<5H3I2H", 20, 0, method, 0, 0, crc, len(stored), min(nbytes, 0xFFFFFFFE), len(raw), 0)
        directory += CENTRAL + b"\x14\0" + fields + struct.pack("<3H2I", 0, 0, 0, 0, len(made)) + raw
        made += LOCAL + fields + raw + stored
    end = struct.pack("<4s4H2IH", END, 0, 0, len(members), len(members), len(directory), len(made), 0)
    return bytes(made + directory + end)


def plain(**members: bytes) -> bytes:
    return archive(*((name.replace("__", "/"), raw, 0, len(raw)) for name, raw in members.items()))


def central(at: int, value: bytes, *, of: bytes = b"m/data/0", data: bytes = NAMED) -> bytes:
    """A field of an entry of the directory, changed."""
    begin = data.rindex(of) - 46 + at
    return data[:begin] + value + data[begin + len(value) :]


def local(at: int, value: bytes, *, of: bytes = b"m/data/0", data: bytes = NAMED) -> bytes:
    begin = data.index(of) - 30 + at
    return data[:begin] + value + data[begin + len(value) :]


def end(at: int, value: bytes, data: bytes = NAMED) -> bytes:
    begin = data.rindex(END) + at
    return data[:begin] + value + data[begin + len(value) :]


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def packed(name: str, raw: bytes, said: int | None = None, data: bytes = bytes(8)) -> bytes:
    """A torch zip with a deflated pickle."""
    return archive((name, raw, 8, len(raw) if said is None else said), ("m/data/0", data, 0, len(data)))


def zip64(size: int, offset: int, count: int = 2, end64_offset: int | None = None) -> bytes:
    """NAMED with the ends of a zip64, which say something else than is there."""
    at = NAMED.rindex(END)
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at if end64_offset is None else end64_offset, 1)
    return NAMED[:at] + record + locator + end(8, b"\xff\xff\xff\xff", NAMED)[at:]


def zip64_member(extra: bytes, size: int = 0xFFFFFFFF) -> bytes:
    raw = b"m/data/0"
    made = bytearray(LOCAL + struct.pack("<5H3I2H", 20, 0, 0, 0, 0, 0, 8, 8, len(raw), 0) + raw + bytes(8))
    pickled = b"m/data.pkl"
    second = len(made)
    made += (
        LOCAL
        + struct.pack("<5H3I2H", 20, 0, 0, 0, 0, 0, len(PICKLED), len(PICKLED), len(pickled), 0)
        + pickled
        + PICKLED
    )
    directory = CENTRAL + b"\x14\0" + struct.pack("<5H3I2H", 45, 0, 0, 0, 0, 0, size, size, len(raw), len(extra))
    directory += struct.pack("<3H2I", 0, 0, 0, 0, 0) + raw + extra
    directory += (
        CENTRAL + b"\x14\0" + struct.pack("<5H3I2H", 20, 0, 0, 0, 0, 0, len(PICKLED), len(PICKLED), len(pickled), 0)
    )
    directory += struct.pack("<3H2I", 0, 0, 0, 0, second) + pickled
    return bytes(made) + directory + struct.pack("<4s4H2IH", END, 0, 0, 2, 2, len(directory), len(made), 0)


def many_members(count: int) -> bytes:
    return archive(
        ("m/data.pkl", PICKLED, 0, len(PICKLED)),
        ("m/data/0", bytes(8), 0, 8),
        *((f"m/data/x{i}", b"", 0, 0) for i in range(count)),
    )


def all_at_one_place(count: int) -> bytes:
    """A directory of many names for the bytes of one member: a bomb without nesting."""
    raw = b"m/data/0"
    made = LOCAL + struct.pack("<5H3I2H", 20, 0, 0, 0, 0, 0, 8, 8, len(raw), 0) + raw + bytes(8)
    directory = bytearray()
    for i in range(count):
        name = b"m/%05d.npy" % i
        directory += CENTRAL + b"\x14\0" + struct.pack("<5H3I2H", 20, 0, 0, 0, 0, 0, 8, 8, len(name), 0)
        directory += struct.pack("<3H2I", 0, 0, 0, 0, 0) + name
    return made + bytes(directory) + struct.pack("<4s4H2IH", END, 0, 0, count, count, len(directory), len(made), 0)


def wide(numel: int) -> bytes:
    return state(("w", tensor((numel,), of=storage(numel=numel))))


def npy(shape: object = (2,), descr: object = "<f4", data: bytes = bytes(8), text: str | None = None) -> bytes:
    said = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}" if text is None else text
    raw = said.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(raw)) + raw + data


BIG = 400 << 20
_ARCHIVES: dict[str, Callable[[], bytes]] = {
    "magic_alone": lambda: LOCAL,
    "empty_archive": lambda: END + bytes(18),
    "empty_archive_with_a_local_header": lambda: LOCAL + bytes(40) + END + bytes(18),
    "end_record_alone_twice": lambda: NAMED + NAMED[-22:],
    "bytes_before": lambda: b"x" * 100 + NAMED,
    "bytes_behind": lambda: NAMED + b"x" * 100,
    "bytes_behind_beyond_a_comment": lambda: NAMED + b"x" * 70_000,
    "comment_with_a_fake_end_record": lambda: end(20, u16(22)) + END + bytes(18),
    "comment_with_another_archive": lambda: end(20, u16(len(NAMED))) + NAMED,
    "comment_length_lies": lambda: end(20, u16(65_535)),
    "comment_of_escape_codes": lambda: end(20, u16(8)) + b"\x1b[2J\x1b[2J",
    "two_archives": lambda: NAMED + NAMED,
    "directory_offset_beyond": lambda: end(16, u32(BIG)),
    "directory_offset_0": lambda: end(16, u32(0)),
    "directory_offset_4_gb": lambda: end(16, u32(0xFFFFFFFF)),
    "directory_size_0": lambda: end(12, u32(0)),
    "directory_size_4_gb": lambda: end(12, u32(0xFFFFFFFF)),
    "directory_count_0": lambda: end(8, u16(0) * 2),
    "directory_count_65_535": lambda: end(8, u16(65_535) * 2),
    "directory_count_1_of_2": lambda: end(8, u16(1) * 2),
    "directory_count_3_of_2": lambda: end(8, u16(3) * 2),
    "directory_counts_differ": lambda: end(8, u16(1) + u16(2)),
    "directory_of_another_disk": lambda: end(4, u16(7) + u16(7)),
    "directory_entry_signature": lambda: central(0, b"XXXX"),
    "directory_entry_name_length_0": lambda: central(28, u16(0)),
    "directory_entry_name_length_65_535": lambda: central(28, u16(65_535)),
    "directory_entry_extra_length_65_535": lambda: central(30, u16(65_535)),
    "directory_entry_comment_length_65_535": lambda: central(32, u16(65_535), of=b"m/data.pkl"),
    "directory_entry_offset_beyond": lambda: central(42, u32(BIG)),
    "directory_entry_offset_1": lambda: central(42, u32(1)),
    "directory_entry_offset_of_another": lambda: central(42, u32(0)),
    "directory_entry_size_0": lambda: central(24, u32(0)),
    "directory_entry_size_1_gb": lambda: central(24, u32(BIG)),
    "directory_entry_stored_1_gb": lambda: central(20, u32(BIG)),
    "directory_entry_both_sizes_1_gb": lambda: central(20, u32(BIG) * 2),
    "directory_entry_both_sizes_4_gb": lambda: central(20, u32(0xFFFFFFFF) * 2),
    "directory_entry_both_sizes_1_more": lambda: central(20, u32(9) * 2),
    "directory_entry_crc": lambda: central(16, u32(7)),
    "directory_entry_encrypted": lambda: central(8, u16(1)),
    "directory_entry_pickle_encrypted": lambda: central(8, u16(1), of=b"m/data.pkl"),
    "directory_entry_flags_all": lambda: central(8, u16(0xFFFF)),
    "directory_entry_pickle_flags_all": lambda: central(8, u16(0xFFFE), of=b"m/data.pkl"),
    "directory_entry_method_14": lambda: central(10, u16(14)),
    "directory_entry_pickle_method_14": lambda: central(10, u16(14), of=b"m/data.pkl"),
    "directory_entry_stored_said_to_be_deflated": lambda: central(10, u16(8)),
    "directory_entry_pickle_said_to_be_deflated": lambda: central(10, u16(8), of=b"m/data.pkl"),
    "local_signature": lambda: local(0, b"XXXX"),
    "local_name_length_65_535": lambda: local(26, u16(65_535)),
    "local_extra_length_65_535": lambda: local(28, u16(65_535)),
    "local_extra_length_1": lambda: local(28, u16(1)),
    "local_extra_length_of_the_pickle": lambda: local(28, u16(65_535), of=b"m/data.pkl"),
    "local_method_of_the_pickle": lambda: local(8, u16(8), of=b"m/data.pkl"),
    "local_flags_of_the_pickle": lambda: local(6, u16(1), of=b"m/data.pkl"),
    "local_sizes_of_the_pickle": lambda: local(18, u32(BIG) * 2, of=b"m/data.pkl"),
    "local_name_of_another": lambda: local(30, b"m/data/1"),
    "local_name_of_the_pickle_is_another": lambda: local(30, b"m/code.pkl", of=b"m/data.pkl"),
    "name_twice": lambda: torch_zip(PICKLED, {"data/0": bytes(8), "data/1": bytes(8)}).replace(b"m/data/1", b"m/data/0"),
    "pickle_twice": lambda: archive(("m/data.pkl", PICKLED, 0, len(PICKLED)), ("m/data.pkl", PICKLED, 0, len(PICKLED))),
    "pickle_in_two_roots": lambda: archive(
        ("a/data.pkl", PICKLED, 0, len(PICKLED)), ("b/data.pkl", PICKLED, 0, len(PICKLED)), ("a/data/0", bytes(8), 0, 8)
    ),
    "pickle_that_is_a_folder": lambda: archive(("m/data.pkl/", b"", 0, 0)),
    "pickle_of_1_000_folders": lambda: archive(("a/" * 1_000 + "data.pkl", PICKLED, 0, len(PICKLED))),
    "name_dotdot": lambda: archive(("../../m/data.pkl", PICKLED, 0, len(PICKLED)), ("../../m/data/0", bytes(8), 0, 8)),
    "name_absolute": lambda: archive(("/m/data.pkl", PICKLED, 0, len(PICKLED)), ("/m/data/0", bytes(8), 0, 8)),
    "name_not_utf8": lambda: archive((b"\xff\xfe/data.pkl", PICKLED, 0, len(PICKLED)), (b"\xff\xfe/data/0", bytes(8), 0, 8)),
    "name_with_escape_codes": lambda: archive(("\x1b[2J\n/a", b"", 0, 0)),
    "name_with_escape_codes_before_the_pickle": lambda: archive(("\x1b[2J\n/data.pkl", b"", 0, 0)),
    "name_of_nul": lambda: archive(("m/data.pkl\0.txt", PICKLED, 0, len(PICKLED))),
    "name_empty": lambda: archive(("", b"", 0, 0), ("m/data.pkl", PICKLED, 0, len(PICKLED))),
    "name_of_60_000": lambda: archive(("x" * 60_000, b"", 0, 0)),
    "members_of_something_else_10_000": lambda: archive(*((f"{i}.txt", b"", 0, 0) for i in range(10_000))),
    "members_20_000": lambda: many_members(20_000),
    "members_60_000_of_one_place": lambda: all_at_one_place(60_000),
    "zip64_end_beyond_the_file": lambda: zip64(0, 0, end64_offset=1 << 60),
    "zip64_end_at_itself": lambda: zip64(110, 235, end64_offset=0),
    "zip64_size_2_63": lambda: zip64(1 << 63, 0),
    "zip64_offset_2_63": lambda: zip64(110, 1 << 63),
    "zip64_size_and_offset_wrap": lambda: zip64((1 << 64) - 110, 110),
    "zip64_count_2_63": lambda: zip64(110, 235, 1 << 63),
    "zip64_count_0": lambda: zip64(110, 235, 0),
    "zip64_member_without_its_sizes": lambda: zip64_member(b""),
    "zip64_member_of_2_63": lambda: zip64_member(struct.pack("<HHQQ", 1, 16, 1 << 63, 1 << 63)),
    "zip64_member_of_different_sizes": lambda: zip64_member(struct.pack("<HHQQ", 1, 16, 1 << 40, 8)),
    "zip64_member_of_4_bytes": lambda: zip64_member(struct.pack("<HHI", 1, 4, 8)),
    "zip64_member_extra_length_lies": lambda: zip64_member(struct.pack("<HHQQ", 1, 60_000, 8, 8)),
    "zip64_member_extra_of_zeros": lambda: zip64_member(bytes(40)),
    "zip64_member_that_needs_none": lambda: zip64_member(struct.pack("<HHQQ", 1, 16, 1 << 63, 1 << 63), size=8),
    "pickle_does_not_inflate": lambda: packed("m/data.pkl", b"\xff" * 100),
    "pickle_inflates_to_nothing": lambda: packed("m/data.pkl", b"", 0),
    "pickle_inflates_short": lambda: packed("m/data.pkl", deflated(100, b"]"), 200),
    "pickle_inflates_long": lambda: packed("m/data.pkl", deflated(200, b"]"), 100),
    "pickle_inflates_200_mb": lambda: packed("m/data.pkl", deflated(200 << 20, b"]"), 200 << 20),
    "pickle_inflates_200_mb_of_memos": lambda: packed("m/data.pkl", deflated(200 << 20, b"}q\x01"), 200 << 20),
    "pickle_inflates_60_mb": lambda: packed("m/data.pkl", deflated(60 << 20, b"]"), 60 << 20),
    "pickle_inflates_16_mb": lambda: packed("m/data.pkl", deflated(16 << 20, b"]"), 16 << 20),
    "pickle_inflates_15_mb_of_texts": lambda: packed("m/data.pkl", deflated(15 << 20, b"X\0\0\0\0"), 15 << 20),
    "pickle_inflates_15_mb_of_globals": lambda: packed("m/data.pkl", deflated(15 << 20, b"ca\nb\n"), 15 << 20),
    "pickle_inflates_15_mb_of_objects": lambda: packed("m/data.pkl", deflated(15 << 20, b")R"), 15 << 20),
    "pickle_inflates_15_mb_of_dicts": lambda: packed("m/data.pkl", deflated(15 << 20, b"}"), 15 << 20),
    "pickle_inflates_5_mb_of_lists": lambda: packed("m/data.pkl", deflated(5 << 20, b"]"), 5 << 20),
    "pickle_of_8_million_lists": lambda: archive(("m/data.pkl", b"]" * 8_000_000 + b".", 0, 8_000_001)),
    "pickle_of_4_million_lists_and_marks": lambda: archive(("m/data.pkl", b"(l" * 4_000_000 + b".", 0, 8_000_001)),
    "pickle_of_8_million_dicts": lambda: archive(("m/data.pkl", b"}" * 8_000_000 + b".", 0, 8_000_001)),
    "pickle_of_a_million_objects": lambda: archive(("m/data.pkl", OBJECTS, 0, len(OBJECTS))),
    "pickle_inflates_to_what_it_does_not_say": lambda: packed("m/data.pkl", deflated(200 << 20, b"]"), 1000),
    "byteorder_unknown": lambda: torch_zip(PICKLED, {"data/0": bytes(8), "byteorder": b"\x1b[2J"}),
    "byteorder_bomb": lambda: archive(
        ("m/data.pkl", PICKLED, 0, len(PICKLED)), ("m/byteorder", deflated(100 << 20, b"b"), 8, 6), ("m/data/0", bytes(8), 0, 8)
    ),
    "version_of_escape_codes": lambda: torch_zip(PICKLED, {"data/0": bytes(8), "version": b"\x1b[2J\n", ".data/serialization_id": b"\x1b"}),
    "storage_inflates_400_mb": lambda: archive(
        ("m/data.pkl", wide(BIG // 4), 0, len(wide(BIG // 4))), ("m/data/0", deflated(BIG, b"\0"), 8, BIG)
    ),
    "storage_inflates_400_mb_in_1_000_tensors": lambda: archive(
        ("m/data.pkl", many(1000), 0, len(many(1000))), ("m/data/0", deflated(BIG, b"\0"), 8, BIG)
    ),
    "storage_inflates_100_mb": lambda: archive(
        ("m/data.pkl", wide(25 << 20), 0, len(wide(25 << 20))), ("m/data/0", deflated(100 << 20, b"\0"), 8, 100 << 20)
    ),
    "storage_does_not_inflate": lambda: archive(("m/data.pkl", PICKLED, 0, len(PICKLED)), ("m/data/0", b"\xff" * 9, 8, 8)),
    "storage_inflates_short": lambda: archive(("m/data.pkl", PICKLED, 0, len(PICKLED)), ("m/data/0", deflated(4, b"\0"), 8, 8)),
    "storage_inflates_long": lambda: archive(("m/data.pkl", PICKLED, 0, len(PICKLED)), ("m/data/0", deflated(100 << 20, b"\0"), 8, 8)),
    "storage_of_one_byte": lambda: torch_zip(PICKLED, {"data/0": b"x"}),
    "storage_missing": lambda: torch_zip(PICKLED, {}),
    "storage_too_large": lambda: torch_zip(PICKLED, {"data/0": bytes(1 << 16)}),
}  # fmt: skip


def many(count: int) -> bytes:
    """Many tensors, each the whole of a storage of a gigabyte."""
    return state(*((f"w{i}", tensor((BIG // 4,), of=storage(numel=BIG // 4))) for i in range(count)))


def npz(**members: bytes) -> bytes:
    return archive(*((f"{name}.npy", raw, 0, len(raw)) for name, raw in members.items()))


def npz_deflated(raw: bytes, said: int) -> bytes:
    return archive(("a.npy", raw, 8, said))


def _zeros(nbytes: int) -> bytes:
    """An npy of a gigabyte of zeros, deflated."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    made = packer.compress(npy((nbytes // 4,), data=b""))
    return made + b"".join(packer.compress(bytes(1 << 20)) for _ in range(nbytes >> 20)) + packer.flush()


_NPY: dict[str, Callable[[], bytes]] = {
    "magic_alone": lambda: b"\x93NUMPY",
    "version_alone": lambda: b"\x93NUMPY\x01\0",
    "version_9": lambda: b"\x93NUMPY\x09" + npy()[7:],
    "length_0": lambda: b"\x93NUMPY\x01\0\0\0",
    "length_65_535": lambda: b"\x93NUMPY\x01\0\xff\xff" + b" " * 100,
    "length_4_gb": lambda: b"\x93NUMPY\x02\0\xff\xff\xff\xff" + b" " * 100,
    "header_is_code": lambda: npy(text="__import__('os').system('touch canary')"),
    "header_calls": lambda: npy(text="{'descr': open('canary', 'w'), 'fortran_order': False, 'shape': (2,)}"),
    "header_is_a_comprehension": lambda: npy(text="{'descr': '<f4', 'fortran_order': False, 'shape': tuple(9 for _ in range(99))}"),
    "header_multiplies": lambda: npy(text="{'descr': '<f4', 'fortran_order': False, 'shape': (9**9**9,)}"),
    "header_nested": lambda: b"\x93NUMPY\x02\0" + u32(100_000) + b"(" * 100_000,
    "header_nested_closed": lambda: b"\x93NUMPY\x02\0" + u32(60_001) + b"[" * 30_000 + b"]" * 30_000 + b"\n",
    "header_of_minuses": lambda: b"\x93NUMPY\x02\0" + u32(60_002) + b"-" * 60_000 + b"1\n",
    "header_of_pluses": lambda: b"\x93NUMPY\x02\0" + u32(60_001) + b"1+" * 29_999 + b"1j\n" + b" " * 9,
    "header_of_nul": lambda: npy(text="\0" * 20),
    "header_not_utf8": lambda: b"\x93NUMPY\x03\0" + u32(4) + b"\xff\xfe{}",
    "header_a_list": lambda: npy(text="[]"),
    "header_of_other_keys": lambda: npy(text="{'a': 1}"),
    "header_key_twice": lambda: npy(text="{'descr':'<f4','descr':'<f8','fortran_order':False,'shape':(2,)}"),
    "header_of_10_000_digits": lambda: b"\x93NUMPY\x02\0" + u32(10_060) + (
        b"{'descr':'<f4','fortran_order':False,'shape':(" + b"9" * 10_000 + b",)}").ljust(10_060),
    "shape_of_terabytes": lambda: npy((1 << 40,)),
    "shape_2_63": lambda: npy((1 << 63,)),
    "shape_wraps": lambda: npy((1 << 32, 1 << 32)),
    "shape_wraps_to_2": lambda: npy((1 << 62, 8)),
    "shape_empty_of_2_80": lambda: npy((1 << 40, 1 << 40, 0), data=b""),
    "shape_negative": lambda: npy((-2,)),
    "shape_two_negatives": lambda: npy((-2, -1)),
    "shape_float": lambda: npy((2.0,)),
    "shape_true": lambda: npy((True, 2)),
    "shape_a_number": lambda: npy(2),
    "shape_a_list": lambda: npy([2]),
    "shape_of_text": lambda: npy("2"),
    "shape_of_100_axes": lambda: npy((), text="{'descr':'<f4','fortran_order':False,'shape':(" + "1," * 20 + ")}"),
    "descr_object": lambda: npy(descr="|O"),
    "descr_object_that_is_a_pickle": lambda: npy(descr="|O", data=glob("os", "system") + text("touch canary") + b"\x85R."),
    "descr_of_terabytes": lambda: npy(descr="|V1099511627776"),
    "descr_text_of_terabytes": lambda: npy(descr="<U1099511627776"),
    "descr_unknown": lambda: npy(descr="<q9"),
    "descr_of_escape_codes": lambda: npy(descr="\x1b[2J"),
    "descr_record": lambda: npy(descr=[("a", "<f4"), ("\x1b[2J", "|O")]),
    "descr_list_of_numbers": lambda: npy(descr=[1, 2]),
    "descr_none": lambda: npy(descr=None),
    "descr_bytes": lambda: npy(descr=b"<f4"),
    "too_short": lambda: npy(data=bytes(7)),
    "too_long": lambda: npy(data=bytes(9)),
    "empty_of_2_62": lambda: npy((0, 1 << 62), data=b""),
}  # fmt: skip
_NPZ: dict[str, Callable[[], bytes]] = {
    "bomb_400_mb": lambda: npz_deflated(_zeros(BIG), BIG + 129),
    "bomb_100_mb": lambda: npz_deflated(_zeros(100 << 20), (100 << 20) + 129),
    "header_bomb": lambda: npz_deflated(
        deflated_with(b"\x93NUMPY\x02\0" + u32(BIG), BIG // 2), BIG // 2 + 12),
    "header_says_4_gb": lambda: npz(a=b"\x93NUMPY\x02\0\xff\xff\xff\xff" + bytes(100)),
    "member_too_short": lambda: npz(a=npy(data=bytes(4))),
    "member_empty": lambda: npz(a=b""),
    "member_of_something_else": lambda: npz(a=b"\x80\x02}."),
    "member_of_objects": lambda: npz(a=_NPY["descr_object_that_is_a_pickle"]()),
    "member_that_does_not_inflate": lambda: npz_deflated(b"\xff" * 50, 136),
    "member_name_of_escape_codes": lambda: archive(("\x1b[2J\n.npy", npy(), 0, len(npy()))),
    "member_name_dotdot": lambda: archive(("../../a.npy", npy(), 0, len(npy()))),
    "member_name_empty": lambda: archive((".npy", npy(), 0, len(npy()))),
    "member_twice": lambda: archive(("a.npy", npy(), 0, len(npy())), ("a.npy", npy(), 0, len(npy()))),
    "members_that_become_one": lambda: archive(("a.npy", npy(), 0, len(npy())), ("a", npy(), 0, len(npy()))),
    "members_10_000": lambda: npz(**{f"a{i}": npy((0,), data=b"") for i in range(10_000)}),
}  # fmt: skip


def deflated_with(head: bytes, zeros: int) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    made = packer.compress(head)
    return made + b"".join(packer.compress(b" " * (1 << 20)) for _ in range(zeros >> 20)) + packer.flush()


# ----------------------------------------------------------------------------- TorchScript and torch.export


def script(
    data: bytes | None = None, constants: bytes = b"\x80\x02).", code: bytes = b"", method: int = 0, **more: bytes
) -> bytes:
    pickled = (
        b"\x80\x02" + glob("__torch__.net", "Net") + b")\x81}" + text("w") + tensor() + b"sb." if data is None else data
    )
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as made:
        members = {"data.pkl": pickled, "constants.pkl": constants, "code/__torch__/net.py": code, "data/0": bytes(8)}
        for name, raw in (members | {"version": b"3\n"} | {k.replace("__", "/"): v for k, v in more.items()}).items():
            made.writestr(f"m/{name}", raw)
    return held.getvalue()


def exported(document: bytes, **more: bytes) -> bytes:
    members = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", "models/model.json": document}
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", 8) as made:
        for name, raw in (members | {k.replace("__", "/"): v for k, v in more.items()}).items():
            made.writestr(f"m/{name}", raw)
    return held.getvalue()


CODE = b"class Net(Module):\n  __parameters__ = [" + b'"w", ' * 10 + b"]\n  __buffers__ = []\n  w : Tensor\n"
_MORE: dict[str, Callable[[], bytes]] = {
    "torchscript_code_of_junk": lambda: script(code=bytes(range(256)) * 10),
    "torchscript_code_of_escape_codes": lambda: script(code=CODE + b"\x1b[2J"),
    "torchscript_code_bomb": lambda: script(code=b"class Net(Module):\n" * (5 << 20), method=8),
    "torchscript_code_backtracks": lambda: script(code=b"class " + b"A" * 200_000 + b"(" * 200_000),
    "torchscript_code_of_many_classes": lambda: script(code=CODE * 5_000),
    "torchscript_code_imports": lambda: script(code=b"import canary_module\nopen('canary', 'w')\n" + CODE),
    "torchscript_constants_call": lambda: script(constants=b"\x80\x02" + glob("os", "system") + text("touch canary") + b"\x85R."),
    "torchscript_constants_cut": lambda: script(constants=b"\x80\x02("),
    "torchscript_constants_bomb": lambda: script(constants=b"\x80\x02" + b"]" * (100 << 20), method=8),
    "torchscript_constants_in_a_circle": lambda: script(constants=b"\x80\x02]q\0h\0a."),
    "torchscript_data_in_a_circle": lambda: script(b"\x80\x02" + glob("__torch__.net", "Net") + b")\x81q\x05}" + text("w") + h5() + b"sb."),
    "torchscript_data_of_nothing": lambda: script(b"\x80\x02N."),
    "torchscript_data_calls": lambda: script(b"\x80\x02" + glob("os", "system") + text("touch canary") + b"\x85R."),
    "torchscript_data_bomb": lambda: script(b"\x80\x02" + b"]" * (100 << 20), method=8),
    "torchscript_modules_shared": lambda: script(
        b"\x80\x02" + glob("__torch__.net", "Net") + b")\x81q\x06"
        + (b"0" + glob("__torch__.net", "Net") + b")\x81}" + text("a") + b"h\x06s" + text("b") + b"h\x06sbq\x06") * 60 + b"."),
    "torchscript_class_of_escape_codes": lambda: script(
        b"\x80\x02" + glob("__torch__.\x1b[2J", "\x1b]0;") + b")\x81}" + text("w") + tensor() + b"sb."),
    "torchscript_version_bomb": lambda: script(version=b"3" * (100 << 20), method=8),
    "torch_export_not_json": lambda: exported(b"{"),
    "torch_export_empty": lambda: exported(b""),
    "torch_export_a_list": lambda: exported(b"[]"),
    "torch_export_nested": lambda: exported(b"[" * 1_000_000),
    "torch_export_nested_in_an_object": lambda: exported(b'{"graph_module":' * 100_000),
    "torch_export_json_bomb": lambda: exported(b"[" + b"0," * (30 << 20) + b"0]"),
    "torch_export_json_of_spaces": lambda: exported(b" " * (100 << 20)),
    "torch_export_of_nothing": lambda: exported(b'{"graph_module":{"signature":{},"graph":{}}}'),
    "torch_export_of_wrong_types": lambda: exported(b'{"graph_module":{"signature":{"input_specs":[1,"a",null,{"parameter":7}]},"graph":{"tensor_values":[]}}}'),
    "torch_export_weights_config_not_json": lambda: exported(b"{}", **{"data__weights__model_weights_config.json": b"{"}),
    "torch_export_weights_config_dotdot": lambda: exported(
        b"{}", **{"data__weights__model_weights_config.json": b'{"config":{"w":{"path_name":"../../../etc/passwd","is_param":true,"use_pickle":false,"tensor_meta":{"dtype":7,"sizes":[{"as_int":2}],"strides":[{"as_int":1}],"storage_offset":{"as_int":0},"requires_grad":true,"device":{"type":"cpu","index":null},"layout":7}}}}'}),
    "torch_export_weights_config_of_terabytes": lambda: exported(
        b"{}", **{"data__weights__model_weights_config.json": b'{"config":{"w":{"path_name":"weight_0","is_param":true,"use_pickle":false,"tensor_meta":{"dtype":7,"sizes":[{"as_int":1099511627776}],"strides":[{"as_int":1}],"storage_offset":{"as_int":-1},"requires_grad":true,"device":{"type":"cpu","index":null},"layout":7}}}}', "data__weights__weight_0": bytes(8)}),
    "torch_export_archive_format_bomb": lambda: exported(b"{}", archive_format=b"pt2" + b" " * (100 << 20)),
}  # fmt: skip


def h5() -> bytes:
    return b"h\x05"


# ----------------------------------------------------------------------------- the tar of torch 0.1


def tar(**parts: bytes) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:", format=tarfile.GNU_FORMAT) as made:
        for name, raw in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            made.addfile(info, io.BytesIO(raw))
    return held.getvalue()


def torch_tar(count: bytes = b"\x80\x02K\x01.", shape: tuple[int, ...] = (2,), numel: int = 2, **parts: bytes) -> bytes:
    """One tensor of two elements, and what is changed of it."""
    numbers = struct.pack(f"<i4x{2 * len(shape) + 1}q", len(shape), *shape, *[1] * len(shape), 0)
    members = {
        "sys_info": b"\x80\x02}" + text("protocol_version") + b"M\xe8\x03s" + text("little_endian") + b"\x88s.",
        "pickle": b"\x80\x02}" + text("w") + b"X\x01\0\0\x007Qs.",
        "tensors": count + b"\x80\x02K\x07K\x08N\x87." + numbers,
        "storages": count + b"\x80\x02(K\x08" + text("cpu") + glob("torch", "FloatStorage") + b"t." + struct.pack("<q", numel) + bytes(8) + b"\x80\x02].",
    }  # fmt: skip
    return tar(**(members | parts))


def tar_field(at: int, value: bytes, member: int = 0) -> bytes:
    data = bytearray(torch_tar())
    starts = [i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b"ustar"]
    data[starts[member] + at : starts[member] + at + len(value)] = value
    return bytes(data)


_TAR: dict[str, Callable[[], bytes]] = {
    "whole": torch_tar,
    "of_something_else": lambda: tar(readme=b"hello"),
    "empty": lambda: bytes(10_240),
    "size_octal_overflow": lambda: tar_field(124, b"77777777777\0"),
    "size_of_nines": lambda: tar_field(124, b"99999999999\0"),
    "size_negative": lambda: tar_field(124, b"-0000000001\0"),
    "size_empty": lambda: tar_field(124, b" " * 12),
    "size_in_256_overflow": lambda: tar_field(124, b"\x80" + b"\xff" * 11),
    "size_in_256_negative": lambda: tar_field(124, b"\xff" * 12),
    "size_zero": lambda: tar_field(124, b"00000000000\0", 1),
    "name_of_escape_codes": lambda: tar_field(0, b"\x1b[2J\n"),
    "name_not_utf8": lambda: tar_field(0, b"\xff\xfe"),
    "name_twice": lambda: tar_field(0, b"pickle\0\0\0", 0),
    "type_link": lambda: tar_field(156, b"2", 1),
    "type_pax": lambda: tar_field(156, b"x"),
    "type_pax_global": lambda: tar_field(156, b"g"),
    "type_sparse": lambda: tar_field(156, b"S"),
    "no_magic_in_the_second": lambda: tar_field(257, b"xxxxx", 1),
    "tensors_count_2_60": lambda: torch_tar(b"\x80\x02\x8a\x08\0\0\0\0\0\0\0\x10."),
    "tensors_count_negative": lambda: torch_tar(b"\x80\x02J\xff\xff\xff\xff."),
    "tensors_count_a_text": lambda: torch_tar(b"\x80\x02" + text("1") + b"."),
    "shape_of_terabytes": lambda: torch_tar(shape=(1 << 40,)),
    "shape_negative": lambda: torch_tar(shape=(-2,)),
    "shape_wraps": lambda: torch_tar(shape=(1 << 62, 4)),
    "storage_of_terabytes": lambda: torch_tar(numel=1 << 40),
    "storage_negative": lambda: torch_tar(numel=-2),
    "pickle_calls": lambda: torch_tar(pickle=b"\x80\x02" + glob("os", "system") + text("touch canary") + b"\x85R."),
    "pickle_nested": lambda: torch_tar(pickle=b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    "pickle_names_no_tensor": lambda: torch_tar(pickle=b"\x80\x02}" + text("w") + b"X\x01\0\0\x009Qs."),
    "storages_empty": lambda: torch_tar(storages=b""),
    "tensors_empty": lambda: torch_tar(tensors=b""),
    "tensors_of_2_31_axes": lambda: torch_tar(tensors=b"\x80\x02K\x01.\x80\x02K\x07K\x08N\x87." + b"\xff\xff\xff\x7f" + bytes(60)),
    "tensors_of_negative_axes": lambda: torch_tar(tensors=b"\x80\x02K\x01.\x80\x02K\x07K\x08N\x87." + b"\xff\xff\xff\xff" + bytes(60)),
}  # fmt: skip

FILES: dict[str, Callable[[], bytes]] = dict(
    itertools.chain(
        ((f"zip_{key}", make) for key, make in _ARCHIVES.items()),
        ((f"npy_{key}", make) for key, make in _NPY.items()),
        ((f"npz_{key}", make) for key, make in _NPZ.items()),
        _MORE.items(),
        ((f"tar_{key}", make) for key, make in _TAR.items()),
    )
)
