"""What looking costs: `ls`, `tree`, `info` and `ties` beside the least it could cost, and beside other tools.

Exits 1 if a target is missed.
"""

import sys
from collections.abc import Iterator

from _parts import DATA, PARAMCTL, PYTHON, ROOT, Part, on_terminal, paramctl, peer, run, snippet
from _timing import Candidate, Target, count_lines, imported

SMALL = ("small.pt", "small.safetensors")
MANY = ("moe-90k.safetensors", "moe-90k.pt")
LLAMA = ("llama-250mb.gguf", "llama-250mb.safetensors")
LOOKS = ("ls", "tree", "info", "ties")
FORBIDDEN = frozenset({"torch", "numpy", "pydantic"})

# What a process of Python pays to have typer and rich at hand.
IMPORT_TYPER_AND_RICH = "import typer, rich.console, rich.table, rich.tree"
TORCH_LOAD = """
import sys, torch
for name, tensor in torch.load(sys.argv[1], mmap=True).items():
    print(name, tensor.dtype, tensor.shape)
"""
SAFE_OPEN = """
import sys, safetensors
with safetensors.safe_open(sys.argv[1], "np") as file:
    print(*file.keys(), sep="\\n")
"""
GGUF_READER = """
import sys, gguf
for tensor in gguf.GGUFReader(sys.argv[1]).tensors:
    print(tensor.name, tensor.tensor_type, tensor.shape)
"""


def parse(name: str) -> Candidate:
    return Candidate(f"header of {name} alone", (PYTHON, str(ROOT / "bench" / "_parse.py"), str(DATA / name)))


def peers(name: str) -> Iterator[Candidate]:
    """Those that are installed (see peers.sh); none of them lists a `.pt` without torch."""
    calls = {
        "safetensors-print": ("--tensors",),
        "modelinfo": (),
        "ckptkit": ("info",),
        "sft": ("tree",),
    }
    for tool, arguments in calls.items():
        if name.endswith(".safetensors"):
            yield from peer(tool, *arguments, names=(name,))


def small() -> list[list[Candidate]]:
    target = Target(times=1.25)
    looks = [paramctl(verb, name, target=target) for name in SMALL for verb in LOOKS]
    drawn = [on_terminal(paramctl(verb, "small.pt", target=target)) for verb in LOOKS]
    return [[snippet(f'`python -c "{IMPORT_TYPER_AND_RICH}"`', IMPORT_TYPER_AND_RICH), *looks, *drawn]]


def large() -> list[list[Candidate]]:
    """0.15 s where torch.load takes 1.5 s: a tenth of its time, on whatever machine and however busy."""
    target = Target(times=0.1, mib=30)
    name = "gpt-508mb.pt"
    yardstick = snippet(f"torch.load({name}, mmap=True)", TORCH_LOAD, str(DATA / name))
    pt = [
        yardstick,
        parse(name),
        *(paramctl(verb, name, target=target) for verb in LOOKS),
        on_terminal(paramctl("tree", name)),
    ]
    name = "gpt-508mb.safetensors"
    safetensors = [
        yardstick,
        parse(name),
        snippet(f"safe_open({name}).keys()", SAFE_OPEN, str(DATA / name)),
        *peers(name),
        *(paramctl(verb, name, target=target) for verb in LOOKS),
        on_terminal(paramctl("tree", name)),
    ]
    return [pt, safetensors]


def many() -> list[list[Candidate]]:
    return [
        [
            parse(name),
            *peers(name),
            *(paramctl(verb, name, target=Target(times=5)) for verb in ("ls", "tree")),
            *(paramctl(verb, name) for verb in ("info", "ties")),
            *(on_terminal(paramctl(verb, name)) for verb in ("ls", "tree")),
        ]
        for name in MANY
    ]


def gguf() -> list[list[Candidate]]:
    """Beside the reader of gguf itself, and beside the same tensors where no vocabulary stands before them."""
    name, plain = LLAMA
    yardstick = snippet(f"GGUFReader({name})", GGUF_READER, str(DATA / name))
    looks = [paramctl(verb, name, target=Target(times=0.1, mib=30)) for verb in LOOKS]
    beside = [paramctl(verb, name, target=Target(times=1.5)) for verb in ("ls", "tree", "info")]
    return [[yardstick, *looks], [paramctl("ls", plain), *beside]]


PARTS: dict[str, Part] = {
    "small": ("A small file", 15, small),
    "large": ("508 MB", 7, large),
    "gguf": ("GGUF of 250 MB", 7, gguf),
    "many": ("90,000 tensors", 5, many),
}


def forbidden_imports() -> Iterator[str]:
    """One line for each command that imports what looking must not."""
    for name in SMALL:
        for verb in LOOKS:
            modules = imported((PARAMCTL, verb, str(DATA / name)))
            if modules is None:
                yield f"paramctl {verb} {name}: failed, so what it imports is not known"
            elif found := modules & FORBIDDEN:
                yield f"paramctl {verb} {name}: imports {', '.join(sorted(found))}"


def tree_lengths() -> Iterator[str]:
    """How far 90,000 tensors fold."""
    for name in MANY:
        lines = count_lines((PARAMCTL, "tree", str(DATA / name)))
        yield f"`paramctl tree {name}` " + ("failed" if lines is None else f"prints {lines:,} lines")


def also() -> Iterator[str]:
    yield from forbidden_imports()
    print("", *tree_lengths(), sep="\n")


if __name__ == "__main__":
    sys.exit(run(PARTS, __doc__, MANY[0], also))
