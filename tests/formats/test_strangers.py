"""What is recognised and holds no parameters gets a word of its own, by its content and never by its suffix alone."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from paramctl.formats import strangers


def field(number: int, value: bytes | int) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def tar(**members: bytes) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return held.getvalue()


NODE = field(1, b"dense/kernel") + field(2, b"Placeholder") + field(5, b"\n\x05dtype")
GRAPH = field(1, NODE) * 3 + field(4, field(1, 24))
META_GRAPH = field(1, field(2, field(1, field(1, b"Add"))) + field(5, b"1.14.0")) + field(2, GRAPH)
ONNX = (
    field(1, 8) + field(2, b"pytorch") + field(3, b"2.3") + field(7, field(1, b"node") * 30_000) + field(8, b"\x10\x11")
)
MODEL = "look for the checkpoint that it was made from"
AGAIN = "the download went wrong: look at it with head, and download it again"
TRUST = "it runs code when it is loaded: open it only if you trust it"
TF = "save its variables as npz or safetensors"
GGML = ("a ggml file of before GGUF, as whisper.cpp's", "convert it to GGUF with the scripts of llama.cpp")

STRANGERS: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "the file is empty", ""),
    "onnx": (ONNX, "an ONNX model, which is not read", MODEL),
    "onnx without a producer": (field(1, 3) + field(7, b"\x0a\x00"), "an ONNX model, which is not read", MODEL),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, as Keras writes, which is not read", "h5ls -r lists it"),
    "tensorflow graph": (GRAPH, "a TensorFlow graph, which is not read", MODEL),
    "saved model": (field(1, 1) + field(2, META_GRAPH), "a TensorFlow SavedModel, which is not read", TF),
    "tensorflow meta": (
        META_GRAPH,
        "the graph of a TensorFlow checkpoint, which is not read",
        "tf.train.list_variables lists the checkpoint",
    ),
    "tensorflow index": (
        bytes(range(1, 60)) + bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
        "the index of a TensorFlow checkpoint, which is not read",
        "tf.train.list_variables lists it",
    ),
    "tensorflow.js": (
        b'[{"weights": [], "paths": ["a.bin"]}]',
        "a TensorFlow.js weights manifest, which is not read",
        "its weights lie beside it in .bin files",
    ),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(99), "a TensorFlow Lite model, which is not read", MODEL),
    "core ml": (
        field(1, 2) + field(2, b"\x0a\x05input") + field(500, bytes(99_999)),
        "a Core ML model, which is not read",
        MODEL,
    ),
    "sentencepiece": (
        field(1, field(1, b"<unk>") + b"\x15\0\0\0\0" + field(3, 2)) * 20,
        "a SentencePiece tokenizer, and no checkpoint",
        "name the model beside it",
    ),
    "whisper.cpp": (b"lmgg" + bytes(99), *GGML),
    "ggjt": (b"tjgg" + bytes(99), *GGML),
    "flax": (
        b"\x81\xa6params\x82\xa6kernel\xc7",
        "a msgpack file, as Flax writes, which is not read",
        "save the model as safetensors",
    ),
    "a list pickled": (
        pickle.dumps([1, 2], 4),
        "a pickle that is no checkpoint of torch",
        TRUST,
    ),
    "an object pickled": (
        pickle.dumps(Path("x"), 4),
        "a pickle that is no checkpoint of torch; the first class in it is pathlib.PosixPath",
        TRUST,
    ),
    "an object pickled in 2003": (
        pickle.dumps({"a": Path("x")}, 2),
        "a pickle that is no checkpoint of torch; the first class in it is pathlib.PosixPath",
        TRUST,
    ),
    "joblib": (
        b"\x80\x03cjoblib.numpy_pickle\nNumpyArrayWrapper\nq\0.",
        "a joblib pickle that is no checkpoint of torch; the first class in it is joblib.numpy_pickle.NumpyArrayWrapper",
        TRUST,
    ),
    "git lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 17\n",
        "a Git LFS pointer, and not the file itself",
        "fetch it: git lfs pull",
    ),
    "html": (
        b"\n<!doctype HTML>\n<title>Sign\x1b[2J in</title>",
        "an HTML page (Sign\\x1b[2J in), and no checkpoint",
        AGAIN,
    ),
    "html without a title": (b"\xef\xbb\xbf<HTML><body>", "an HTML page, and no checkpoint", AGAIN),
    "S3 says no": (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>',
        "an error answer of the site: AccessDenied",
        AGAIN,
    ),
    "the Hub says no": (b'{"error":"Invalid username or password."}', "an error answer of the site: Invalid username or password.", AGAIN),
    "GitHub says no": (b'{"message":"Not Found","status":"404"}', "an error answer of the site: Not Found", AGAIN),
    "an API says no": (
        b'{"error": {"code": 403, "message": "The caller \\u001b has no permission"}}',
        "an error answer of the site: The caller \\x1b has no permission",
        AGAIN,
    ),
    "xml": (b"<?xml version='1.0'?><net name='x'/>", "an XML file, and no checkpoint", ""),
    "config": (
        b'{"architectures": ["LlamaForCausalLM"]}',
        "a model's configuration, without parameters",
        "name its folder, or the checkpoint beside it",
    ),
    "json": (b'{"a": [1, 2]}', "a JSON file, and no checkpoint", ""),
    "gzip": (gzip.compress(b"x"), "compressed by gzip", "unpack it first: gunzip -k m"),
    "bzip2": (bz2.compress(b"x"), "compressed by bzip2", "unpack it first: bunzip2 -k m"),
    "xz": (lzma.compress(b"x"), "compressed by xz", "unpack it first: unxz -k m"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(9), "compressed by zstd", "unpack it first: unzstd m"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(9), "compressed by lz4", "unpack it first: unlz4 m"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(9), "a 7z archive", "unpack it first: 7z x m"),
    "tar": (
        tar(**{"docs/a\x1b.txt": b"x" * 600, "b": b"", "c": b"1", "d": b"2"}),
        "a tar archive of docs/a\\x1b.txt, b, c, …",
        "unpack it, and name the checkpoint in it",
    ),
    "pdf": (b"%PDF-1.7\n", "a PDF document, and no checkpoint", ""),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(9), "a picture, and no checkpoint", ""),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(9), "a picture, and no checkpoint", ""),
    "a program": (b"\x7fELF" + bytes(99), "a program, and no checkpoint", ""),
    "a script": (
        b"#!/bin/sh\nrm -rf /\n", "a script, and no checkpoint", "a definition's file is named with .py at its end"
    ),
    "text": (b"epoch,loss\n1,0.5\n", "a text file, and no checkpoint", "it begins with epoch,loss"),
    "text with an escape": ("\n \x1b[31mé".encode(), "a text file, and no checkpoint", "it begins with \\x1b[31mé"),
    "zeros": (bytes(9999), "it begins with nothing but zeros", "the download may not be finished"),
    "noise": (
        b"\xb5\xfe\x01\x99\xff\xff",
        "no checkpoint of a format that is known",
        "it begins with b'\\xb5\\xfe\\x01\\x99\\xff\\xff'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_gets_its_word(name: str, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch):
    """One line that says what it is, one of what to do, exit 2; under a checkpoint's suffix as well."""
    data, what, hint = STRANGERS[name]
    monkeypatch.chdir(tmp_path)
    for file in ("m", "m.safetensors", "m.pt"):
        Path(file).write_bytes(data)
        done = run("ls", file)
        said = hint.removesuffix(" m") + f" {file}" if hint.endswith(" m") else hint
        assert (done.code, done.out) == (2, "")
        assert done.err == f"error: {file}: {what}\n" + (f"\nhint: {said}\n" if said else "")


