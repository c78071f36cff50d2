"""Header tier: what an unpickled object tree is made of: notes of tensors, and containers and stand-ins of ours.

None of them runs anything of the file's, none hashes what it is given, and none lets a pickle's BUILD change what
other files will meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

from paramctl.checkpoint import ParamKind
from paramctl.dtypes import DType

MOST_KEY_PARTS = 1000


class StorageNote(NamedTuple):
    """A storage as the pickle names it: `numel` elements of `dtype`, or bytes where `dtype` is None.

    Blocks count as one element here: torch's storages are of items, and `torch.quint4x2` has items of a byte.
    """

    key: str
    dtype: DType | None
    numel: int
    location: str
    view: tuple[int, int] | None = None  # before torch 0.4: elements (start, size) of it are a storage of their own

    @property
    def nbytes(self) -> int:
        return self.dtype.block_nbytes * self.numel if self.dtype else self.numel


class TensorNote(NamedTuple):
    """A tensor as the pickle describes it, not yet held against the bytes. `storage` None: on the meta device."""

    storage: StorageNote | None
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool | None
    kind: ParamKind = "tensor"
    cls: str = "Tensor"
    data: bytes | bytearray | None = None  # an array whose bytes are in the pickle itself
    byteorder: Literal["little", "big"] = "little"
    lazy: str = ""  # what torch does to the stored elements as it reads them: "conjugated", "negated"
    state: Any = None  # attributes that were set on the tensor
    origin: Any = None  # what in a document has made it: `pickle_values`

    def __hash__(self) -> int:  # as in torch, a tensor is itself and no other
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other


def _free(_count: int) -> None:
    """Spending where nobody counts."""


class Allowance:
    """What a pickle may have copied: one long list can be handed to functions again and again, at 5 bytes a call."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError("it copies the same values again and again")


class Dict(dict):  # type: ignore[type-arg]
    """Any dict; `attributes` holds what was set on it, as a state dict's `_metadata`."""

    attributes: Any = None
    spend: Callable[[int], None] = staticmethod(_free)

    def __init__(self, first: Any = None, second: Any = None) -> None:
        super().__init__()
        if first or second:
            self.fill(first)
            self.fill(second)

    def fill(self, given: Any) -> None:
        if isinstance(given, (dict, list, tuple)):
            self.spend(len(given))
            for pair in given.items() if isinstance(given, dict) else given:
                if isinstance(pair, (list, tuple)) and len(pair) == 2:
                    self[pair[0]] = pair[1]

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) is tuple:
            _refuse_endless(key)
        dict.__setitem__(self, key, value)

    def __setstate__(self, state: Any) -> None:
        self.attributes = state

    __hash__ = None


def _refuse_endless(key: tuple[Any, ...]) -> None:
    """A tuple hashes all that is in it, each time anew, by a recursion in C that nothing stops."""
    waiting: list[Any] = [key]
    parts = 0
    while waiting:
        part = waiting.pop()
        if type(part) is tuple:
            parts += 1 + len(part)
            if parts > MOST_KEY_PARTS:
                raise ValueError(f"a key of more than {MOST_KEY_PARTS:,} parts")
            waiting.extend(part)


class Set(list):  # type: ignore[type-arg]
    """A set, as the list of what was put into it: nobody asks what is in it, so nothing has to be hashed."""

    __slots__ = ()
    add = list.append


_NO_KWARGS: Mapping[str, Any] = MappingProxyType({})


