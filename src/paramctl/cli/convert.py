"""Header tier, and values for casts: `paramctl convert`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import typer

from paramctl import api, renaming
from paramctl.cli import _complete as complete
from paramctl.cli._conversions import carry_out
from paramctl.cli._options import MODEL_HELP, Arg, At, Output, Texts, say
from paramctl.errors import ParamctlError, shortened
from paramctl.formats.convert import Options
from paramctl.outline import conflicts
from paramctl.source import Source, resolve

EXAMPLES = """\b
Examples:
  paramctl convert model.pt model.safetensors
  paramctl convert model.pt small.safetensors --dtype bf16 --drop '*.bias' --rename '0.=>first.'
  paramctl convert model.pt --to safetensors
"""


_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMGT]?)(i?)B?", re.IGNORECASE)
_TOLD = 10  # conflicts
_UNITS = ["", "K", "M", "G", "T"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What of the models is taken."""

    select: Annotated[Texts, typer.Option("--select", "-s", metavar="PATTERN", help="Only these tensors.")] = None
    drop: Annotated[Texts, typer.Option("--drop", metavar="PATTERN", help="Not these tensors.")] = None
    at: At = ""
    arg: Arg = None
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="For a definition's own values.")] = None


@dataclass(frozen=True, slots=True)
class Changed:
    """What is made of it."""

    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="Which format, where OUT's suffix does not say.")
    ] = ""
    rename: Annotated[
        Texts,
        typer.Option("--rename", metavar="OLD=>NEW", help="By name, beginning, wildcard or re:…"),
    ] = None
    rename_file: Annotated[str, typer.Option("--rename-file", metavar="FILE", help="Such rules, one a line.")] = ""
    dtype: Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="Floats as bf16, fp16, fp32, fp8_e4m3 …")] = ""
    shard: Annotated[str, typer.Option("--shard", metavar="SIZE", help="A folder of files of 5GB, say.")] = ""
    split: Annotated[bool, typer.Option("--split", help="A folder of a file for each module at the top.")] = False
    contiguous: Annotated[bool, typer.Option("--contiguous", help="No slice drags its whole storage along.")] = False
    metadata: Annotated[Texts, typer.Option("--metadata", metavar="KEY=TEXT", help="Add; KEY= takes away.")] = None


@dataclass(frozen=True, slots=True)
class Ways:
    """How it is written."""

    in_place: Annotated[bool, typer.Option("--in-place", help="Write it over IN.")] = False
    merge: Annotated[bool, typer.Option("--merge", help="Several INs as one, of which a later one wins.")] = False
    strict: Annotated[bool, typer.Option("--strict", help="Refuse what the format cannot hold, and overflow.")] = False
    max_error: Annotated[
        float | None, typer.Option("--max-error", metavar="E", help="Refuse a cast with a greater relative error.")
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and write nothing.")] = False
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Read again what was written, before it takes its place.")
    ] = True
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that is there.")] = False


def command(
    models: Annotated[
        Texts,
        typer.Argument(
            metavar="IN... [OUT]",
            help=f"IN: {MODEL_HELP}. OUT: a file or a folder, of the format that its suffix says; - for stdout.",
            show_default=False,
            autocompletion=complete.models,
        ),
    ] = None,
    *,
    chosen: Chosen,
    changed: Changed,
    ways: Ways,
    output: Output,
) -> None:
    """Another format, other names, another dtype, a part: a new file, and nothing that was not named is lost.

    Without OUT the plan is shown. What the format cannot hold is told before anything is written. Ties stay ties.
    """
    output.check()
    sources, out = _places(models or [], chosen, ways)
    opened = [api.open(source, at=chosen.at, values=True, seed=chosen.seed) for source in sources]
    if len(opened) > 1 and not ways.merge:
        said = f"{shortened(sources[0].name)} and {shortened(sources[1].name)}"
        raise ParamctlError(f"{said} are two models to read", hint="--merge makes one of them, of which the last wins")
    _say_conflicts(list(conflicts([model.checkpoint for model in opened])))
    conversion = (
        api.merge(*opened)
        .select(*(chosen.select or ()))
        .convert(
            out,
            to=changed.to or ("sharded" if changed.shard else ""),
            drop=chosen.drop or (),
            rename=_rules(changed),
            dtype=changed.dtype,
            contiguous=changed.contiguous,
            shard_nbytes=_nbytes(changed.shard),
            split=changed.split,
            metadata=_metadata(changed),
        )
    )
    options = Options(ways.strict, ways.verify, ways.force, ways.max_error)
    target = "" if ways.dry_run else out
    carry_out(conversion, target, options, output, in_place=ways.in_place)
    if not target:
        say("nothing was written: --dry-run" if ways.dry_run else "nothing was written; a second path is written to")


def _say_conflicts(found: list[tuple[str, str, str]]) -> None:
    for name, before, after in found[:_TOLD]:
        say(f"{shortened(name)} of {shortened(after)} replaces that of {shortened(before)}")
    if len(found) > _TOLD:
        say(f"and {len(found) - _TOLD:,} more are replaced")


def _places(words: list[str], chosen: Chosen, ways: Ways) -> tuple[list[Source], str]:
    """What is read, and what is written: "" for nothing."""
    if ways.in_place:
        if len(words) != 1:
            raise ParamctlError(f"--in-place takes one model, and here are {len(words)}")
        source = resolve(words[0], arguments=chosen.arg or ())
        if source.kind != "file" or str(source.path).startswith("/dev/"):
            raise ParamctlError(f"{shortened(source.name)}: --in-place, and it is no file", hint="name an OUT")
        return [source], words[0]
    if ways.merge and len(words) < 3 and not ways.dry_run:
        raise ParamctlError("--merge takes two models or more, and an OUT", hint="paramctl convert A B OUT --merge")
    names: list[str | None] = [*(words[:-1] if len(words) > 1 else words)] or [None]
    return [resolve(name, arguments=chosen.arg or ()) for name in names], words[-1] if len(words) > 1 else ""


def _rules(changed: Changed) -> list[renaming.Rule]:
    rules = [renaming.rule(text) for text in changed.rename or ()]
    return rules + (renaming.read(changed.rename_file) if changed.rename_file else [])


def _nbytes(text: str) -> int:
    """As huggingface_hub reads sizes: 5GB are 5·10⁹ bytes, 5GiB 5·2³⁰."""
    if not text:
        return 0
    match = _SIZE.fullmatch(text.strip())
    count = float(match[1]) * (1024 if match[3] else 1000) ** _UNITS.index(match[2].upper()) if match else 0
    if count < 1:
        raise ParamctlError(f"--shard {shortened(text)}: no size", hint="5GB, 500MB, 2GiB")
    return int(count)


def _metadata(changed: Changed) -> dict[str, str]:
    pairs = [text.partition("=") for text in changed.metadata or ()]
    for text, (key, equals, _) in zip(changed.metadata or (), pairs, strict=True):
        if not key or not equals:
            raise ParamctlError(f"--metadata {shortened(text)}: not of the form KEY=TEXT")
    return {key: text for key, _, text in pairs}
