"""Torch tier: named and custom initializers, and the little language that names them.

    scheme = name [ arguments ]        # arguments: of `calls`
    name   = one of INITIALIZERS or its aliases | "default" | file.py:function | package.module:function

Arguments are parsed and never evaluated. A custom function's file is run: the user named code.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import typing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paramctl import calls, custom
from paramctl.calls import Arguments
from paramctl.dtypes import DTYPES
from paramctl.errors import InitError, nearest, shortened
from paramctl.report import Column

Fill = Callable[..., object]  # in place on a tensor, or on a module
Cannot = Callable[..., str]  # (shape, dtype name, **arguments) → "" or why it cannot work there

COLUMNS = (Column("name", "name"), Column("aliases", "names"), Column("arguments"), Column("law"))
_LIST = "`paramctl init --list` lists them all"
_REFUSALS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)  # torch's
_PROBE_SHAPES = {"dirac": (0, 1, 1)}  # any number of groups divides 0


@dataclass(frozen=True, slots=True)
class Initializer:
    """A named scheme; `function` fills a tensor in place, as its namesake in torch.nn.init."""

    name: str
    aliases: tuple[str, ...]
    law: str
    function: Fill
    cannot: Cannot

    @property
    def parameters(self) -> tuple[inspect.Parameter, ...]:
        """The arguments after the tensor, without `generator`."""
        after = tuple(inspect.signature(self.function).parameters.values())[1:]
        return tuple(parameter for parameter in after if parameter.name != "generator")


@dataclass(frozen=True, slots=True)
class Scheme:
    """An initializer with its arguments. `text` is canonical: what is equal to a default is left out."""

    text: str
    of: Literal["tensor", "module", "default"]
    function: Fill
    arguments: Mapping[str, object]
    cannot: Cannot
    law: str

    def __call__(self, target: Tensor | nn.Module) -> None:
        """Fill a tensor, or initialize a module, in place; a tensor without elements is left alone.

        Raises:
            InitError: it cannot work on this tensor, or torch or the custom function refuses.
        """
        if isinstance(target, Tensor):
            if target.numel() == 0:
                return
            if why := self.cannot(tuple(target.shape), _dtype_name(target)):
                raise InitError(f"{shortened(self.text)}: {why}")
        try:
            with torch.no_grad():
                self.function(target, **self.arguments)
        except _REFUSALS as error:
            raise InitError(f"{shortened(self.text)}: {calls.first_line(error)}") from error


INITIALIZERS: dict[str, Initializer] = {}


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def initializer(name: str, *aliases: str, law: str, cannot: Cannot) -> Callable[[Fill], Fill]:
    """Register a function that fills a tensor in place.

    Where torch does not implement it for a dtype (random float8, QR in float16), it works in float32
    from the same random state and its result is rounded.
    """

    def register(function: Fill) -> Fill:
        @functools.wraps(function)
        @torch.no_grad()
        def fill(tensor: Tensor, *args: object, **kwargs: object) -> None:
            state = torch.get_rng_state()
            try:
                function(tensor, *args, **kwargs)
            except NotImplementedError:
                if cannot(tuple(tensor.shape), _dtype_name(tensor)):
                    raise
                torch.set_rng_state(state)
                dtype = torch.complex64 if tensor.is_complex() else torch.float32
                wide = torch.empty(tensor.shape, dtype=dtype)
                function(wide, *args, **kwargs)
                tensor.copy_(wide)

        INITIALIZERS[name] = Initializer(name, aliases, law, fill, cannot)
        return fill

    return register


def _cannot_hold(dtype: str, *values: complex) -> str:
    """Integers, bools and powers of two must hold a value exactly, floats may round it but not overflow."""
    torch_dtype = getattr(torch, dtype, None)
    known = DTYPES.get(dtype)
    if not isinstance(torch_dtype, torch.dtype) or known is None or known.kind == "quantized":
        return f"torch cannot fill {dtype}"
    exact = known.kind not in {"float", "complex"} or dtype == "float8_e8m0fnu"
    for value in values:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "ComplexHalf support is experimental"
                held = torch.empty((), dtype=torch_dtype).fill_(value).item()
        except NotImplementedError:  # float4_e2m1fn_x2
            return f"torch cannot fill {dtype}"
        except (OverflowError, RuntimeError):
            return f"{dtype} cannot hold {value}"
        same = exact or value in {math.inf, -math.inf}
        if held != value if same else _is_finite(held) != _is_finite(value):
            return f"{dtype} cannot hold {value}"
    return ""


def _is_finite(value: complex) -> bool:
    return math.isfinite(value.real) and math.isfinite(value.imag)


def _cannot_draw(_shape: tuple[int, ...], dtype: str, *, real: bool = False, **_: object) -> str:
    kinds = {"float"} if real else {"float", "complex"}
    if dtype not in DTYPES or DTYPES[dtype].kind not in kinds:
        return f"needs a {'real ' if real else ''}floating-point type; this is {dtype}"
    return _cannot_hold(dtype, 0, -1)  # float8_e8m0fnu has neither


def _cannot_place(_shape: tuple[int, ...], dtype: str, **_: object) -> str:
    return _cannot_hold(dtype, 0, 1)


def _cannot_fill(_shape: tuple[int, ...], dtype: str, *, val: complex = 0, **_: object) -> str:
    return _cannot_hold(dtype, val)


def _cannot_dirac(shape: tuple[int, ...], dtype: str, *, groups: int = 1, **_: object) -> str:
    if shape[0] % groups:
        return f"needs a first dimension that {groups} groups divide; this is {shape[0]}"
    return _cannot_hold(dtype, 0, 1)


def _shaped(low: int, high: float, words: str, cannot: Cannot) -> Cannot:
    """`cannot`, once there are `low` to `high` dimensions, which `words` say."""

    def cannot_shaped(shape: tuple[int, ...], dtype: str, **arguments: object) -> str:
        if not low <= len(shape) <= high:
            return f"needs {words}; this has {len(shape)}"
        return cannot(shape, dtype, **arguments)

    return cannot_shaped


_cannot_draw_real = functools.partial(_cannot_draw, real=True)
_cannot_fan = _shaped(2, math.inf, "two dimensions or more for its fans", _cannot_draw)
_cannot_orthogonal = _shaped(2, math.inf, "two dimensions or more", _cannot_draw_real)
_cannot_sparse = _shaped(2, 2, "two dimensions", _cannot_draw)
_cannot_eye = _shaped(2, 2, "two dimensions", _cannot_place)
_cannot_dirac_shaped = _shaped(3, 5, "three to five dimensions", _cannot_dirac)

_init = nn.init
initializer("uniform", law="U(a, b)", cannot=_cannot_draw)(_init.uniform_)
initializer("normal", "gaussian", law="N(mean, std²)", cannot=_cannot_draw)(_init.normal_)


@initializer(
    "trunc_normal", "trunc", "truncated_normal", law="N(mean, std²), drawn again until within [a, b]",
    cannot=_cannot_draw_real,
)  # fmt: skip
@functools.wraps(_init.trunc_normal_)
def _trunc_normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> None:
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0 and a <= b):
        raise ValueError("mean must be finite, std finite and more than 0, and a at most b")
    outside = max(a - mean, mean - b)
    # torch draws from U(a, b) until one in (b - a) · outside / std² is accepted, and would go on for ever
    if outside > 30 * std or (outside > std / 2 and std * std < 1e-4 * outside * (b - a)):
        raise ValueError("[a, b] is too far from the mean: next to none of N(mean, std²) lies there")
    _init.trunc_normal_(tensor, mean, std, a, b)


initializer("constant", "const", "fill", law="val", cannot=_cannot_fill)(_init.constant_)
initializer("ones", "one", law="1", cannot=functools.partial(_cannot_fill, val=1))(_init.ones_)
initializer("zeros", "zero", law="0", cannot=_cannot_fill)(_init.zeros_)
initializer("eye", "identity", law="1 on the diagonal, 0 elsewhere", cannot=_cannot_eye)(_init.eye_)


@initializer(
    "dirac",
    law="1 at the kernel's centre from channel i to i of each group, else 0",
    cannot=_cannot_dirac_shaped,
)
@functools.wraps(_init.dirac_)
def _dirac(tensor: Tensor, groups: int = 1) -> None:
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups is a whole number from 1, not {groups}")
    if tensor.numel():
        _init.dirac_(tensor, groups)


initializer(
    "xavier_uniform", "xavier", "glorot", "glorot_uniform",
    law="U(-a, a), a = gain · sqrt(6 / (fan_in + fan_out))", cannot=_cannot_fan,
)(_init.xavier_uniform_)  # fmt: skip
initializer(
    "xavier_normal", "glorot_normal",
    law="N(0, std²), std = gain · sqrt(2 / (fan_in + fan_out))", cannot=_cannot_fan,
)(_init.xavier_normal_)  # fmt: skip
initializer(
    "kaiming_uniform", "kaiming", "he", "he_uniform",
    law="U(-bound, bound), bound = gain(nonlinearity, a) · sqrt(3 / fan)", cannot=_cannot_fan,
)(_init.kaiming_uniform_)  # fmt: skip
initializer(
    "kaiming_normal", "he_normal",
    law="N(0, std²), std = gain(nonlinearity, a) / sqrt(fan)", cannot=_cannot_fan,
)(_init.kaiming_normal_)  # fmt: skip


@initializer("orthogonal", "ortho", law="gain · Q of a random normal matrix's QR", cannot=_cannot_orthogonal)
@functools.wraps(_init.orthogonal_)
def _orthogonal(tensor: Tensor, gain: float = 1) -> None:
    if tensor.ndim == 2 or tensor.is_contiguous():
        _init.orthogonal_(tensor, gain)
    else:  # torch cannot view every other layout as a matrix
        dense = torch.empty(tensor.shape, dtype=tensor.dtype)
        _init.orthogonal_(dense, gain)
        tensor.copy_(dense)


@initializer("sparse", law="N(0, std²), a fraction `sparsity` of each column set to 0", cannot=_cannot_sparse)
@functools.wraps(_init.sparse_)
def _sparse(tensor: Tensor, sparsity: float, std: float = 0.01) -> None:
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is a fraction from 0 to 1, not {sparsity}")
    _init.sparse_(tensor, sparsity, std)


# ----------------------------------------------------------------------------- what torch.nn.init has not


def _fan_in(tensor: Tensor) -> int:
    return _init._calculate_fan_in_and_fan_out(tensor)[0]  # noqa: SLF001 - torch's own fans


@initializer("lecun_uniform", law="U(-a, a), a = sqrt(3 / fan_in)", cannot=_cannot_fan)
def _lecun_uniform(tensor: Tensor) -> None:
    """Source: LeCun et al. 1998, "Efficient BackProp", equation 16."""
    bound = math.sqrt(3 / max(_fan_in(tensor), 1))
    tensor.uniform_(-bound, bound)


@initializer("lecun_normal", "lecun", law="N(0, std²), std = sqrt(1 / fan_in)", cannot=_cannot_fan)
def _lecun_normal(tensor: Tensor) -> None:
    """Source: LeCun et al. 1998, "Efficient BackProp", equation 16."""
    tensor.normal_(0, math.sqrt(1 / max(_fan_in(tensor), 1)))


@initializer(
    "trunc_normal_fan_in", "variance_scaling",
    law="N(0, s²) within ±2s, s so that std = sqrt(scale / fan_in)",
    cannot=_shaped(2, math.inf, "two dimensions or more for its fans", _cannot_draw_real),
)  # fmt: skip
def _trunc_normal_fan_in(tensor: Tensor, scale: float = 1.0) -> None:
    """Source: jax/_src/nn/initializers.py (`variance_scaling`, "truncated_normal")."""
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is more than 0, not {scale}")
    std = math.sqrt(scale / max(_fan_in(tensor), 1)) / _STD_WITHIN_TWO
    _init.trunc_normal_(tensor, 0.0, std, -2 * std, 2 * std)


_STD_WITHIN_TWO = 0.87962566103423978  # of N(0, 1) within ±2


@initializer("gpt2_residual", "scaled_residual", law="N(0, s²), s = std / sqrt(2 · layers)", cannot=_cannot_draw)
def _gpt2_residual(tensor: Tensor, layers: int, std: float = 0.02) -> None:
    """Source: Radford et al. 2019, section 2.3: residual layers by 1/√N, of which each block has two."""
    if not isinstance(layers, int) or layers < 1:
        raise ValueError(f"layers is a whole number from 1, not {layers}")
    tensor.normal_(0, std / math.sqrt(2 * layers))


def _cannot_delta(shape: tuple[int, ...], dtype: str, **_: object) -> str:
    if shape[0] < shape[1]:
        return f"needs as many output channels as input channels; this has {shape[0]} and {shape[1]}"
    return _cannot_draw_real(shape, dtype)


@initializer(
    "delta_orthogonal",
    law="gain · an orthogonal matrix at the kernel's centre, else 0",
    cannot=_shaped(3, 5, "three to five dimensions", _cannot_delta),
)
def _delta_orthogonal(tensor: Tensor, gain: float = 1) -> None:
    """Source: Xiao et al. 2018, "Dynamical Isometry and a Mean Field Theory of CNNs", algorithm 1."""
    matrix = torch.empty(tensor.shape[:2], dtype=tensor.dtype)
    _init.orthogonal_(matrix, gain)
    tensor.zero_()
    if all(tensor.shape[2:]):
        centre: Any = (..., *((size - 1) // 2 for size in tensor.shape[2:]))
        tensor[centre] = matrix


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        reset()


def _cannot_never(_shape: tuple[int, ...], _dtype: str) -> str:
    return ""


DEFAULT = Scheme("default", "default", _reset, {}, _cannot_never, "each module's own reset_parameters()")


def rows() -> tuple[tuple[Any, ...], ...]:
    """One row for each scheme, for `init --list`."""
    named = ((one.name, list(one.aliases), calls.signature(one.parameters), one.law) for one in INITIALIZERS.values())
    return (*named, (DEFAULT.text, [], "", DEFAULT.law))


def parse(text: str) -> Scheme:
    """The scheme that `text` names.

    Raises:
        InitError: it is malformed or unknown, or its arguments cannot work.
    """
    text = " ".join(text.splitlines()).strip()
    if match := re.match(r"([A-Za-z_]\w*)\s*(?=\(|$)", text):
        return _named(match[1], calls.arguments(text, match.end()))
    if match := re.match(r"(.+?\.py|[A-Za-z_][\w.]*):([A-Za-z_][\w.]*)\s*(?=\(|$)", text):
        return _custom(match[1], match[2], calls.arguments(text, match.end()))
    if text.endswith((".py", ".py:")):
        file = shortened(text.removesuffix(":"))
        raise InitError(f"{file}: names no function", hint=f"write {file}:FUNCTION")
    raise InitError(
        f"not a scheme: '{shortened(text)}'", hint=f"write NAME, NAME(arg=value) or file.py:function; {_LIST}"
    )


def _named(name: str, given: Arguments) -> Scheme:
    plain = name.lower().removesuffix("_")
    if plain == "default":
        calls.bind("default", (), given)
        return DEFAULT
    names = {alias: one for one in INITIALIZERS.values() for alias in (one.name, *one.aliases)}
    if plain not in names:
        close = nearest(plain, [*names, "default"])
        hint = f"did you mean {', '.join(close)}? {_LIST}" if close else _LIST
        raise InitError(f"no scheme '{shortened(name)}'", hint=hint)
    one = names[plain]
    arguments = calls.bind(one.name, one.parameters, given)
    _probe(one, arguments)
    defaults = {parameter.name: parameter.default for parameter in one.parameters}
    told = {key: value for key, value in arguments.items() if value != defaults[key]}
    cannot = functools.partial(one.cannot, **arguments)
    return Scheme(calls.written(one.name, told), "tensor", one.function, arguments, cannot, one.law)


def _probe(one: Initializer, arguments: Mapping[str, object]) -> None:
    """Refuse what torch would refuse, by a try on a tiny tensor that leaves the random state as it was."""
    hint = calls.takes(one.parameters)
    options = {parameter.name: typing.get_args(parameter.annotation) for parameter in one.parameters}
    for parameter in one.parameters:
        value = arguments.get(parameter.name, parameter.default)
        if parameter.annotation in {int, float} and not isinstance(value, int | float | complex):
            said = shortened(calls.literal(value))
            raise InitError(f"{one.name}: {parameter.name} is a number, not {said}", hint=hint)
    wide = torch.complex128 if any(isinstance(value, complex) for value in arguments.values()) else torch.float64
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one.function(torch.empty(_PROBE_SHAPES.get(one.name, (2, 2)), dtype=wide), **arguments)
    except _REFUSALS as error:
        for key, value in arguments.items():
            if options[key] and value not in options[key]:
                what = f"{one.name}: {key} is one of {', '.join(options[key])}, not {shortened(calls.literal(value))}"
                raise InitError(what) from error
        raise InitError(
            f"{shortened(calls.written(one.name, arguments))}: {calls.first_line(error)}", hint=hint
        ) from error


def _custom(where: str, name: str, given: Arguments) -> Scheme:
    head = f"{where}:{name}"
    of, function, parameters = custom.load(where, name)
    arguments = calls.bind(shortened(head), parameters, given)
    law = (inspect.getdoc(function) or "").partition("\n")[0]
    return Scheme(calls.written(head, arguments), of, function, arguments, _cannot_never, law)
