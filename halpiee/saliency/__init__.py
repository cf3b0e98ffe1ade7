"""Scores of units: one short function per criterion."""

from halpiee.saliency.algebra import Absolute, InMode, Inverted, Product
from halpiee.saliency.criterion import Criterion, Look, Probing
from halpiee.saliency.gradient import Gradient
from halpiee.saliency.grasp import GraSP
from halpiee.saliency.loss import LossPreservation
from halpiee.saliency.magnitude import Magnitude
from halpiee.saliency.names import CRITERIA, named
from halpiee.saliency.norm import Norm
from halpiee.saliency.random import Random
from halpiee.saliency.scale import ScaleChange
from halpiee.saliency.score import Scores, score
from halpiee.saliency.snip import SNIP
from halpiee.saliency.synflow import SynFlow
from halpiee.saliency.taylor import Taylor

__all__ = [
    "CRITERIA",
    "SNIP",
    "Absolute",
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
    "Product",
    "Random",
    "ScaleChange",
    "Scores",
    "SynFlow",
    "Taylor",
    "named",
    "score",
]
