"""What a method is made from: what it is given, what a run asks of it, and what it decides on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.allocator import Pool, bind
from halpiee.methods.phases import Recipe
from halpiee.saliency.criterion import Criterion
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import ERK, NM, Budget, Global, Latency, PerLayer, Uniform, as_budget
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.granularity import Channels, Units, Weights
from halpiee.structure.groups import Structure

__all__ = [
    "Asked",
    "BudgetLike",
    "Design",
    "Setup",
    "UnitsLike",
    "at_density",
    "default_units",
    "update_steps",
]


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a method decides on: the arguments of ``Sparse``.

    Attributes:
        units: what is removed and brought back.
        pool: the budget, bound to the units.
        recipe: phases, in order.
        criterion: scores units wherever a phase names no other criterion.
        explore_init: never-active units start from the ``model``'s initialisation, or from ``zero``.
    """

    units: Units
    pool: Pool
    recipe: Recipe
    criterion: Criterion
    explore_init: str = "model"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every method is given; see ``Method``.

    Attributes:
        name: of the method's class, for messages.
        model: without wrappers.
        asked_units: ``units`` as they were given; ``.units`` are bound to the model.
    """

    name: str
    model: nn.Module
    optimizer: Optimizer
    budget: BudgetLike | None
    total_steps: int
    structure: Structure | None
    cost: LatencyCost | None
    asked_units: UnitsLike | None
    batches: Iterable[tuple[Tensor, Tensor]] | None
    protect: Collection[str]
    seed: int

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
        """Returns a design; units and pool are those of what was given where nothing else is said."""
        units = self.units if units is None else units
        pool = bind(self.limit, units, self.cost) if pool is None else pool
        return Design(units=units, pool=pool, recipe=recipe, criterion=criterion, explore_init=explore_init)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run of ``halpiee train`` asks of a method.

    Attributes:
        options: option → value, of those that were typed.
        cycle: options of IEE's cycle → value, all of them.
        steps: gives the steps (h, j, q) of IEE's cycle.
        model: the network, for its units.
        seed: of every random choice.
        total_steps: of the whole training.
        pretrained: whether training starts from given weights.
        units: what is removed: ``channels``, ``weights`` or ``filters``.
        structure: gives that of the model.
        examples: gives (inputs, targets) to score on, ten of each class.
    """

    options: Mapping[str, Any]
    model: nn.Module
    seed: int
    total_steps: int
    structure: Callable[[], Structure]
    examples: Callable[[], list[tuple[Tensor, Tensor]]]
    steps: Callable[[], tuple[int, int, int]]
    cycle: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    units: str = "weights"


BudgetLike = Budget | float | str
"""A budget, or a share or time that ``as_budget`` makes one of."""

UnitsLike = Units | Structure | Literal["weights", "filters"]
"""Units, or what they are made of."""


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

    Args:
        model: the network, without wrappers.
        budget: what is limited.
        structure: of the model; needed for a latency.
        protect: groups, weights or convolutions to leave whole.
        given: units, a structure for its channels, ``weights`` or ``filters``; ``None``: by the budget.

    Raises:
        UsageError: a latency without a structure, or names to protect beside units that are made already.
    """
    if given is None:
        given = "weights"
        if isinstance(budget, Latency):
            if structure is None:
                raise UsageError(
                    "a latency budget was given without a structure; pass structure=halpiee.trace(model, inputs)"
                )
            if not isinstance(structure, Structure):
                raise UsageError(
                    f"a structure of type {type(structure).__name__} was given; pass "
                    "structure=halpiee.trace(model, inputs)"
                )
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


def at_density(budget: Budget, density: float) -> Budget:
    """Returns the same budget at another density: what a gradual method passes through.

    Raises:
        UsageError: a budget without a density.
    """
    if isinstance(budget, Uniform | ERK | Global):
        return replace(budget, density=density)
    kind = type(budget).__name__
    if isinstance(budget, PerLayer | NM | Latency):
        raise UsageError(
            f"{kind} was given to a method that passes through densities; give Global, Uniform or ERK"
        )
    raise UsageError(f"{kind} is no budget; give Global, Uniform or ERK")


def density_of(budget: Budget) -> float:
    """Returns the density of a budget that has one.

    Raises:
        UsageError: a budget without a density.
    """
    at_density(budget, 1.0)
    assert isinstance(budget, Uniform | ERK | Global)
    return budget.density


def update_steps(
    total_steps: int, interval: int, end: float, *, first: int | None = None, inclusive: bool = False
) -> range:
    """Returns the steps after which masks are updated: every ``interval``, before ``end · total_steps``.

    Args:
        total_steps: of the training.
        interval: ΔT.
        end: share of the training after which no update comes.
        first: the first of them; by default ΔT.
        inclusive: whether one may fall on the end itself.

    Raises:
        UsageError: none fits.
    """
    if interval < 1 or total_steps < 1 or not 0 < end <= 1:
        raise UsageError(
            f"updates every {interval} steps in the first {end} of {total_steps} steps were asked; "
            "the interval is at least 1 and the end a share above 0 and up to 1"
        )
    last = round(end * total_steps, 6)
    steps = range(first or interval, int(last) + 1, interval)
    if steps and steps[-1] >= last and not inclusive:
        steps = steps[:-1]
    if not steps:
        raise UsageError(
            f"updates every {interval} steps in the first {end:.0%} of {total_steps} steps were asked, and none fits; "
            f"train longer, or ask for an interval below {max(1, int(last))}"
        )
    return steps
