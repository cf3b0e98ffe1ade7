"""Scores of units: one short function per criterion."""

from halpiee.saliency.criterion import Criterion, Look, Probing
from halpiee.saliency.gradient import SNIP, Gradient, GraSP, LossPreservation, SynFlow, Taylor
from halpiee.saliency.magnitude import Magnitude, Norm, Random, ScaleChange
from halpiee.saliency.registry import CRITERIA, InMode, Inverted, named
from halpiee.saliency.score import Scores, score

__all__ = [
    "CRITERIA",
    "SNIP",
    "Criterion",
    "GraSP",
    "Gradient",
    "InMode",
    "Inverted",
    "Look",
    "LossPreservation",
    "Magnitude",
    "Norm",
    "Probing",
    "Random",
    "ScaleChange",
    "Scores",
    "SynFlow",
    "Taylor",
    "named",
    "score",
]
