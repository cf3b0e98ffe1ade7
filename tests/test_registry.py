"""Parts that packages outside of halpiee add: by a decorator, and by an entry point."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import halpiee
from halpiee.errors import UsageError
from halpiee.registry import Registry
from halpiee.saliency.registry import REGISTRY as CRITERIA

CRITERION = '''
from dataclasses import dataclass
import halpiee


@halpiee.criterion("outside-square", paper="nobody 2026", units=("weights",))
@dataclass(frozen=True)
class Square:
    """``w²·factor``, read once."""

    factor: float = 2.0
    per_step: bool = False

    def __call__(self, units, value, gradient):
        return units.reduce(lambda name: value(name).detach().square() * self.factor)
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path whose modules are forgotten again, with the criteria they registered."""
    monkeypatch.syspath_prepend(str(tmp_path))
    parts, origins, modules = dict(CRITERIA.loaded()), dict(CRITERIA._origins), set(sys.modules)
    yield tmp_path
    CRITERIA._parts, CRITERIA._origins = parts, origins
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def offer(monkeypatch: pytest.MonkeyPatch, group: str, **values: str) -> None:
    """Makes entry points of a group, as an installed package's metadata does."""
    points = [importlib.metadata.EntryPoint(name.replace("_", "-"), v, group) for name, v in values.items()]
    found = importlib.metadata.entry_points

    def entry_points(**asked: str) -> object:
        return points if asked == {"group": group} else found(**asked)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


def test_a_criterion_of_another_module_is_found_by_its_name(outside: Path) -> None:
    (outside / "outside_module.py").write_text(CRITERION)
    __import__("outside_module")
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -3.0]])
    scores = halpiee.score(model, [], "outside_square", units="weights")
    assert torch.equal(scores["weight"], torch.tensor([[2.0, 18.0]]))
    inverted = halpiee.score(model, [], "inverted-outside-square", units="weights")
    assert torch.equal(inverted["weight"], torch.tensor([[-2.0, -18.0]]))


def test_a_criterion_of_an_installed_package_is_found_through_its_entry_point(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outside / "outside_package.py").write_text(CRITERION)
    offer(monkeypatch, "halpiee.criteria", outside_square="outside_package:Square")
    assert "outside-square" in CRITERIA
    assert "outside_package" not in sys.modules  # loaded when it is asked for
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -3.0]])
    mask = halpiee.prune_once(model, "outside-square", halpiee.Global(0.5))
    assert mask["weight"].tolist() == [[False, True]]
    assert CRITERIA["outside-square"].paper == "nobody 2026"
    with pytest.raises(UsageError, match="did you mean 'outside-square'"):
        halpiee.score(model, [], "outside-sqare", units="weights")


def test_a_function_is_a_criterion_too(outside: Path) -> None:
    @halpiee.criterion("outside-function", units=("weights",))
    def signed(units, value, gradient) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
        """``−w·g`` of every step."""
        return units.reduce(lambda name: -value(name).detach() * gradient(name))  # type: ignore[no-any-return]

    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    # softmax of (1, 0): the gradient of the first column is (p − 1, 1 − p) with p = e/(e + 1)
    p = torch.e / (torch.e + 1)
    scores = halpiee.score(model, [(x, y)], "outside-function", units="weights")
    assert torch.allclose(scores["weight"], torch.tensor([[1 - p, 0.0], [0.0, 0.0]]), atol=1e-6)


def test_a_taken_name_is_refused_and_the_same_class_may_register_again(outside: Path) -> None:
    with pytest.raises(UsageError, match=r"'magnitude' was registered by .*Other, and .*Magnitude has that"):

        @halpiee.criterion("magnitude")
        class Other:
            per_step = False

    for _ in range(2):  # a notebook's cell that is run twice

        @halpiee.criterion("outside-again")
        class Again:
            per_step = False

    assert CRITERIA["outside-again"].kind is Again


@pytest.mark.parametrize("name", ["", "Upper", "under_score", "a b", "-"])
def test_an_odd_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="give lower case letters, digits and '-'"):
        halpiee.criterion(name)(type("Odd", (), {"per_step": False}))


def test_a_class_that_cannot_be_made_is_refused_when_it_registers() -> None:
    class Needy:
        per_step = False

        def __init__(self, factor: float) -> None: ...

    with pytest.raises(UsageError, match="needs a value of 'factor'"):
        halpiee.criterion("outside-needy")(Needy)


def test_an_entry_point_that_does_not_load_or_registers_nothing_is_named(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outside / "outside_broken.py").write_text("1 / 0\n")
    (outside / "outside_empty.py").write_text("class Thing:\n    per_step = True\n")
    offer(
        monkeypatch,
        "halpiee.criteria",
        outside_broken="outside_broken",
        outside_empty="outside_empty:Thing",
    )
    with pytest.raises(UsageError, match=r"does not load \(ZeroDivisionError: division by zero\)"):
        CRITERIA["outside-broken"]
    with pytest.raises(UsageError, match="Thing registers no such criterion; decorate it with @halpiee"):
        CRITERIA["outside-empty"]
    assert halpiee.score(nn.Linear(1, 2), [], "magnitude", units="weights")  # the others still serve


def test_a_registry_is_a_mapping_of_what_its_home_registers() -> None:
    registry: Registry[object] = Registry("thing", group="halpiee.nothing", home="halpiee.recipes")
    registry.add("one", 1, test_a_registry_is_a_mapping_of_what_its_home_registers)
    assert (list(registry), len(registry), registry["one"], "two" in registry) == (["one"], 1, 1, False)
    assert registry.origin("one").endswith(".test_a_registry_is_a_mapping_of_what_its_home_registers")
    with pytest.raises(UsageError, match="the thing 'onr' was asked; did you mean 'one'"):
        registry["onr"]
