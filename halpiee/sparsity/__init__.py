"""Masks, budgets and schedules: what is active, how much, when."""