class StandIn:
    """What takes the place of a class or a function that is not known, and of what it would have made."""

    __slots__ = ("args", "elements", "items", "kwargs", "state")
    qualified = ""
    spend: Callable[[int], None] = staticmethod(_free)

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    state: Any
    items: Sequence[tuple[Any, Any]]  # none, most often: then there is no list, of which a pickle may ask for millions
    elements: Sequence[Any]

    def __new__(cls, /, *args: Any, **kwargs: Any) -> Self:
        cls.spend(len(args) + len(kwargs))
        self = object.__new__(cls)
        self.args = args
        self.kwargs = kwargs or _NO_KWARGS
        self.state = None
        self.items = self.elements = ()
        return self

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(self.items, list):
            self.items = []
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.extend((value,))

    def extend(self, values: Any) -> None:
        if not isinstance(self.elements, list):
            self.elements = []
        self.elements.extend(values)

    add = append

    def __call__(self, /, *args: Any, **kwargs: Any) -> StandIn:
        self.spend(len(args) + len(kwargs))
        return standing_for("", args, {"called": self})

    @property
    def short(self) -> str:
        return type(self).qualified.rpartition(".")[2]


class Mesh(StandIn):
    """A DeviceMesh: its tensors number the ranks, stand in every DTensor, and are nobody's parameters."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        is_dict = isinstance(state, dict)
        self.state = {key: value for key, value in state.items() if type(value) is not TensorNote} if is_dict else None


@lru_cache(maxsize=64)
def stand_in(qualified: str) -> type[StandIn]:
    """A class that stands for the one called `qualified`."""
    return type("StandIn", (StandIn,), {"__slots__": (), "qualified": qualified})


def standing_for(qualified: str, args: tuple[Any, ...], state: Any = None) -> StandIn:
    """What the class called `qualified` would have made."""
    made = stand_in(qualified)()
    made.args = args
    made.state = state
    return made


class OldVariable:
    """A `Variable` or `Parameter` as it was pickled before torch 0.4: the class called with its tensor, and a state.

    Source: torch/_tensor.py, `Tensor.__setstate__`, which still takes both states.
    """

    __slots__ = ("note",)
    qualified = "torch.autograd.variable.Variable"
    kind: ParamKind = "tensor"

    note: TensorNote | None

    def __new__(cls, data: Any = None, requires_grad: Any = None, *_: Any) -> Self:
        self = object.__new__(cls)
        self.note = None
        self.hold(data, cls.kind == "parameter" if requires_grad is None else requires_grad)
        return self

    def hold(self, data: Any, requires_grad: Any) -> None:
        given = data.note if isinstance(data, OldVariable) else data
        if type(given) is TensorNote:
            cls = "Parameter" if self.kind == "parameter" else given.cls
            self.note = given._replace(kind=self.kind, cls=cls, requires_grad=requires_grad is True)

    def __setstate__(self, state: Any) -> None:
        if type(state) is tuple and len(state) == 5:
            self.hold(state[0], state[3])
        elif type(state) is tuple and len(state) == 3:
            self.hold(self.note, state[0])
        elif self.note is not None:
            self.note = self.note._replace(state=state or None)


class OldParameter(OldVariable):
    __slots__ = ()
    qualified = "torch.nn.parameter.Parameter"
    kind = "parameter"


class Device(str):
    """A `torch.device`, as it is written: "cuda:0"."""

    __slots__ = ()


class Key(NamedTuple):
    """A key of a dict that is no text, and the text that names give for it."""

    value: Any
    text: str

    def __str__(self) -> str:
        return self.text


class InTuple(int):
    """A position in a tuple, on a path."""

    __slots__ = ()


class Name:
    """A value of torch that is only a name: a dtype, a storage class, a layout. It cannot be called."""

    __slots__ = ("dtype", "is_storage", "text")

    def __init__(self, text: str, dtype: DType | None = None, *, is_storage: bool = False) -> None:
        self.text = text
        self.dtype = dtype
        self.is_storage = is_storage

    def __setstate__(self, state: Any) -> None:
        raise ValueError(f"a state for {self.text}, which has none")


class UnknownTensorError(Exception):
    """A tensor of a dtype or storage of which this program has not heard, and which is told as a stand-in."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__()
        self.facts = facts


class Function:
    """A function of ours that a pickle may call, and may not reach into."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def __call__(self, *args: Any) -> Any:
        try:
            return self.make(*args)
        except UnknownTensorError as error:
            return standing_for("torch.Tensor", (), error.facts)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a state for a function, which has none")
