"""A sweep: which cells are measured, when, and how they become the tables of a profile."""
