"""A trace leaves what a model's code keeps outside of its modules as it was, and so no tensor without values."""

from __future__ import annotations

import functools
import gc
import random
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from halpiee import shrink, trace

TABLES: dict[Any, Tensor] = {}
NESTED: dict[str, Any] = {"grids": OrderedDict(), "recent": deque(maxlen=3), "last": None}
GRID: Tensor | None = None
SPACE = SimpleNamespace(grid=None)


class Slotted:
    __slots__ = ("grid",)

    def __init__(self) -> None:
        self.grid: Tensor | None = None


SLOTTED = Slotted()


def made(n: int) -> Tensor:
    return torch.linspace(-1, 1, n)


@functools.lru_cache
def by_lru(n: int) -> Tensor:
    return made(n)


@functools.cache
def pairs(n: int) -> tuple[Tensor, Tensor]:
    return made(n), made(n)


def by_dict(n: int) -> Tensor:
    if n not in TABLES:
        TABLES[n] = made(n)
    return TABLES[n]


def by_nested(n: int) -> Any:
    grids = NESTED["grids"]
    if n not in grids:
        grids[n] = (made(n), n)
    NESTED["recent"].append(grids[n][0])
    NESTED["last"] = grids[n][0]
    return grids[n][0]


def by_global(n: int) -> Tensor:
    global GRID
    if GRID is None:
        GRID = made(n)
    return GRID


def by_new_global(n: int) -> Tensor:
    global NEW_GRID
    if "NEW_GRID" not in globals():
        NEW_GRID = made(n)  # type: ignore[name-defined]
    return NEW_GRID  # type: ignore[name-defined,no-any-return]


def by_attribute(n: int) -> Any:
    if SPACE.grid is None:
        SPACE.grid = made(n)
    return SPACE.grid


def by_slot(n: int) -> Tensor:
    if SLOTTED.grid is None:
        SLOTTED.grid = made(n)
    return SLOTTED.grid


def by_function_attribute(n: int) -> Tensor:
    if not hasattr(by_function_attribute, "grid"):
        by_function_attribute.grid = made(n)  # type: ignore[attr-defined]
    return by_function_attribute.grid  # type: ignore[attr-defined,no-any-return]


