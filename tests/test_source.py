"""MODEL: what a command opens, where it is from when it is not named, and what is said when it cannot be."""

from __future__ import annotations

import os
import pty
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from paramctl.source import default_model, is_model, literals
from paramctl.source import resolve as source_of

ROOT = Path(__file__).parent.parent
NO_MODEL = (
    'error: no MODEL was given\n\nhint: name a MODEL, set $PARAMCTL_MODEL, write `model = "…"` under [tool.paramctl] '
    "in pyproject.toml, or pipe a file in\n"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a checkpoint of its own."""
    folder = tmp_path_factory.mktemp("model")
    torch.save({"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(2), "re:x": torch.zeros(1)}, folder / "m.pt")
    return folder / "m.pt"


@pytest.fixture
def home(tmp_path, saved, monkeypatch):
    """A working folder that holds the checkpoint."""
    shutil.copy(saved, tmp_path / "m.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PARAMCTL_MODEL", raising=False)
    return tmp_path


def paramctl(*argv, cwd, stdin=subprocess.DEVNULL, env=None, data=None):
    environment = {k: v for k, v in os.environ.items() if k != "PARAMCTL_MODEL"} | (env or {})
    words = [sys.executable, "-m", "paramctl", *map(str, argv)]
    source = {"stdin": stdin} if data is None else {"input": data}
    return subprocess.run(words, capture_output=True, check=False, cwd=cwd, env=environment, timeout=60, **source)


def names(done):
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


ALL = ["0.weight", "0.bias", "re:x"]


@pytest.mark.parametrize(
    ("word", "is_one"),
    [
        (word, True)
        for word in ["-", "a.pt", "A.PT", "x.safetensors", "net.py", "net.py:build", "pkg.mod:name", "https://x/y"]
    ]
    + [(word, True) for word in ["hf://org/name", "m.pt", "0", ".", "pytorch_model.bin"]]
    + [
        (word, False)
        for word in ["0.weight", "0.bias", "*.bias", "re:attn", "re:.*", "[0].bias", "!x", "block 0", "a\0b", ""]
    ]
    + [(word, False) for word in ["0.weight[0, :4]", "0.bin.weight", "x" * 100_000]],
)
def test_word_reads_as_a_model_if_it_is_there_or_looks_like_one(home, word, is_one):
    """A pattern does not, `re:attn` included; a name such as `0` does where a file is called so."""
    (home / "0").touch()
    assert is_model(word) is is_one


# ----------------------------------------------------------------------------- where there is no MODEL


def test_environment_names_the_model(home):
    """`$PARAMCTL_MODEL` comes first, before pyproject.toml and standard input."""
    (home / "pyproject.toml").write_text('[tool.paramctl]\nmodel = "other.pt"\n')
    done = paramctl("ls", "-f", "names", cwd=home, env={"PARAMCTL_MODEL": "m.pt"}, data=b"junk")
    assert names(done) == ALL


def test_pyproject_of_a_parent_names_the_model(home):
    """Relative to where the file lies; before standard input; one without [tool.paramctl] is passed over."""
    below = home / "a" / "b"
    below.mkdir(parents=True)
    (home / "pyproject.toml").write_text('[tool.paramctl]\nmodel = "m.pt"\n')
    (home / "a" / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert names(paramctl("ls", "-f", "names", cwd=below, data=b"junk")) == ALL
    assert names(paramctl("ls", "0.bias", "-f", "names", cwd=below)) == ["0.bias"]
    (home / "a" / "pyproject.toml").write_text("[tool.paramctl]\n")
    assert paramctl("ls", cwd=below).stderr.decode() == NO_MODEL


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ('model = "net.py:build"', "../net.py:build"),
        ('model = "torchvision.models:vgg11"', "torchvision.models:vgg11"),
        ('model = "/abs/m.pt"', None),
        ('model = "hf://org/name"', "hf://org/name"),
        ('model = "re:x.pt"', "../re:x.pt"),
    ],
)
def test_pyproject_may_name_any_form(home, monkeypatch, text, model):
    """A definition, an imported one, an absolute path, a URL."""
    (home / "pyproject.toml").write_text(f"[tool.paramctl]\n{text}\n")
    (home / "below").mkdir()
    monkeypatch.chdir(home / "below")
    assert os.path.normpath(default_model()) == os.path.normpath(model or os.path.relpath("/abs/m.pt"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool.paramctl]\nmodel = 3\n", "[tool.paramctl] model is not a text"),
        ("[tool", "cannot be read: "),
        ("[tool]\nparamctl = 3\n", "[tool.paramctl] model is not a text"),
        ("tool = 3\n", "no MODEL was given"),
        ("x = '\\ud800'\n\x00", "cannot be read: "),
    ],
)
def test_wrong_pyproject_is_an_error_that_names_it(home, text, said):
    """And not a traceback."""
    (home / "pyproject.toml").write_text(text)
    done = paramctl("ls", cwd=home)
    assert said in done.stderr.decode()
    assert_refused(done)


def test_pipe_and_file_on_standard_input_are_the_model(home):
    """Also where a pattern is the only word."""
    data = (home / "m.pt").read_bytes()
    assert names(paramctl("ls", "-f", "names", cwd=home, data=data)) == ALL
    assert names(paramctl("ls", "0.bias", "-f", "names", cwd=home, data=data)) == ["0.bias"]
    assert names(paramctl("ls", "re:bias", "-f", "names", cwd=home, data=data)) == ["0.bias"]
    assert names(paramctl("ls", "-", "0.bias", "-f", "names", cwd=home, data=data)) == ["0.bias"]
    with (home / "m.pt").open("rb") as file:
        assert names(paramctl("ls", "-f", "names", cwd=home, stdin=file)) == ALL
        assert names(paramctl("ls", "-", "-f", "names", cwd=home, stdin=file)) == ALL


def test_no_model_is_an_error_that_says_where_one_may_be_from(home):
    """With /dev/null, which is neither pipe nor file."""
    done = paramctl("ls", cwd=home)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", NO_MODEL)


def test_terminal_on_standard_input_is_no_model(home):
    """No command waits for a person to type a checkpoint."""
    primary, secondary = pty.openpty()
    try:
        assert paramctl("ls", cwd=home, stdin=secondary).stderr.decode() == NO_MODEL
        done = paramctl("ls", "-", cwd=home, stdin=secondary)
    finally:
        os.close(primary)
        os.close(secondary)
    text = "error: MODEL is -, and standard input is a terminal\n\nhint: pipe a checkpoint in: … | paramctl ls -\n"
    assert (done.returncode, done.stderr.decode()) == (2, text)


def test_closed_standard_input_is_said():
    """As `paramctl ls - <&-` has it."""
    words = f"{sys.executable} -m paramctl ls - <&-"
    done = subprocess.run(["sh", "-c", words], capture_output=True, check=False, cwd=ROOT, timeout=60)
    assert done.stderr.decode().startswith("error: MODEL is -, and standard input is closed\n")
    assert_refused(done)


# ----------------------------------------------------------------------------- the first word


def test_first_word_is_a_pattern_where_a_default_is_set(home):
    """If it is no MODEL; a file that is there, and one that looks like one and is missing, are MODELs."""
    env = {"PARAMCTL_MODEL": "m.pt"}
    assert names(paramctl("ls", "0.bias", "-f", "names", cwd=home, env=env)) == ["0.bias"]
    assert names(paramctl("ls", "re:x", "-f", "names", cwd=home, env=env)) == ["re:x"]
    assert names(paramctl("ls", "re:weight", "-f", "names", cwd=home, env=env)) == ["0.weight"]
    missing = paramctl("ls", "missing.pt", cwd=home, env=env)
    assert missing.stderr.decode() == "error: missing.pt: no such file\n"
    (home / "0").write_bytes(b"")
    assert paramctl("ls", "0", cwd=home, env=env).stderr.decode() == "error: 0: the file is empty\n"


def test_word_that_looks_like_no_model_is_said_to_come_second(home):
    """`paramctl ls 0.weight` without a default."""
    done = paramctl("ls", "0.weight", cwd=home)
    text = "error: 0.weight: no such file\n\nhint: the first word is the MODEL, and what is chosen of it comes after\n"
    assert (done.returncode, done.stderr.decode()) == (2, text)


def test_second_dash_is_a_pattern(home):
    """There is one standard input."""
    done = paramctl("ls", "-", "-", cwd=home, data=(home / "m.pt").read_bytes())
    assert "no parameter and no module -\n" in done.stderr.decode()
    assert_refused(done)


# ----------------------------------------------------------------------------- what is there, and is no file


def assert_refused(done):
    """Exit status 2, nothing on stdout, three lines at most and no traceback."""
    text = done.stderr.decode()
    assert (done.returncode, done.stdout) == (2, b"")
    assert text.startswith("error: ")
    assert len(text.splitlines()) <= 3
    assert "Traceback" not in text


def make(folder: Path, kind: str) -> str:
    """Something that is no checkpoint, and its name."""
    path = folder / kind
    match kind:
        case "missing.pt":
            pass
        case "dangling":
            path.symlink_to("nowhere.pt")
        case "loop":
            path.symlink_to("loop")
        case "folder":
            path.mkdir()
        case "socket":
            made = socket.socket(socket.AF_UNIX)
            made.bind(str(path))
            made.close()
        case "below a file":
            (folder / "file").touch()
            return str(folder / "file" / "m.pt")
        case "closed.pt":
            path.write_bytes(b"x")
            path.chmod(0)
        case "empty.pt":
            path.touch()
        case "folder.py":
            path.mkdir()
        case _:
            return kind
    return str(path)


REFUSALS = {
    "missing.pt": "no such file",
    "dangling": "a link to nowhere.pt, which is not there",
    "loop": "too many levels of symbolic links",
    "folder": "the folder is empty",
    "socket": "not a regular file",
    "below a file": "not a directory",
    "empty.pt": "the file is empty",
    "/dev/null": "not a regular file",
    "/dev/zero": "not a regular file",
    "x" * 5000: "file name too long",
    "a\x1b[31mb.pt": "no such file",
    "net.py": "no such file",
    "net.py:build": "no such file",
    "folder.py": "not a file",
    "https://example.org/m.pt": "URLs are not read yet",
    "nul\0byte.pt": "embedded null byte",
}


@pytest.mark.parametrize(("kind", "said"), REFUSALS.items(), ids=[ascii(kind)[:30] for kind in REFUSALS])
def test_what_is_no_checkpoint_is_named_with_its_reason(run, home, kind, said):
    """A device, a socket, a dangling link, a folder, a name that is too long."""
    result = run("ls", make(home, kind))
    assert (result.code, result.out) == (2, "")
    assert said in result.err.splitlines()[0]
    assert len(result.err.splitlines()) <= 3
    assert re.search(r"[\x00-\x09\x0b-\x1f]", result.err) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_said(run, home):
    """As the system says it."""
    result = run("ls", make(home, "closed.pt"))
    assert (result.code, result.err.splitlines()[0].rpartition(": ")[2]) == (2, "permission denied")


def test_fifo_is_read_as_cat_would(home):
    """Opening one waits until there is a writer, as every program does; then it is a file like another."""
    os.mkfifo(home / "fifo")
    words = [sys.executable, "-m", "paramctl", "ls", "fifo", "-f", "names"]
    with subprocess.Popen(words, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(1)
        (home / "fifo").write_bytes((home / "m.pt").read_bytes())
        out, err = reader.communicate(timeout=60)
    assert (reader.returncode, out.decode().split(), err) == (0, ALL, b"")


def test_nothing_is_left_of_a_pipe(home):
    """What was spooled has no name."""
    (home / "tmp").mkdir()
    done = paramctl("ls", "-", cwd=home, data=(home / "m.pt").read_bytes(), env={"TMPDIR": str(home / "tmp")})
    assert done.returncode == 0
    assert list((home / "tmp").iterdir()) == []


# ----------------------------------------------------------------------------- definitions and their arguments


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a=8", 8),
        ("a=[1, 2]", [1, 2]),
        ("a='x'", "x"),
        ("a=relu", "relu"),
        ("a=", ""),
        ("a=b=c", "b=c"),
        ("a=None", None),
        ("a={[]: 1}", "{[]: 1}"),
        ("a=" + "(" * 5000, "(" * 5000),
        ("a=1e400", float("inf")),
        ("a=" + "9" * 5000, "9" * 5000),
    ],
)
def test_argument_is_a_literal_or_else_text(given, expected):
    """Never evaluated; what is no literal is taken as it was written."""
    assert literals([given]) == {"a": expected}


@pytest.mark.parametrize("given", ["a", "=3", "1a=3", "a b=3", ""])
def test_argument_without_a_name_is_an_error(run, given):
    """It has the form name=value."""
    result = run("ls", "models/mlp.py", "--arg", given)
    assert (result.code, result.err) == (2, f"error: --arg '{given}': not of the form name=value\n")


def test_forms_of_a_definition(home):
    """A file, a name in it, and a name in a package; a file that is there is a file whatever its name."""
    (home / "net.py").touch()
    (home / "a:b").touch()
    assert source_of("net.py:Net.small").attribute == "Net.small"
    assert (source_of("pkg.mod:build").module, source_of("pkg.mod:build").attribute) == ("pkg.mod", "build")
    assert source_of("a:b").kind == "file"


def test_argument_goes_with_a_definition(run, saved):
    """A file takes none."""
    result = run("ls", saved, "--arg", "a=1")
    assert (result.code, result.err) == (2, f"error: --arg goes with a definition, and {saved} is none\n")
