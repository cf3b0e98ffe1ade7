"""Which layers and groups a user names, and why the weight of a layer cannot be masked."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.utils import parametrize

from halpiee.errors import UsageError, unknown

__all__ = ["chosen_names", "computed_weight"]


def chosen_names(given: Collection[str], known: Collection[str], kind: str) -> frozenset[str]:
    """Returns the names that a user gives, a single one included, after checking each.

    Args:
        given: names, or one name.
        known: the names that exist.
        kind: what they name: ``group``, ``weight`` …

    Raises:
        UsageError: a name that does not exist; the message has the closest one.
    """
    names = frozenset({given} if isinstance(given, str) else given)
    for name in sorted(names):
        if name not in known:
            hint = unknown(name, known, f"the first is {next(iter(known), None)!r}")
            raise UsageError(
                f"the {kind} {name!r} was asked to stay whole, the model has none of that name; {hint}"
            )
    return names


UNDONE_BY = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm(module)",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm(module)",
}
"""Class of a hook that computes a weight → the call that leaves a plain parameter behind."""


def computed_weight(path: str, module: nn.Module) -> str:
    """Returns the message that a layer's weight is computed from other tensors, and how to make it a parameter."""
    name = f"{path}.weight" if path else "weight"
    if parametrize.is_parametrized(module, "weight"):
        how = type(module.parametrizations["weight"][0]).__name__.lstrip("_")  # type: ignore[index]
        undo = "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"
    else:
        hooks = [type(h) for h in module._forward_pre_hooks.values()]
        hook = next((h for h in hooks if h.__module__.startswith("torch.nn.utils")), None)
        how = hook.__name__ if hook is not None else "no parameter"
        pruned = hook is not None and hook.__module__ == "torch.nn.utils.prune"
        undo = "torch.nn.utils.prune.remove(module, 'weight')" if pruned else UNDONE_BY.get(how, "")
    first = f"call {undo} first" if undo else "make it an nn.Parameter"
    return (
        f"{name!r} was to be masked, and it is computed from other tensors before each forward ({how}); "
        f"{first}, or leave it whole: protect={{{name!r}}} of a method, "
        f"units=halpiee.sparsity.Weights(model, pinned={{{name!r}}}) elsewhere"
    )