def by_default(n: int, known: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006
    if n not in known:
        known[n] = made(n)
    return known[n]


def closed_over() -> Callable[[int], Tensor]:
    grid: Tensor | None = None

    def by_closure(n: int) -> Tensor:
        nonlocal grid
        if grid is None:
            grid = made(n)
        return grid

    return by_closure


class OfClass:
    grid: Tensor | None = None

    @classmethod
    def by_class(cls, n: int) -> Tensor:
        if cls.grid is None:
            cls.grid = made(n)
        return cls.grid


BY_DEFAULT: ContextVar[Tensor | None] = ContextVar("BY_DEFAULT", default=None)
UNSET: ContextVar[Tensor] = ContextVar("UNSET")
TABLE: ContextVar[dict[int, Tensor]] = ContextVar("TABLE")
TABLE.set({})


def by_context(n: int) -> Any:
    if BY_DEFAULT.get() is None:
        BY_DEFAULT.set(made(n))
    return BY_DEFAULT.get()


def by_unset_context(n: int) -> Tensor:
    try:
        return UNSET.get()
    except LookupError:
        UNSET.set(made(n))
    return UNSET.get()


CACHES = [
    by_lru,
    lambda n: pairs(n)[1],
    by_dict,
    by_nested,
    by_global,
    by_new_global,
    by_attribute,
    by_slot,
    by_function_attribute,
    by_default,
    closed_over(),
    OfClass.by_class,
    by_context,
    by_unset_context,
    lambda n: TABLE.get().setdefault(n, made(n)),
    functools.partial(lambda table, n: table.setdefault(n, made(n)), {}),
]


class Coordinates(nn.Module):
    """Adds a row of numbers that it computes once."""

    def __init__(self, grid: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3)
        self.b = nn.Conv2d(8, 6, 3)
        self.h = nn.Linear(6, 3)
        self.grid = grid

    def forward(self, x: Tensor) -> Any:
        return self.h(self.b(self.a(x + self.grid(x.shape[-1])).relu()).relu().mean((2, 3)))


def fake_tensors(before: Iterable[weakref.ref[Any]] = ()) -> list[weakref.ref[Any]]:
    """Returns the tensors without values, but for those that were there before."""
    gc.collect()
    known = {id(x) for ref in before if (x := ref()) is not None}
    return [weakref.ref(x) for x in gc.get_objects() if type(x) is FakeTensor and id(x) not in known]


@pytest.mark.parametrize("grid", CACHES)
@pytest.mark.parametrize("used", [False, True])
def test_no_tensor_without_values_outlives_a_trace(grid: Callable[[int], Tensor], used: bool) -> None:
    """By hand: the row is −1 … 1 in steps of 2/9, before and after, and the trace sees both convolutions."""
    model, x = Coordinates(grid), torch.randn(2, 1, 10, 10)
    if used:
        model(x)
    before = fake_tensors()
    structure = trace(model, (x,))
    assert [g.name for g in structure.prunable] == ["a", "b"]
    assert fake_tensors(before) == []
    assert type(grid(10)) is Tensor
    assert torch.allclose(grid(10), torch.arange(10) * 2 / 9 - 1, atol=1e-6)
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert shrink(model, structure, {"a": torch.arange(8) > 2})(x).shape == (2, 3)


def test_what_hooks_collect_is_as_before_a_trace() -> None:
    model, x = Coordinates(made), torch.randn(2, 1, 10, 10)
    outputs: list[Any] = ["first"]
    by_name: dict[str, Tensor] = {}
    model.a.register_forward_hook(lambda m, i, o: outputs.append(o))
    model.b.register_forward_hook(lambda m, i, o: by_name.update(b=o.detach()))
    structure = trace(model, (x,))
    assert [g.name for g in structure.prunable] == ["a", "b"]
    assert outputs == ["first"]
    assert by_name == {}


DRAWS = {
    "random": random.random,
    "numpy": np.random.rand,
    "generator": np.random.default_rng(0).random,
    "own": random.Random(0).random,
}


class Dropped(nn.Module):
    """Leaves its branch out now and then in training, as Python or NumPy draws it."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw
        self.f = nn.Sequential(nn.Conv2d(8, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and self.draw() < 0.5 else x + self.f(x)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("seed", range(3))
def test_a_forward_that_draws_from_python_or_numpy_is_traced_and_their_states_stay(
    draw: Callable[[], float], seed: int
) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), *(Dropped(draw) for _ in range(4)), nn.Flatten(1), nn.Linear(8 * 36, 5)
    )
    random.seed(seed)
    np.random.seed(seed)
    structure = trace(model, (torch.randn(2, 3, 8, 8),))
    found = random.random(), np.random.rand()
    random.seed(seed)
    np.random.seed(seed)
    assert found == (random.random(), np.random.rand())
    assert {g.name for g in structure.prunable} == {"0", "1.f.0", "2.f.0", "3.f.0", "4.f.0"}


def test_a_generator_of_ones_own_draws_on_as_if_no_trace_had_been() -> None:
    rng = np.random.default_rng(3)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Dropped(rng.random), nn.Flatten(1), nn.Linear(8 * 36, 5))
    trace(model, (torch.randn(2, 3, 8, 8),))
    assert rng.random() == np.random.default_rng(3).random()


class Makes(OrderedDict[str, Any]):
    """A registry that gives out new objects of the classes it holds, and whose ``get`` takes one argument."""

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name)()

    def get(self, name: str) -> Any:  # type: ignore[override]
        return super().__getitem__(name)


MAKES = Makes(relu=nn.ReLU, gelu=nn.GELU)


def test_a_registry_of_classes_holds_classes_behind_a_trace() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Any:
            return self.b(MAKES["relu"](self.a(x)))

    assert [g.name for g in trace(Net(), (torch.ones(2, 4),)).prunable] == ["a"]
    assert [MAKES.get(name) for name in MAKES] == [nn.ReLU, nn.GELU]


def test_a_warning_that_is_an_error_ends_no_trace() -> None:
    """Raised within torch it leaks the tensors of the op, which a trace would take for a cache of the forward's."""

    class Warns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.r = nn.Linear(6, 12), nn.LSTM(12, 10, proj_size=6, batch_first=True)
            self.b, self.h = nn.Linear(6, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Any:
            warnings.warn("an old argument", DeprecationWarning, stacklevel=2)
            return self.h(self.b(self.r(self.a(x).relu())[0]).relu())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [g.name for g in trace(Warns(), (torch.randn(2, 5, 6),)).prunable] == ["b"]
