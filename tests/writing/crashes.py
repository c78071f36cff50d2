"""Commands that write, moments at which they are ended, and what may be there then."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

import torch
from forks import Ended, Forks
from safetensors.torch import save_file

from paramctl.formats import whole

_TENSORS, _SHAPE = 10, (512, 1024)
_PATIENCE = 60.0
State = dict[str, str] | None  # digests by path, below a folder that is there; None where nothing is


class Command(NamedTuple):
    """A command line, and what it writes; `before` is what is there, copied from the sources."""

    name: str
    words: tuple[str, ...]
    target: str
    before: str = ""


COMMANDS = (
    Command("init-in-place", ("init", "m.pt", "--scheme", "xavier", "--seed", "0", "--in-place"), "m.pt", "m.pt"),
    Command("init-out", ("init", "{}/m.pt", "--scheme", "ones", "--seed", "0", "-o", "out.pt"), "out.pt", "other.pt"),
    Command("init-code", ("init", "{}/net.py", "--scheme", "xavier", "--seed", "0", "-o", "out.pt"), "out.pt"),
    Command("set-in-place", ("set", "m.pt", "*.weight *= 2", "--in-place"), "m.pt", "m.pt"),
    Command(
        "set-safetensors", ("set", "m.safetensors", "1.weight = 2", "--in-place"), "m.safetensors", "m.safetensors"
    ),
    Command("set-out", ("set", "{}/m.pt", "1.weight += 1", "-o", "out.pt"), "out.pt", "other.pt"),
    Command("set-folder", ("set", "shards", "*.weight *= 2", "--in-place"), "shards", "shards"),
    Command("set-shard", ("set", "shards", "1.weight *= 2", "--in-place"), "shards", "shards"),
    Command("set-new-folder", ("set", "{}/shards", "*.weight *= 2", "-o", "out"), "out"),
    Command("safetensors", ("convert", "{}/m.pt", "out.safetensors"), "out.safetensors", "other.pt"),
    Command("torch-zip", ("convert", "{}/m.safetensors", "out.pt"), "out.pt", "other.pt"),
    Command("npz", ("convert", "{}/m.pt", "out.npz"), "out.npz", "other.pt"),
    Command("cast", ("convert", "{}/m.pt", "out.safetensors", "--dtype", "bf16"), "out.safetensors"),
    Command("sharded", ("convert", "{}/m.pt", "out", "--shard", "5MB"), "out"),
    Command("dcp-force", ("convert", "{}/m.pt", "out", "--to", "dcp", "--force"), "out", "folder"),
    Command("split-force", ("convert", "{}/m.pt", "out", "--split", "--to", "torch", "--force"), "out", "folder"),
    Command("document", ("convert", "{}/m.pt", "out.pt", "--rename", "0.=>first."), "out.pt", "other.pt"),
    Command("in-place", ("convert", "m.pt", "--in-place", "--dtype", "bf16"), "m.pt", "m.pt"),
    Command("tie", ("tie", "m.pt", "1.weight", "2.weight", "--in-place"), "m.pt", "m.pt"),
    Command("untie", ("untie", "m.pt", "--in-place"), "m.pt", "m.pt"),
)
MOMENTS = ("time", "time", "appears", "half", "last", "renamed")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

_NET = """
from torch import nn
def net():
    return nn.Sequential(*(nn.Linear(1024, 512) for _ in range(10)))
"""


def make_sources(folder: Path) -> None:
    """Files of about 20 MB: a tie, and two tensors that are alike."""
    torch.manual_seed(0)
    made = {f"{i}.weight": torch.randn(_SHAPE) for i in range(_TENSORS)}
    made["2.weight"] = made["1.weight"].clone()
    made["tied.weight"] = made["0.weight"]
    torch.save(made, folder / "m.pt")
    torch.save({"0.weight": torch.ones(100_000)}, folder / "other.pt")
    (folder / "net.py").write_text(_NET)
    (folder / "folder").mkdir()
    torch.save(made, folder / "folder" / "old.pt")
    del made["tied.weight"]
    _make_shards(made, folder / "shards")
    save_file(made, folder / "m.safetensors")
    (folder / "m.safetensors").chmod(0o644)


def _make_shards(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    folder.mkdir()
    owners = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for shard in set(owners.values()):
        save_file({name: tensors[name] for name in tensors if owners[name] == shard}, folder / shard)
        (folder / shard).chmod(0o644)
    index = {"metadata": {}, "weight_map": owners}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def state(path: Path) -> State:
    """What is at a path, in full."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and not whole.is_beside(file.name)]
        return {str(file.relative_to(path)): hashlib.blake2b(file.read_bytes()).hexdigest() for file in files}
    return {"": hashlib.blake2b(path.read_bytes()).hexdigest()} if path.exists() else None


