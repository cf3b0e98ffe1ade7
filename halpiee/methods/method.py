"""What all methods of the papers share: what they are given, how they are attached, the compact network at the end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee import ranges
from halpiee.errors import UsageError
from halpiee.methods.allocator import Pool, bind
from halpiee.methods.attach import bare, rebind, rewrapped
from halpiee.methods.phases import Design, Recipe
from halpiee.methods.registry import NoOptions, options_of
from halpiee.methods.sparse import Sparse
from halpiee.saliency.criterion import Criterion, LossFn
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import Budget, Latency, as_budget
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.granularity import Channels, Units, Weights
from halpiee.structure.groups import Structure
from halpiee.structure.shrink import shrink

BudgetLike = Budget | float | str
"""A budget, or a share or time that ``as_budget`` makes one of."""

UnitsLike = Units | Structure | Literal["weights", "filters"]
"""Units, or what they are made of."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The arguments of every method; see ``Method``, whose arguments the fields with a default are.

    ``name`` is that of the method's class, for messages; the model is without wrappers; ``asked_units`` are the
    ``units`` as they were given, ``.units`` those that are bound to the model.
    """

    name: str
    model: nn.Module
    optimizer: Optimizer
    budget: BudgetLike | None = None
    total_steps: int = 0
    structure: Structure | None = None
    cost: LatencyCost | None = None
    asked_units: UnitsLike | None = None
    batches: Iterable[tuple[Tensor, Any]] | None = None
    loss_fn: LossFn = cross_entropy
    protect: Collection[str] = ()
    seed: int = 0
    images: Tensor | None = None

    @classmethod
    def of(
        cls, name: str, model: nn.Module, optimizer: Optimizer, arguments: Mapping[str, Any]
    ) -> tuple[Setup, dict[str, Any]]:
        """Returns what all methods take of some keyword arguments, and the others, which are the method's own."""
        own = {key: value for key, value in arguments.items() if key not in SHARED}
        shared = {SHARED[key]: value for key, value in arguments.items() if key in SHARED}
        for key, span in (("total_steps", ranges.StepsOrNone), ("seed", ranges.Seed)):
            ranges.ensure(name, key, shared.get(key, 0), span)
        shared["cost"] = cost_of(shared.get("cost"), shared.get("structure"))
        return cls(name=name, model=bare(model), optimizer=optimizer, **shared), own

    @cached_property
    def limit(self) -> Budget:
        """The budget; a number is a share of the latency where a cost is given, else a density.

        Raises:
            UsageError: none was given, or no budget.
        """
        if self.budget is None:
            raise UsageError(
                f"{self.name} was given no budget; pass budget=halpiee.Global(0.1), or another one of the docs"
            )
        return as_budget(self.budget, latency=self.cost is not None)

    @cached_property
    def units(self) -> Units:
        """The units that were given, else channels for a latency and weights for all other budgets."""
        return default_units(self.model, self.limit, self.structure, self.protect, self.asked_units)

    def design(
        self,
        recipe: Recipe,
        criterion: Criterion,
        *,
        units: Units | None = None,
        pool: Pool | None = None,
        explore_init: str = "model",
    ) -> Design:
        """Returns a design; units and pool default to those of the setup."""
        units = self.units if units is None else units
        pool = bind(self.limit, units, self.cost) if pool is None else pool
        parts: dict[str, Any] = {"explore_init": explore_init, "loss_fn": self.loss_fn, "images": self.images}
        if self.images is not None and not isinstance(units, Channels):
            raise UsageError(
                f"{self.name} was given images to solve layers from, and masks {type(units).__name__.lower()}, which "
                "have none to solve; pass units=halpiee.trace(model, inputs), or leave images out"
            )
        return Design(units=units, pool=pool, recipe=recipe, criterion=criterion, **parts)


