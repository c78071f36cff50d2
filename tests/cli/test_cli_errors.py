"""What cannot be done is said in at most three lines, with the exit status 2, and changes nothing."""

from __future__ import annotations

import shlex
import shutil

import pytest
from cli_files import folder_of_faults

from program import MODELS

NO_MODEL = (
    "error: no MODEL was given\n\nhint: name a MODEL, set $PARAMCTL_MODEL, "
    'write `model = "…"` under [tool.paramctl] in pyproject.toml, or pipe a file in'
)
HAS = "\n\nhint: it has 0.weight, 0.bias, 2.weight …"

FILES = {
    "ls no.pt": "error: no.pt: no such file",
    "ls empty.pt": "error: empty.pt: the file is empty",
    "ls page.pt": (
        "error: page.pt: an HTML page (404), and no checkpoint\n\n"
        "hint: the download went wrong: look at it with head, and download it again"
    ),
    "ls pointer.pt": ("error: pointer.pt: a Git LFS pointer, and not the file itself\n\nhint: fetch it: git lfs pull"),
    "ls model.pt.gz": ("error: model.pt.gz: compressed by gzip\n\nhint: unpack it first: gunzip -k model.pt.gz"),
    "ls junk.bin": (
        "error: junk.bin: no checkpoint of a format that is known\n\n"
        r"hint: it begins with b'\x01\x02\x03\x04\x05\x06\x07\x08\t\n\x0b\x0c\r\x0e\x0f\x10'"
    ),
    "ls cut.pt": (
        "error: cut.pt: a zip without its directory\n\nhint: the file is cut short: its directory stands at the end"
    ),
    "ls cut.safetensors": (
        "error: cut.safetensors: the header says 5,000 bytes, the file has 7 after its length\n\n"
        "hint: the download may have been cut short"
    ),
    "tree no-tensors.pt": "error: no-tensors.pt: no tensors in it\n\nhint: info shows what it holds",
    "ls no-tensors.pt": "error: no-tensors.pt: no tensors in it\n\nhint: info shows what it holds",
    "ties no-tensors.pt": "error: no-tensors.pt: no tensors in it\n\nhint: info shows what it holds",
    "show no-tensors.pt": "error: no-tensors.pt: no tensors in it\n\nhint: info shows what it holds",
    "init no-tensors.pt --scheme zeros": "error: no-tensors.pt: no tensors in it\n\nhint: info shows what it holds",
    "ls https://example.com/m.pt": (
        "error: https://example.com/m.pt: URLs are not read yet\n\nhint: download it and name the file"
    ),
}

DEFINITIONS = {
    "ls no-net.py": "error: no-net.py: it has no net, model or build\n\nhint: name what to build: no-net.py:Mine",
    "ls models/mlp.py:nett": "error: models/mlp.py:nett: there is no nett in it\n\nhint: net?",
    "ls models/no.py": "error: models/no.py: no such file",
    "ls models/mlp.py --arg hidden": "error: --arg 'hidden': not of the form name=value",
    "ls models/mlp.py --arg hiden=3": (
        "error: models/mlp.py: TypeError: net() got an unexpected keyword argument 'hiden'\n\nhint: --arg hidden=…?"
    ),
    "ls model.pt --arg hidden=3": "error: --arg goes with a definition, and model.pt is none",
    "ls no_such_module:net": "error: no_such_module: ModuleNotFoundError: No module named 'no_such_module'",
}

