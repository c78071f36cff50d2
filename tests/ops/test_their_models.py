"""Definitions of other people, timm's and torchvision's: every command that takes one; nothing is downloaded.

The oracles are torch's own: named_parameters, load_state_dict(strict=True), torch.nn.init, autograd, and a loop by hand.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional

import others
from renames import renamed

others.need("timm", "torchvision")
pytestmark = pytest.mark.filterwarnings("ignore")

DEFINITIONS = """
import timm
import torchvision
from torchvision.models import detection, segmentation


def of_timm(name, **arguments):
    return timm.create_model(name, pretrained=False, num_classes=10, **arguments)


def resnet(): return of_timm("test_resnet")
def vit(): return of_timm("test_vit", img_size=32, patch_size=8)  # with a class token
def convnext(): return of_timm("test_convnext2")
def efficientnet(): return of_timm("test_efficientnet")
def nfnet(): return of_timm("test_nfnet")  # weights that are standardized as they are used
def mobilenet(): return of_timm("mobilenetv3_small_050")
def mixer(): return timm.models.mlp_mixer.MlpMixer(10, img_size=32, patch_size=8, num_blocks=2, embed_dim=32)
def beit(): return of_timm("beit_base_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=4)
def swin():
    return of_timm("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=24, depths=(1, 2),
                   num_heads=(2, 4))
def coat():  # one positional encoding for all blocks of a stage
    return of_timm("coat_lite_tiny", img_size=32, embed_dims=(16, 16, 32, 32), serial_depths=(2, 1, 1, 2), num_heads=2,
                   crpe_window={3: 1, 5: 1})
def tv_vit(): return torchvision.models.VisionTransformer(32, 8, 2, 4, hidden_dim=48, mlp_dim=96, num_classes=10)
def tv_mobilenet(): return torchvision.models.mobilenet_v3_small(num_classes=10)
def tv_shufflenet(): return torchvision.models.shufflenet_v2_x0_5(num_classes=10)
def tv_segments(): return segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=10)
def tv_boxes(): return detection.ssdlite320_mobilenet_v3_large(weights_backbone=None, num_classes=10)
"""
NAMES = re.findall(r"^def (\w+)\(\)", DEFINITIONS, re.MULTILINE)
CLASSIFIERS = [name for name in NAMES if name not in ("tv_segments", "tv_boxes")]
RUN = ("--input", "2,3,32,32", "--target", "int:2:0-9", "--loss", "cross_entropy", "--seed", "0")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The definitions, as a module, in a folder of their own."""
    path = tmp_path_factory.mktemp("theirs") / "theirs.py"
    path.write_text(DEFINITIONS)
    spec = importlib.util.spec_from_file_location("their_vision_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread(theirs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Small models are many times faster on one thread where others use the machine, and the bits are the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").symlink_to(theirs.__file__)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def built(theirs: ModuleType) -> Callable[[str], nn.Module]:
    """A model of theirs, as `--seed 0` builds it."""

    def _built(name: str) -> nn.Module:
        torch.manual_seed(0)
        return getattr(theirs, name)()

    return _built


def layout(model: nn.Module) -> dict[str, tuple[list[int], str, str]]:
    """Shapes, dtypes and kinds, by torch's own names."""
    named = [(name, tensor, "parameter") for name, tensor in model.named_parameters(remove_duplicate=False)]
    named += [(name, tensor, "buffer") for name, tensor in model.named_buffers(remove_duplicate=False)]
    return {name: (list(t.shape), str(t.dtype).removeprefix("torch."), kind) for name, t, kind in named}


# ----------------------------------------------------------------------------- what is there


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_classes_are_those_of_torch(name: str, run, built):
    """ls tells each parameter and buffer of named_parameters and named_buffers; tree counts them, and each class."""
    model = built(name)
    listed = run("ls", f"theirs.py:{name}", "-f", "json").rows
    told = {row["name"]: (row["shape"], row["dtype"], row["kind"]) for row in listed if row["kind"] != "tensor"}
    assert told == layout(model)
    tree = run("tree", f"theirs.py:{name}", "-f", "json").json["totals"]
    unique = {id(p): p.numel() for p in model.parameters()} | {id(b): b.numel() for b in model.buffers()}
    plain = sum(torch.Size(row["shape"]).numel() for row in listed if row["kind"] == "tensor")
    assert tree["unique_numel"] == sum(unique.values()) + plain
    convs = [path for path, m in model.named_modules(remove_duplicate=False) if type(m) is nn.Conv2d]
    found = run("ls", f"theirs.py:{name}", "--type", "Conv2d", "-f", "json").rows
    assert {row["name"].rpartition(".")[0] for row in found} == set(convs)


