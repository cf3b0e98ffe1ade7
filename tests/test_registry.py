"""Parts that packages outside of halpiee add: by a decorator, and by an entry point."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import halpiee
import latency
from halpiee.cli import methods
from halpiee.errors import UsageError
from halpiee.methods import registry as method_registry
from halpiee.methods.registry import METHODS
from halpiee.options import own_options
from halpiee.saliency.registry import REGISTRY as CRITERIA
from halpiee.training.build import Material, method_of
from halpiee.training.config import ONLY, Masks, Settings
from latency.backends import BACKENDS, way_of
from latency.registry import Registry
from tests.forgetting import forgetting

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
    """A folder on the path whose modules are forgotten again, with the parts they registered."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = set(sys.modules)
    with forgetting(CRITERIA, METHODS, BACKENDS):
        yield tmp_path
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
    importlib.import_module("outside_module")
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
    with pytest.raises(UsageError, match=r"one of your own comes as an entry point of 'halpiee\.criteria'"):
        halpiee.score(model, [], "xyz", units="weights")


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
    with pytest.raises(UsageError, match=r"the thing '1{200}' was asked; known are"):
        registry["1" * 5000]
    with pytest.raises(UsageError, match="the thing 'onr' was asked; did you mean 'one'"):
        registry["onr"]


METHOD = '''
from dataclasses import dataclass
import halpiee
from halpiee.methods.method import Method
from halpiee.methods.phases import Resize, Train
from halpiee.options import option
from halpiee.saliency import Magnitude


@dataclass(frozen=True)
class Options:
    at: int = option(2, "steps before the one prune")


@halpiee.method(
    "outside-late", paper="nobody 2026", units=("weights",), budgets=("global",), kind="once", options=Options
)
class Late(Method):
    """Prunes by magnitude, late (nobody 2026)."""

    def design(self, given, options):
        return given.design((Train(options.at), Resize()), Magnitude())
'''


def trained(kind: Any, **options: Any) -> tuple[nn.Module, Any, list[int]]:
    """A linear layer of eight weights trained for four steps, and how many are not zero after each."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    made = kind(model, optimizer, budget=halpiee.Global(0.25), total_steps=4, **options)
    left = []
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.randint(2, (8,))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        left.append(int(model.weight.count_nonzero()))
    return model, made, left


def test_a_method_of_another_module_trains_and_is_listed(outside: Path) -> None:
    (outside / "outside_method.py").write_text(METHOD)
    kind = importlib.import_module("outside_method").Late
    _, made, left = trained(kind)
    assert (left, made.finished) == ([8, 2, 2, 2], True)
    assert trained(kind, at=3)[2] == [8, 8, 2, 2]
    shown = CliRunner().invoke(methods.command, ["--json"])
    listed = {m["name"]: m for m in json.loads(shown.output)["methods"]}["outside-late"]
    assert (listed["summary"], listed["reference"]) == ("prunes by magnitude, late", "nobody 2026")
    assert (listed["sparsity"], listed["distribution"], listed["latency"]) == ("weights", "global", False)
    (option,) = own_options(METHODS["outside-late"].options)
    assert (option.name, option.help.text) == ("at", "steps before the one prune")


def test_a_method_of_an_installed_package_trains_a_run(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outside / "outside_package.py").write_text(METHOD)
    offer(monkeypatch, "halpiee.methods", outside_late="outside_package:Late")
    s = Settings(model="m", data="d", method="outside-late", masks=Masks(sparsity=0.75, at=3))
    assert s.goal == "75% of weights removed, global"
    model = nn.Linear(4, 2, bias=False)
    make = method_of(s, model, 4, Material(lambda: 1 / 0, list, 2))  # type: ignore[arg-type, return-value]
    made = make(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert (made.options.at, made.pool.total, type(made).__name__) == (3, 2, "Late")
    with pytest.raises(
        UsageError, match="--criterion l1 was given to --method outside-late; its paper has its own"
    ):
        Settings(model="m", data="d", method="outside-late", masks=Masks(sparsity=0.75, criterion="l1"))
    with pytest.raises(UsageError, match="the method 'outside-latr' was asked; did you mean 'outside-late'"):
        Settings(model="m", data="d", method="outside-latr", masks=Masks(sparsity=0.75))


def test_every_method_with_an_option_takes_it_on_the_command_line() -> None:
    for option, (takers, _) in ONLY.items():
        assert set(takers.split()) <= set(METHODS), option
        assert {n for n in METHODS if hasattr(METHODS[n].load().options, option)} <= set(takers.split()), (
            option
        )


def test_what_is_read_from_the_source_is_what_the_modules_register() -> None:
    read = {
        entry.name: entry.as_dict()
        for file in Path(method_registry.__file__).parent.glob("*.py")
        for entry in method_registry.declared(file.read_text(), f"halpiee.methods.{file.stem}")
    }
    assert {name: METHODS[name].load().as_dict() for name in read} == read
    assert {"iee", "halp", "rigl", "gmp", "granet", "snip", "filter", "lrr", "small-dense"} <= set(read)


def test_methods_are_listed_and_settings_checked_without_torch() -> None:
    code = (
        "import sys\nfrom halpiee.training.config import Settings\nfrom halpiee.training.config import Masks\n"
        "from halpiee.methods.registry import METHODS\n"
        "Settings(model='m', data='d', method='rigl', masks=Masks(sparsity=0.9)); list(METHODS.values())\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"intervall": 3}, "the option of RigL 'intervall' was asked; did you mean 'interval'"),
        ({"interval": 2.5}, "RigL was asked for interval=2.5; it takes a whole number"),
        ({"values": "none"}, "RigL was asked for values='none'; it takes 'zero' or 'last'"),
        ({"fraction": "half"}, "RigL was asked for fraction='half'; it takes a number"),
        ({"interval": True}, "RigL was asked for interval=True; it takes a whole number"),
    ],
)
def test_an_option_that_is_none_or_of_another_type_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        trained(halpiee.RigL, **options)


def test_every_option_of_every_method_has_a_help_and_stands_in_the_signature() -> None:
    for name in METHODS:
        entry = METHODS[name].load()
        helped = {option.name: option.help.text for option in own_options(entry.options)}
        assert all(helped.values()), (name, helped)
        if isinstance(entry.make, type):
            assert set(helped) <= set(inspect.signature(entry.make).parameters), name


def test_options_that_are_no_frozen_dataclass_with_defaults_are_refused() -> None:
    @dataclass(frozen=True)
    class Open:
        at: int

    for options, text in ((dict, "give a frozen dataclass"), (Open, "'at' .* has no default")):
        with pytest.raises(UsageError, match=text):
            halpiee.method("outside-odd", paper="", units=("weights",), options=options)(halpiee.RigL)


BACKEND = """
import latency

