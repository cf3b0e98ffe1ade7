"""What every method is, from which paper, on which units and budgets: one line each, read without torch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from halpiee.errors import UsageError

__all__ = ["METHODS", "About", "about"]


@dataclass(frozen=True)
class About:
    """One method.

    Attributes:
        name: as ``halpiee train --method`` takes it.
        summary: what it does, in one line.
        reference: the paper.
        units: what it removes.
        budgets: what limits it.
        python: the class.
        latency: whether it trains to a latency.
        sparsity: whether it trains to a sparsity, of which units.
        distribution: how a sparsity is spread where nothing else is asked.
        interval: the paper's ΔT, where it has one.
        once: whether it prunes once, at a step.
        rewinds: whether it prunes a dense training that has ended and trains again.
        pretrained: whether it needs a trained network.
    """

    name: str
    summary: str
    reference: str
    units: str
    budgets: str
    python: str
    latency: bool = False
    sparsity: Literal["weights", "filters", "width"] | None = "weights"
    distribution: Literal["erk", "global", "uniform"] = "erk"
    interval: int | None = None
    once: bool = False
    rewinds: bool = False
    pretrained: bool = False


LAYERS = "uniform, erk, global, nm"
ONE = "global, uniform, erk"

METHODS = {
    entry.name: entry
    for entry in (
        About(
            "iee",
            "prune, improve, explore, grow: what was pruned trains for a while before the best of it returns",
            "Advancing Weight and Channel Sparsification with Enhanced Saliency",
            "channels, weights, N:M, filters",
            f"latency; {LAYERS}",
            "IEE",
            latency=True,
        ),
        About(
            "halp",
            "a pretrained network pruned to a latency by Taylor scores in a few dozen steps",
            "Shen et al. 2022, arXiv 2110.10811",
            "channels",
            "latency",
            "HALP",
            latency=True,
            sparsity=None,
            pretrained=True,
        ),
        About(
            "repair",
            "a pretrained network cut to a latency, its layers solved again: no training (`halpiee prune`)",
            "after He et al. 2017, arXiv 1707.06168",
            "channels",
            "latency",
            "repair",
            latency=True,
            sparsity=None,
            pretrained=True,
        ),
        About(
            "static",
            "a random mask that never changes",
            "Mocanu et al. 2018",
            "weights, N:M",
            LAYERS,
            "Static",
        ),
        About(
            "set",
            "drops the smallest weights, grows random ones",
            "Mocanu et al. 2018, arXiv 1707.04780",
            "weights, N:M",
            LAYERS,
            "SET",
            interval=100,
        ),
        About(
            "rigl",
            "drops the smallest weights, grows those of the largest gradient",
            "Evci et al. 2020, arXiv 1911.11134",
            "weights, N:M",
            LAYERS,
            "RigL",
            interval=100,
        ),
        About(
            "set-itop",
            "SET with rare updates to the end of training",
            "Liu et al. 2021, arXiv 2102.02887",
            "weights, N:M",
            LAYERS,
            "SETITOP",
            interval=1500,
        ),
        About(
            "rigl-itop",
            "RigL with rare updates to the end of training",
            "Liu et al. 2021, arXiv 2102.02887",
            "weights, N:M",
            LAYERS,
            "RigLITOP",
            interval=4000,
        ),
        About(
            "snfs",
            "drops the smallest weights, grows by momentum, shared between layers",
            "Dettmers & Zettlemoyer 2019, arXiv 1907.04840",
            "weights",
            LAYERS.removesuffix(", nm"),
            "SNFS",
            interval=100,
        ),
        About(
            "gmp",
            "gradual magnitude pruning along a cubic curve",
            "Zhu & Gupta 2017, arXiv 1710.01878; Gale et al. 2019, arXiv 1902.09574",
            "weights",
            ONE,
            "GMP",
            distribution="global",
            interval=1000,
        ),
        About(
            "granet",
            "gradual magnitude pruning with neuroregeneration",
            "Liu et al. 2021, arXiv 2106.10404",
            "weights",
            ONE,
            "GraNet",
            distribution="global",
            interval=1000,
        ),
        About(
            "snip",
            "keeps the weights of the largest |w·g|, once",
            "Lee et al. 2019, arXiv 1810.02340",
            "weights, N:M",
            LAYERS,
            "SNIP",
            distribution="global",
            once=True,
        ),
        About(
            "grasp",
            "keeps the weights of the largest w·(Hg), once",
            "Wang et al. 2020, arXiv 2002.07376",
            "weights, N:M",
            LAYERS,
            "GraSP",
            distribution="global",
            once=True,
        ),
        About(
            "synflow",
            "keeps the weights of the largest synaptic flow, in a hundred rounds without data",
            "Tanaka et al. 2020, arXiv 2006.05467",
            "weights",
            ONE,
            "SynFlow",
            distribution="global",
            once=True,
        ),
        About(
            "magnitude",
            "keeps the largest weights, once",
            "Frankle et al. 2021, arXiv 2009.08576",
            "weights, N:M",
            LAYERS,
            "AtInit",
            distribution="global",
            once=True,
        ),
        About(
            "random",
            "keeps random weights, once, by one ranking",
            "Frankle et al. 2021, arXiv 2009.08576",
            "weights, N:M",
            LAYERS,
            "AtInit",
            distribution="global",
            once=True,
        ),
        About(
            "lrr",
            "magnitude pruning after training, then the whole schedule again: learning-rate rewinding",
            "Renda et al. 2020, arXiv 2003.02389",
            "weights, N:M",
            LAYERS,
            "rewind",
            distribution="global",
            rewinds=True,
        ),
        About(
            "ltr",
            "lottery-ticket rewinding: the trained network's mask, the weights of an early step, the rest again",
            "Frankle et al. 2020, arXiv 1912.05671",
            "weights, N:M",
            LAYERS,
            "rewind",
            distribution="global",
            rewinds=True,
        ),
        About(
            "lth",
            "the lottery ticket: the trained network's mask on the weights that training began with",
            "Frankle & Carbin 2019, arXiv 1803.03635",
            "weights, N:M",
            LAYERS,
            "rewind",
            distribution="global",
            rewinds=True,
        ),
        About(
            "filter",
            "removes whole convolution filters by any criterion, in one shot or rounds",
            "Li et al. 2017, arXiv 1608.08710; Lubana & Dick 2021, arXiv 2009.11839",
            "filters",
            "global, uniform",
            "FilterPruning",
            sparsity="filters",
            distribution="global",
        ),
        About(
            "small-dense",
            "a dense network of uniformly smaller width: what pruning has to beat",
            "Zhu & Gupta 2017, arXiv 1710.01878",
            "channels",
            "latency, parameters, MACs",
            "small_dense",
            latency=True,
            sparsity="width",
        ),
    )
}
"""Name → method."""


def about(name: str) -> About:
    """Returns a method by its name.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"the method {name!r} was asked; {hint}known are {', '.join(METHODS)}")
    return METHODS[name]
