"""Torch tier: initializers applied to what is selected, planned.

Values are drawn in the checkpoint's parameter order, whatever the order of the rules, so that with a seed they are
those of `torch.manual_seed` followed by the same calls of `torch.nn.init`. What functions of a module draw is drawn
when the first tensor of theirs is reached.
"""

from __future__ import annotations

import copy
import functools
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from paramctl import initializers as named
from paramctl import modules, recipe, sharing, spreads, values
from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import InitError, ParamctlError, shortened
from paramctl.initializers import Scheme
from paramctl.ops._tied import tied_names
from paramctl.plan import Change, Plan
from paramctl.recipe import Rule
from paramctl.report import Report
from paramctl.roles import role
from paramctl.select import Selection, select
from paramctl.values.stream import bounded


def initializers() -> Report:
    """Every scheme with its short names, arguments and law."""
    return Report(named.COLUMNS, named.rows(), {})


@dataclass(frozen=True, slots=True)
class _Given:
    """What one tensor is to get. `asked`: it was named, so that a scheme that cannot work on it is an error."""

    scheme: Scheme
    said: str
    asked: bool


@dataclass(slots=True)
class _Assignment:
    given: dict[str, _Given] = field(default_factory=dict)

    def put(self, params: Sequence[Param], scheme: Scheme, said: str, selection: Selection) -> None:
        for param in params:
            self.given[param.name] = _Given(scheme, said, param.name in selection.named)


def init(
    checkpoint: Checkpoint,
    selection: Selection,
    *,
    scheme: str = "",
    bias: str = "",
    rules: Sequence[Rule] = (),
    seed: int | None = None,
    model: Checkpoint | None = None,
    tells: Literal["change", "law"] = "change",
) -> Plan:
    """A change for each tensor that a scheme is for; one that it cannot work on is kept, and says why.

    Args:
        checkpoint: what is changed.
        selection: what `scheme` and `bias` act on, and what rules are limited to.
        scheme: for weights; a function of a module acts on all that the module holds.
        bias: for biases.
        rules: each for what it selects: the weights, or the biases if they are all it selects.
        seed: for `torch.manual_seed`, before the first draw; a random one if None.
        model: a definition that tells the classes of a state dict.
        tells: what a change says of itself: mean and spread before and after, or the spread that the law has.

    Raises:
        InitError: a scheme that is none, that cannot work where it was asked for, or two for one storage.
    """
    if model is not None and model.live is None:
        raise InitError(
            f"--model {shortened(model.source.name)}: a {model.format} file, and no definition",
            hint="net.py, net.py:build or package.module:name",
        )
    found = _Assignment()
    if scheme:
        parsed = named.parse(scheme)
        targets = selection.chosen if parsed.of != "tensor" else _weights(selection, scheme, bool(bias))
        found.put(targets, parsed, f"--scheme {scheme}", selection)
    if bias:
        found.put(_biases(selection, bias), named.parse(bias), f"--bias {bias}", selection)
    for rule in rules:
        with recipe.named(rule):
            _apply_rule(found, checkpoint, selection, rule)
    if not found.given:
        raise InitError("no scheme was given", hint="--scheme NAME, --bias NAME, --rule 'SELECT=NAME' or --recipe FILE")
    changes = tuple(_changes(checkpoint, found, model, tells))
    if not any(change.compute for change in changes):
        raise InitError(f"nothing to initialize: {shortened(changes[0].before.name if changes[0].before else '')}"
                        f": {changes[0].detail}")  # fmt: skip
    chosen_seed = seed if seed is not None else secrets.randbits(32)
    return Plan(changes, metadata={"seed": str(chosen_seed)}, begin=functools.partial(modules.reseed, chosen_seed))


def _weights(selection: Selection, scheme: str, biases_too: bool) -> list[Param]:
    found = [
        param
        for param in selection.chosen
        if role(param) == "weight" or (param.name in selection.named and role(param) != "bias")
    ]
    if not found and not biases_too:
        biases = [param for param in selection.chosen if role(param) == "bias"]
        if biases:
            raise InitError(
                f"{shortened(biases[0].name)} is a bias, and --scheme acts on weights",
                hint=f"--bias '{shortened(scheme)}'",
            )
        raise InitError(
            f"no weights among the {len(selection.chosen)} selected",
            hint="name a tensor to initialize it whatever it is",
        )
    return found


def _biases(selection: Selection, bias: str) -> list[Param]:
    found = [param for param in selection.chosen if role(param) == "bias"]
    if not found:
        raise InitError(f"no biases among the {len(selection.chosen)} selected, for --bias {shortened(bias)}")
    return found