SHARED = {f.name.removeprefix("asked_"): f.name for f in fields(Setup) if f.default is not MISSING}
"""Keyword argument of every method → field of ``Setup``."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run of ``halpiee train`` asks of a method."""

    options: Mapping[str, Any]  # option → value, of those that were typed
    model: nn.Module  # the network, for its units
    seed: int  # of every random choice
    total_steps: int  # of the whole training
    structure: Callable[[], Structure]  # gives that of the model
    examples: Callable[..., Sequence[tuple[Tensor, Tensor]]]  # to score on: ten a class, or n images of n
    steps: Callable[[], tuple[int, int, int]]  # gives the steps (h, j, q) of IEE's cycle
    cycle: Mapping[str, Any] = field(default_factory=dict)  # options of IEE's cycle → value, all of them
    pretrained: bool = False  # whether training starts from given weights
    units: str = "weights"  # what is removed: ``channels``, ``weights`` or ``filters``


class Method(Sparse):
    """A method attached to a model and its optimizer; the training loop stays the user's.

    A method of one's own is a subclass with a ``design``, under ``@halpiee.method(…)``.

    Args:
        model: the network, trained in place.
        optimizer: over ``model.parameters()``.
        budget: how much is kept: ``Latency`` for channels; ``Uniform``, ``ERK``, ``Global``, ``PerLayer`` or ``NM``; or
            a share such as ``0.1`` or ``"10%"``: of the latency where a ``cost`` is given, else of the units.
        total_steps: optimizer steps of the whole training.
        structure: of the model, from ``trace``; needed for channels, and to cut filters out.
        cost: latency model, or the path of a profile for the structure; needed for a latency.
        units: what is removed; by default the structure's channels for a latency, else weights.
        batches: (inputs, targets), for methods that score over batches.
        loss_fn: (outputs, targets) → scalar, what those take gradients of.
        protect: names of groups, weights or convolutions to leave whole.
        seed: of every random choice.
        images: ``[N, …]`` without labels, at least 5, better 512, where the model lies: after every prune of channels,
            layers are solved again from these as by ``halpiee.repair``; by default weights stay.
        options: the method's own; see its ``Options``.

    Raises:
        UsageError: an unknown option, an optimizer that cannot be masked, or what the method does not take.
        BudgetError: a budget below what the smallest network needs.
    """

    Options: ClassVar[type] = NoOptions
    """The method's own options: a frozen dataclass; ``@halpiee.method`` sets it."""

    no_batches: ClassVar[tuple[tuple[Tensor, Tensor], ...] | None] = None
    """What is scored over where no batches are given; ``None``: a phase that wants some refuses."""

    paper_charges_gradient = True
    """Whether the method's paper charges the steps that read the gradient of inactive weights."""

    shared: ClassVar[tuple[inspect.Parameter, ...]] = tuple(
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for name, field in SHARED.items()
        for f in fields(Setup)
        if f.name == field
    )
    """The keyword arguments of every method; ``@halpiee.method`` adds the method's own to its signature."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, **arguments: Any) -> None:
        given, own = Setup.of(type(self).__name__, model, optimizer, arguments)
        self.options = options_of(type(self).__name__, self.Options, own)
        design = self.design(given, self.options)
        units, batches = design.units, given.batches
        self._structure = units.structure if isinstance(units, Channels) else given.structure
        self._compact: tuple[nn.Module, Optimizer] | None = None
        batches = self.no_batches if batches is None else batches
        super().__init__(model, optimizer, design, batches, given.seed)

    def design(self, given: Setup, options: Any) -> Design:
        """Returns the units, the pool, the recipe and the criterion: this is what makes a method.

        ``given.design(recipe, criterion)`` fills in units and pool; ``options`` are of the class's ``Options``.
        """
        raise NotImplementedError

    @classmethod
    def arguments(cls, request: Request) -> dict[str, Any]:
        """Returns keyword arguments for a run: the options that were typed, and those that a short run needs.

        Updates come every ``interval`` steps as in the paper where forty of them fit, else every fortieth of the
        training; given weights are kept by magnitude.
        """
        names = {f.name for f in fields(cls.Options)}
        found = {name: value for name, value in request.options.items() if name in names}
        if "interval" in names and "interval" not in found:
            found["interval"] = max(1, min(cls.Options().interval, request.total_steps // 40))
        if "init" in names and "init" not in found and request.pretrained:
            found["init"] = "magnitude"
        return found

    @property
    def keep(self) -> dict[str, Any]:
        """The active units of every masked group, as ``halpiee.shrink`` takes them."""
        if isinstance(self.units, Filters):
            if self._structure is None:
                raise UsageError(
                    "filters were to be cut out without a structure; pass structure=halpiee.trace(model, inputs)"
                )
            return self.units.channels(self._structure, self.alive, silent=True)
        return dict(self.alive)

    def shrink(self) -> tuple[nn.Module, Optimizer]:
        """Returns the compact model and its optimizer, state included; asking again returns the same pair.

        Updates that are still running are ended first, on a grow. Weights of a budget without channels stay where
        they are: zeros cannot be cut out, and the model itself comes back. What was given in DistributedDataParallel,
        DataParallel or torch.compile comes back in the same, with the same settings, so all ranks must call this.

        Raises:
            UsageError: the model holds weights that the present mask does not belong to.
        """
        if self._compact is None:
            self.refuse_foreign()
            self.finish()
            self.detach()
            if self._structure is not None and isinstance(self.units, Channels | Filters):
                compact, optimizer = shrink(self.model, self._structure, self.keep, self.optimizer)
                model = rewrapped(self.given, compact)
            else:
                model, optimizer = self.given, self.optimizer
            last = self.reports[-1]
            self.reports.append(replace(last, event="shrink", step=self.step))
            self._compact = (model, optimizer)
        return self._compact

    def refuse_foreign(self) -> None:
        """Refuses to go on with weights that were loaded without the mask that belongs to them.

        Raises:
            UsageError: values that this method held still have changed since the last step.
        """
        foreign = self.foreign()
        if foreign:
            raise UsageError(
                f"the units active at step {self.step} were to be cut out, and the model holds other weights since: "
                f"{foreign[0]!r} (and {len(foreign) - 1} more parameters) changed where this method holds them still. "
                "Cut by the mask that belongs to the weights: save state_dict() beside them and call "
                "load_mask(state) after loading both; weights averaged over steps with other masks have none, "
                "so average once .finished is true"
            )

    def rebind(self, scheduler: Any) -> Any:
        """Points a learning-rate scheduler at the compact model's optimizer and returns it.

        Raises:
            UsageError: before ``shrink()``; there is no other optimizer yet.
        """
        if self._compact is None:
            raise UsageError(
                f"rebind was called at step {self.step}, before shrink(): the scheduler's optimizer is still in use; "
                "call it right after `model, optimizer = method.shrink()`"
            )
        return rebind(scheduler, self.optimizer, self._compact[1])


def cost_of(given: object, structure: Structure | None) -> LatencyCost | None:
    """Returns the latency model, read from a profile where a path is given.

    Raises:
        UsageError: a path without a structure, or something else.
        ProfileError: a file that is no profile of the structure.
    """
    if given is None or isinstance(given, LatencyCost):
        return given
    if isinstance(given, str | Path) and isinstance(structure, Structure):
        return LatencyCost(structure, given)
    raise UsageError(
        f"a cost of type {type(given).__name__} was given; pass structure=halpiee.trace(model, inputs) and "
        "cost=halpiee.LatencyCost(structure, profile)"
    )


def default_units(
    model: nn.Module,
    budget: Budget,
    structure: Structure | None,
    protect: Collection[str] = (),
    given: UnitsLike | None = None,
) -> Units:
    """Returns the units that are given, or channels for a latency, weights for everything else.

    Raises:
        UsageError: a latency without a structure, or names to protect beside units that are made already.
    """
    if given is None:
        given = "weights"
        if isinstance(budget, Latency):
            if not isinstance(structure, Structure):
                kind = type(structure).__name__
                said = f"a structure of type {kind}" if structure else "a latency budget without a structure"
                raise UsageError(f"{said} was given; pass structure=halpiee.trace(model, inputs)")
            given = structure
    if isinstance(given, Structure):
        return Channels(model, given, protect=protect)
    if isinstance(given, Units):
        if protect:
            raise UsageError(
                f"protect= was given beside units that are made already; name what stays whole where they are: "
                f"{type(given).__name__}(…)"
            )
        return given
    if given == "weights":
        return Weights(model, pinned=protect)
    if given == "filters":
        return Filters(model, pinned=protect)
    if not isinstance(given, str):
        given = type(given).__name__
    raise UsageError(f"units={given!r} was asked; give 'weights', 'filters', a structure, or units")
