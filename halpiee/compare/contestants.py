"""Who is compared: each contestant is options of ``halpiee train``, from scratch or from the dense network of its seed.

Every contestant is also there with ``-distilled`` behind its name: its training matches the dense network's answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from halpiee.errors import UsageError, unknown

__all__ = ["CONTESTANTS", "DENSE", "Contestant", "contestant"]

DENSE, DISTILLED = "dense", "-distilled"


@dataclass(frozen=True)
class Contestant:
    """One way to a network of a latency.

    Attributes:
        summary: in a few words.
        options: of ``halpiee train``.
        pretrained: whether it starts from the dense network of its seed.
        epochs: how many times the epochs of the comparison it trains; ``flops``: as many as cost what the dense
            training costs.
        distilled: whether it matches the dense network's answers.
        outside: whether it is another library's: it needs an extra.
    """

    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    epochs: float | Literal["flops"] = 1
    distilled: bool = False
    outside: bool = False

    @property
    def needs_dense(self) -> bool:
        """Whether the dense network of its seed is trained before."""
        return self.pretrained or self.distilled


UNIFORM, SHORT = {"method": "small-dense"}, {"end": 0.1}

CONTESTANTS: dict[str, Contestant] = {
    DENSE: Contestant("the whole network", {**UNIFORM, "budget": "1"}),
    "uniform": Contestant("the widest uniform network, from scratch", UNIFORM),
    "uniform-twice": Contestant("the same for twice the epochs", UNIFORM, epochs=2),
    "uniform-flops": Contestant("the same for the dense training's FLOPs", UNIFORM, epochs="flops"),
    "scaled": Contestant("fewer blocks and channels alike, from scratch", {"method": "scaled"}),
    "early": Contestant("whole for a quarter, one cut with repair, then compact", {"method": "early"}),
    "early-0.1": Contestant("the same, cut after a tenth", {"method": "early", "cut_at": 0.1}),
    "early-0.5": Contestant("the same, cut after half", {"method": "early", "cut_at": 0.5}),
    "early-cut": Contestant("the same without repair", {"method": "early", "repair": False}),
    "early-uniform": Contestant("the same to uniform widths", {"method": "early", "widths": "uniform"}),
    "iee": Contestant("IEE from scratch, updates for three quarters", {"method": "iee"}),
    "iee-short": Contestant("IEE from scratch, updates for a tenth", {"method": "iee", **SHORT}),
    "iee-pretrained": Contestant("IEE from the dense network", {"method": "iee", **SHORT}, pretrained=True),
    "halp-linear": Contestant(
        "HALP: ten prunes in a tenth, its own knapsack",
        {"method": "halp", "rounds": 10, **SHORT},
        pretrained=True,
    ),
    "halp-joint": Contestant(
        "the same, both sides of each layer priced",
        {"method": "halp", "rounds": 10, "solver": "joint", **SHORT},
        pretrained=True,
    ),
    "l1": Contestant(
        "uniform widths by the L1 norm of the filters (Li et al. 2017), trained on",
        {"method": "early", "criterion": "l1", "widths": "uniform", "repair": False},
        pretrained=True,
    ),
    "cut": Contestant(
        "Taylor scores, one solve, trained on", {"method": "early", "repair": False}, pretrained=True
    ),
    "repaired": Contestant("the same, layers solved again, trained on", {"method": "early"}, pretrained=True),
    "repair": Contestant(
        "cut in rounds, layers solved again, no training", {"method": "repair"}, pretrained=True
    ),
    "torch-pruning": Contestant(
        "Torch-Pruning, global group Taylor, ratio bisected to the latency, trained on",
        pretrained=True,
        outside=True,
    ),
}


def contestant(name: str) -> Contestant:
    """Returns a contestant by name.

    Raises:
        UsageError: nothing has that name; the message lists the names.
    """
    plain = name.removesuffix(DISTILLED)
    found = CONTESTANTS.get(plain)
    if found is None or (plain != name and (plain == DENSE or found.outside or plain == "repair")):
        known = [
            *CONTESTANTS,
            *(f"{n}{DISTILLED}" for n, c in CONTESTANTS.items() if n != DENSE and not c.outside),
        ]
        raise UsageError(
            f"the contestant {name[:80]!r} was asked; {unknown(name, known, 'known are ' + ', '.join(CONTESTANTS))}"
        )
    return found if plain == name else replace(found, summary=f"{found.summary}; distilled", distilled=True)
