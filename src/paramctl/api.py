"""Header tier: the Python API. The commands are skins on it.

>>> model = paramctl.open("model.pt")
>>> model["0.weight"].numpy()
>>> model.select("*.bias").ls().dicts()
>>> model.init(scheme="xavier_uniform", seed=0).write("new.pt")
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from paramctl import formats, ops, renaming
from paramctl.checkpoint import Checkpoint, Param
from paramctl.checkpoint import at as rooted
from paramctl.errors import ParamctlError, SelectError, nearest, shortened
from paramctl.formats import targets
from paramctl.outline import merged
from paramctl.report import Report, joined
from paramctl.select import Filters, Selection, narrowed
from paramctl.select import select as choose
from paramctl.sharing import totals
from paramctl.source import Source, resolve

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from paramctl.ops._stats_columns import Wanted
    from paramctl.ops.convert import Conversion
    from paramctl.ops.edit import Edit
    from paramctl.ops.watch import Watch
    from paramctl.recipe import Rule


class Tensor(NamedTuple):
    """A named tensor of a model, whose values are read when they are asked for."""

    param: Param
    model: Model

    def __repr__(self) -> str:
        return f"<paramctl.Tensor {shortened(self.name)}: {self.dtype} {list(self.shape)}>"

    @property
    def name(self) -> str:
        return self.param.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.param.shape

    @property
    def dtype(self) -> str:
        """The name torch gives it: "float32"."""
        return self.param.dtype.name

    def numpy(self) -> NDArray[Any]:
        """The values; bfloat16 and float8 as the types of ml_dtypes.

        Raises:
            ParamctlError: the bytes cannot be had, or numpy has no such type.
        """
        held = self.model.with_values().checkpoint.params[self.name]
        found: NDArray[np.generic] = ops.show.array(held)
        return found


@dataclass(frozen=True, slots=True, repr=False)
class Model:
    """An opened model, and what is chosen of it: everything, until `select` narrows it."""

    checkpoint: Checkpoint
    patterns: tuple[str, ...] = ()
    filters: Filters = field(default_factory=Filters)
    root: str = ""
    has_values: bool = False

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of that exact name.

        Raises:
            KeyError: there is none.
        """
        if name not in self.checkpoint.params:
            close = nearest(name, list(self.checkpoint.params))
            raise KeyError(f"{shortened(name)}; nearest: {', '.join(close)}" if close else shortened(name))
        return Tensor(self.checkpoint.params[name], self)

    def __iter__(self) -> Iterator[str]:
        return (param.name for param in self.selection.chosen)

    def __len__(self) -> int:
        return len(self.selection.chosen)

    @property
    def selection(self) -> Selection:
        """What is chosen, and the rest.

        Raises:
            SelectError: nothing is.
        """
        return choose(self.checkpoint, self.patterns, self.filters)

    @property
    def nbytes(self) -> int:
        """Bytes of what is chosen, each counted once."""
        counted: int = totals(self.checkpoint, self.selection.chosen)["unique_nbytes"]
        return counted

    def unsliced(self, command: str) -> Selection:
        """The selection, for what is about whole tensors."""
        selection = self.selection
        for pick in selection.picks:
            if pick.slice:
                where = f"{shortened(pick.param.name)}[{pick.slice}]"
                raise SelectError(f"{where}: {command} is about whole tensors", hint="show and set take slices")
        return selection

    def __repr__(self) -> str:
        return f"<paramctl.Model {shortened(self.checkpoint.source.name)}: {len(self.checkpoint.params)} tensors>"

    def select(
        self,
        *patterns: str,
        layer: Sequence[str] = (),
        type: Sequence[str] = (),  # noqa: A002 - the option's name
        dtype: Sequence[str] = (),
        kind: Sequence[str] = (),
    ) -> Model:
        """The same model with another choice, in the grammar of the command line."""
        return replace(self, patterns=patterns, filters=Filters(tuple(layer), tuple(type), tuple(dtype), tuple(kind)))

    def rooted(self, at: str) -> Model:
        """This model from a path in it on, with names as they are there.

        Raises:
            FileError: no tensors are there.
        """
        return replace(self, checkpoint=rooted(self.checkpoint, at), root=at)

    def with_values(self, seed: int | None = None) -> Model:
        """This model, its definition built with values and not on the meta device; a file as it is."""
        if self.has_values or self.checkpoint.source.kind != "definition":
            return self
        made = formats.read(self.checkpoint.source, values=True, seed=seed)
        return replace(self, checkpoint=rooted(made, self.root) if self.root else made, has_values=True)

    def ls(self, *, digest: bool = False, tell: Callable[[int], None] | None = None) -> Report:
        """One parameter a row.

        Args:
            digest: with the SHA-256 of each one's dtype, shape and elements, which is the same in every format.
            tell: told the bytes that are read, as they are.
        """
        model = self.with_values() if digest else self
        return _report(ops.ls.ls(model.checkpoint, model.unsliced("ls"), digest=digest, tell=tell))

    def tree(self, *, fold: bool = True, depth: int | None = None, only: Collection[str] | None = None) -> Report:
        """The hierarchy, in `branch`; of what is chosen `only` these names, or all."""
        selection = self.unsliced("tree")
        kept = selection if only is None else narrowed(self.checkpoint, selection, only)
        return _report(ops.tree.tree(self.checkpoint, kept, fold=fold, depth=depth))

    def info(self) -> Report:
        """The whole model in short."""
        if self.patterns or self.filters != Filters():
            raise SelectError("info is about the whole model", hint="--at PATH roots it; ls and tree take patterns")
        return _report(ops.info.info(self.checkpoint))

    def show(self, *, most: int | None = None) -> Report:
        """Values; of a tensor with more than `most` elements only the first and last of each axis."""
        model = self.with_values()
        return _report(ops.show.show(model.checkpoint, model.selection, most=most))

    def ties(
        self,
        *,
        by: Literal["storage", "content"] = "storage",
        constants: bool = False,
        tell: Callable[[int], None] | None = None,
    ) -> Report:
        """Groups of tied tensors.

        Args:
            by: the storage that they share; or also the content, for equal bytes that are not shared.
            constants: by content, also tensors whose elements are all the same.
            tell: told the bytes that are read, as they are.
        """
        model = self.with_values() if by == "content" else self
        return _report(ops.ties.ties(model.checkpoint, model.unsliced("ties"), by=by, constants=constants, tell=tell))

    def stats(
        self,
        *,
        columns: Sequence[str] = (),
        quantiles: Sequence[float] = (),
        bins: int = 0,
        threshold: float = 0.0,
        sample: bool = False,
        spectral: bool = False,
        by: Literal["tensor", "module"] = "tensor",
        depth: int | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> Report:
        """Statistics of the finite elements of each tensor, or of all below each module.

        Args:
            columns: beside the usual, as `l1`, `kurtosis`, `zero_rows`, `spectral_norm`.
            quantiles: from 0 to 1, each a column `q0.5`.
            bins: of a histogram between the least and the greatest element, a column `hist`; 0 for none.
            threshold: the magnitude up to which an element counts for `sparsity`.
            sample: the standard deviation with a divisor of n - 1.
            spectral: what singular values say of matrices.
            by: a row for each tensor, or for each module that has tensors of its own.
            depth: a row for each branch at most so many steps below the root.
            tell: told the bytes that are read, as they are.
        """
        more = (*columns, *(ops.stats.SPECTRAL if spectral else ()))
        wanted = ops.stats.Wanted(more, tuple(quantiles), bins, threshold, sample)
        return joined(self.stats_by_row(wanted, by=by, depth=depth, tell=tell))

    def stats_by_row(
        self,
        wanted: Wanted,
        *,
        by: Literal["tensor", "module"] = "tensor",
        depth: int | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> Iterator[Report]:
        """As `stats`, a report for each row as soon as it is known; the last has no row, but totals and notes."""
        model = self.with_values()
        made = ops.stats.stats(model.checkpoint, model.unsliced("stats"), wanted, by=by, depth=depth, tell=tell)
        return map(_report, made)

    def init(
        self,
        *,
        scheme: str = "",
        bias: str = "",
        rules: Sequence[Rule] = (),
        seed: int | None = None,
        definition: str = "",
        tells: Literal["change", "law"] = "change",
    ) -> Edit:
        """Initialize what is chosen.

        Args:
            scheme: for its weights: a function of torch.nn.init by name, `default`, or `file.py:function`.
            bias: for its biases.
            rules: each for what it selects; a later one wins.
            seed: for `torch.manual_seed`; without one it is drawn, and `plan.metadata` keeps it.
            definition: of the model, for a file that knows no classes.
            tells: what a change says of itself: mean and spread before and after, or the spread that the law has.

        Raises:
            InitError: a scheme that is none, or that cannot work.
        """
        model = self.with_values(seed)
        classes = formats.read(resolve(definition), values=True) if definition else None
        plan = ops.init.init(
            model.checkpoint,
            model.unsliced("init"),
            scheme=scheme,
            bias=bias,
            rules=rules,
            seed=seed,
            model=classes,
            tells=tells,
        )
        edit: Edit = ops.edit.Edit(model.checkpoint, plan)
        return edit

    def convert(
        self,
        out: str = "",
        *,
        to: str = "",
        drop: Sequence[str] = (),
        rename: Sequence[str | renaming.Rule] = (),
        dtype: str = "",
        contiguous: bool = False,
        shard_nbytes: int = 0,
        split: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> Conversion:
        """What is chosen as a new checkpoint, planned; `write(out)` writes it.

        Args:
            out: a path, whose suffix says the format; or `-`.
            to: the format, where the suffix does not say it.
            drop: patterns of what is left out.
            rename: rules as `"old=>new"`, each applied to what the one before it made.
            dtype: for floats, as `"bf16"`.
            contiguous: whether slices are cut out of their storages.
            shard_nbytes: of the files of a folder, at most; 0 for one file.
            split: whether `out` is a folder, of a file for each module at the top.
            metadata: to add; an empty text takes a key away.

        Raises:
            SelectError: a pattern or a rule that fits nothing, or two tensors of one name.
            ParamctlError: tensors that the format cannot hold.
        """
        model = self.with_values()
        target = targets.of("" if split else str(out), to=to, source=model.checkpoint.format)
        rules = [renaming.rule(one) if isinstance(one, str) else one for one in rename]
        steps = ops.convert.Steps(tuple(drop), tuple(rules), dtype, contiguous, shard_nbytes, split, metadata or {})
        made: Conversion = ops.convert.convert(
            model.checkpoint, model.unsliced("convert"), target, steps, at=model.root
        )
        return made

    def tie(self, *, keep: str = "") -> Conversion:
        """What is chosen as one tensor, that of the first name or of `keep`; the format stays.

        Raises:
            ParamctlError: they differ, and `keep` does not say which wins.
        """
        made: Conversion = ops.tie.tie(self.checkpoint, self.unsliced("tie"), keep=keep, at=self.root)
        return made

    def untie(self) -> Conversion:
        """Each name that is chosen as a tensor of its own; the format stays.

        Raises:
            SelectError: none of them is tied.
        """
        made: Conversion = ops.tie.untie(self.checkpoint, self.unsliced("untie"), at=self.root)
        return made

    def set(self, *assignments: str, rules: Sequence[Rule] = (), seed: int | None = None) -> Edit:
        """Assign: `"0.weight[0, 0] = 42"`; `rules` of a recipe come first, each for what it selects.

        Raises:
            SelectError: a malformed assignment, or a name that is not there.
        """
        model = self.with_values(seed)
        edit: Edit = ops.edit.Edit(model.checkpoint, ops.set.set(model.checkpoint, assignments, rules=rules))
        return edit

    def grad(
        self,
        *,
        input: Sequence[str] = (),  # noqa: A002 - the option's name
        target: str = "",
        loss: str = "",
        weights: str = "",
        strict: bool = True,
        mode: Literal["train", "eval"] = "train",
        seed: int | None = None,
    ) -> Report:
        """One forward and one backward pass: a row for each chosen parameter, and one for each use of a tied one.

        A definition that was opened with values is run as it stands, and keeps what that leaves in it, as the averages
        of a batch norm; else it is built for this.

        Args:
            input: each as `2,4`, `2,4:0-1`, `int:2,16:0-999` or a file; `name=` before it says of which argument.
            target: in the same forms.
            loss: `sum`, `mean`, `mse`, `cross_entropy` or `file.py:function`.
            weights: a checkpoint that the values are of.
            strict: whether it is to fit entirely.
            mode: of `Module.train` or `Module.eval`.
            seed: torch's, before the definition is built.
        """
        model = self.with_values(seed)
        module = ops.grad
        made = module.grad(
            model.checkpoint,
            model.unsliced("grad"),
            module.Wanted((*input,), target, loss, weights, strict, mode),
            root=self.root,
            seed="" if seed is None else str(seed),
        )
        return _report(made)

    def watch(
        self,
        *,
        input: Sequence[str] = (),  # noqa: A002 - the option's name
        target: str = "",
        loss: str = "",
        weights: str = "",
        strict: bool = True,
        mode: Literal["train", "eval"] = "train",
        steps: int = 100,
        optimizer: str = "sgd(lr=0.1)",
        every: int = 1,
        fresh: bool = False,
        save: str = "",
        save_every: int = 0,
        save_optimizer: bool = False,
        lr: float | None = None,
        seed: int | None = None,
    ) -> Watch:
        """Train, and watch: iterate over what this returns for the steps, each as it is made.

        Args:
            input: as for `grad`; so are `target`, `weights`, `strict` and `mode`.
            target: without one it is drawn, as the loss needs it.
            loss: as for `grad`; mse, or cross_entropy for a target of integers.
            weights: where to begin.
            strict: whether they are to fit entirely.
            mode: of `Module.train` or `Module.eval`.
            steps: how many at most.
            optimizer: one of `torch.optim` by name, as `adam(lr=1e-3)`.
            every: of which steps to tell; the first and the last are told too.
            fresh: draw anew for each step what is drawn.
            save: a file for the model at the end; `{step}` in it stands for the step.
            save_every: write one each so many steps, too.
            save_optimizer: write `{"model", "optimizer", "step", "loss"}`, and not the state dict alone.
            lr: the learning rate, where `optimizer` has none.
            seed: torch's, before the definition is built.
        """
        model = self.with_values(seed)
        module = ops.watch
        made: Watch = module.watch(
            model.checkpoint,
            model.unsliced("watch"),
            module.Wanted((*input,), target, loss, weights, strict, mode, "mse"),
            module.Course(steps, optimizer, every, fresh, lr),
            saving=module.Saving(save, save_every, save_optimizer),
            root=self.root,
            seed="" if seed is None else str(seed),
        )
        return made


def _report(report: Any) -> Report:
    made: Report = report
    return made


def open(  # noqa: A001 - paramctl.open
    model: str | Source, *, at: str = "", arguments: Sequence[str] = (), values: bool = False, seed: int | None = None
) -> Model:
    """Open a model: a file, or a definition.

    Args:
        model: as MODEL on the command line.
        at: the path in a nested checkpoint to root the view at.
        arguments: for a definition's callable, each `name=value`.
        values: build a definition with its values at once; else on the meta device, until they are asked for.
        seed: torch's, for a definition's own values.

    Raises:
        ParamctlError: it cannot be read.
    """
    source = model if isinstance(model, Source) else resolve(str(model), arguments=arguments)
    checkpoint = formats.read(source, values=values, seed=seed)
    return Model(rooted(checkpoint, at) if at else checkpoint, root=at, has_values=values)


def merge(*models: Model) -> Model:
    """Several models as one: of tensors of one name that of a later model wins. For `convert`, whose report tells."""
    if len(models) == 1:
        return models[0]
    return Model(merged([model.with_values().checkpoint for model in models]), has_values=True)


def check(*models: str | Source, arguments: Sequence[str] = (), fast: bool = False) -> Report:
    """Whether models are whole, safe and finite: a finding a row.

    Args:
        models: each as MODEL on the command line; none: the default model.
        arguments: for a definition's callable, each `name=value`.
        fast: leave checksums and values unread.

    Raises:
        ParamctlError: one of them is not there.
    """
    named = models or (None,)
    sources = [model if isinstance(model, Source) else resolve(model, arguments=arguments) for model in named]
    return _report(ops.check.check(sources, fast=fast))


def diff(
    a: str | Source | Model,
    b: str | Source | Model,
    *,
    atol: float = 0.0,
    rtol: float = 0.0,
    layout: bool = False,
    ignore_dtype: bool = False,
    ignore_ties: bool = False,
    rename: Sequence[str | renaming.Rule] = (),
    exact_names: bool = False,
    rank: bool = False,
    by: Literal["tensor", "module"] = "tensor",
    depth: int | None = None,
    seed: int | None = None,
    tell: Callable[[int], None] | None = None,
    reading: Callable[[str], None] | None = None,
) -> Report:
    """How two models differ: a row for each name, or for each module; `same` ones too.

    Where a model is narrowed by `select`, a name is compared that is chosen in one of them.

    Args:
        a: as MODEL on the command line, or opened.
        b: as `a`.
        atol: elements differ if |b - a| > atol + rtol · |a|; NaN is equal to NaN.
        rtol: relative to A.
        layout: compare names, shapes and dtypes alone; so is a definition that was not built with values.
        ignore_dtype: values that are the same are `same` in another dtype, too.
        ignore_ties: leave aside which names share elements.
        rename: rules for the names of A, `OLD=>NEW`.
        exact_names: match names only as they are, and not without prefixes such as `module.`.
        rank: the numerical rank of each change.
        by: a row for each tensor, or for each module.
        depth: a row for each branch so many steps below the root.
        seed: build definitions with values, after `torch.manual_seed(seed)`.
        tell: told the bytes that are read, as they are.
        reading: told the name of what is being read.

    Raises:
        ParamctlError: one of them cannot be read.
    """
    sides = [model if isinstance(model, Model) else open(model) for model in (a, b)]
    if seed is not None:
        sides = [side.with_values(seed) for side in sides]
    codes = [s for s in sides if s.checkpoint.source.kind == "definition" and not s.has_values]
    options = ops.diff.Options(
        atol=atol,
        rtol=rtol,
        values=not (layout or codes),
        ignore_dtype=ignore_dtype,
        ignore_ties=ignore_ties,
        rules=tuple(renaming.rule(one) if isinstance(one, str) else one for one in rename),
        exact_names=exact_names,
        rank=rank,
        by=by,
        depth=depth,
    )
    first, second = sides
    made = _report(
        ops.diff.diff(
            first.checkpoint, second.checkpoint, options, chosen=_chosen(first, second), tell=tell, reading=reading
        )
    )
    if layout or not codes:
        return made
    name = shortened(codes[0].checkpoint.source.name)
    return made._replace(
        notes=(f"values are not compared: {name} is a definition; --seed N builds it with values", *made.notes)
    )


def _chosen(a: Model, b: Model) -> tuple[frozenset[str] | None, frozenset[str] | None]:
    """The names that are chosen in each of two models; none of them in one that is not narrowed."""
    found: list[frozenset[str] | None] = []
    errors = []
    for model in (a, b):
        try:
            names = frozenset(param.name for param in model.unsliced("diff").chosen)
        except SelectError as error:  # the other one may have it
            errors.append(error)
            names = frozenset()
        found.append(names if model.patterns or model.filters != Filters() else None)
    if errors and not any(found):
        raise errors[0]
    return found[0], found[1]


def match(
    checkpoint: str | Source,
    model: str | Source,
    *,
    at: str = "",
    arguments: Sequence[str] = (),
    strict_dtype: bool = False,
) -> Report:
    """Whether `load_state_dict(strict=True)` of a model would take a checkpoint, and what would mend it.

    Args:
        checkpoint: as MODEL on the command line.
        model: a definition, or a checkpoint whose place it would take.
        at: where in a nested checkpoint its tensors are.
        arguments: for the definition's callable, each `name=value`.
        strict_dtype: whether another dtype is a fault.

    Returns:
        A name a row; `totals["fits"]` is the answer, `totals["mending"]` what was found.

    Raises:
        ParamctlError: one of them cannot be read.
    """
    a = formats.read(_source(checkpoint))
    if at and a.live is not None:
        raise ParamctlError(f"{shortened(a.source.name)}: --at goes with a checkpoint, and this is a definition")
    b = formats.read(_source(model, arguments))
    return _report(ops.match.match(rooted(a, at) if at else a, b, strict_dtype=strict_dtype, at=at))


def shown(report: Report, operation: Literal["match", "history"]) -> Report:
    """The report as a terminal has it: what does not fit, in one row where layers are alike; or a parameter a row."""
    return _report(getattr(ops, operation).shown(report))


def rename_file(mending: Mapping[str, Any]) -> str:
    """The renaming of `match`, as `convert --rename-file` reads it."""
    text: str = ops.match.rename_file(mending)
    return text


def _source(model: str | Source, arguments: Sequence[str] = ()) -> Source:
    return model if isinstance(model, Source) else resolve(str(model), arguments=arguments)


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """Checkpoints of a training run, in the order of their steps, and what is chosen of them."""

    row: Any  # ops.history.Row: numpy is not needed to open files
    notes: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    filters: Filters = field(default_factory=Filters)

    def __repr__(self) -> str:
        return f"<paramctl.Run: {len(self.row.checkpoints)} checkpoints>"

    @property
    def nbytes(self) -> int:
        """Bytes of what is chosen of all checkpoints, each counted once."""
        rows = zip(*ops.history.chosen(self.row.checkpoints, self.patterns, self.filters).values(), strict=True)
        counted: int = sum(
            totals(checkpoint, [param for param in params if param is not None])["unique_nbytes"]
            for checkpoint, params in zip(self.row.checkpoints, rows, strict=True)
        )
        return counted

    def select(
        self, *patterns: str, layer: Sequence[str] = (), dtype: Sequence[str] = (), kind: Sequence[str] = ()
    ) -> Run:
        """The same run with another choice, in the grammar of the command line."""
        return replace(self, patterns=patterns, filters=Filters(tuple(layer), (), tuple(dtype), tuple(kind)))

    def history(
        self,
        *,
        by: Literal["tensor", "module"] = "tensor",
        depth: int | None = None,
        still: float = 1e-3,
        grew: float = 10.0,
        tell: Callable[[int], None] | None = None,
    ) -> Report:
        """Norms, updates and angles: a row for each parameter and step.

        Args:
            by: a row for each tensor, or for each module that has tensors of its own.
            depth: a row for each branch at most so many steps below the root.
            still: the share of the median relative update up to which a parameter is marked as resting.
            grew: a norm is marked that is more than so many times the median of those before.
            tell: told the bytes that are read, as they are.
        """
        limits = ops.history.Limits(still, grew)
        made = _report(
            ops.history.history(self.row, self.patterns, self.filters, by=by, depth=depth, limits=limits, tell=tell)
        )
        return made._replace(notes=(*self.notes, *made.notes))


def run(*models: str, at: str = "") -> Run:
    """The checkpoints of a training run.

    Args:
        models: files, folders of a model, a folder of several, patterns with wildcards.
        at: where in each nested checkpoint the tensors are.

    Raises:
        ParamctlError: fewer than two checkpoints, or one that cannot be read.
    """
    found = ops.history.found([str(model) for model in models])
    checkpoints = [formats.read(source) for source in found.sources]
    checkpoints = [rooted(one, at) if at else one for one in checkpoints]
    return Run(ops.history.in_order(checkpoints, is_sorted=found.is_sorted), found.notes)