def test_a_position_encoding_that_is_shared_is_told_as_ties(run, built):
    """coat's blocks of a stage have one encoding: the groups of ties are those of the parameters' identities."""
    found: dict[int, list[str]] = {}
    for name, parameter in built("coat").named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    wanted = {tuple(names) for names in found.values() if len(names) > 1}
    assert len(wanted) > 10
    assert {tuple(row["names"]) for row in run("ties", "theirs.py:coat", "-f", "json").rows} == wanted


@pytest.mark.parametrize("name", NAMES)
def test_init_is_torchs_and_its_file_loads(name: str, run, built):
    """What init writes loads strictly; weights are torch.nn.init's after the seed, all else as it was built."""
    done = run("init", f"theirs.py:{name}", "--scheme", "xavier", "--seed", "0", "-o", "made.pt", "-f", "json")
    assert (done.code, done.err) == (0, "")
    model = built(name)
    expected = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    for row in done.rows:
        if row["action"] == "init":
            nn.init.xavier_uniform_(expected[row["name"]])
            expected |= dict.fromkeys(row["tied_with"], expected[row["name"]])
    model.load_state_dict(torch.load("made.pt"), strict=True)
    assert any(row["action"] == "init" for row in done.rows)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


# ----------------------------------------------------------------------------- what would load


WRAPPED = {  # what is made of a state dict; where match finds the weights, and the rules of the names
    "as it is": (lambda state: state, None),
    "of DataParallel": (lambda state: {f"module.{key}": tensor for key, tensor in state.items()}, ("", ["module.=>"])),
    "of a training run": (
        lambda state: {"epoch": 3, "arch": "x", "state_dict": state, "state_dict_ema": dict(state), "metric": 0.5},
        ("state_dict", []),
    ),
    "of an average": (
        lambda state: {"n_averaged": torch.tensor(3), "model_ema": {f"module.{k}": t for k, t in state.items()}},
        ("model_ema", ["module.=>"]),
    ),
}


PAIRS = [(name, "as it is") for name in NAMES] + [(name, "of an average") for name in CLASSIFIERS]
PAIRS += [(name, wrapped) for name in ("efficientnet", "coat", "tv_segments") for wrapped in list(WRAPPED)[1:3]]


@pytest.mark.parametrize(("name", "wrapped"), PAIRS)
def test_match_agrees_with_load_state_dict(name: str, wrapped: str, run, built):
    """Whether it fits, what is missing, and where the weights are found; mended as told, they load strictly."""
    wrap, where = WRAPPED[wrapped]
    model = built(name)
    state = dict(model.state_dict())
    torch.save(wrap(state), "m.pt")
    told = run("match", "m.pt", f"theirs.py:{name}", "-f", "json")
    missing = model.load_state_dict(wrap(state), strict=False).missing_keys
    assert [row["name"] for row in told.rows if row["status"] == "missing"] == missing
    assert told.json["totals"]["fits"] is (where is None)
    if where is None:
        return
    mending = told.json["totals"]["mending"]
    assert (mending["at"], mending["rules"], mending["then"]["fits"]) == (*where, True)
    inside = torch.load("m.pt")[mending["at"]] if mending["at"] else torch.load("m.pt")
    model.load_state_dict({renamed(key, mending["rules"]): tensor for key, tensor in inside.items()}, strict=True)


def test_resnet_is_one_model_in_both_libraries(run):
    """timm's ResNet-18 and torchvision's fit each other; with heads of 10 and of 1,000 classes two shapes do not."""
    names = ("timm.models:resnet18", "torchvision.models:resnet18")
    for a, b in (names, names[::-1]):
        assert run("match", a, b, "-f", "json").json["totals"]["ok"] == 122
    torch.save(importlib.import_module("timm").create_model("resnet18").state_dict(), "timm.pt")
    told = run("match", "timm.pt", names[1], "--arg", "num_classes=10", "-f", "json")
    assert {row["name"]: row["status"] for row in told.rows if row["status"] != "ok"} == {
        "fc.weight": "shape",
        "fc.bias": "shape",
    }


def test_a_vision_transformer_of_the_other_library_is_another(run):
    """Of timm's and torchvision's, whose names and blocks differ, nothing is said to load."""
    totals = run("match", "theirs.py:vit", "theirs.py:tv_vit", "-f", "json").json["totals"]
    assert not totals["fits"]
    assert totals["mending"] is None or not totals["mending"]["then"]["fits"]


