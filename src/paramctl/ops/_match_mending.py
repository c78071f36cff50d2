"""Header tier: what would make a checkpoint fit: told name by name, as a command to run, and in words."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paramctl.correspondence import Correspondence, Reshape
from paramctl.correspondence.templates import label, starred
from paramctl.errors import escaped, shortened
from paramctl.formats.targets import TARGETS
from paramctl.ops._match_candidates import below
from paramctl.ops._match_rows import FAULTS, Side
from paramctl.source import Source

_MOST_ON_A_LINE = 3  # rules; more are written to a file
_MOST_NAMED = 4
_WIDEST = 500  # characters of a line
_SUFFIXES = frozenset(suffix for target in TARGETS.values() for suffix in target.suffixes)

_IN_PYTHON = {  # what no command of ours does
    "transposed": "state[name] = state[name].T",
    "rows": "state[name] = state[name][:rows], or rows of zeros put to its end with torch.cat",
    "fused": "state[whole] = torch.cat([state.pop(part) for part in parts])",
    "split": "state |= zip(parts, state.pop(whole).split(rows))",
}
_SAID = {
    "transposed": "transposed, as GPT-2's Conv1D or a Keras kernel",
    "rows": "with more or fewer rows, as of a vocabulary that was padded",
    "fused": "in one tensor of the model",
    "split": "in several tensors of the model",
}


def mended(given: Side, found: Correspondence) -> Side:
    """The checkpoint as it would be."""
    prefix = f"{found.root.path}." if found.root.path else ""
    params = {new: given.params[old]._replace(name=new) for old, new in found.names.items()}
    others = {name[len(prefix) :]: value for name, value in given.others.items() if name.startswith(prefix)}
    aliases = frozenset(found.names[name] for name in given.aliases if name in found.names)
    checkpoint = replace(given.checkpoint, modules={})  # a new file has no word of how modules were saved
    return given._replace(checkpoint=checkpoint, params=params, others=others, aliases=aliases)


# ----------------------------------------------------------------------------- for programs


def mending(found: Correspondence, then: Mapping[str, Any] | None, *, at: str = "") -> dict[str, Any] | None:
    """What would be done, as JSON has it; None where nothing was found. `at`: where it is rooted already."""
    if not (found.root.path or found.steps or found.reshapes):
        return None
    steps = [
        {
            "kind": step.kind,
            "rules": list(step.rules),
            "tensors": step.tensors,
            "evidence": step.evidence,
            "label": step.label,
        }
        for step in found.steps
    ]
    return {
        "at": ".".join(filter(None, (at, found.root.path))),
        "rules": list(found.rules),
        "steps": [*_rooting(found), *steps],
        "reshapes": _grouped(found.reshapes),
        "doubtful": _labels(found.doubtful),
        "then": then,
    }


def _rooting(found: Correspondence) -> Iterator[dict[str, Any]]:
    path, others = found.root
    if path:
        more = f" ({', '.join(others)} too)" if others else ""
        why = f"the model's tensors are below {path}{more}"
        yield {"kind": "root", "rules": [], "tensors": len(found.names), "evidence": why, "label": below(path)}


def _grouped(reshapes: Iterable[Reshape]) -> list[dict[str, Any]]:
    """Reshapes that differ by the numbers in their names, as one."""
    groups: dict[Any, list[Reshape]] = {}
    for one in reshapes:
        key = (one.kind, tuple(starred(name)[0] for name in one.given), tuple(starred(name)[0] for name in one.wanted))
        groups.setdefault((*key, one.why), []).append(one)
    made = []
    for (kind, given, wanted, why), some in groups.items():
        sides = {
            side: [_label(template, [getattr(one, side)[at] for one in some]) for at, template in enumerate(templates)]
            for side, templates in (("given", given), ("wanted", wanted))
        }
        made.append({"kind": kind, **sides, "count": len(some), "why": why})
    return made


def _label(template: str, names: Sequence[str]) -> str:
    together = label(template, [starred(name)[1] for name in names])
    return together or (", ".join(names) if len(names) <= _MOST_NAMED else f"{names[0]} … {names[-1]}")


def _labels(names: Iterable[str]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(starred(name)[0], []).append(name)
    return [_label(template, some) for template, some in groups.items()]


def rename_file(mending: Mapping[str, Any]) -> str:
    """The renaming as `convert --rename-file` reads it, with the evidence as comments."""
    lines = [f"# convert --at {escaped(shlex.quote(mending['at']))}"] if mending["at"] else []
    for step in mending["steps"]:
        lines += [f"# {escaped(step['evidence'])}", *step["rules"]]
    return "".join(f"{line}\n" for line in lines)


# ----------------------------------------------------------------------------- in words


def notes(
    made: Mapping[str, Any] | None,
    counts: Mapping[str, int],
    sources: tuple[Source, Source],
    *,
    fits: bool,
    lacking: Sequence[str] = (),
) -> tuple[str, ...]:
    """What is said to people: the answer, what was seen, and what to run.

    `lacking`: names that are still missing then, and are tied in the model to one that is there.
    """
    a, b = (shortened(source.name) for source in sources)
    if fits:
        return (f"{a} fits {b}",)
    wrong = ", ".join(f"{counts[status]:,} {_word(status)}" for status in counts if status in FAULTS and counts[status])
    said = [f"{a} does not fit {b}: {wrong or 'see above'}"]
    if made is None:
        return (*said, *_of_ties(lacking))
    said += [shortened(step["evidence"], _WIDEST) for step in made["steps"]]
    said += [line for kind in _SAID for line in _of_kind(kind, made["reshapes"])]
    if made["doubtful"]:
        said.append(f"  square, so that no shape tells whether they are, too: {_listed(made['doubtful'])}")
    if made["then"] is not None:
        said += [f"  {_command(made, sources)}", _outlook(made["then"])]
    return (*said, *_of_ties(lacking))


def _of_ties(lacking: Sequence[str]) -> Iterator[str]:
    if lacking:
        more = f" and {len(lacking) - _MOST_NAMED:,} more" if len(lacking) > _MOST_NAMED else ""
        yield f"tied in the model, and only the other name is in the file: {_listed(lacking)}{more}"
        yield "  in Python: state[name] = state[other]; or strict=False, as what is tied is filled by the other name"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shortened, names[:_MOST_NAMED]))


def _word(status: str) -> str:
    return {"shape": "of another shape", "dtype": "of another dtype"}.get(status, status)


def _of_kind(kind: str, groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for all that is mended alike."""
    some = [group for group in groups if group["kind"] == kind]
    if not some:
        return
    names = [
        ", ".join(group["given"]) + f" for {', '.join(group['wanted'])}" * (kind in ("fused", "split"))
        for group in some
    ]
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    count = sum(group["count"] for group in some)
    yield f"{count:,} {_SAID[kind]}: {shortened('; '.join(names[:_MOST_NAMED]), _WIDEST)}{more}"
    yield f"  no renaming mends that; in Python: {_IN_PYTHON[kind]}"