def _apply_rule(found: _Assignment, checkpoint: Checkpoint, selection: Selection, rule: Rule) -> None:
    within = {param.name for param in selection.chosen}
    chosen = select(checkpoint, rule.patterns, rule.filters)
    params = [param for param in chosen.chosen if param.name in within]
    scheme = named.parse(rule.scheme)
    if scheme.of == "tensor":
        weights = [p for p in params if role(p) == "weight" or (p.name in chosen.named and role(p) != "bias")]
        params = weights or [p for p in params if role(p) == "bias" or p.name in chosen.named]
    if not params:
        raise InitError(f"{shortened(rule.said)}: it selects nothing to initialize")
    found.put(params, scheme, rule.said, chosen)


# ----------------------------------------------------------------------------- changes


def _changes(
    checkpoint: Checkpoint, found: _Assignment, model: Checkpoint | None, tells: Literal["change", "law"]
) -> list[Change]:
    params = checkpoint.params
    ties = sharing.first_names(params.values())
    tied_with = tied_names(params)
    drawn: dict[str, list[str]] = {}  # a tie's first name → the names of it that are initialized
    runners: dict[str, _ModuleRun] = {}
    changes = []
    for name, param in params.items():
        given = found.given.get(name)
        if given is None:
            continue
        earlier = drawn.setdefault(ties.get(name, name), [])
        met = [other for other in earlier if sharing.meet(params[other], param) != "apart"]
        for other in met:
            _agree(found, other, name)
        if any(_same(param, params[other]) for other in met):
            continue
        earlier.append(name)
        if given.scheme.of != "tensor" and given.said not in runners:
            names = [other for other, its in found.given.items() if its.said == given.said]
            runners[given.said] = _ModuleRun(checkpoint, given.scheme, names, model)
        changes.append(_change(param, given, tied_with.get(name, ()), runners.get(given.said), tells))
    return changes


def _change(
    param: Param,
    given: _Given,
    tied: tuple[str, ...],
    runner: _ModuleRun | None,
    tells: Literal["change", "law"],
) -> Change:
    scheme = given.scheme
    if runner is not None:
        why = runner.why_not(param.name)
        if why:
            return Change(param, param, None, "keep", f"{scheme.text}: {why}", tied)
        bounded(param)
        return Change(param, param, runner.compute(param), "init", scheme.text, tied)
    why = scheme.cannot(param.shape, param.dtype.name)
    if why and given.asked:
        raise InitError(f"{shortened(param.name)}: {scheme.text} {why}")
    if why:
        return Change(param, param, None, "keep", f"{scheme.text} {why}", tied)
    bounded(param)
    fill = _fill(param, scheme) if tells == "change" else _measured(param, scheme)
    return Change(param, param, fill, "init", scheme.text, tied)


def _fill(param: Param, scheme: Scheme) -> Callable[[memoryview], str]:
    def compute(span: memoryview) -> str:
        before = values.spread(values.on(param, span))
        scheme(modules.tensor_on(param, span))
        return f"{before} → {values.spread(values.on(param, span))}"

    return compute


def _measured(param: Param, scheme: Scheme) -> Callable[[memoryview], str]:
    expected = spreads.expected(scheme, param.shape)

    def compute(span: memoryview) -> str:
        scheme(modules.tensor_on(param, span))
        drawn = f"{values.deviation(values.on(param, span)):.4g} drawn"
        return f"std {drawn}" if expected is None else f"std {expected:.4g} by its law, {drawn}"

    return compute


def _same(a: Param, b: Param) -> bool:
    """Whether initializing one initializes the other: all elements of `a` are elements of `b`."""
    return sharing.meet(a, b) == "within" and a.nbytes <= b.nbytes


def _agree(found: _Assignment, one: str, other: str) -> None:
    a, b = found.given[one], found.given[other]
    if a.scheme.text != b.scheme.text:
        raise InitError(
            f"{shortened(one)} and {shortened(other)} are one tensor, and two schemes are for it: "
            f"{shortened(a.scheme.text, 60)} and {shortened(b.scheme.text, 60)}",
            hint=f"{shortened(a.said)} and {shortened(b.said)} disagree",
        )


# ----------------------------------------------------------------------------- functions of modules


