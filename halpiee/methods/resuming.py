"""What an interrupted method has to remember, as plain values and tensors, and how it goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from halpiee.errors import UsageError
from halpiee.sparsity.mask import Mask

if TYPE_CHECKING:
    from halpiee.methods.driver import Sparse

__all__ = ["check_units", "restore", "state_of"]


def state_of(method: Sparse) -> dict[str, Any]:
    """Returns everything a resumed run needs beside the model's and the optimizer's own state."""
    dropped, grown = method.last_drop, method.last_grow
    return {
        "step": method.step,
        "phase": method.phase,
        "phase_steps": method.phase_steps,
        "forward_all": method.memory.everything,
        "alive": dict(method.alive),
        "memory": method.memory.state(),
        "scores": method.scores.state(),
        "last_drop": None if dropped is None else [dict(dropped[0]), dropped[1], dict(dropped[2])],
        "last_grow": None if grown is None else [dict(grown[0]), grown[1]],
        **method.ledger.state(),
    }


def restore(method: Sparse, state: Mapping[str, Any]) -> None:
    """Takes over a saved state; the model and the optimizer already have theirs.

    Raises:
        UsageError: a state of other units.
    """
    check_units(method, state)
    method.step, method.phase, method.phase_steps = state["step"], state["phase"], state["phase_steps"]
    method.memory.load(state["memory"])
    method.scores.load(state["scores"])
    dropped, grown = state["last_drop"], state["last_grow"]
    method.last_drop = (
        None if dropped is None else (Mask(dict(dropped[0])), dict(dropped[1]), Mask(dict(dropped[2])))
    )
    method.last_grow = None if grown is None else (Mask(dict(grown[0])), dict(grown[1]))
    method.ledger.load(state)
    method.go_on(Mask(dict(state["alive"])), everything=state["forward_all"])


def check_units(method: Sparse, state: Mapping[str, Any]) -> None:
    """Refuses a saved state of other units.

    Raises:
        UsageError: names or sizes differ.
    """
    expected = {name: tuple(size) for name, size in method.units.sizes.items()}
    found = {name: tuple(mask.shape) for name, mask in state["alive"].items()}
    if expected != found:
        raise UsageError(
            f"the saved state masks {len(found)} groups, this model has {len(expected)} of other sizes or names; "
            "resume with the model and settings of the run that saved it"
        )
