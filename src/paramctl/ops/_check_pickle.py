"""Header tier: whether loading a pickle is safe: who would be called, and how much harm that can do."""

from __future__ import annotations

import re
from collections.abc import Iterable

from paramctl.errors import shortened
from paramctl.formats import pickle_calls
from paramctl.formats.pickle_calls import Call, Pickled
from paramctl.ops._check_findings import Finding

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of a torch file of before 1.6: its magic number
_LEGACY_PICKLES = 5  # magic number, protocol, machine, the object, the keys of its storages
_LIKELY = re.compile(rb"\x80[\x00-\x05]|\(*[ci][A-Za-z_][\w.]*\n[A-Za-z_]|[\](}]")  # how a pickle begins
_MOST_SHOWN = 20  # calls of one name


def _words(text: str) -> list[str]:
    return text.split()


# Modules whose functions run programs, code or pickles, open files and sockets, or reach whatever else there is.
_DANGEROUS = frozenset(
    _words(
        "os posix nt sys subprocess pty shutil socket _socket ssl ctypes _ctypes cffi importlib imp runpy "
        "pickle _pickle cPickle cloudpickle dill joblib marshal shelve code codeop pdb bdb timeit cProfile "
        "profile trace asyncio multiprocessing threading _thread signal webbrowser http urllib requests httpx "
        "aiohttp ftplib smtplib telnetlib xmlrpc socketserver tempfile io _io _pyio inspect gc site zipimport "
        "pkgutil pydoc doctest pip setuptools distutils venv ensurepip idlelib antigravity platform operator "
        "_operator commands popen2 nturl2path linecache fileinput glob sqlite3 _sqlite3 builtins.eval "
        "builtins.exec builtins.compile builtins.execfile builtins.apply builtins.__import__ builtins.getattr "
        "builtins.setattr builtins.delattr builtins.hasattr builtins.open builtins.file builtins.input "
        "builtins.globals builtins.locals builtins.vars builtins.dir builtins.breakpoint builtins.map "
        "builtins.filter builtins.reload builtins.type builtins.super builtins.exit builtins.quit "
        "functools.reduce functools.partial types.FunctionType types.CodeType types.MethodType logging.config "
        "numpy.load numpy.save numpy.testing numpy.f2py numpy.distutils torch.load torch.save torch.hub "
        "torch.jit torch.package torch.serialization torch.utils.cpp_extension torch.utils.bottleneck "
        "torch.utils.collect_env torch._inductor torch._dynamo torch.distributed.elastic "
        "torch.distributed.run torch.multiprocessing torch.fx torch.ops torch.classes torch._C torch._ops "
    )
)
_KNOWN = frozenset(  # harmless, and often met
    _words(
        "argparse.Namespace collections.defaultdict collections.deque copyreg._reconstructor decimal.Decimal "
        "fractions.Fraction uuid.UUID types.SimpleNamespace pathlib.PosixPath pathlib.WindowsPath "
        "pathlib.PurePosixPath pathlib.PureWindowsPath pathlib.Path pathlib._local.PosixPath "
        "pathlib._local.WindowsPath datetime.datetime datetime.date datetime.time datetime.timedelta "
        "datetime.timezone typing.Any numpy.dtype numpy.ndarray numpy.core.multiarray._reconstruct "
        "numpy.core.multiarray.scalar numpy.core.numeric._frombuffer numpy._core.multiarray._reconstruct "
        "numpy._core.multiarray.scalar numpy._core.numeric._frombuffer "
        "numpy.random._pickle.__randomstate_ctor numpy.random._pickle.__generator_ctor "
        "numpy.random._pickle.__bit_generator_ctor torch._tensor._rebuild_from_type "
        "torch.torch_version.TorchVersion numpy.float16 numpy.float32 numpy.float64 numpy.int8 numpy.int16 "
        "numpy.int32 numpy.int64 numpy.uint8 numpy.uint16 numpy.uint32 numpy.uint64 numpy.bool numpy.bool_ "
        "numpy.str_ numpy.bytes_ builtins.dict builtins.list builtins.tuple builtins.set builtins.frozenset "
        "builtins.int builtins.float builtins.str builtins.bytes builtins.bool builtins.object builtins.slice "
        "builtins.range torch.jit._pickle.build_boollist torch.jit._pickle.build_doublelist "
        "torch.jit._pickle.build_intlist torch.jit._pickle.build_tensorlist torch.jit._pickle.restore_type_tag "
        "torch.jit._pickle.build_tensor_from_id "
    )
)
_KNOWN_CLASSES = (  # those below these, whose names begin as a class's
    "torch.nn.modules.", "torch.nn.parameter.", "torch.nn.parallel.", "torch.optim.", "torch.distributed.tensor.",
    "torch.distributed._tensor.", "torch.distributed.device_mesh.", "torch.distributed.checkpoint.metadata.",
    "torch.distributed.checkpoint.filesystem.",
    "torch.ao.nn.", "torch.ao.quantization.", "torchvision.models.", "torchvision.ops.", "timm.models.", "timm.layers.",
    "transformers.models.", "transformers.configuration_utils.", "transformers.training_args.",
    "transformers.trainer_utils.", "transformers.generation.configuration_utils.", "omegaconf.", "yacs.config.",
    "easydict.", "addict.", "ml_collections.", "ultralytics.nn.", "pytorch_lightning.utilities.",
    "lightning.pytorch.utilities.", "lightning_fabric.utilities.",
)  # fmt: skip
SCRIPTED = ("__torch__.", "torch.jit._pickle.")  # torch/csrc/jit/serialization/unpickler.cpp
PIECES = ("torch.distributed.checkpoint.", "torch.distributed._shard.", "pathlib.")  # of .metadata
_ORDER = ("dangerous-call", "foreign-function", "foreign-class", "known-class")


