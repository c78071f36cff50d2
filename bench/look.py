"""What looking costs: `ls`, `tree`, `info` and `ties` beside the least it could cost, and beside other tools.

Exits 1 if a target is missed.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from _timing import (
    Candidate,
    Target,
    compile_package,
    count_lines,
    driver_mib,
    imported,
    measure,
    misses,
    table,
)

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("PARAMCTL_BENCH_DATA", ROOT / "bench" / "data"))
PEERS = DATA / "peers" / "bin"
PYTHON = sys.executable
PARAMCTL = str(Path(PYTHON).with_name("paramctl"))  # as installed, beside the Python that runs this

SMALL = ("small.pt", "small.safetensors")
MANY = ("moe-90k.safetensors", "moe-90k.pt")
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


def paramctl(verb: str, name: str, target: Target) -> Candidate:
    return Candidate(f"paramctl {verb} {name}", (PARAMCTL, verb, str(DATA / name)), target)


def on_terminal(candidate: Candidate) -> Candidate:
    return candidate._replace(name=f"{candidate.name}, on a terminal", terminal=True)


def parse(name: str) -> Candidate:
    return Candidate(f"header of {name} alone", (PYTHON, str(ROOT / "bench" / "_parse.py"), str(DATA / name)))


def snippet(name: str, code: str, *argv: str) -> Candidate:
    return Candidate(name, (PYTHON, "-c", code, *argv))


def peers(name: str) -> Iterator[Candidate]:
    """Those that are installed (see peers.sh); none of them lists a `.pt` without torch."""
    calls = {
        "safetensors-print": ("--tensors",),
        "modelinfo": (),
        "ckptkit": ("info",),
        "sft": ("tree",),
    }
    for tool, arguments in calls.items():
        if (PEERS / tool).exists() and name.endswith(".safetensors"):
            yield Candidate(" ".join((tool, *arguments, name)), (str(PEERS / tool), *arguments, str(DATA / name)))


def small() -> list[list[Candidate]]:
    target = Target(times=1.25)
    looks = [paramctl(verb, name, target) for name in SMALL for verb in LOOKS]
    drawn = [on_terminal(paramctl(verb, "small.pt", target)) for verb in LOOKS]
    return [[snippet(f'`python -c "{IMPORT_TYPER_AND_RICH}"`', IMPORT_TYPER_AND_RICH), *looks, *drawn]]


def large() -> list[list[Candidate]]:
    """0.15 s where torch.load takes 1.5 s: a tenth of its time, on whatever machine and however busy."""
    target = Target(times=0.1, mib=30)
    name = "gpt-508mb.pt"
    yardstick = snippet(f"torch.load({name}, mmap=True)", TORCH_LOAD, str(DATA / name))
    pt = [
        yardstick,
        parse(name),
        *(paramctl(verb, name, target) for verb in LOOKS),
        on_terminal(paramctl("tree", name, Target())),
    ]
    name = "gpt-508mb.safetensors"
    safetensors = [
        yardstick,
        parse(name),
        snippet(f"safe_open({name}).keys()", SAFE_OPEN, str(DATA / name)),
        *peers(name),
        *(paramctl(verb, name, target) for verb in LOOKS),
        on_terminal(paramctl("tree", name, Target())),
    ]
    return [pt, safetensors]


def many() -> list[list[Candidate]]:
    return [
        [
            parse(name),
            *peers(name),
            *(paramctl(verb, name, Target(times=5)) for verb in ("ls", "tree")),
            *(paramctl(verb, name, Target()) for verb in ("info", "ties")),
            *(on_terminal(paramctl(verb, name, Target())) for verb in ("ls", "tree")),
        ]
        for name in MANY
    ]


PARTS: dict[str, tuple[str, int, Callable[[], list[list[Candidate]]]]] = {
    "small": ("A small file", 15, small),
    "large": ("508 MB", 7, large),
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


def run_part(part: str, rounds: int | None) -> Iterator[str]:
    """Prints the tables of one part, and yields what they miss."""
    title, usual_rounds, groups = PARTS[part]
    rounds = rounds or usual_rounds
    print(f"\n### {title}: median of {rounds} runs")
    for candidates in groups():
        measurements = measure(candidates, rounds=rounds)
        print(f"\n{table(measurements)}", flush=True)
        for measurement in measurements:
            yield from (f"{measurement.candidate.name}: {miss}" for miss in misses(measurement, measurements[0]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none is given")
    parser.add_argument("--rounds", type=int, help="runs of each process; each part has its own number otherwise")
    parsed = parser.parse_args()
    if unknown := set(parsed.parts) - set(PARTS):
        parser.error(f"no part called {', '.join(sorted(unknown))}")
    return parsed


def main() -> int:
    chosen = arguments()
    if not (DATA / MANY[0]).exists():
        print(
            f"error: {DATA}: the files are not there\n\nhint: {PYTHON} bench/data.py makes them",
            file=sys.stderr,
        )
        return 2
    compile_package(ROOT / "src")
    missed = [miss for part in chosen.parts or PARTS for miss in run_part(part, chosen.rounds)]
    missed += forbidden_imports()
    print("", *tree_lengths(), sep="\n")
    print(f"\nNo peak can show less than the {driver_mib():.1f} MiB of this driver.")
    print("\nMissed:" if missed else "\nEvery target is reached.", *missed, sep="\n- " if missed else "")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
