"""Is a signed sum of products a number, or what rounding leaves of a zero?

A batch norm in training mode undoes any scale of the layer before it, so ``Σ w·g`` over the weights of each of that
layer's units is zero, up to rounding and the norm's ε. Ranking by such rests is ranking by chance, so they become
exact zeros, which :func:`halpiee.saliency.flat.flat` then reports.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["REST", "settled"]

REST = 1e-3
"""A sum of products below this share of the sum of their sizes, for *every* unit of a group, is a rest.

Rounding leaves 1e-6 of it in 32 bits, the ε of a norm up to about 1e-4 at the variances of an initialisation. The
share of one unit of n independent products falls below r with a probability of about r·√n, so a group of a few units
passes by chance with less than one in a thousand.
"""

Element = Callable[[str], Tensor | None]


def settled(reduce: Callable[[Element], dict[str, Tensor]], product: Element) -> dict[str, Tensor]:
    """Returns the signed sums of a product; a group in which all of them have cancelled out is exactly zero.

    Args:
        reduce: of the units: element-wise quantity → unit name → sums.
        product: tensor name → element-wise product, ``None`` where there is none.
    """

    def size(name: str) -> Tensor | None:
        found = product(name)
        return None if found is None else found.abs()

    sizes = reduce(size)
    return {
        name: total * 0 if bool((total.abs() <= REST * sizes[name]).all()) else total
        for name, total in reduce(product).items()
    }