def likely(head: bytes) -> bool:
    """Whether a file that is none of the other formats may be a pickle."""
    return _LIKELY.match(head) is not None


def walked(data: bytes) -> list[Pickled]:
    """Each pickle of a file: one, or the five of a torch file of before 1.6."""
    found, at = [], 0
    for _ in range(_LEGACY_PICKLES if data.startswith(LEGACY) else 1):
        found.append(pickle_calls.calls(data, at))
        at = found[-1].end
        if found[-1].damage:
            break
    return found


def findings(
    pickles: Iterable[Pickled], member: str, *, is_torch: bool, expected: tuple[str, ...] = ()
) -> list[Finding]:
    """Every foreign global of some pickles, the most dangerous first, and whether torch would take them.

    Args:
        pickles: of one file, or of one member of an archive.
        member: its name there.
        is_torch: whether it is what `torch.load` reads first, so that there is a verdict.
        expected: how names begin that such a file always has, and that are told only where they can do harm.
    """
    found: dict[str, Finding] = {}
    pickles = tuple(pickles)
    where = f" ({shortened(member, 60)})" if member and not is_torch else ""
    shown: dict[str, int] = {}
    for pickled in pickles:
        for call in pickled.calls:
            shown[call.name] = shown.get(call.name, 0) + 1
            rule = rule_of(call)
            if rule in _ORDER[1:] and call.name.startswith(expected or "\0"):
                continue
            if shown[call.name] > (_MOST_SHOWN if rule == _ORDER[0] else 1):
                continue
            times = pickled.counts.get(call.name, 0)
            more = f", the first of {times:,} calls" if shown[call.name] == 1 and times > 1 else ""
            detail = f"{_how(call)}{more}{where}"
            level = "error" if rule in _ORDER[:2] else "warning" if rule == "foreign-class" else "note"
            found.setdefault(f"{rule} {detail}", Finding(level, rule, call.name, detail))  # type: ignore[arg-type]
    rows = sorted(found.values(), key=lambda finding: _ORDER.index(finding.rule))
    damage = next((pickled.damage for pickled in pickles if pickled.damage), "")
    if damage:
        rows.append(Finding("error", "damaged-pickle", member, f"the pickle cannot be followed: {damage}"))
    refused = next((pickled.refused for pickled in pickles if pickled.refused), "")
    if is_torch and refused:
        rows.append(
            Finding(
                "warning", "weights-only", "", f"torch.load(weights_only=True) refuses it: {shortened(refused, 160)}"
            )
        )
    return rows


def _how(call: Call) -> str:
    verb = "names" if call.opcode in ("GLOBAL", "STACK_GLOBAL", "EXT") else "calls"
    return f"{call.opcode} at byte {call.offset:,} {verb} {call.text}"


def rule_of(call: Call) -> str:
    """How much harm a global can do, by its name."""
    module, _, attribute = call.name.partition(":")
    parts = module.split(".")
    reached = attribute.split(".") if attribute else []
    if call.name in _KNOWN:
        return "known-class"
    if any(".".join(parts[: n + 1]) in _DANGEROUS for n in range(len(parts))):
        return "dangerous-call"
    if call.name in pickle_calls.ALLOWED or call.name.startswith("torch._utils._rebuild_"):
        return "known-class"
    if parts[-1].endswith("()") or " " in call.name or any(part in _DANGEROUS for part in reached):
        return "dangerous-call"
    last = (reached or parts)[-1].lstrip("_")
    if not reached and last[:1].isupper() and module.startswith(_KNOWN_CLASSES):
        return "known-class"
    is_called = call.opcode in ("REDUCE", "INST", "OBJ")
    return "foreign-function" if is_called and not last[:1].isupper() else "foreign-class"