# ----------------------------------------------------------------------------- how it learns


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 32, 32), torch.randint(0, 10, (2,))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_gradients_are_autograds(name: str, run, built):
    """Each gradient's norm is autograd's, None where it has none, and the uses of what is tied add up to it."""
    done = run("grad", f"theirs.py:{name}", *RUN, "-f", "json")
    assert done.code == 0
    model = built(name).train()
    x, y = batch()
    functional.cross_entropy(model(x), y).backward()
    whole = {row["name"]: row["grad_l2"] for row in done.rows if not row["use"]}
    wanted = {key: p.grad if p.grad is None else p.grad.double().norm().item() for key, p in model.named_parameters()}
    assert whole == {
        key: None if norm is None else pytest.approx(norm, rel=1e-5, abs=1e-9) for key, norm in wanted.items()
    }
    shares: dict[str, list[float]] = {}
    for row in done.rows:
        if row["use"] and row["share"] is not None:
            shares.setdefault(row["name"], []).append(row["share"])
    assert all(sum(parts) == pytest.approx(1, abs=1e-4) for parts in shares.values())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_training_is_the_loop_by_hand(name: str, run, built):
    """After two steps every parameter and buffer has the bits that a loop by hand gives it."""
    done = run("watch", f"theirs.py:{name}", *RUN, "--steps", "2", "--optimizer", "sgd(lr=0.05)", "--save", "made.pt")
    assert done.code == 0
    model = built(name).train()
    x, y = batch()
    descent = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        descent.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        descent.step()
    made = torch.load("made.pt")
    assert all(torch.equal(tensor, made[key]) for key, tensor in model.state_dict().items())


def test_each_pixel_has_a_class(run, built):
    """A segmentation model's dict of outputs is taken by its first tensor, and a class drawn for each pixel."""
    done = run("grad", "theirs.py:tv_segments", "--input", "2,3,32,32", "--loss", "cross_entropy", "--seed", "0", "-f",
               "json")  # fmt: skip
    assert done.code == 0
    model = built("tv_segments").train()
    output = model(torch.randn(2, 3, 32, 32))["out"]
    functional.cross_entropy(output, torch.randint(0, 10, (2, 32, 32))).backward()
    told = {row["name"]: row["grad_l2"] for row in done.rows if not row["use"]}
    assert told == {
        key: None if p.grad is None else pytest.approx(p.grad.double().norm().item(), rel=1e-5, abs=1e-9)
        for key, p in model.named_parameters()
    }


ERRORS = {
    "tv_boxes --input 2,3,32,32": "theirs.py:tv_boxes: AssertionError: targets should not be none when in training mode",
    "tv_vit --input 2,3,16,16": "theirs.py:tv_vit: AssertionError: Wrong image height! Expected 32 but got 16!",
    "mobilenet --input 1,3,32,32": (
        "theirs.py:mobilenet: in blocks.4.0.bn2 (BatchNormAct2d): ValueError: Expected more than 1 value per channel "
        "when training, got input size torch.Size([1, 144, 1, 1])\n\nhint: a batch of more than one, or --eval"
    ),
    "resnet --input 2,1,32,32": (
        "theirs.py:resnet: in conv1.0 (Conv2d): RuntimeError: Given groups=1, weight of size [16, 3, 3, 3], expected "
        "input[2, 1, 32, 32] to have 3 channels, but got 1 channels instead\n\nhint: --input 2,3,32,32"
    ),
}


@pytest.mark.parametrize("line", ERRORS)
def test_what_does_not_run_is_said_in_three_lines(line: str, run):
    """The exception of their code, the layer that it was in, and what would do."""
    name, *words = line.split()
    done = run("grad", f"theirs.py:{name}", *words, "--seed", "0")
    assert (done.code, done.out, done.err) == (2, "", f"error: {ERRORS[line]}\n")


def test_a_part_of_what_does_not_run_can_be_run(run, built):
    """A detector wants boxes, and its backbone a picture: the gradients are those of the backbone alone."""
    done = run("grad", "theirs.py:tv_boxes", "--at", "backbone", "--input", "2,3,32,32", "--seed", "0", "-f", "json")
    assert done.code == 0
    part = built("tv_boxes").train().backbone
    next(iter(part(torch.randn(2, 3, 32, 32)).values())).sum().backward()
    told = {row["name"]: row["grad_l2"] for row in done.rows if not row["use"]}
    assert {key for key, norm in told.items() if norm is None} == {
        key for key, p in part.named_parameters() if p.grad is None
    }
    assert told["features.0.0.0.weight"] == pytest.approx(part.features[0][0][0].weight.grad.norm().item(), rel=1e-5)
