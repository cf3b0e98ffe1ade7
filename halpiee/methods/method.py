"""What all methods of the papers share: default units, the compact network at the end, the scheduler that follows."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.driver import Sparse
from halpiee.methods.phases import Recipe
from halpiee.methods.pools import Pool
from halpiee.methods.rebind import rebind
from halpiee.methods.unwrap import rewrapped
from halpiee.saliency.criterion import Criterion
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import ERK, NM, Budget, Global, Latency, PerLayer, Uniform
from halpiee.sparsity.granularity import Channels, Filters, Units, Weights
from halpiee.structure.groups import Structure
from halpiee.structure.shrink import shrink

__all__ = [
    "BudgetLike",
    "Method",
    "UnitsLike",
    "at_density",
    "cost_of",
    "default_units",
    "update_steps",
]


class Method(Sparse):
    """A recipe with a name; see ``Sparse`` for its arguments.

    Args:
        structure: of the model; what ``shrink`` cuts by. Channels bring their own.
    """

    paper_charges_gradient = True
    """Whether the method's paper charges the steps that read the gradient of inactive weights."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        units: Units,
        pool: Pool,
        recipe: Recipe,
        criterion: Criterion,
        structure: Structure | None = None,
        batches: Iterable[tuple[Tensor, Tensor]] | None = None,
        seed: int = 0,
        explore_init: str = "model",
    ) -> None:
        self._structure = units.structure if isinstance(units, Channels) else structure
        self._compact: tuple[nn.Module, Optimizer] | None = None
        super().__init__(
            model,
            optimizer,
            units=units,
            pool=pool,
            recipe=recipe,
            criterion=criterion,
            batches=batches,
            seed=seed,
            explore_init=explore_init,
        )

    @property
    def keep(self) -> dict[str, Any]:
        """The active units of every masked group, as ``halpiee.shrink`` takes them."""
        if isinstance(self.units, Filters):
            if self._structure is None:
                raise UsageError(
                    "filters were to be cut out without a structure; pass structure=halpiee.trace(model, inputs)"
                )
            return self.units.channels(self._structure, self.alive)
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
