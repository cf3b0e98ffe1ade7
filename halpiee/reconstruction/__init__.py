"""Accuracy without training: a cut network's layers solved again from the dense network's outputs."""