SELECTIONS = {
    "ls model.pt 0.wieght": (
        "error: model.pt: no parameter and no module 0.wieght\n\nhint: nearest: 0.weight, 2.weight"
    ),
    "ls model.pt nothing": "error: model.pt: no parameter and no module nothing" + HAS,
    "ls model.pt --layer 7": "error: model.pt: no parameter and no module 7" + HAS,
    "ls model.pt '*.nothing'": "error: model.pt: nothing is selected by *.nothing" + HAS,
    "ls model.pt '!*'": "error: model.pt: nothing is selected by !*" + HAS,
    "ls model.pt --dtype float16": "error: model.pt: nothing is selected by --dtype float16" + HAS,
    "ls model.pt --dtype floaty": ("error: --dtype floaty: no such dtype\n\nhint: float64 or float32 or float16?"),
    "ls model.pt --kind param": "error: --kind param: no such kind\n\nhint: parameter, buffer or tensor",
    "ls model.pt --type Linear": (
        "error: model.pt: --type, and this torch-zip file knows no classes\n\n"
        "hint: whole pickled modules and Python definitions do; --layer and patterns work on any file"
    ),
    "ls models/mlp.py --type Liner": "error: models/mlp.py: no module of type Liner\n\nhint: Linear?",
    "ls model.pt --at model": "error: model.pt: no tensors at 'model'\n\nhint: tensors are at 0, 2",
    "ls nested.pt --at modle": (
        "error: nested.pt: no tensors at 'modle'\n\nhint: tensors are at model, model.2, model.0"
    ),
    "ls model.pt [7]": "error: the model has children 0, 1, 2, and no [7]\n[7]\n ^",
    "ls model.pt 're:('": (
        "error: the regular expression is wrong here: missing ), unterminated subpattern\nre:(\n   ^"
    ),
    "ls model.pt '{0'": "error: the brace is not closed\n{0\n^",
    "show model.pt '0.weight[9]'": "error: 0.weight[9]: 9 is out of range, axis 0 has 8",
    "show model.pt '0.weight[0, 0, 0]'": "error: 0.weight[0, 0, 0]: 3 indices, and it has 2 dimensions",
    "show model.pt '0.weight[a]'": "error: an index is a whole number\n0.weight[a]\n         ^",
    "show model.pt '0.weight[::0]'": "error: a step cannot be 0\n0.weight[::0]\n         ^",
}

SCHEMES = {
    "init model.pt": (
        "error: no scheme was given\n\nhint: --scheme NAME, --bias NAME, --rule 'SELECT=NAME' or --recipe FILE"
    ),
    "init model.pt --scheme xaver": (
        "error: no scheme 'xaver'\n\n"
        "hint: did you mean xavier, xavier_normal, xavier_uniform? `paramctl init --list` lists them all"
    ),
    "init model.pt --scheme 'xavier(gian=2)'": ("error: xavier_uniform: no argument 'gian'\n\nhint: it takes gain=1.0"),
    "init model.pt --scheme constant": "error: constant: needs val\n\nhint: it takes val",
    "init model.pt --scheme 'normal('": "error: '(' was never closed\nnormal(\n      ^",
    "init model.pt 0.bias --scheme xavier": (
        "error: 0.bias is a bias, and --scheme acts on weights\n\nhint: --bias 'xavier'"
    ),
    "init model.pt 0.bias --bias xavier": (
        "error: 0.bias: xavier_uniform needs two dimensions or more for its fans; this has 1"
    ),
    "init model.pt '*.bias' --bias xavier": (
        "error: nothing to initialize: 0.bias: xavier_uniform needs two dimensions or more for its fans; this has 1"
    ),
    "init model.pt --scheme default": (
        "error: model.pt: a state dict knows no classes, and this works on modules\n\n"
        "hint: give the definition of its model with --model: --model net.py:Net"
    ),
    "init model.pt --scheme models/initializers.py:my_init": (
        "error: model.pt: a state dict knows no classes, and this works on modules\n\n"
        "hint: give the definition of its model with --model: --model net.py:Net"
    ),
    "init model.pt --scheme models/initializers.py:mine": (
        "error: models/initializers.py: there is no mine in it\n\nhint: my_init?"
    ),
    "init model.pt --scheme models/initializers.py": (
        "error: models/initializers.py: names no function\n\nhint: write models/initializers.py:FUNCTION"
    ),
    "init model.pt --scheme no.py:f": "error: no.py: no such file",
    "init model.pt --rule 0": "error: --rule: not of the form SELECT=SCHEME\n0\n^",
    "init model.pt --recipe no-scheme.toml": "error: no-scheme.toml: rule 1 has no scheme",
}