def _outlook(then: Mapping[str, Any]) -> str:
    if then["fits"]:
        return "then it fits"
    left = ", ".join(f"{then[status]:,} {_word(status)}" for status in sorted(FAULTS) if then[status])
    verb = "remains" if sum(then[status] for status in FAULTS) == 1 else "remain"
    return f"then {left} {verb}" if left else "then its own code still refuses"


def _command(made: Mapping[str, Any], sources: tuple[Source, Source]) -> str:
    """The command that mends it; by way of a file where the rules are many, or long."""
    a, b = (shlex.quote(source.name) for source in sources)
    suffix = Path(sources[0].name).suffix
    at = f" --at {shlex.quote(made['at'])}" if made["at"] else ""
    convert = f"paramctl convert {a} OUT{suffix if suffix in _SUFFIXES else '.safetensors'}{at}"
    line = convert + "".join(f" --rename {shlex.quote(rule)}" for rule in made["rules"])
    if len(made["rules"]) > _MOST_ON_A_LINE or len(line) > _WIDEST or not line.isprintable():
        arguments = (f" --arg {shlex.quote(f'{key}={value}')}" for key, value in sources[1].arguments.items())
        again = f"paramctl match {a} {b}{at}{''.join(arguments)} --emit-rename names.txt"
        line = f"{again}; {convert} --rename-file names.txt"
    return line if line.isprintable() else escaped(line)
