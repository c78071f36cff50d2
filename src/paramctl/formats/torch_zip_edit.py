"""Header tier: a torch zip written anew with an edited pickle. What was not named is the same bytes, in the same order.

Source: torch/serialization.py (`_load`, `_get_offset`: storages lie in the order in which the pickle names them).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO

from paramctl.formats.pickle_document import Document
from paramctl.formats.torch_zip import METADATA, root
from paramctl.formats.torch_zip_writer import SERIALIZATION_ID, Archive, Fresh, Kept, kept, text_by_name
from paramctl.formats.zip_directory import contents, directory, offsets
from paramctl.source import Reader


def document(reader: Reader) -> Document:
    """The pickle of a torch zip, to be edited.

    Raises:
        FileError: it is damaged, or cannot be written again so that it does the same.
    """
    members = directory(reader)
    folder = root(reader, members)
    there = (name.removeprefix(f"{folder}data/") for name in members)
    return Document(contents(reader, members[f"{folder}data.pkl"]), reader.name, taken=there)


def edit(
    file: IO[bytes],
    reader: Reader,
    edited: Document,
    fresh: Mapping[str, Fresh],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the archive of `reader` with an edited pickle. Storages that it names no longer are left out.

    Args:
        file: where to; it must have a descriptor.
        reader: the archive, open.
        edited: its pickle.
        fresh: storages that are new or have other bytes, by their keys; their elements lie as the archive says.
        metadata: text by name, as of `torch_zip_writer.write`; None leaves what there is.

    Raises:
        ParamctlError: chunks that are not as many bytes as was said.
    """
    members = directory(reader)
    folder = root(reader, members)
    data = f"{folder}data/"
    names = [name for name in members if not name.startswith(data)]
    given = {f"{folder}data.pkl": b""}
    if metadata is not None:
        given[f"{folder}{METADATA}"] = text_by_name(metadata) if metadata else b""
        names = _with_metadata(names, folder) if metadata else names
    there = kept(reader, data)
    keys = _keys(edited, there, in_order=f"{folder}.format_version" in members)
    storages = _storages(keys, edited, there, fresh)
    given[f"{folder}data.pkl"] = edited.dump()
    begins = offsets(reader, [member for name, member in members.items() if not name.startswith(data)])
    first = _first_behind(list(members), data, names)
    archive = Archive(file)
    for at, name in enumerate([*names, ""]):
        if at == first:
            for storage in storages:
                archive.put(data + storage.key, storage)
        if name and name not in given:
            archive.put(name, Kept("", reader.fileno(), members[name], begins[name]))
        elif name and given[name]:
            archive.add(name, given[name])
    archive.close()


def _keys(edited: Document, there: Iterable[str], *, in_order: bool) -> dict[str, str]:
    """The keys of storages that are written, as they are now, by the former ones.

    A file that says its `.format_version` has them in the order in which the pickle names them, and the first is "0".
    """
    if in_order:
        return edited.begin_with_zero()
    named = dict.fromkeys(edited.storages())
    return {key: key for key in (*(key for key in there if key in named), *named)}


def _storages(
    keys: Mapping[str, str], edited: Document, there: Mapping[str, Kept], fresh: Mapping[str, Fresh]
) -> list[Fresh | Kept]:
    """Those that the pickle names; and those that it did not name before either."""
    found: list[Fresh | Kept] = []
    for was, key in keys.items():
        content = fresh.get(was) or there.get(was) or Fresh(was, 0, ())
        found.append(content._replace(key=key))
    taken = {*edited.stored, *keys.values()}
    return found + [content for key, content in there.items() if key not in taken]


def _with_metadata(names: list[str], folder: str) -> list[str]:
    if f"{folder}{METADATA}" in names:
        return names
    at = names.index(f"{folder}{SERIALIZATION_ID}") if f"{folder}{SERIALIZATION_ID}" in names else len(names)
    return [*names[:at], f"{folder}{METADATA}", *names[at:]]


def _first_behind(every: list[str], data: str, names: list[str]) -> int:
    """How many of `names` come before the first storage."""
    first = next((at for at, name in enumerate(every) if name.startswith(data)), len(every))
    before = set(every[:first])
    return sum(1 for name in names if name in before)