ASSIGNMENTS = {
    "set model.pt": "error: no assignment was given\n\nhint: paramctl set MODEL '0.weight[0, 0] = 42'",
    "set model.pt 0.weight": (
        "error: no assignment here: TARGET = VALUE, with =, +=, -=, *= or /=\n0.weight\n        ^"
    ),
    "set model.pt '0.weight ='": "error: a value is missing\n0.weight =\n          ^",
    "set model.pt '= 1'": "error: nothing to assign to\n= 1\n^",
    "set model.pt '0.wieght = 1'": (
        "error: model.pt: no parameter and no module 0.wieght\n\nhint: nearest: 0.weight, 2.weight"
    ),
    "set model.pt '0.weight = one'": "error: no number, and no parameter and no module one" + HAS,
    """set model.pt '0.weight = __import__("os")'""": (
        'error: no number, and no parameter and no module __import__("os")' + HAS
    ),
    "set model.pt '0.weight = [1, 2]'": "error: 0.weight is 8×4, and the value is 2",
    "set model.pt '0 = 1'": ("error: 0 is a module, and not a parameter\n\nhint: write 0.* to mean all below it"),
    "set model.pt '0.weight[9, 9] = 1'": "error: 0.weight[9, 9]: 9 is out of range, axis 0 has 8",
    "set model.pt '0.weight = 1e60'": "error: 0.weight: 1e+60 overflows float32",
}

WRITING = {
    "init model.pt --scheme zeros --in-place -o out.pt": (
        "error: -o and --in-place are two places to write to\n\nhint: give one of them"
    ),
    "set model.pt '0.bias = 1' --in-place -o out.pt": (
        "error: -o and --in-place are two places to write to\n\nhint: give one of them"
    ),
    "init models/mlp.py --scheme zeros --in-place": (
        "error: models/mlp.py: a definition is code\n\nhint: name a file to write with -o OUT"
    ),
    "init model.pt --scheme zeros -o folder": "error: folder: a folder, and not a file",
    "init model.pt --scheme zeros -o model.safetensors": (
        "error: model.pt: it is torch-zip, which model.safetensors does not say\n\n"
        "hint: an edit keeps the format; choose a suffix that fits"
    ),
}

OPTIONS = {
    "ls model.pt --format xml": (
        "error: --format xml: no such format\n\nhint: tree, table, tsv, json, jsonl, markdown, names, sarif"
    ),
    "ls no.pt --format xml": (
        "error: --format xml: no such format\n\nhint: tree, table, tsv, json, jsonl, markdown, names, sarif"
    ),
    "ls model.pt --color maybe": "error: --color maybe: not auto, always or never",
    "ls model.pt --colour always": (
        "error: no such option: --colour (Possible options: --color, --columns)\n\nhint: paramctl ls --help"
    ),
    "ls model.pt --depth 1": "error: no such option: --depth (Possible options: --digest)\n\nhint: paramctl ls --help",
    "ls model.pt --where 'numel >'": "error: a value is missing here\nnumel >\n       ^",
    "ls model.pt --where ''": "error: a value is missing here\n\n^",
    "ls no.pt --where 'numel > 1 or'": "error: a value is missing here\nnumel > 1 or\n            ^",
    "ls model.pt --where 'dtype > 3'": "error: dtype is text, and 3 is a number: quote it to be text\ndtype > 3\n        ^",
    "ls model.pt --sort -nbyte": (
        "error: --sort nbyte: no such column\n\nhint: there are nbytes, tie, name, shape, dtype, numel, kind, "
        "requires_grad, stride, storage, storage_offset, module, file, digest"
    ),
    "ls no.pt --columns name,dtyp": (
        "error: --columns dtyp: no such column\n\nhint: there are dtype, name, shape, numel, nbytes, kind, requires_grad, "
        "stride, storage, storage_offset, tie, module, file, digest"
    ),
    "ls model.pt --head -1": (
        "error: invalid value for '--head': -1 is not in the range x>=0\n\nhint: paramctl ls --help"
    ),
    "ls model.pt --columns name -f tree": (
        "error: --columns, and a tree has none\n\nhint: --format table, tsv or json"
    ),
    "lss model.pt": "error: no such command 'lss'. Did you mean 'ls'?\n\nhint: paramctl --help",
    "tree model.pt --depth -1": (
        "error: invalid value for '--depth': -1 is not in the range x>=0\n\nhint: paramctl tree --help"
    ),
    "init model.pt --scheme zeros --seed x": (
        "error: invalid value for '--seed': 'x' is not a valid int\n\nhint: paramctl init --help"
    ),
    "info model.pt 0": "error: one MODEL is taken, and there is 0 too\n\nhint: --at PATH roots it",
    "info model.pt -f names": "error: no names to write here\n\nhint: choose json, tsv or table with --format",
    "ls": NO_MODEL,
    "set '0.weight = 1'": NO_MODEL,
}

