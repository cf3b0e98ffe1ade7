"""What all methods of the papers share: how they are attached, and the compact network at the end."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.design import Asked, BudgetLike, Design, Setup, UnitsLike, cost_of
from halpiee.methods.optimizer import rebind
from halpiee.methods.registry import NoOptions, options_of
from halpiee.methods.sparse import Sparse
from halpiee.methods.wrappers import bare, rewrapped
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.granularity import Channels
from halpiee.structure.groups import Structure
from halpiee.structure.shrink import shrink

__all__ = ["Method"]


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
        protect: names of groups, weights or convolutions to leave whole.
        seed: of every random choice.
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

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        budget: BudgetLike | None = None,
        total_steps: int = 0,
        structure: Structure | None = None,
        cost: LatencyCost | str | Path | None = None,
        units: UnitsLike | None = None,
        batches: Iterable[tuple[Tensor, Tensor]] | None = None,
        protect: Collection[str] = (),
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.options = options_of(type(self).__name__, self.Options, options)
        given = Setup(
            name=type(self).__name__,
            model=bare(model),
            optimizer=optimizer,
            budget=budget,
            total_steps=total_steps,
            structure=structure,
            cost=cost_of(cost, structure),
            asked_units=units,
            batches=batches,
            protect=protect,
            seed=seed,
        )
        design = self.design(given, self.options)
        own = design.units
        self._structure = own.structure if isinstance(own, Channels) else structure
        self._compact: tuple[nn.Module, Optimizer] | None = None
        super().__init__(
            model, optimizer, design, batches=self.no_batches if batches is None else batches, seed=seed
        )

    def design(self, given: Setup, options: Any) -> Design:
        """Returns the units, the pool, the recipe and the criterion; what a method is.

        Args:
            given: what it is attached with; ``given.design(recipe, criterion)`` fills in units and pool.
            options: of the class's ``Options``.
        """
        raise NotImplementedError

    @classmethod
    def arguments(cls, asked: Asked) -> dict[str, Any]:
        """Returns keyword arguments for a run: the options that were typed, and those that a short run needs.

        Updates come every ``interval`` steps as in the paper where forty of them fit, else every fortieth of the
        training; given weights are kept by magnitude.
        """
        names = {f.name for f in fields(cls.Options)}
        found = {name: value for name, value in asked.options.items() if name in names}
        if "interval" in names and "interval" not in found:
            found["interval"] = max(1, min(cls.Options().interval, asked.total_steps // 40))
        if "init" in names and "init" not in found and asked.pretrained:
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
