"""Names come from strangers: whatever they hold, every command stays harmless, and exact where it claims to be."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from cli_files import safetensors

from paramctl.errors import escaped, unescaped
from program import MODELS

NAMES = {
    "spaces": "block 1.a weight",
    "edges": " lead and trail ",
    "escape": "clear\x1b[2J\x1b]0;title\x07.weight",
    "csi": "c1\x9b31m.weight",
    "markup": "[bold red]markup[/bold red].[link=https://example.com]w[/link]",
    "newline": "one\ntwo\r\nthree.weight",
    "tab": "tab\tseparated.weight",
    "null": "nul\0byte",
    "bidi": "evil\u202egnp.weight",
    "invisible": "zero\u200bwidth\ufeff.weight",
    "backslash": "back\\slash\\n.weight",
    "separators": "line\u2028para\u2029.weight",
    "letters": "größe.重み.🙂",
    "quotes": "a\"b'c`d|e.weight",
    "markdown": "| a | **b** | <img src=x> |",
    "brackets": "0.weight[0, 0]",
    "pattern": "*.weight",
    "negative": "!w",
    "regex": "re:.*",
    "option": "--help",
    "dash": "-",
    "empty": "",
    "dots": "..a..",
    "equals": "w = 1",
    "formula": "=cmd()",
    "combining": "e\u0301.weight",
}
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")  # but tab and newline
LONG = "x" * 50_000 + "." + "y" * 49_993 + "weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each name in a file of its own and all in one, as safetensors and as torch.save writes them."""
    made = tmp_path_factory.mktemp("hostile")
    for key, name in NAMES.items():
        safetensors(made / f"{key}.safetensors", {name: (2, 3), "other": (1,)})
    safetensors(made / "all.safetensors", dict.fromkeys(NAMES.values(), (2, 3)))
    shared = torch.zeros(2, 3)
    torch.save(dict.fromkeys(NAMES.values(), shared), made / "tied.pt")
    torch.save({name: torch.zeros(2, 3) for name in NAMES.values()}, made / "all.pt")
    safetensors(made / "long.safetensors", {LONG: (2, 3), "other": (1,)})
    safetensors(made / "wrapped.safetensors", {f"module.{name}": (2, 3) for name in NAMES.values()})
    safetensors(made / "others.safetensors", {f"{name}\x1b[1m": (2, 3) for name in NAMES.values()})
    safetensors(made / "longer.safetensors", {f"{LONG}.x": (2, 3), "z.other": (1,)})
    return made


def is_harmless(text: str) -> bool:
    """Whether printing it cannot move a cursor, change a colour, or turn the reading order."""
    return RAW.search(text) is None


COMMANDS = [
    ("tree",),
    ("ls",),
    ("info",),
    ("show",),
    ("ties",),
    ("init", "--scheme", "normal", "--seed", "0"),
    ("set", "* = 1"),
    ("convert", "--to", "safetensors", "--rename", "=>model."),
]
FORMATS = ["table", "tsv", "json", "jsonl", "markdown", "names"]


@pytest.mark.parametrize("file", ["all.safetensors", "all.pt", "tied.pt"])
@pytest.mark.parametrize("style", [*FORMATS, "tree"])
@pytest.mark.parametrize("words", COMMANDS, ids=[words[0] for words in COMMANDS])
def test_no_name_reaches_a_terminal_raw(words, style, file, folder, run):
    """Through every command and format, not one control or bidirectional character is printed."""
    command, *rest = words
    positional = rest if command == "set" else []
    options = [] if command == "set" else rest
    done = run(command, folder / file, *positional, *options, "-f", style, "--color", "never")
    assert "Traceback" not in done.err
    assert is_harmless(done.out)
    assert is_harmless(done.err)
    assert done.code == 0 or done.err.startswith("error: ")
    assert done.out or done.code or command == "ties"


PAIRS = [
    ("match", "all.pt", "all.safetensors"),
    ("match", "all.pt", "wrapped.safetensors"),
    ("match", "others.safetensors", "all.pt"),
    ("match", "tied.pt", "all.pt"),
    ("match", "long.safetensors", "longer.safetensors"),
    ("history", "all.pt", "all.safetensors"),
    ("history", "long.safetensors", "long.safetensors"),
]


@pytest.mark.parametrize("style", FORMATS)
@pytest.mark.parametrize(("command", "one", "other"), PAIRS, ids=[" ".join(words) for words in PAIRS])
def test_names_of_two_files_are_harmless(command, one, other, style, folder, run):
    """What compares files prints no control or bidirectional character either, evidence and commands included."""
    done = run(command, folder / one, folder / other, "-f", style, "--color", "never")
    assert done.code in ({0, 1} if command == "match" else {0})
    assert is_harmless(done.out)
    assert is_harmless(done.err)
    assert max(map(len, done.err.splitlines()), default=0) < 1000
    if style == "json":
        json.loads(done.out)


@pytest.mark.parametrize("file", ["all.safetensors", "all.pt", "tied.pt"])
def test_json_has_every_name_exactly(file, folder, run):
    """JSON, JSONL, TSV through `unescaped`, names through it, and NUL-ended names all give the same names."""
    path = folder / file
    told = [row["name"] for row in run("ls", path, "-f", "json").rows]
    assert set(told) == set(NAMES.values())
    assert [json.loads(line)["name"] for line in run("ls", path, "-f", "jsonl").out.split("\n")[:-1]] == told
    rows = run("ls", path, "-f", "tsv", "--no-header").out.split("\n")[:-1]
    assert [unescaped(row.split("\t")[0]) for row in rows] == told
    assert {row.count("\t") for row in rows} == {12}
    assert [unescaped(line) for line in run("ls", path, "-f", "names").out.split("\n")[:-1]] == told
    assert run("ls", path, "-f", "names", "-0").out.split("\0")[:-1] == "\0".join(told).split("\0")