class _ModuleRun:
    """A function of a module, run once over scratch modules that hold copies of the values."""

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme, names: list[str], model: Checkpoint | None) -> None:
        self.checkpoint = checkpoint
        self.scheme = scheme
        self.names = set(names)
        self.model = model
        self.results: dict[str, torch.Tensor] | None = None
        self.root = self._scratch()
        self.by_path = dict(self.root.named_modules(remove_duplicate=False))

    def _scratch(self) -> torch.nn.Module:
        if self.checkpoint.live is not None:
            built: torch.nn.Module = copy.deepcopy(self.checkpoint.live)
            return built
        if self.model is not None:
            return self._defined(self.model)
        return modules.shell(self.checkpoint, _placeholders(self.checkpoint))

    def _defined(self, model: Checkpoint) -> torch.nn.Module:
        for name in self.checkpoint.params:
            if name not in self.names:
                continue
            ours, theirs = self.checkpoint.params[name], model.params.get(name)
            where = shortened(model.source.name)
            if theirs is None:
                raise ParamctlError(
                    f"{shortened(name)} is not in {where}",
                    hint="--model defines another model than this file holds; --at may name the part of it",
                )
            if theirs.shape != ours.shape:
                shapes = f"{list(ours.shape)}, and {list(theirs.shape)} in {where}"
                raise ParamctlError(
                    f"{shortened(name)} is {shapes}", hint="a definition's arguments: net.py:net, --arg"
                )
        made: torch.nn.Module = copy.deepcopy(model.live)
        return made

    def why_not(self, name: str) -> str:
        """Why the function does not reach a tensor, as far as that is known before it is run."""
        if self.scheme.of != "default":
            return ""
        owner = self.by_path.get(name.rpartition(".")[0])
        has = callable(getattr(owner, "reset_parameters", None) or getattr(owner, "_reset_parameters", None))
        return "" if has else f"{type(owner).__name__} has no reset_parameters"

    def compute(self, param: Param) -> Callable[[memoryview], str]:
        def compute(span: memoryview) -> str:
            if self.results is None:
                self.results = self.run()
            before = values.spread(values.on(param, span))
            result = self.results.get(param.name)
            if result is None or tuple(result.shape) != param.shape:
                raise InitError(f"{shortened(param.name)}: {self.scheme.text} took it away, or changed its shape")
            modules.tensor_on(param, span).copy_(result)
            return f"{before} → {values.spread(values.on(param, span))}"

        return compute

    def run(self) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            self.fill()
            for module in self.reached():
                self.scheme(module)
            return _tensors(self.root)

    def fill(self) -> None:
        """Give the scratch modules the file's values."""
        if self.checkpoint.live is not None:
            return
        for name, tensor in _tensors(self.root).items():
            param = self.checkpoint.params.get(name)
            if param is not None and tuple(tensor.shape) == param.shape and not tensor.is_meta:
                tensor.copy_(modules.tensor_on(param, bytearray(values.span_bytes(param))))

    def reached(self) -> list[torch.nn.Module]:
        """Modules of the chosen tensors: for `default` as they were built, else in the order of `Module.apply`."""
        wanted = {name.rpartition(".")[0] for name in self.names}
        if self.scheme.of != "default":
            wanted |= self.whole()
        chosen = {id(module) for path, module in self.by_path.items() if path in wanted}
        found = self.root.modules() if self.scheme.of == "default" else _children_first(self.root)
        return [module for module in found if id(module) in chosen]

    def whole(self) -> set[str]:
        """Paths below which everything is chosen; with everything chosen all, those without parameters too."""
        there = set(_tensors(self.root)) & set(self.checkpoint.params)
        if self.names >= there:
            return set(self.by_path)
        chosen = {ancestor for name in self.names for ancestor in _ancestors(name)}
        return chosen - {ancestor for name in there - self.names for ancestor in _ancestors(name)}


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts))]


def _children_first(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for child in module.children():
        yield from _children_first(child)
    yield module


def _tensors(root: torch.nn.Module) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        held = [*module._parameters.items(), *module._buffers.items()]  # noqa: SLF001
        held += [(name, value) for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
        for name, tensor in held:
            if tensor is not None:
                found[f"{path}.{name}" if path else name] = tensor
    return found


def _placeholders(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """A tensor for each name, one for names of the very same elements."""
    firsts = {name: group.names[0] for group in sharing.groups(checkpoint.params.values())
              if group.relation == "same" for name in group.names}  # fmt: skip
    made: dict[str, torch.Tensor] = {}
    for name, param in checkpoint.params.items():
        first = firsts.get(name, name)
        if first not in made:
            made[first] = torch.empty(param.shape, dtype=getattr(torch, param.dtype.name, torch.float32))
        made[name] = made[first]
    return made
