"""Does a model's forward branch on whether it trains? Then training may run other layers than an evaluation.

Auxiliary heads read channels that an evaluation sees elsewhere, so that both are traced: what is coupled in either is
coupled. Norms and dropouts stay as in an evaluation meanwhile, they couple nothing otherwise.
"""

from __future__ import annotations

import dis
from itertools import pairwise
from types import CodeType, FunctionType

from torch import nn

__all__ = ["branches_by_mode", "taken"]

OWN = ("torch.", "torchvision.ops.")
"""Packages whose modules ask for the mode to drop or to normalise alone."""

HANDED_ON = ("LOAD_", "KW_NAMES", "PRECALL", "CALL", "PUSH_NULL")
"""What follows ``self.training`` in the code of ``dropout(x, self.p, self.training)``: no branch."""


def branches_by_mode(model: nn.Module) -> bool:
    """Returns whether a module of the model branches on ``training`` in code of its own."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    return any(
        branches(function.__code__)
        for kind in kinds
        if not f"{kind.__module__}.".startswith(OWN)
        for function in vars(kind).values()
        if isinstance(function, FunctionType)
    )


def branches(code: CodeType) -> bool:
    """Returns whether a function does more with an attribute ``training`` than hand it on; inner ones included."""
    if "training" in code.co_names:
        steps = pairwise(dis.get_instructions(code))
        if any(
            step.opname == "LOAD_ATTR"
            and step.argval == "training"
            and not after.opname.startswith(HANDED_ON)
            for step, after in steps
        ):
            return True
    return any(branches(constant) for constant in code.co_consts if isinstance(constant, CodeType))


def taken(model: nn.Module) -> None:
    """Makes a model in evaluation take the branches of training, in place; norms and dropouts stay as they are."""
    for module in model.modules():
        if not f"{type(module).__module__}.".startswith(OWN):
            module.training = True
