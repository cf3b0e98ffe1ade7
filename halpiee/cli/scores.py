"""The scores of a network's channels for `halpiee plan`: from a file, from its norms, or from its filters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from halpiee.errors import UsageError, unknown
from latency.files import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from halpiee.structure.groups import Structure


def scores_of(
    model: nn.Module, structure: Structure, file: Path | None, *, trained: bool
) -> tuple[dict[str, Tensor], str]:
    """Returns the scores of every prunable group, and says in words where they come from.

    Untrained norms say nothing: all their scales are 1.
    """
    if file is not None:
        return read_scores(file, structure), f"read from {file}"
    if trained:
        from halpiee.saliency import Magnitude
        from halpiee.saliency.score import scores_of as read_off

        found = read_off(model, [], Magnitude(), units=structure)
        if len(found.flat) < sum(score.numel() > 1 for score in found.values()):
            source = "magnitude of the weights given"
            if found.flat:
                names = list(found.flat)
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                source += (
                    f", which does not tell the units of {', '.join(names[:3])}{more} apart: they go by index"
                )
            return dict(found), source
    why = (
        "the scales of their norms are all equal"
        if trained
        else "give --weights or --scores to say which matter"
    )
    return filter_norms(
        model, structure
    ), f"L2 norms of the {'given' if trained else 'untrained'} filters; {why}"


def filter_norms(model: nn.Module, structure: Structure) -> dict[str, Tensor]:
    """Returns per unit the L2 norm of the weights and biases that produce it, over all coupled layers."""
    import torch

    parameters = dict(model.named_parameters())
    squares = torch.zeros(structure.n_units, dtype=torch.float64)
    for slot in structure.slots:
        tensor = parameters.get(slot.tensor)
        if slot.side == "out" and tensor is not None:
            rows = (
                tensor.detach()
                .to("cpu", torch.float64)
                .movedim(slot.dim, 0)
                .flatten(1 if tensor.dim() > 1 else 0)
            )
            per_row = rows.square().sum(dim=1) if rows.dim() > 1 else rows.square()
            squares.index_add_(0, torch.from_numpy(slot.units), per_row)
    norms = squares.sqrt()
    return {g.name: norms[g.start : g.start + g.size] for g in structure.prunable}


def read_scores(file: Path, structure: Structure) -> dict[str, Tensor]:
    """Reads scores: safetensors or JSON, group name → one score per unit, of every group."""
    import torch

    if not file.is_file():
        raise UsageError(f"scores {file} were asked for, and there is no such file; check the path")
    form = 'give safetensors, or JSON such as {"GROUP": [0.3, 1.2, …]}'
    what = f"scores {file} were read, and are not group → list of numbers"
    found: dict[str, Tensor]
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            found = load_file(file)
        except Exception as error:
            raise UsageError(f"{what} ({error}); {form}") from error
    else:
        raw = read_json(file, dict[str, list[float]], what=f"{what}: the file", advice=form)
        found = {name: torch.tensor(values, dtype=torch.float64) for name, values in raw.items()}
    for name, score in found.items():
        group = structure.by_name.get(name)
        if group is None:
            hint = unknown(name, structure.by_name, "see `halpiee explain` for their names")
            raise UsageError(
                f"scores {file} name the group {name!r}, which the network does not have; {hint}"
            )
        if tuple(score.shape) != (group.size,):
            raise UsageError(
                f"scores {file} give {name!r} the shape {tuple(score.shape)}; it has {group.size} units; "
                f"give a list of {group.size} numbers"
            )
    missing = [g.name for g in structure.prunable if g.name not in found]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UsageError(
            f"scores {file} were read; {len(missing)} of {len(structure.prunable)} groups are missing: {shown}; "
            "score every group, and --protect those that are to stay whole"
        )
    return {g.name: found[g.name] for g in structure.prunable}
