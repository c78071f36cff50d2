"""A command imports the libraries of its own tier, and works where those of a higher one are not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from cli_files import mlp, safetensors

from program import MODELS

LOOK = """
import sys
from paramctl import cli
code = cli.run(sys.argv[1:])
sys.stdout.flush()
heads = {name.partition(".")[0] for name in sys.modules}
print(code, *sorted(heads & {"torch", "numpy", "pydantic", "rich", "ml_dtypes", "safetensors"}), file=sys.stderr)
"""
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""
NO_TORCH = "hint: pip install torch\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tiers")
    shutil.copytree(MODELS, made / "models", ignore=shutil.ignore_patterns("__pycache__"))
    model = mlp()
    torch.save(model.state_dict(), made / "model.pt")
    torch.save(model, made / "whole.pt")
    safetensors(made / "model.safetensors", {"0.weight": (8, 4), "0.bias": (8,)})
    return made


@pytest.fixture
def without(folder, tmp_path):
    """Run a command in a process in which some libraries cannot be imported."""

    def _without(names: set[str], *words: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "sitecustomize.py").write_text(BLOCK.format(names=names))
        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, "-m", "paramctl", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    return _without


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (("tree", "model.pt"), set()),
        (("tree", "whole.pt", "-f", "json"), set()),
        (("ls", "model.pt"), set()),
        (("ls", "model.safetensors", "-f", "table"), set()),
        (("ls", "model.pt", "-f", "json"), set()),
        (("ls", "model.pt", "--where", "numel > 1", "--sort", "-name", "--columns", "name"), set()),
        (("info", "whole.pt"), set()),
        (("ties", "model.pt", "-f", "markdown"), set()),
        (("ties", "model.pt", "--by", "content"), {"numpy", "ml_dtypes"}),
        (("ls", "model.pt", "--digest"), {"numpy", "ml_dtypes"}),
        (("show", "model.pt", "0.bias"), {"numpy", "ml_dtypes"}),
        (("set", "model.pt", "0.bias = 1"), {"numpy", "ml_dtypes"}),
        (("convert", "model.pt", "new.safetensors"), set()),
        (("convert", "model.pt", "new.pt"), set()),
        (("convert", "model.pt", "new.npz"), set()),
        (("convert", "model.pt", "new-dcp", "--to", "dcp", "--force"), set()),
        (("convert", "model.pt", "new.pt", "--dtype", "bf16"), {"numpy", "ml_dtypes"}),
        (("match", "model.pt", "whole.pt"), set()),
        (("match", "--help"), set()),
        (("history", "model.pt", "model.pt"), {"numpy", "ml_dtypes"}),
        (("history", "--help"), set()),
        (("--help",), set()),
        (("init", "--help"), set()),
        (("grad", "--help"), set()),
        (("watch", "--help"), set()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_imports_its_own_tier(words, allowed, folder):
    """In a pipe what looks at headers imports none of torch, numpy, pydantic and rich, and what reads values no torch."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *words], capture_output=True, text=True, check=False, cwd=folder, timeout=60
    )
    code, *imported = done.stderr.splitlines()[-1].split()
    assert (code, set(imported) - allowed) == ("0", set())


@pytest.mark.parametrize(
    "words", [("set", "model.pt", "0.weight = [1, 2]"), ("set", "model.pt", "no = 1"), ("set", "model.pt", "0.bias")]
)
def test_a_change_that_cannot_be_touches_no_numbers(words, folder):
    """What is wrong with a name or a shape is said without numpy."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *words], capture_output=True, text=True, check=False, cwd=folder, timeout=60
    )
    assert done.stderr.splitlines()[-1] == "2"


def test_a_file_imports_its_own_format(folder):
    """What lists safetensors imports the reader of no other format, and nothing that writes."""
    look = LOOK.partition("heads")[0] + 'print(*(name for name in sys.modules if ".formats." in name), file=sys.stderr)'
    words = (sys.executable, "-c", look, "ls", "model.safetensors")
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder, timeout=60)
    formats = {name.removeprefix("paramctl.formats.") for name in done.stderr.split()}
    assert formats == {"safetensors_file", "targets", "zip_directory"}


@pytest.mark.parametrize(
    "words",
    [
        ("tree", "model.pt"),
        ("ls", "whole.pt", "--type", "Linear"),
        ("info", "model.safetensors"),
        ("ties", "model.pt"),
        ("ties", "model.pt", "--by", "content"),
        ("ls", "model.safetensors", "--digest"),
        ("show", "model.pt", "0.weight[0]"),
        ("show", "whole.pt", "2.bias"),
        ("set", "model.pt", "0.bias = 1", "-o", "out.pt"),
        ("set", "model.safetensors", "0.bias = 1", "-o", "out.safetensors"),
        ("convert", "model.pt", "o.safetensors", "--dtype", "fp16"),
        ("init", "--help"),
        ("history", "model.pt", "whole.pt"),
    ],
    ids=" ".join,
)
def test_files_need_no_torch(words, without):
    """Where torch is not installed, everything of the header and values tiers works."""
    done = without({"torch"}, *words)
    assert (done.returncode, done.stderr.replace("nothing was written; -o OUT or --in-place writes\n", "")) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "models/mlp.py"),
        ("tree", "models/mlp.py:net"),
        ("show", "models/mlp.py"),
        ("set", "models/mlp.py", "0.bias = 1"),
        ("init", "model.pt", "--scheme", "zeros"),
        ("init", "models/mlp.py", "--scheme", "zeros"),
        ("init", "--list"),
        ("grad", "models/tied.py"),
        ("watch", "models/tied.py", "-f", "table"),
    ],
    ids=" ".join,
)
def test_what_needs_torch_says_so(words, without):
    """Where torch is not installed, init and definitions say what to install, and no more."""
    done = without({"torch"}, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "needs torch, which is not installed" in done.stderr
    assert done.stderr.endswith(NO_TORCH)
    assert done.stderr.count("\n") == 3


@pytest.mark.parametrize("command", ["tree", "ls", "info", "ties"])
def test_looking_needs_no_numpy(command, without):
    """Where numpy is not installed either, the header tier works."""
    done = without({"torch", "numpy", "ml_dtypes", "safetensors"}, command, "model.pt")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    ("words", "what", "otherwise"),
    [
        (("show", "model.pt"), "show", ""),
        (("ties", "model.pt", "--by", "content"), "ties --by content", ""),
        (("ls", "model.pt", "--digest"), "ls --digest", ""),
        (("check", "model.pt"), "check", ", or --fast"),
    ],
)
def test_values_without_numpy_say_so(words, what, otherwise, without):
    """What reads values without numpy says what to install, and what works without."""
    done = without({"numpy"}, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {what} needs numpy, which is not installed\n\nhint: pip install numpy{otherwise}\n"


def test_no_code_of_a_file_is_run(folder, run):
    """A pickle that would call a function is listed, shown and changed all the same, and nothing of it is called."""
    harm = folder / "harm"

    class Gadget:
        def __reduce__(self):
            return (os.mkdir, (str(harm),))

    torch.save({"w": torch.zeros(2), "gadget": Gadget()}, folder / "gadget.pt")
    for command in ("tree", "ls", "info", "show", "ties"):
        assert run(command, folder / "gadget.pt").code == 0
    assert run("set", folder / "gadget.pt", "w = 1", "-o", folder / "changed.pt").code == 0
    assert not harm.exists()
    assert "mkdir" in json.dumps(run("info", folder / "gadget.pt", "-f", "json").json["extras"])
