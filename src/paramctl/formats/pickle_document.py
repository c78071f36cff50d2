"""Header tier: a pickle of torch's as a document: tensors are dropped, renamed and replaced in it, and the rest stays.

What is not named is written again as it stands: classes that are not known, calls, attributes, what is shared and what
holds itself. What cannot be done without changing something that was not named is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from paramctl.errors import FileError, shortened
from paramctl.formats import pickle_removal, pickle_rename, pickle_tensors
from paramctl.formats.notes import TensorNote
from paramctl.formats.pickle_nodes import Maker, dump
from paramctl.formats.pickle_parse import parse
from paramctl.formats.pickle_places import Places
from paramctl.formats.torch_pickle import Layout, tensor

_NUMBER = re.compile(r"[0-9]{1,15}")
_MORE_STEPS = 200  # that one more tensor may take to write


class Document:
    """A pickle that can be edited. Names are those that the reader gives to it as it is by then."""

    def __init__(self, data: bytes, name: str, *, taken: Iterable[str] = ()) -> None:
        """Read a pickle. Nothing in it is run.

        Args:
            data: the pickle.
            name: of its file, for errors.
            taken: keys of storages that are there, named or not: no new one gets them.

        Raises:
            FileError: it is damaged, or cannot be written again so that it does the same.
        """
        self.name = name
        self._parsed = parse(data, name)
        self._nbytes = len(data)
        self._maker = Maker({})
        self._places: Places | None = None
        self.stored = frozenset(self.places.values.storages)
        """The keys of the storages that it named before any edit."""
        numbers = (int(key) for key in (*self.stored, *taken) if _NUMBER.fullmatch(key))
        self._next_key = 1 + max(numbers, default=-1)

    @property
    def places(self) -> Places:
        if self._places is None:
            self._places = Places(self._parsed, self.name, nbytes=self._nbytes)
        return self._places

    @property
    def tensors(self) -> dict[str, TensorNote]:
        """Every tensor by its name, in order."""
        return {name: entry.item for name, entry in self.places.tensors.items()}

    def dump(self) -> bytes:
        """The pickle. Unedited it is the same bytes, where Python's own pickler wrote it by protocol 1 to 3."""
        return dump(self._parsed.root, protocol=self._parsed.protocol, most=self._parsed.most)

    # ------------------------------------------------------------------ edits

    def drop(self, paths: Iterable[str]) -> None:
        """Take out tensors, branches with all that is in them, or what is no tensor: "0.weight", "optimizer", "epoch".

        A container in which nothing is left goes too. In a list, what comes behind moves up and is named anew.

        Raises:
            FileError: nothing is called so, or it is an item that has other names, or a part of what stays.
        """
        pickle_removal.remove(self.places, self._maker, paths)
        self._edited()

    def keep(self, names: Collection[str]) -> None:
        """Of all tensors keep only these; a branch in which none of its tensors stays goes with all that is in it."""
        self.drop(pickle_removal.remains(self.places, names))

    def rename(self, names: Mapping[str, str]) -> None:
        """Give tensors new names, by their old ones; all at once, so that two can change places.

        Where all tensors of a branch go the same way, the branch is renamed, with what else is in it. A name that leads
        out of its dict moves to the end of the dict that it leads to.

        Raises:
            FileError: a name that is taken, that nothing can have there, or of an item that has other names.
        """
        pickle_rename.rename(self.places, self._maker, names)
        self._edited(len(names))

    def replace(self, layouts: Mapping[str, Layout]) -> None:
        """Let tensors be of other storages, dtypes, sizes and strides; class, gradient and attributes stay.

        Tensors that name one storage are tied. One tensor with several names becomes several, unless all of them are
        given the same layout.

        Raises:
            FileError: a tensor of no storage, one that cannot be of that dtype, or a storage of two dtypes.
        """
        pickle_tensors.replace(self.places, self._maker, layouts)
        self._edited(len(layouts))
        named = pickle_tensors.classes(self._parsed.root, self._parsed.most)
        for name, layout in layouts.items():
            if len(named[layout.key]) > 1:
                what = f"{shortened(name)}: its storage {shortened(layout.key)} would be of two dtypes"
                raise FileError(self.name, what, hint="give it a storage of its own")

    def add(self, name: str, layout: Layout) -> None:
        """Put a tensor at the end of the dict that its name leads to.

        Raises:
            FileError: there is no such dict, or the name is taken.
        """
        pickle_rename.add(self.places, self._maker, name, tensor(self._maker, layout))
        self._edited(1)

    def at(self, path: str) -> None:
        """Make what is at `path` the whole, with names as they are there; of a flat dict, the keys that begin so.

        Raises:
            FileError: no tensor is below `path`.
        """
        found = pickle_rename.branch(self.places, path)
        if found is not None:
            self._parsed = self._parsed._replace(root=found)
            self._edited()
            return
        prefix = pickle_rename.dict_of(self.places, path)
        there = [self.places.entries[index].path for index in self.places.inside[prefix]]
        self.drop(name for name in there if not name.startswith(f"{path}."))
        stay = [name for name in there if name.startswith(f"{path}.")]
        self.rename({name: prefix + name[len(path) + 1 :] for name in stay})
        if prefix:
            self.at(prefix[:-1])

    def _edited(self, tensors: int = 0) -> None:
        self._places = None
        more = tensors * _MORE_STEPS
        self._parsed = self._parsed._replace(most=self._parsed.most + more)
        self._nbytes += more

    def as_in_a_zip(self) -> None:
        """Let a pickle of before torch 1.6 name storages and classes of modules as those of torch zips do."""
        pickle_tensors.as_in_a_zip(self._parsed.root, self._parsed.most)
        self._edited()

    # ------------------------------------------------------------------ storages

    def storages(self) -> list[str]:
        """The keys of all storages, in the order in which `torch.load` comes to them: that of an archive's members."""
        return list(dict.fromkeys(key for _, key in pickle_tensors.storages(self._parsed.root, self._parsed.most)))

    def new_key(self) -> str:
        """A key that no storage has, another one each time: the next number, as torch gives them."""
        self._next_key += 1
        return str(self._next_key - 1)

    def begin_with_zero(self) -> dict[str, str]:
        """Give the first storage the key "0", as `torch.load` expects it; all keys as they are now, by the former."""
        return pickle_tensors.begin_with_zero(self._parsed.root, self._parsed.most)