@pytest.mark.parametrize("style", ["tsv", "names", "markdown", "jsonl"])
def test_a_row_is_a_line(style, folder, run):
    """One name more is one line more, whatever the name holds."""
    lines = run("ls", folder / "all.safetensors", "-f", style).out.count("\n")
    assert lines - {"tsv": 1, "names": 0, "markdown": 2, "jsonl": 0}[style] == len(NAMES)


@pytest.mark.parametrize("key", NAMES)
def test_a_name_can_be_addressed(key, folder, run):
    """Given raw after a MODEL, or as it is shown, any name selects just itself, though it looks like a pattern."""
    name = NAMES[key]
    file = folder / f"{key}.safetensors"
    words = {name, escaped(name)} - ({""} if not name else set())
    for word in words:
        given = ("-s", word) if "\0" not in word else ("-s", escaped(word))
        assert [row["name"] for row in run("ls", file, *given, "-f", "json").rows] == [name]
    shown = (
        run("show", file, "-s", escaped(name), "-f", "json").rows
        if name
        else run("show", file, "!other", "-f", "json").rows
    )
    assert [(row["name"], row["value"]) for row in shown] == [(name, [[0.0] * 3] * 2)]


@pytest.mark.parametrize("key", sorted(NAMES.keys() - {"empty", "null", "edges"}))
def test_a_name_can_be_assigned_to(key, folder, run, tmp_path):
    """An assignment finds the name, an equals sign or brackets in it or not, and changes it alone."""
    name = NAMES[key]
    path = tmp_path / "m.safetensors"
    shutil.copy(folder / f"{key}.safetensors", path)
    done = run("set", path, "--in-place", "-f", "json", "--", f"{name} = 5")
    assert (done.code, [row["name"] for row in done.rows]) == (0, [name])
    values = {row["name"]: row["value"] for row in run("show", path, "-f", "json").rows}
    assert values == {name: [[5.0] * 3] * 2, "other": [0.0]}


def test_markup_is_inert(folder, run):
    """What looks like markup stands there as it is, in colour too."""
    for style in ("tree", "table"):
        done = run("tree" if style == "tree" else "ls", folder / "markup.safetensors", "-f", style, "--color", "always")
        plain = re.sub(r"\x1b\[[\d;]*m", "", done.out)
        assert "[bold red]markup[/bold red]" in plain
        assert is_harmless(plain)


@pytest.mark.parametrize("words", COMMANDS, ids=[words[0] for words in COMMANDS])
@pytest.mark.parametrize("style", ["table", "tsv", "json", "markdown"])
def test_a_name_of_100_000_characters_is_kept_whole(words, style, folder, run):
    """No format cuts it in a pipe, and none is slow at it."""
    command, *rest = words
    done = run(command, folder / "long.safetensors", *rest, "-f", style)
    assert done.code == 0
    if command not in {"info", "ties"}:
        text = done.out.replace("\n", "").replace(" ", "") if style == "table" else done.out
        assert LONG in text


def test_a_long_name_makes_short_errors(folder, run):
    """An error about a name of 100,000 characters stays readable."""
    for words in (
        ("ls", "other.x"),
        ("show", f"{LONG}[9, 9]"),
        ("init", LONG, "--scheme", "eye(2)"),
        ("ls", "z" * 100_000),
    ):
        done = run(words[0], folder / "long.safetensors", *words[1:])
        assert done.code == 2
        assert len(done.err.splitlines()) <= 3
        assert max(map(len, done.err.splitlines())) < 500


def test_a_file_with_a_hostile_name_is_named_harmlessly(tmp_path, run):
    """The path of a file is shown escaped on both streams, and is exact in JSON."""
    path = tmp_path / "a\x1b[31m\n\u202eb.safetensors"
    missing = run("ls", path)
    assert (missing.code, is_harmless(missing.err), len(missing.err.splitlines())) == (2, True, 1)
    safetensors(path, {"w": (1,)})
    for style in ("tree", "tsv", "markdown", "table"):
        assert is_harmless(run("tree", path, "-f", style).out)
    assert is_harmless(run("info", path).out)
    assert run("ls", path, "-f", "json").json["source"] == str(path)


def test_metadata_and_extras_are_harmless(tmp_path, run):
    """What a file says of itself is shown escaped, and is exact in JSON."""
    text = "evil\x1b[2J\n\u202etext"
    safe = safetensors(tmp_path / "m.safetensors", {"w": (1,)}, **{"note": text, text: "key"})
    zipped = tmp_path / "m.pt"
    torch.save({"w": torch.zeros(1), "note": text, text: [text]}, zipped)
    for path in (safe, zipped):
        for style in ("table", "tsv", "jsonl"):
            assert is_harmless(run("info", path, "-f", style).out)
    assert run("info", safe, "-f", "json").json["metadata"] == {"note": text, text: "key"}
    extras = run("info", zipped, "-f", "json").json["extras"]
    assert (extras["note"], extras[text]) == (text, [text])


def test_what_a_definition_prints_is_no_data(tmp_path, run):
    """A print in a definition goes to stderr, so that stdout holds rows alone."""
    shutil.copy(MODELS / "mlp.py", tmp_path / "loud.py")
    with (tmp_path / "loud.py").open("a") as file:
        file.write('print("hello")\n')
    done = run("ls", tmp_path / "loud.py", "-f", "json")
    assert [row["name"] for row in done.rows] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert "hello" in done.err
