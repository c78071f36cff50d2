"""Law 2 and 5 of reading: nothing is believed unchecked, and a damaged file names the first thing wrong with it."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from file_builders import entry, glob, safetensors, state, storage, tensor, text, torch_zip, whole
from safetensors.torch import save

from paramctl.errors import FileError

CUT = "\n\nhint: the download may have been cut short"
DAMAGED = "\n\nhint: the file is cut short or damaged"
ZIP_CUT = "\n\nhint: the file is cut short: its directory stands at the end"
MISLEADING = "\n\nhint: the file is damaged, or was made to mislead"
NAMED = torch_zip(state(("w", tensor())))


def patched(data: bytes, old: bytes, new: bytes, *, nth: int = 0) -> bytes:
    at = -1
    for _ in range(nth + 1):
        at = data.index(old, at + 1)
    return data[:at] + new + data[at + len(old) :]


def central(offset: int, value: bytes, *, of: bytes = b"m/data/0") -> bytes:
    """NAMED with a field of a central directory entry changed."""
    at = NAMED.rindex(of) - 46 + offset
    return NAMED[:at] + value + NAMED[at + len(value) :]


def twice() -> bytes:
    data = torch_zip(state(("w", tensor())), {"data/0": bytes(8), "data/1": bytes(8)})
    return data.replace(b"m/data/1", b"m/data/0")


LIES: dict[str, tuple[bytes, str]] = {
    # safetensors
    "length beyond the file": (
        struct.pack("<Q", 5000) + b'{"a":1}',
        "the header says 5,000 bytes, the file has 7 after its length" + CUT,
    ),
    "length beyond belief": (
        struct.pack("<Q", 1 << 60) + b"{}",
        "the header says 1,152,921,504,606,846,976 bytes, and 100,000,000 is the most there may be",
    ),
    "a gap": (
        safetensors({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)),
        "b begins at 9, the tensor before ends at 8: a gap",
    ),
    "an overlap": (
        safetensors({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
        "b begins at 4, the tensor before ends at 8: an overlap",
    ),
    "shape and offsets differ": (
        safetensors({"a": entry(shape=(3, 1))}, bytes(8)),
        "a: 3×1 of float32 takes 12 bytes, its offsets say 8",
    ),
    "a shape of terabytes": (
        safetensors({"a": entry(shape=(1 << 40,))}, bytes(8)),
        "a: 1099511627776 of float32 takes 4,398,046,511,104 bytes, its offsets say 8",
    ),
    "a shape of terabytes with its offsets": (
        safetensors({"a": entry(shape=(1 << 40,), offsets=(0, 1 << 42))}, bytes(8)),
        "the tensors take 4,398,046,511,104 bytes, the file has 8 after its header" + CUT,
    ),
    "a negative size": (safetensors({"a": entry(shape=(-2,))}, bytes(8)), "a: -2 is no size"),
    "a size that is a float": (safetensors({"a": entry(shape=(2.0,))}, bytes(8)), "a: 2.0 is no size"),
    "a size that is true": (safetensors({"a": entry(shape=(True,))}, bytes(8)), "a: True is no size"),
    "a size that is not a number": (
        safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)),
        "a: nan is no size",
    ),
    "offsets backwards": (
        safetensors({"a": entry(shape=(0,), offsets=(8, 0))}, bytes(8)),
        "a: 0 of float32 takes 0 bytes, its offsets say -8",
    ),
    "three offsets": (
        safetensors({"a": entry(offsets=(0, 4, 8))}, bytes(8)),
        "a: its shape or data_offsets is no list of numbers",
    ),
    "no offsets": (safetensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "a: its entry has no data_offsets"),
    "an entry that is a list": (safetensors({"a": []}), "a: its entry is not an object"),
    "an unknown dtype": (safetensors({"a": entry(dtype="F31")}, bytes(8)), "a: unknown dtype F31"),
    "a dtype that is a list": (safetensors({"a": entry() | {"dtype": ["F32"]}}, bytes(8)), "a: unknown dtype ['F32']"),
    "bytes behind the tensors": (
        safetensors({"a": entry()}, bytes(9)),
        "the tensors take 8 bytes, the file has 9 after its header",
    ),
    "a name twice": (
        safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
        "a stands twice in the header",
    ),
    "a name twice, once escaped": (
        safetensors(
            rb'{"a":%s,"\u0061":%s}'
            % (json.dumps(entry()).encode(), json.dumps(entry()).replace("dtype", r"\u0064type").encode()),
            bytes(8),
        ),
        "a stands twice in the header",
    ),
    "a dtype twice": (
        safetensors(b'{"a":{"dtype":"F16","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "dtype stands twice in the header",
    ),
    "metadata of numbers": (
        safetensors({"__metadata__": {"epoch": 3}}),
        "__metadata__ does not map strings to strings",
    ),
    "metadata that is a list": (safetensors({"__metadata__": []}), "__metadata__ does not map strings to strings"),
    "not UTF-8": (safetensors(b'{"\xff":1}'), "the header is not UTF-8 at byte 10"),
    "not JSON": (
        safetensors(b"{oops"),
        "the header is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    ),
    "nested too deeply": (safetensors(b'{"a":' * 100_000), "the header is nested too deeply"),
    "a name of escapes": (safetensors({"\x1b[2J\n": []}), "\\x1b[2J\\n: its entry is not an object"),
    "more elements than an int64 counts": (
        safetensors({"a": entry(shape=(1 << 40, 1 << 40, 0), offsets=(0, 0))}),
        "a: more elements than a tensor can have",
    ),
    # the zip
    "no directory": (NAMED[:-22], "a zip without its directory" + ZIP_CUT),
    "a zip of something else": (
        patched(NAMED, b"m/data.pkl", b"m/data.txt").replace(b"m/data.pkl", b"m/data.txt"),
        "a zip archive of m/data.txt, m/data/0\n\nhint: unpack it, and name the checkpoint in it",
    ),
    "a member twice": (twice(), "m/data/0 stands twice in the archive"),
    "a member beyond the file": (
        central(42, struct.pack("<I", 1 << 30)),
        "m/data/0 says 8 bytes at 1,073,741,824, and the members end at 235",
    ),
    "a member larger than what is stored of it": (
        central(24, struct.pack("<I", 1 << 30)),
        "m/data/0 is stored in 8 bytes, and says 1,073,741,824",
    ),
    "a member that is not where it should be": (
        central(42, struct.pack("<I", 1)),
        "m/data/0: no local header at byte 1",
    ),
    "a directory of more entries than it has bytes": (
        patched(NAMED, b"PK\x05\x06\0\0\0\0\x02\0\x02\0", b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff"),
        "the directory says 65,535 members in 110 bytes",
    ),
    "a directory that begins beyond the file": (
        NAMED[:-6] + struct.pack("<I", 1 << 30) + NAMED[-2:],
        "the directory says 110 bytes at 1,073,741,824, and ends at 345" + ZIP_CUT,
    ),
    "an encrypted pickle": (central(8, b"\x01\0", of=b"m/data.pkl"), "m/data.pkl is encrypted"),
    "a pickle of unknown compression": (
        central(10, b"\x0e\0", of=b"m/data.pkl"),
        "m/data.pkl is compressed by method 14",
    ),
    # the pickle
    "an empty pickle": (torch_zip(b""), "the pickle ends without its STOP, after 0 bytes" + DAMAGED),
    "no STOP": (torch_zip(state()[:-1]), "the pickle ends without its STOP, after 5 bytes" + DAMAGED),
    "a string beyond the pickle": (
        torch_zip(b"\x80\x02X\xff\xff\xff\x7fabc."),
        "the pickle ends without its STOP, after 11 bytes" + DAMAGED,
    ),
    "a LONG_BINPUT of 2^30": (
        torch_zip(b"\x80\x02}r\0\0\0\x40."),
        "the pickle has a memo index at byte 3 that it cannot fill",
    ),
    "a PUT of 2^30": (
        torch_zip(b"\x80\x02}p1073741824\n."),
        "the pickle has a memo index at byte 3 that it cannot fill",
    ),
    "a PUT of a hundred digits": (
        torch_zip(b"\x80\x02}p" + b"9" * 100 + b"\n."),
        "the pickle has a memo index at byte 3 that it cannot fill",
    ),
    "lists that are all there is": (
        torch_zip(b"]" * 1_000_001 + b"."),
        "the pickle makes 1,000,001 lists in 1,000,001 bytes",
    ),
    "dicts that are all there is": (
        torch_zip(b"}" * 1_000_001 + b"."),
        "the pickle makes 1,000,001 dicts and sets in 1,000,001 bytes",
    ),
    "an opcode that is none": (torch_zip(b"\x80\x02\xfe."), "the pickle has no opcode b'\\xfe' (byte 2)"),
    "an opcode cut off": (torch_zip(b"\x80\x02J\0\0"), "the pickle ends inside the opcode at byte 2"),
    "a line cut off": (torch_zip(b"\x80\x02cos\nsys"), "the pickle ends inside a line" + DAMAGED),
    "an extension code": (torch_zip(b"\x80\x02\x82\x01."), "the pickle uses an extension code at byte 2"),
    "a buffer from outside": (torch_zip(b"\x80\x05\x97."), "the pickle wants a buffer from outside at byte 2"),
    "a dict of protocol 0": (torch_zip(b"(d."), "the pickle builds a dict as protocol 0 does at byte 1"),
    "a stack that is empty": (torch_zip(b"\x80\x02R."), "the pickle is damaged: unpickling stack underflow"),
    "a memo that was not put": (torch_zip(b"\x80\x02h\x05."), "the pickle is damaged: Memo value not found at index 5"),
    "a state for a function": (
        torch_zip(
            b"\x80\x02" + glob("torch._utils", "_rebuild_tensor_v2") + b"N}" + text("__defaults__") + b")s\x86b."
        ),
        "the pickle is damaged: a state for a function, which has none",
    ),
    "a state for a dtype": (
        torch_zip(b"\x80\x02" + glob("torch", "FloatStorage") + b"N}" + text("dtype") + b"Ns\x86b."),
        "the pickle is damaged: a state for torch.FloatStorage, which has none",
    ),
    "a tensor without a storage": (
        torch_zip(state(("w", tensor(of=b"N")))),
        "the pickle is damaged: a tensor without a storage",
    ),
    "a negative size of a tensor": (
        torch_zip(state(("w", tensor().replace(b"(" + whole(2) + b"t", b"(J\xfe\xff\xff\xfft")))),
        "the pickle is damaged: a size or stride of -2",
    ),
    "fewer strides than sizes": (
        torch_zip(state(("w", tensor((2,), ())))),
        "the pickle is damaged: 1 sizes and 0 strides",
    ),
    "more elements than torch counts": (
        torch_zip(state(("w", tensor((1 << 40, 1 << 40), (0, 0))))),
        "the pickle is damaged: a tensor of more elements than torch can count",
    ),
    "a size beyond an int64": (
        torch_zip(state(("w", tensor((1 << 70,), (0,))))),
        "the pickle is damaged: a size or stride of type int",
    ),
    "a terabyte in a kilobyte": (
        torch_zip(state(("w", tensor((1 << 40,))))),
        "w reaches to byte 4,398,046,511,104 of a storage of 8" + MISLEADING,
    ),
    "a terabyte of storage": (
        torch_zip(state(("w", tensor((1 << 40,), of=storage(numel=1 << 40))))),
        "w: its storage should have 4,398,046,511,104 bytes, and has 8",
    ),
    "an element beyond the storage": (
        torch_zip(state(("w", tensor((2,), offset=1)))),
        "w reaches to byte 12 of a storage of 8" + MISLEADING,
    ),
    "a stride beyond the storage": (
        torch_zip(state(("w", tensor((2,), (9,))))),
        "w reaches to byte 40 of a storage of 8" + MISLEADING,
    ),
    "a storage that is not there": (
        torch_zip(state(("w", tensor(of=storage("7"))))),
        "w: its storage data/7 is not there",
    ),
    "a storage of two sizes": (
        torch_zip(state(("a", tensor()), ("b", tensor(of=storage(numel=1))))),
        "the pickle is damaged: storage 0 with 8 and with 4 bytes",
    ),
    "a persistent id that is a string": (torch_zip(b"\x80\x02Pm\n."), None),
    "a tuple in a tuple a hundred thousand times, as a key": (
        torch_zip(b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."),
        "the pickle is damaged: a key of more than 1,000 parts",
    ),
    "a tuple that holds itself twice sixty times, as a key": (
        torch_zip(b"\x80\x02})" + b"2\x86" * 60 + b"Ns."),
        "the pickle is damaged: a key of more than 1,000 parts",
    ),
    "a persistent id nested without end": (torch_zip(b"\x80\x02)" + b"\x85" * 200_000 + b"Q."), None),
    "dimensions without end": (
        torch_zip(state(("w", tensor((1,) * 1001)))),
        "the pickle is damaged: sizes or strides that are none",
    ),
}


@pytest.mark.parametrize(("data", "said"), LIES.values(), ids=LIES.keys())
def test_what_is_wrong_is_said(data: bytes, said: str | None, read):
    """A file that lies is refused in at most three lines that name it and the first thing wrong."""
    with pytest.raises(FileError) as caught:
        read(data)
    shown = str(caught.value)
    assert shown.startswith("error: m: ")
    assert len(shown.splitlines()) <= 3
    assert shown.isprintable() or "\n\nhint: " in shown
    if said is not None:
        assert shown == f"error: m: {said}"


WHOLE = {
    "safetensors": save({"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.int8)}, {"k": "v"}),
    "torch zip": NAMED,
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
def test_a_file_cut_short_anywhere_is_refused(data: bytes, read):
    """No proper beginning of a file reads as a whole one."""
    read(data)
    for end in range(len(data)):
        with pytest.raises(FileError) as caught:
            read(data[:end])
        assert len(str(caught.value).splitlines()) <= 3


def test_a_real_file_with_any_byte_changed_is_read_or_refused(read):
    """One byte of another value is no reason for anything but an answer or a FileError."""
    import random

    held = io.BytesIO()
    torch.save({"model": torch.nn.Linear(2, 2), "epoch": 3, "keys": {(1, 2): {"a"}}}, held)
    for data in (held.getvalue(), WHOLE["safetensors"]):
        pick = random.Random(1)
        for _ in range(400):
            at = pick.randrange(min(len(data), 2200))
            with contextlib.suppress(FileError):
                read(data[:at] + bytes([pick.randrange(256)]) + data[at + 1 :])


def laughs(levels: int, wide: int) -> bytes:
    """A list of `wide` times the list of `wide` times …, with a tensor at the bottom."""
    rows = [b"\x80\x02" + tensor() + b"q\0"]
    rows += [b"0](" + b"h%c" % n * wide + b"eq%c" % (n + 1) for n in range(levels)]
    return torch_zip(b"".join(rows) + b".")


HUNGRY = {
    "a billion laughs": (laughs(30, 10), "its containers hold each other so often that their names have no end"),
    "one list copied without end": (
        torch_zip(
            b"\x80\x02"
            + glob("builtins", "list")
            + b"q\x01("
            + b"N" * 20_000
            + b"t\x85q\x02"
            + b"0h\x01h\x02R" * 20_000
            + b"."
        ),
        "the pickle is damaged: it copies the same values again and again",
    ),
    "one tuple of arguments without end": (
        torch_zip(
            b"\x80\x02" + glob("a", "b") + b"q\x01(" + b"N" * 20_000 + b"tq\x02" + b"0h\x01h\x02R" * 20_000 + b"."
        ),
        "the pickle is damaged: it copies the same values again and again",
    ),
    "one text encoded without end": (
        torch_zip(
            b"\x80\x02"
            + glob("_codecs", "encode")
            + b"q\x01"
            + text("x" * 20_000)
            + b"\x85q\x02"
            + b"h\x01h\x02R" * 20_000
            + b"."
        ),
        "the pickle is damaged: it copies the same values again and again",
    ),
    "a memo as large as the pickle": (torch_zip(b"\x80\x02}" + b"r\xff\x03\0\0" * 200 + b"."), None),
}


@pytest.mark.parametrize(("data", "said"), HUNGRY.values(), ids=HUNGRY.keys())
def test_a_small_file_costs_little(data: bytes, said: str | None, read):
    """A file of kilobytes costs megabytes at most, whatever it says."""
    assert len(data) < 200_000
    tracemalloc.start()
    try:
        if said is None:
            read(data)
        else:
            with pytest.raises(FileError) as caught:
                read(data)
            assert str(caught.value) == f"error: m: {said}"
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [name for name in LIES if "terabyte" in name or "2^30" in name or "beyond" in name])
def test_a_lie_costs_no_memory(name: str, read):
    """What a file says of its sizes is held against its bytes before memory is asked for."""
    tracemalloc.start()
    try:
        with pytest.raises(FileError):
            read(LIES[name][0])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_names_that_meet_are_told_apart(read):
    """A hundred tensors that would have one name get a hundred names, in time."""
    many = 20_000
    same = b"(" + (b"}" + text("x") + b"h\0s") * many + b"t"
    data = torch_zip(b"\x80\x02" + tensor() + b"q\x000" + glob("a", "B") + b")\x81" + same + b"b.")
    found = read(data).params
    assert len(found) == many
    assert list(found)[:4] == ["x", "x'", "x'2", "x'3"]


def test_bytes_that_look_like_lists_are_bytes(tmp_path, run):
    """An array in the pickle may be of any one number, and one of 108 or 93 holds no lists."""
    for number in (93, 108):
        torch.save({"w": torch.zeros(2), "mask": bytes([number]) * 5_000_000}, tmp_path / "m.pt")
        assert run("ls", tmp_path / "m.pt", "-f", "names").out == "w\n"


def test_freeing_what_is_deep_does_not_crash(process, tmp_path: Path):
    """A chain of a million containers is refused or listed by a process that lives."""
    for i, link in enumerate((b"\x85", b"]2a", b"}(NN2u")):
        path = tmp_path / f"deep{i}.pt"
        wrap = b"\x80\x02]" + (b"\x85" * 1_000_000 if link == b"\x85" else b"") + b"."
        if i == 1:
            wrap = b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b"."
        if i == 2:
            wrap = b"\x80\x02" + (glob("a", "B") + b"q\x01)\x81" + b"h\x01)\x81" * 300_000) + b"b" * 300_000 + b"."
        path.write_bytes(torch_zip(wrap))
        done = process("ls", path)
        assert done.returncode == 2, done
        assert len(done.stderr.decode().splitlines()) <= 3
