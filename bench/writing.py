"""What writing costs: `convert` and `set` beside cp, and beside other tools.

Exits 1 if a target is missed. Results go to a folder below the temporary one, which is removed again; it must not be
in memory, and have 4 GB free.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from _parts import DATA, PARAMCTL, PEERS, Part, run, snippet
from _timing import Candidate, Target

TORCH, FLOAT32, MANY = "gpt-508mb.pt", "gpt-1gb.safetensors", "moe-90k.pt"
SPARSE = "sparse-100gb.safetensors"
OUT = Path(tempfile.mkdtemp(prefix="paramctl-bench-"))
VALUE = "lm_head.weight[0,0] = 1"

TORCH_TO_SAFETENSORS = """
import sys, torch
from safetensors.torch import _remove_duplicate_names, save_file
tensors = torch.load(sys.argv[1], mmap=True)
for kept, others in _remove_duplicate_names(tensors).items():
    for name in others:
        del tensors[name]
save_file(tensors, sys.argv[2])
"""


def copies(name: str) -> Iterator[Candidate]:
    """Copying the file; and as carefully as it is written here, until it is on the disk."""
    copy = str(OUT / f"copy-{name}")
    yield Candidate(f"cp {name}", ("/usr/bin/cp", str(DATA / name), copy))
    line = 'cp "$1" "$2" && sync "$2"'
    yield Candidate(f"cp {name}, and sync", ("/usr/bin/sh", "-c", line, "sh", str(DATA / name), copy))


def into_a_new_file(name: str) -> Iterator[Candidate]:
    """First what is on the disk at its end, as an edit is; then copying alone."""
    careful, plain = reversed(list(copies(name)))
    yield careful._replace(name=f"{careful.name}, into a new file", anew=str(OUT / f"copy-{name}"))
    yield plain._replace(name=f"{plain.name}, into a new file", anew=str(OUT / f"copy-{name}"))
    edit = paramctl("set", name, VALUE, "-o", str(OUT / "new.pt"))
    yield edit._replace(name=f"{edit.name}, a new file", anew=str(OUT / "new.pt"))


def paramctl(verb: str, name: str, *words: str, target: Target = Target()) -> Candidate:  # noqa: B008
    said = " ".join(("paramctl", verb, name, *(word.replace(f"{OUT}/", "") for word in words)))
    return Candidate(said, (PARAMCTL, verb, str(DATA / name), *words), target)


def conversions() -> list[list[Candidate]]:
    """Half the speed of cp, in 100 MiB."""
    out = str(OUT / "out.safetensors")
    ours = [
        paramctl("convert", TORCH, out, target=Target(times=2, mib=100)),
        paramctl("convert", TORCH, out, "--no-verify"),
        paramctl("convert", TORCH, str(OUT / "out.npz"), "--dtype", "fp16"),
        paramctl("convert", TORCH, str(OUT / "renamed.pt"), "--rename", "transformer.=>model."),
    ]
    peer = snippet("torch.load(mmap=True), save_file", TORCH_TO_SAFETENSORS, str(DATA / TORCH), out)
    return [[*copies(TORCH), *ours, peer], *halves()]


def halves() -> Iterator[list[Candidate]]:
    """The same in float16, since sft does not take bfloat16."""
    if (PEERS / "sft").exists():
        half, out = str(OUT / "half.pt"), str(OUT / "half.safetensors")
        subprocess.run([PARAMCTL, "convert", str(DATA / TORCH), half, "--dtype", "fp16", "-f", "names"], check=True)
        yield [
            Candidate("sft convert half.pt", (str(PEERS / "sft"), "convert", half, "-o", out)),
            Candidate("paramctl convert half.pt", (PARAMCTL, "convert", half, out), Target(times=1, mib=100)),
        ]


def values() -> list[list[Candidate]]:
    """No slower than cp in the place of a file; and however large the file is, no more memory."""
    shutil.copyfile(DATA / TORCH, OUT / "edited.pt")
    edited = (PARAMCTL, "set", str(OUT / "edited.pt"), VALUE, "--in-place")
    return [
        [
            *copies(TORCH),
            paramctl("set", TORCH, VALUE, "-o", str(OUT / "set.pt"), target=Target(times=1, mib=100)),
            Candidate(f"paramctl set {TORCH} '{VALUE}' --in-place", edited, Target(times=1, mib=100)),
        ],
        list(into_a_new_file(TORCH)),
        [paramctl("set", SPARSE, "w[0] = 1", "-o", str(OUT / "sparse.safetensors"), target=Target(mib=100))],
    ]


def casts() -> list[list[Candidate]]:
    """Three times cp."""
    out = str(OUT / "cast.safetensors")
    return [
        [
            *copies(FLOAT32),
            paramctl("convert", FLOAT32, out, "--dtype", "bf16", target=Target(times=3, mib=100)),
            paramctl("convert", FLOAT32, out, "--dtype", "bf16", "--no-verify"),
        ]
    ]


def many() -> list[list[Candidate]]:
    """A file of names more than of numbers."""
    listing = Candidate(f"paramctl ls {MANY}", (PARAMCTL, "ls", str(DATA / MANY)))
    out = str(OUT / "many.safetensors")
    return [[listing, paramctl("convert", MANY, out), paramctl("convert", MANY, out, "--no-verify")]]


PARTS: dict[str, Part] = {
    "convert": ("508 MB from torch to safetensors", 5, conversions),
    "set": ("One value of 508 MB", 5, values),
    "cast": ("1 GB of float32 to bfloat16", 5, casts),
    "many": ("90,000 tensors from torch to safetensors", 3, many),
}

if __name__ == "__main__":
    try:
        status = run(PARTS, __doc__, FLOAT32)
    finally:
        shutil.rmtree(OUT)
    sys.exit(status)
