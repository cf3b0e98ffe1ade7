"""Scores of units: one short function per criterion."""

from halpiee.saliency.criterion import Criterion, Look
from halpiee.saliency.magnitude import Magnitude
from halpiee.saliency.random import Random
from halpiee.saliency.score import score
from halpiee.saliency.taylor import Taylor

__all__ = ["Criterion", "Look", "Magnitude", "Random", "Taylor", "score"]
