"""Header tier: a new safetensors file out of tensors whose bytes are in memory or in files.

Tensors of the very same elements are written once, and the other names left in `__metadata__` as
`safetensors.torch.save_model` does; other views of a storage are written as tensors of their own, since the format
has no sharing.

Source: safetensors/src/tensor.rs (`prepare`: larger dtypes first, then names; the header padded to 8 bytes).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

from paramctl.checkpoint import Param
from paramctl.errors import ParamctlError, shortened
from paramctl.formats.safetensors_file import CODES
from paramctl.sharing import groups

_CODES = {name: code for code, name in CODES.items()}


def write(
    file: IO[bytes], params: Iterable[Param], contents: Callable[[Param], Any], metadata: Mapping[str, str]
) -> None:
    """Write `params`.

    Args:
        file: where to.
        params: with unique names.
        contents: a tensor's bytes in row-major order.
        metadata: for `__metadata__`, the aliases besides.

    Raises:
        ParamctlError: a dtype that the format has not.
    """
    every = list(params)
    aliases = {name: min(group.names) for group in groups(every) if group.relation == "same" for name in group.names}
    kept = [param for param in every if aliases.get(param.name, param.name) == param.name]
    for param in kept:
        if param.dtype.name not in _CODES:
            raise ParamctlError(f"{shortened(param.name)}: safetensors has no {param.dtype.name}")
    kept.sort(key=lambda param: (-param.dtype.block_nbytes / param.dtype.block_numel, param.name))
    said = {**metadata, **{name: to for name, to in sorted(aliases.items()) if name != to}}
    header: dict[str, Any] = {"__metadata__": said} if said else {}
    at = 0
    for param in kept:
        offsets = [at, at + param.nbytes]
        header[param.name] = {"dtype": _CODES[param.dtype.name], "shape": list(param.shape), "data_offsets": offsets}
        at += param.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for param in kept:
        file.write(contents(param))
