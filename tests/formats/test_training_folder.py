"""A training run's checkpoints: which files they are, in which order, and at which step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

import paramctl
from paramctl.formats import training_folder

W = {"w": torch.zeros(2)}


def save(path: str, **extras: object) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if path.endswith(".safetensors"):
        save_file(W, path)
    elif path.endswith("/"):
        Path(path).mkdir()
        dcp.save(W, checkpoint_id=path, no_dist=True)
    else:
        torch.save(W | extras, path)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


RUNS = [  # the files that are there; what is asked for; which they are, in order, and at which steps
    ("numbers within names", ["run/step-10.pt", "run/step-2.pt", "run/step-1.pt"], ["run"],
     ["run/step-1.pt", "run/step-2.pt", "run/step-10.pt"], [1, 2, 10]),
    ("safetensors", ["run/model_0002.safetensors", "run/model_0010.safetensors"], ["run"],
     ["run/model_0002.safetensors", "run/model_0010.safetensors"], [2, 10]),
    ("transformers", [f"out/checkpoint-{n}/{name}" for n in (1000, 500) for name in ("model.safetensors", "optimizer.pt")],
     ["out"], [f"out/checkpoint-{n}/model.safetensors" for n in (500, 1000)], [500, 1000]),
    ("Lightning", ["logs/version_0/checkpoints/epoch=9-step=20.ckpt", "logs/version_0/checkpoints/epoch=10-step=22.ckpt"],
     ["logs"], [f"logs/version_0/checkpoints/epoch={e}-step={s}.ckpt" for e, s in ((9, 20), (10, 22))], [20, 22]),
    ("epochs alone", ["run/epoch_10.pt", "run/epoch_9.pt"], ["run"], ["run/epoch_9.pt", "run/epoch_10.pt"], [9, 10]),
    ("the better of two formats", ["run/s1.pt", "run/s1.safetensors", "run/s2.pt"], ["run"],
     ["run/s1.safetensors", "run/s2.pt"], [1, 2]),
    ("a trainer's state is none", ["run/step1.pt", "run/step2.pt", "run/optimizer.pt", "run/training_args.bin"], ["run"],
     ["run/step1.pt", "run/step2.pt"], [1, 2]),
    ("distributed", ["run/step-3/", "run/step-20/"], ["run"], ["run/step-3", "run/step-20"], [3, 20]),
    ("one that has no number", ["run/last.ckpt", "run/step=2.ckpt", "run/step=1.ckpt"], ["run"],
     ["run/step=1.ckpt", "run/step=2.ckpt", "run/last.ckpt"], [1, 2, None]),
    ("names that tell nothing", ["a.pt", "b.pt"], ["b.pt", "a.pt"], ["b.pt", "a.pt"], [0, 1]),
    ("in an order of one's own", ["s1.pt", "s2.pt", "s3.pt"], ["s3.pt", "s1.pt", "s2.pt"], ["s3.pt", "s1.pt", "s2.pt"], [3, 1, 2]),
    ("as a shell sorts", ["s1.pt", "s10.pt", "s2.pt"], ["s1.pt", "s10.pt", "s2.pt"], ["s1.pt", "s2.pt", "s10.pt"], [1, 2, 10]),
    ("a pattern", ["run/s1.pt", "run/s10.pt", "run/s2.pt", "run/other.txt"], ["run/s*.pt"],
     ["run/s1.pt", "run/s2.pt", "run/s10.pt"], [1, 2, 10]),
    ("folders by a pattern", ["a/step-2/m.pt", "a/step-10/m.pt"], ["a/*/m.pt"], ["a/step-2/m.pt", "a/step-10/m.pt"], [2, 10]),
    ("two numbers in a name", ["r/7b-step1.pt", "r/7b-step2.pt"], ["r"], ["r/7b-step1.pt", "r/7b-step2.pt"], [1, 2]),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("files", "words", "names", "steps"), [row[1:] for row in RUNS], ids=[row[0] for row in RUNS])
def test_a_run_is_found_in_its_order(files, words, names, steps):
    """Each layout that people have gives its checkpoints, and their steps."""
    for file in files:
        save(file)
    row = paramctl.run(*words).row
    assert [one.source.name for one in row.checkpoints] == names
    assert list(row.steps) == steps


def test_the_file_may_say_its_step():
    """Where names tell nothing, global_step in the file does, and gives the order."""
    for name, step in (("a.pt", 30), ("b.pt", 20), ("c.pt", 10)):
        save(f"run/{name}", global_step=step)
    row = paramctl.run("run").row
    assert ([one.source.name for one in row.checkpoints], list(row.steps)) == (
        ["run/c.pt", "run/b.pt", "run/a.pt"],
        [10, 20, 30],
    )


def test_what_is_left_out_is_said():
    """A model beside folders of checkpoints is none of them, and that is told."""
    for name in ("out/checkpoint-1/model.safetensors", "out/checkpoint-2/model.safetensors", "out/model.safetensors"):
        save(name)
    found = training_folder.found(["out"])
    assert [source.name for source in found.sources] == ["out/checkpoint-1", "out/checkpoint-2"]
    assert found.notes == ("out: model.safetensors beside its folders left out; name it to have it in the row",)


def test_a_folder_of_one_model_is_one_checkpoint():
    """Shards, and a model in several formats, are one model; two such folders are two steps."""
    for step in (1, 2):
        for number in (1, 2):
            save(f"s{step}/model-{number:05}-of-00002.safetensors")
    assert [source.name for source in training_folder.found(["s1", "s2"]).sources] == ["s1", "s2"]


ERRORS = [
    ([], [], "a history is of two checkpoints or more"),
    (["a.pt"], ["a.pt"], "a history is of two checkpoints or more, and a.pt is one"),
    (["run/a.pt"], ["run"], "a history is of two checkpoints or more, and run/a.pt is one"),
    ([], ["no.pt"], "no.pt: no such file"),
    ([], ["no/*.pt"], "no/*.pt: no file is called so"),
    (["a.pt", "net.py"], ["a.pt", "net.py"], "net.py: a definition has no steps"),
]


@pytest.mark.parametrize(("files", "words", "what"), ERRORS, ids=[what for _, _, what in ERRORS])
def test_what_is_no_run_is_said(files, words, what):
    """Too few checkpoints, none of that name, and a definition are errors that say so."""
    for file in files:
        save(file)
    with pytest.raises(paramctl.ParamctlError) as caught:
        paramctl.run(*words)
    assert caught.value.what == what
