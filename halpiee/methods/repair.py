"""A trained network cut to a latency and solved again layer by layer, without training: the method ``repair``.

The algorithm is ``halpiee.reconstruction``; a run carries it out in ``halpiee.training.pipeline``.
"""

from __future__ import annotations

from halpiee.methods.registry import method
from halpiee.reconstruction.repair import repair

__all__ = ["repair"]

method(
    "repair",
    paper="after He et al. 2017, arXiv 1707.06168",
    units=("channels",),
    budgets=("latency",),
    kind="cut",
    pretrained=True,
    summary="a pretrained network cut to a latency, its layers solved again: no training (`halpiee prune`)",
)(repair)
