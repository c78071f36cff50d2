"""`paramctl check`: what it prints, how it ends, and what it imports."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from cli_files import folder_of_faults, mlp, safetensors

LOOK = """
import sys
from paramctl import cli
code = cli.run(sys.argv[1:])
sys.stdout.flush()
heads = {name.partition(".")[0] for name in sys.modules}
print(code, *sorted(heads & {"torch", "numpy", "pydantic", "rich", "ml_dtypes", "safetensors"}), file=sys.stderr)
"""


class Harm:
    def __reduce__(self):
        return (os.system, ("touch harm; echo '\x1b[31m'",))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(mlp().state_dict(), "ok.pt")
    torch.save({"w": torch.tensor([1.0, math.nan])}, "nan.pt")
    torch.save({"w": torch.zeros(2), "h": Harm(), "a": argparse.Namespace()}, "evil.pt")
    torch.save({"w": torch.zeros(100)[:2]}, "slice.pt")
    safetensors(tmp_path / "a b.safetensors", {"w": (2,)})
    return tmp_path


OK = "4 tensors, whole, safe and finite; torch.load(weights_only=True) takes it"


def test_a_clean_file(folder, run):
    """One row, and status 0."""
    done = run("check", "ok.pt")
    assert (done.code, done.out, done.err) == (0, f"file\tlevel\trule\tname\tdetail\nok.pt\tok\tsound\t\t{OK}\n", "")


def test_many_files(folder, run):
    """A line each, in the order in which they were named; one fault is enough for status 1."""
    done = run("check", "ok.pt", "nan.pt", "a b.safetensors", "--no-header")
    assert (done.code, done.err) == (1, "")
    assert done.out.splitlines() == [
        f"ok.pt\tok\tsound\t\t{OK}",
        "nan.pt\terror\tnan\tw\t1 of 2 values is NaN, the first at [1]",
        "a b.safetensors\tok\tsound\t\t1 tensor, whole, safe and finite",
    ]


def test_warnings_are_no_faults_unless_strict(folder, run):
    """A storage that is too large is no reason to refuse a file; --strict makes it one."""
    assert run("check", "slice.pt").code == 0
    assert run("check", "slice.pt", "--strict").code == 1
    assert run("check", "ok.pt", "--strict").code == 0


def test_fast(folder, run):
    """With --fast a value that is NaN is not seen."""
    done = run("check", "--fast", "nan.pt", "--no-header")
    assert (done.code, done.out.count("values were not read")) == (0, 1)


def test_nothing_is_run_and_the_screen_is_safe(folder, run):
    """The call is shown with its arguments, escaped; nothing of it happens."""
    done = run("check", "evil.pt", "-f", "jsonl")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 1
    assert [(row["level"], row["rule"], row["name"]) for row in rows] == [
        ("error", "dangerous-call", "posix.system"),
        ("warning", "weights-only", None),
        ("note", "known-class", "argparse.Namespace"),
    ]
    assert rows[0]["detail"].endswith("calls posix.system(\"touch harm; echo '\\x1b[31m'\")")
    for style in ("tsv", "table", "json", "markdown", "sarif"):
        assert "\x1b" not in run("check", "evil.pt", "-f", style).out
    assert not (folder / "harm").exists()


def test_json(folder, run):
    """Totals count files and findings."""
    done = run("check", "ok.pt", "evil.pt", "-f", "json")
    assert done.json["totals"] == {"files": 2, "sound": 1, "errors": 1, "warnings": 1, "notes": 1}
    assert list(done.rows[0]) == ["file", "level", "rule", "name", "detail"]


def test_sarif(folder, run):
    """What SARIF 2.1.0 demands: a version, a run with a tool, rules that are unique, results that lead to them."""
    done = run("check", "ok.pt", "evil.pt", "a b.safetensors", folder / "nan.pt", "-f", "sarif")
    log = json.loads(done.out)
    assert done.code == 1
    assert (log["version"], log["$schema"].rpartition("/")[2]) == ("2.1.0", "sarif-schema-2.1.0.json")
    (scan,) = log["runs"]
    driver = scan["tool"]["driver"]
    ids = [rule["id"] for rule in driver["rules"]]
    assert driver["name"] == "paramctl"
    assert sorted(ids) == sorted(set(ids)) == ["dangerous-call", "known-class", "nan", "sound", "weights-only"]
    for rule in driver["rules"]:
        assert rule["shortDescription"]["text"].endswith(".")
        assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
    for result in scan["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert (result["level"] == "none") == (result.get("kind", "fail") == "pass")
        assert result["message"]["text"]
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"]
    uris = [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in scan["results"]]
    assert list(dict.fromkeys(uris)) == ["ok.pt", "evil.pt", "a%20b.safetensors", f"file://{folder}/nan.pt"]
    assert scan["results"][-1]["locations"][0]["logicalLocations"] == [{"fullyQualifiedName": "w", "kind": "member"}]


def test_sarif_of_another_command(folder, run):
    """Rows of another command are results of kind informational."""
    log = json.loads(run("ls", "ok.pt", "-f", "sarif").out)
    kinds = {(result["kind"], result["level"]) for result in log["runs"][0]["results"]}
    assert (kinds, len(log["runs"][0]["results"])) == ({("informational", "none")}, 4)


@pytest.mark.parametrize(
    ("words", "err"),
    [
        (("check", "no.pt"), "error: no.pt: no such file\n"),
        (("check", "ok.pt", "no.pt"), "error: no.pt: no such file\n"),
        (("check", "ok.pt", "-f", "xml"), "error: --format xml: no such format\n"),
    ],
)
def test_what_could_not_be_done(words, err, folder, run):
    """Status 2, nothing on stdout, and why on stderr."""
    done = run(*words)
    assert (done.code, done.out, done.err.split("\nhint")[0]) == (2, "", err)


def test_a_file_without_permission(folder, run):
    """What cannot be opened could not be checked: that is no finding."""
    (folder / "ok.pt").chmod(0)
    if os.access("ok.pt", os.R_OK):
        pytest.skip("root reads everything")
    assert (run("check", "ok.pt").code, run("check", "ok.pt").out) == (2, "")


def test_no_fault_is_a_crash(tmp_path, run):
    """Every file of the folder of faults is answered with 0 or 1, and no error."""
    folder_of_faults(tmp_path)
    for file in sorted(tmp_path.iterdir()):
        if file.is_file() and file.suffix not in (".py", ".toml"):
            done = run("check", file)
            assert (done.code in (0, 1), done.err) == (True, ""), file
            assert file.name in ("model.pt", "nested.pt", "no-tensors.pt", "legacy.pt", "script.pt") or done.code == 1


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (("--fast", "ok.pt"), set()),
        (("--fast", "evil.pt", "-f", "sarif"), set()),
        (("--fast", "a b.safetensors", "-f", "json"), set()),
        (("ok.pt",), {"numpy", "ml_dtypes"}),
    ],
)
def test_it_imports_its_own_tier(words, allowed, folder):
    """Torch is never imported for a file, and with --fast numpy is not either."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, "check", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=60,
    )
    code, *imported = done.stderr.splitlines()[-1].split()
    assert (code, set(imported) - allowed) == ("1" if "evil.pt" in words else "0", set())


def test_the_process_ends_with_its_status(folder, process):
    """The exit status reaches the shell, and standard input is a model too."""
    assert process("check", "nan.pt", cwd=folder).returncode == 1
    assert process("check", "-", stdin=(folder / "ok.pt").read_bytes()).stdout.splitlines()[1].startswith(b"-\tok\t")
