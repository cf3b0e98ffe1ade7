"""Sums inside a max-plus elimination: a table pushed through ``out = left + steps[group]``, or pulled back.

A joined table has one axis per variable of its scope, ascending. Pushing replaces the summands that are done
with by the sum, taking the maximum over all ways to make it (a max-plus convolution, one shifted slice per
option of the group); pulling reads a table over the sum at the state its summands make.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from halpiee.selection.terms import Adder, FloatArray

__all__ = ["adder_first", "pull", "push"]


def adder_first(adder: Adder, scope: Sequence[int], table: FloatArray) -> FloatArray:
    """Returns a view of a joined table with the axes left, group, then the rest of the scope in order."""
    table = np.moveaxis(table, scope.index(adder.group), 0)
    if adder.left is None:
        return table[None]
    rest = [v for v in scope if v != adder.group]
    return np.moveaxis(table, 1 + rest.index(adder.left), 0)


def push(
    adder: Adder, scope: Sequence[int], message: Sequence[int], domains: Sequence[int], table: FloatArray
) -> FloatArray:
    """Returns the maximum over the summands that are not in ``message``, over the axes of ``message``.

    Args:
        adder: the sum to make.
        scope: axes of ``table``, ascending; holds the summands.
        message: axes of the result, ascending; holds the sum.
        domains: states per variable.
        table: joined table.
    """
    table = adder_first(adder, scope, table)
    n_left, n_group = table.shape[:2]
    rest = [v for v in scope if v not in (adder.left, adder.group)]
    at = np.arange(n_left)
    if adder.out in rest:
        # Some table reads both the sum and a summand: keep the cells where the sum is what its summands make.
        table = np.moveaxis(table, 2 + rest.index(adder.out), 2)
        table = table[at[:, None], np.arange(n_group)[None], at[:, None] + adder.steps[None]]
        rest.remove(adder.out)
    keeps_left, keeps_group = adder.left in message, adder.group in message
    shape = [domains[adder.out]] + [n_left] * keeps_left + [n_group] * keeps_group + list(table.shape[2:])
    out = np.full(shape, -np.inf)
    for k, step in enumerate(adder.steps):
        rows = slice(int(step), int(step) + n_left)
        if keeps_left:
            cells = (at + int(step), at, k) if keeps_group else (at + int(step), at)
            out[cells] = np.maximum(out[cells], table[:, k])
        elif keeps_group:
            out[rows, k] = table[:, k]
        else:
            np.maximum(out[rows], table[:, k], out=out[rows])
    axes = _axes(adder, keeps_left, keeps_group, rest)
    return np.ascontiguousarray(out.transpose([axes.index(v) for v in message]))


def pull(
    adder: Adder, scope: Sequence[int], message: Sequence[int], domains: Sequence[int], table: FloatArray
) -> FloatArray:
    """Returns a table over ``message`` as one over ``scope``, read at ``out = left + steps[group]``.

    Where ``scope`` holds the sum itself, cells in which it is not what its summands make are −∞.
    """
    rest = [v for v in scope if v not in (adder.left, adder.group, adder.out)]
    keeps_left, keeps_group = adder.left in message, adder.group in message
    axes = _axes(adder, keeps_left, keeps_group, rest)
    table = table.transpose([list(message).index(v) for v in axes])
    left = np.arange(1 if adder.left is None else domains[adder.left])[:, None]
    group = np.arange(domains[adder.group])[None]
    total = left + adder.steps[None]
    pulled = table[(total, *[left] * keeps_left, *[group] * keeps_group)]
    axes = [-1 if adder.left is None else adder.left, adder.group, *rest]
    if adder.out in scope:
        spread = np.full((*pulled.shape[:2], domains[adder.out], *pulled.shape[2:]), -np.inf)
        spread[left, group, total] = pulled
        pulled, axes = spread, [*axes[:2], adder.out, *rest]
    if adder.left is None:
        pulled, axes = pulled[0], axes[1:]
    return np.asarray(pulled.transpose([axes.index(v) for v in scope]))


def _axes(adder: Adder, keeps_left: bool, keeps_group: bool, rest: list[int]) -> list[int]:
    left = [adder.left] if keeps_left and adder.left is not None else []
    return [adder.out, *left, *([adder.group] if keeps_group else []), *rest]
