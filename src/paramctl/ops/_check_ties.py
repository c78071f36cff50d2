"""Values tier: ties that a model's config declares, and its file has lost: the same bytes stand there twice."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import ParamctlError, shortened
from paramctl.ops._check_findings import Finding
from paramctl.source import Source
from paramctl.values import stream
from paramctl.values.equal import Candidate, pairs

_MOST_CONFIG_NBYTES = 1 << 24
_EMBEDDING = re.compile(
    r"(^|[._])(w[pt]e|w?o?r?d?_?tok_embeddings|embed\w*|\w*embeddings?|shared|lm_head|output)([._]|$)"
)


def lost(checkpoint: Checkpoint) -> list[Finding]:
    """Embeddings of the same bytes in storages of their own, where the config says that they are tied."""
    if not _declares(checkpoint.source):
        return []
    found: list[Finding] = []
    for group in _alike(checkpoint):
        for first, *others in _equal(group):
            names = [shortened(param.name, 80) for param in (first, *others)]
            both = " and ".join(names)
            what = f"config.json ties embeddings, and {both} stand there as the same {first.nbytes:,} bytes each"
            found.append(Finding("warning", "lost-tie", others[0].name, what))
    return found


def _declares(source: Source) -> bool:
    if source.path is None:
        return False
    file = (source.path if source.kind == "folder" else source.path.parent) / "config.json"
    try:
        if not file.is_file() or file.stat().st_size > _MOST_CONFIG_NBYTES:
            return False
        config: Any = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    inner = (
        [config, *(config.get(key) for key in ("text_config", "decoder", "llm_config"))]
        if isinstance(config, dict)
        else []
    )
    return any(isinstance(part, dict) and part.get("tie_word_embeddings") is True for part in inner)


def _alike(checkpoint: Checkpoint) -> Iterator[list[Param]]:
    """Embeddings of one shape, each in a storage of its own."""
    groups: dict[tuple[Any, ...], dict[str, Param]] = {}
    for param in checkpoint.params.values():
        if len(param.shape) == 2 and param.numel and not param.storage.is_meta and _EMBEDDING.search(param.name):
            groups.setdefault((param.dtype.name, param.shape), {}).setdefault(param.storage.key, param)
    yield from (list(group.values()) for group in groups.values() if len(group) > 1)


def _equal(group: list[Param]) -> Iterator[list[Param]]:
    """Those of the same bytes; what cannot be read is no tie that was lost, and is told of elsewhere."""
    candidates = [Candidate(place, param, place) for place, param in enumerate(group) if _is_readable(param)]
    try:
        found = pairs(candidates, constants=True, transposes=False)
    except ParamctlError:
        return
    firsts = dict.fromkeys(pair.first for pair in found)
    for first in firsts:
        yield [group[first], *(group[pair.other] for pair in found if pair.first == first)]


def _is_readable(param: Param) -> bool:
    with contextlib.suppress(ParamctlError):
        stream.hold(param)
        return True
    return False
