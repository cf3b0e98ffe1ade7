"""Scores of units: one short function per criterion."""

from halpiee.saliency.criterion import Criterion, Look
from halpiee.saliency.magnitude import Magnitude
from halpiee.saliency.taylor import Taylor

__all__ = ["Criterion", "Look", "Magnitude", "Taylor"]
