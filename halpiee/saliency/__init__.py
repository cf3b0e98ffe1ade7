"""Scores of units: one short function per criterion."""