class Reference(NamedTuple):
    """An undisturbed run: what was there, what is there then, how long it took, and how large it and its largest are."""

    old: State
    new: State
    seconds: float
    nbytes: int
    largest_nbytes: int


class Harness:
    """Runs commands in folders that begin the same."""

    def __init__(self, sources: Path, folder: Path, forks: Forks) -> None:
        self.sources, self.folder, self.forks = sources, folder, forks
        self._known: dict[str, Reference] = {}

    def words(self, command: Command) -> list[str]:
        return [word.replace("{}", str(self.sources)) for word in command.words]

    def reset(self, command: Command, *, keep: bool = False) -> Path:
        """The folder as it is before the command; what else is there stays with `keep`."""
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
        target = self.folder / command.target
        shutil.rmtree(target, ignore_errors=True) if target.is_dir() else target.unlink(missing_ok=True)
        if command.before:
            before = self.sources / command.before
            (shutil.copytree if before.is_dir() else shutil.copyfile)(before, target)
        return target

    def run(self, command: Command, **limits: int) -> Ended:
        return self.forks.run(self.words(command), self.folder, **limits)

    def reference(self, command: Command) -> Reference:
        """Run once to warm up, and once more, which must give the same."""
        if command.name not in self._known:
            found = []
            for _ in range(2):
                target = self.reset(command)
                old = state(target)
                begin = time.perf_counter()
                ended = self.run(command)
                seconds = time.perf_counter() - begin
                assert ended.code == 0, (command.name, ended)
                assert [path.name for path in self.folder.iterdir()] == [command.target], command.name
                files = [target] if target.is_file() else [*target.iterdir()]
                largest = max(map(_nbytes, files))
                found.append(Reference(old, state(target), seconds, _nbytes(target), largest))
            assert found[0].new == found[1].new != found[0].old, f"{command.name}: not the same each time"
            self._known[command.name] = found[1]
        return self._known[command.name]

    def crash(self, command: Command, moment: str, number: int, draw: random.Random) -> str:
        """End the command at a moment, hold what is there, and let it run again. What was there: old or new."""
        known = self.reference(command)
        target = self.reset(command)
        identity = _identity(target)
        pid = self.forks.start(self.words(command), self.folder)
        _await(moment, self.folder, target, pid, known, draw, identity)
        _send(pid, number)
        ended = self.forks.wait()
        said = f"{command.name}, {signal.Signals(number).name} at {moment}: {ended}"
        return self.hold(command, ended, number, said)

    def hold(self, command: Command, ended: Ended, number: int, said: str) -> str:
        """What may be there after an end: all of the old or of the new; and litter only that the next run clears."""
        known = self.reference(command)
        target = self.folder / command.target
        there = state(target)
        assert there in (known.old, known.new), f"{said}: neither the old nor the new"
        litter = [path.name for path in self.folder.iterdir() if path != target]
        litter += [path.name for path in target.rglob("*") if whole.is_beside(path.name)]
        usual = {0, -number, 130 if number == signal.SIGINT else 0, 2 if number == 0 else 0}
        assert ended.code in usual, said
        assert "Traceback" not in ended.err, said
        if ended.code == 0:
            assert there == known.new, said
        if number != signal.SIGKILL:
            assert not litter, f"{said}: litter {litter}"
        assert all(name.startswith(".") and name.endswith(".paramctl") for name in litter), said
        if litter:
            self.reset(command, keep=True)
            again = self.run(command)
            assert again.code == 0, f"{said}: then {again}"
            assert state(target) == known.new, f"{said}: and the next run wrote something else"
            assert [path.name for path in self.folder.iterdir()] == [command.target], f"{said}: litter stays"
        return "new" if there == known.new else "old"


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _nbytes(path: Path) -> int:
    """Of a file or of what is in a folder; 0 for what is gone meanwhile."""
    try:
        if not path.is_dir():
            return path.stat().st_size
        return sum(file.stat().st_size for file in path.iterdir())
    except FileNotFoundError:
        return 0


def _identity(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


def beside(folder: Path) -> Path | None:
    """What is being written there, or was left."""
    return next((folder / name for name in os.listdir(folder) if name.endswith(".paramctl")), None)  # noqa: PTH208


def _await(
    moment: str, folder: Path, target: Path, pid: int, known: Reference, draw: random.Random, identity: int
) -> None:
    """Until the moment, or the end of the process."""
    if moment == "time":
        time.sleep(draw.uniform(0, known.seconds * 1.05))
        return
    end = time.monotonic() + _PATIENCE
    least = {"appears": 0, "half": known.nbytes // 2, "last": known.nbytes}.get(moment)
    while time.monotonic() < end and _is_alive(pid):
        if least is None:
            if _identity(target) != identity:
                return
        elif (written := beside(folder)) is not None and _nbytes(written) >= least:
            break
    if moment == "last":
        time.sleep(draw.uniform(0, known.seconds / 3))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
