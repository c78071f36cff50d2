"""What benches have in common: where things are, parts of a bench, and how they are run."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from _timing import Candidate, Target, compile_package, driver_mib, measure, misses, table

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("PARAMCTL_BENCH_DATA", ROOT / "bench" / "data"))
PEERS = DATA / "peers" / "bin"
PYTHON = sys.executable
PARAMCTL = str(Path(PYTHON).with_name("paramctl"))  # as installed, beside the Python that runs this

Part = tuple[str, int, Callable[[], list[list[Candidate]]]]  # a title, how many rounds, and its tables


def paramctl(verb: str, *names: str, target: Target = Target(), more: tuple[str, ...] = ()) -> Candidate:  # noqa: B008
    files = tuple(str(DATA / name) for name in names)
    return Candidate(" ".join(("paramctl", verb, *names, *more)), (PARAMCTL, verb, *files, *more), target)


def on_terminal(candidate: Candidate) -> Candidate:
    return candidate._replace(name=f"{candidate.name}, on a terminal", terminal=True)


def snippet(name: str, code: str, *argv: str) -> Candidate:
    return Candidate(name, (PYTHON, "-c", code, *argv))


def peer(tool: str, *words: str, names: tuple[str, ...]) -> Iterator[Candidate]:
    """Another tool on some files, if it is installed (see peers.sh)."""
    if (PEERS / tool).exists():
        files = (str(DATA / name) for name in names)
        yield Candidate(" ".join((tool, *words, *names)), (str(PEERS / tool), *words, *files))


def run_part(part: Part, rounds: int | None) -> Iterator[str]:
    """Prints the tables of one part, and yields what they miss."""
    title, usual_rounds, groups = part
    rounds = rounds or usual_rounds
    print(f"\n### {title}: median of {rounds} runs")
    for candidates in groups():
        measurements = measure(candidates, rounds=rounds)
        print(f"\n{table(measurements)}", flush=True)
        for measurement in measurements:
            yield from (f"{measurement.candidate.name}: {miss}" for miss in misses(measurement, measurements[0]))


def arguments(parts: Mapping[str, Part], description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; all if none is given")
    parser.add_argument("--rounds", type=int, help="runs of each process; each part has its own number otherwise")
    parsed = parser.parse_args()
    if unknown := set(parsed.parts) - set(parts):
        parser.error(f"no part called {', '.join(sorted(unknown))}")
    return parsed


def run(
    parts: Mapping[str, Part], description: str | None, needs: str, also: Callable[[], Iterator[str]] = lambda: iter(())
) -> int:
    """Run the parts that the command line names; `also` gives more misses. The exit status."""
    chosen = arguments(parts, description)
    if not (DATA / needs).exists():
        print(
            f"error: {DATA}: the files are not there\n\nhint: {PYTHON} bench/data.py makes them",
            file=sys.stderr,
        )
        return 2
    compile_package(ROOT / "src")
    missed = [miss for name in chosen.parts or parts for miss in run_part(parts[name], chosen.rounds)]
    missed += also()
    print(f"\nNo peak can show less than the {driver_mib():.1f} MiB of this driver.")
    print("\nMissed:" if missed else "\nEvery target is reached.", *missed, sep="\n- " if missed else "")
    return 1 if missed else 0