@latency.backend("outside-runtime")
class Outside(latency.Backend):
    ways = (latency.Way("outside", (".out",), usual=True),)
    kind = "wall"
    def __init__(self, threads=1, precision="fp32"):
        self.threads, self.now_us = threads, 0.0
    def environment(self):
        return {"backend": "outside-runtime", "device": "imagined", "threads": self.threads, "dtype": "float32"}
    def clock(self):
        return self
    def time_us(self, run):
        before = self.now_us
        run()
        return self.now_us - before, self.now_us - before
    def build(self, op):
        def run():
            self.now_us += -(-op.c_in // 8)
        return latency.Built(run=run)
"""


def test_a_backend_of_an_installed_package_is_found_through_its_entry_point(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outside / "outside_runtime.py").write_text(BACKEND)
    offer(monkeypatch, "latency.backends", outside_runtime="outside_runtime:Outside")
    assert "outside-runtime" in BACKENDS
    assert "outside_runtime" not in sys.modules  # loaded when it is asked for
    ops = [latency.Op(kind="relu", c_in=64, c_out=64, h=4, w=4)]
    profile = latency.sweep(ops, backend="outside-runtime", settings={"precision": "fp32"})
    assert profile.environment["backend"] == "outside-runtime"
    table = profile.table(ops[0])
    assert [float(table.lookup(c, c)) for c in (8, 33, 64)] == [1.0, 5.0, 8.0]  # a µs for each eight channels
    assert way_of(".out", None) == ("outside-runtime", BACKENDS["outside-runtime"].ways[0])
    with pytest.raises(
        UsageError, match="was asked with device 'cuda'; it takes threads, precision; leave it out"
    ):
        latency.sweep(ops, backend="outside-runtime", settings={"device": "cuda"})
    with pytest.raises(UsageError, match="did you mean 'outside-runtime'"):
        latency.sweep(ops, backend="outside-runtim")


def test_the_backends_of_the_package_are_its_folders_and_none_is_imported_to_name_them() -> None:
    code = (
        "import sys; from latency.backends import BACKENDS; names = BACKENDS.names();"
        "print(names, [n for n in sys.modules if n.startswith('latency.backends.') and n.count('.') > 2])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("['onnxruntime', ")
    assert done.stdout.endswith(" []\n")
    assert {"onnxruntime", "tensorrt", "torch"} <= set(BACKENDS)