@pytest.mark.parametrize("name", [name for name in STRANGERS if len(STRANGERS[name][0]) > 3])
def test_a_stranger_that_is_cut_short_is_no_crash(name: str, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch):
    """Wherever it is cut, exit 2 and at most three lines."""
    data = STRANGERS[name][0]
    monkeypatch.chdir(tmp_path)
    for nbytes in {1, 2, 7, len(data) // 2, len(data) - 1}:
        Path("m").write_bytes(data[:nbytes])
        done = run("ls", "m")
        assert (done.code, done.out) == (2, "")
        assert len(done.err.splitlines()) <= 3


@pytest.mark.parametrize("suffix", [".incomplete", ".crdownload", ".part"])
@pytest.mark.parametrize("data", [b"", b"\xb5\xfe\x01\x99\xff\xff"])
def test_a_download_that_is_not_finished_is_told(suffix: str, data: bytes, tmp_path: Path, run, monkeypatch):
    """By the suffix, where the content says nothing."""
    monkeypatch.chdir(tmp_path)
    Path(f"m{suffix}").write_bytes(data)
    what = "no checkpoint of a format that is known" if data else "the file is empty"
    assert run("ls", f"m{suffix}").err == (
        f"error: m{suffix}: {what}\n\nhint: {suffix} says that the download is not finished\n"
    )


def test_a_suffix_does_not_hide_a_checkpoint(tmp_path: Path, run):
    """A whole checkpoint is read, whatever its suffix."""
    torch.save({"w": torch.ones(2)}, tmp_path / "m.onnx.part")
    assert run("ls", tmp_path / "m.onnx.part", "-f", "names").out == "w\n"


def test_an_archive_tells_what_is_in_it():
    """The first three names, made safe to show."""
    said = strangers.archive("m", "zip", ["a\x1b", "b", "c", "d"])
    assert str(said) == "error: m: a zip archive of a\\x1b, b, c, …\n\nhint: unpack it, and name the checkpoint in it"
    assert strangers.archive("m", "zip", []).what == "m: a zip archive, and nothing in it"


@pytest.mark.parametrize("where", ["middle", "end"])
def test_a_zip_without_its_directory_is_cut_short(where: str, tmp_path: Path, run, monkeypatch):
    """A torch file whose download stopped."""
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(999)}, "m")
    data = Path("m").read_bytes()
    Path("m").write_bytes(data[: len(data) // 2] if where == "middle" else data[:-30])
    done = run("ls", "m")
    assert (done.code, "cut short" in done.err) == (2, True)


def test_a_torch_file_without_tensors_says_so(tmp_path: Path, run, monkeypatch):
    """What it holds is told by `info`."""
    monkeypatch.chdir(tmp_path)
    torch.save(Path("x"), "training_args.bin")
    assert run("ls", "training_args.bin").code == 2
    assert run("info", "training_args.bin", "-f", "json").json["extras"]["class"].startswith("pathlib.")


def test_a_hostile_length_costs_nothing(tmp_path: Path, run, monkeypatch):
    """Lengths in a protocol buffer or a tar are held against the bytes that are there."""
    monkeypatch.chdir(tmp_path)
    header = tar(a=b"x")[:512]
    for data in (
        b"\x08\x08\x3a" + varint((1 << 63) - 1),
        b"\x08" + b"\xff" * 99,
        b"\x0a\x7f" * 5000,
        header[:124] + b"77777777777\0" + header[136:],
        header * 3,
        b"{" * 100_000,
        b'{"a":' * 100_000,
    ):
        Path("m").write_bytes(data)
        assert run("ls", "m").code == 2


FOLDERS: dict[str, tuple[dict[str, bytes], str, str]] = {
    "empty": ({}, "the folder is empty", ""),
    "orbax": (
        {"_CHECKPOINT_METADATA": b"{}", "state/manifest.ocdbt": b"\x0c\xdb\x3a\x2a"},
        "an orbax checkpoint of JAX, which is not read",
        "restore it with orbax and save it as npz",
    ),
    "ocdbt": (
        {"manifest.ocdbt": b"\x0c\xdb\x3a\x2a", "d/0": b"x"},
        "an orbax checkpoint of JAX, which is not read",
        "restore it with orbax and save it as npz",
    ),
    "saved model": ({"saved_model.pb": GRAPH, "variables/x": b""}, "a TensorFlow SavedModel, which is not read", TF),
    "tensorflow": (
        {"checkpoint": b"model_checkpoint_path", "model.index": b"x", "model.data-00000-of-00001": b"x"},
        "a TensorFlow checkpoint, which is not read",
        "tf.train.list_variables lists it",
    ),
    "diffusers": (
        {"model_index.json": b"{}", "unet/config.json": b"{}", "unet/diffusion_pytorch_model.bin": b"x", "vae/a.pt": b"x"},
        "a diffusers pipeline of several models",
        "name one: m/unet, m/vae",
    ),
    "models below": (
        {"README.md": b"# a", "run1/model.pt": b"x", "docs/a.md": b"x"},
        "a folder without a model of its own",
        "models are in m/run1",
    ),
    "tensorflow.js": (
        {"a-weights_manifest.json": b"[]", "a.bin": b"\x01\x02", "b.bin": b"\x03"},
        "TensorFlow.js models, which are not read",
        "look for the checkpoint that they were made from",
    ),
    "something else": (
        {"a.txt": b"x", "b\x1b.md": b"x", "c.md": b"x", "d.md": b"x"},
        "a folder without a model",
        "in it are a.txt, b\\x1b.md, c.md …",
    ),
    "unpacked": (
        {"data.pkl": b"x", "data/0": b"x", "version": b"3\n"},
        "a torch file that was unpacked",
        "pack it again: zip -0 -r model.pt FOLDER",
    ),
    "one file that is none": ({"model.onnx": ONNX}, "/model.onnx: an ONNX model, which is not read", MODEL),
    "one file that is a text": (
        {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"},
        "/model.safetensors: a Git LFS pointer, and not the file itself",
        "fetch it: git lfs pull",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "what", "hint"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_of_something_else_gets_its_word(
    files: dict[str, bytes], what: str, hint: str, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch
):
    """One line that says what it is, one of what to do, exit 2."""
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    for name, data in files.items():
        (Path("m") / name).parent.mkdir(exist_ok=True)
        (Path("m") / name).write_bytes(data)
    done = run("ls", "m")
    where = f"m{what}" if what.startswith("/") else f"m: {what}"
    assert (done.code, done.err) == (2, f"error: {where}\n" + (f"\nhint: {hint}\n" if hint else ""))