TABLES = (FILES, DEFINITIONS, SELECTIONS, SCHEMES, ASSIGNMENTS, WRITING, OPTIONS)
CASES = [case for table in TABLES for case in table.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("faults")
    shutil.copytree(MODELS, made / "models", ignore=shutil.ignore_patterns("__pycache__"))
    folder_of_faults(made)
    return made


def everything(folder):
    """Each file with its bytes and the time of its last change."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def here(folder, monkeypatch):
    """The folder of good and bad files, to work in, and to be found as it was; standard input gives nothing."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("paramctl.source._stdin_has_data", lambda: False)
    before = everything(folder)
    yield folder
    assert everything(folder) == before


@pytest.mark.parametrize(("line", "said"), CASES, ids=[line for line, _ in CASES])
def test_what_cannot_be_done_is_said_in_three_lines(line, said, here, run):
    """The whole of stderr is this text, stdout has nothing, the status is 2, and no file changed."""
    done = run(*shlex.split(line))
    assert (done.code, done.out, done.err) == (2, "", said + "\n")
    assert len(done.err.splitlines()) <= 3


def test_code_of_a_definition_that_raises_is_named_with_its_line(here, run):
    """The error says the user's own file and line, and what was raised; no traceback."""
    done = run("ls", "raises.py")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith('raises.py, line 1, `raise ValueError("no weights here")`: ValueError: no weights here\n')
    assert done.err.count("\n") == 1


def test_a_library_that_a_definition_lacks_is_the_definitions_error(here, run, tmp_path):
    """What a definition imports and cannot have is named with the definition's own line."""
    (tmp_path / "needs.py").write_text("import no_such_library\n")
    done = run("ls", tmp_path / "needs.py")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(
        "needs.py, line 1, `import no_such_library`: ModuleNotFoundError: No module named 'no_such_library'\n"
    )
    assert len(done.err.splitlines()) <= 3


def test_a_folder_that_is_not_there_is_not_made(here, run):
    """-o into a folder that does not exist is an error that names it."""
    done = run("init", "model.pt", "--scheme", "zeros", "-o", "nowhere/out.pt")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("error: nowhere/out.pt: cannot be written: ")


@pytest.mark.parametrize(
    "words", [("init", "model.pt", "--scheme", "zeros", "--seed", "0"), ("set", "model.pt", "0.bias = 1")]
)
def test_a_plan_without_a_target_writes_nothing_and_says_so(words, here, run):
    """Without -o or --in-place the plan is on stdout, and one note on stderr."""
    done = run(*words)
    assert (done.code, done.err) == (0, "nothing was written; -o OUT or --in-place writes\n")
    assert done.out.startswith("name\tshape\tdtype\taction\tdetail\ttied_with\n0.")


def test_a_seed_that_was_drawn_is_told(here, run):
    """The note's seed repeats the plan to the last digit."""
    drawn = run("init", "model.pt", "--scheme", "normal")
    note = drawn.err.splitlines()[0]
    assert note.startswith("seed ")
    assert note.endswith(" was drawn; --seed repeats it")
    assert run("init", "model.pt", "--scheme", "normal", "--seed", note.split()[1]).out == drawn.out


def test_a_file_without_tensors_still_has_something_to_tell(here, run):
    """Info shows the extras of a file that has no tensors."""
    done = run("info", "no-tensors.pt", "-f", "json")
    assert (done.code, done.json["totals"]["tensors"], done.json["extras"]) == (0, 0, {"epoch": 3, "done": True})


def test_memory_errors_and_the_like_are_no_tracebacks(here, run, monkeypatch):
    """Running out of memory is one line."""
    monkeypatch.setattr("paramctl.cli._options.resolve", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    done = run("ls", "model.pt")
    assert (done.code, done.err) == (2, "error: not enough memory\n")
