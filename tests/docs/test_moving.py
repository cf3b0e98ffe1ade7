"""The pages for users of other libraries: every line of ours runs, in order, and does what the page says."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import latency
from halpiee.saliency.registry import REGISTRY
from tests.forgetting import forgetting

from ..latency.fakes import FakeBackend, staircase

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
PAGES = ("from-nncf", "from-torch-pruning", "from-torch-prune")


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the blocks of a page in one namespace, in an empty folder, on a device that needs no time."""
    monkeypatch.chdir(tmp_path)
    sweep = functools.partial(latency.sweep, backend=FakeBackend(staircase(8)))
    monkeypatch.setattr(latency, "sweep", sweep)

    def run(name: str) -> dict[str, Any]:
        space: dict[str, Any] = {"__name__": "__main__"}
        for block in re.findall(r"```python\n(.*?)```", (GUIDE / f"{name}.md").read_text(), re.DOTALL):
            exec(compile(block, f"{name}.md", "exec"), space)
        return space

    return run


@pytest.mark.parametrize("name", PAGES)
def test_a_page_sets_ten_calls_beside_ours(name: str) -> None:
    text = (GUIDE / f"{name}.md").read_text()
    rows = re.findall(r"^\| (?!there|---)(.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert len(rows) >= 10
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for _, ours in rows:
        for call in re.findall(r"halpiee\.(?:\w+\.)?(\w+)\(", ours):
            assert call in code or call == "Latency", call


def test_the_page_of_torchs_prune_keeps_what_its_budgets_say(done: Any) -> None:
    with forgetting(REGISTRY):
        space = done("from-torch-prune")
    for mask, density in (
        ("uniform", 0.8),
        ("chance", 0.8),
        ("together", 0.8),
        ("rounds", 0.5),
        ("mine", 0.5),
    ):
        assert space[mask].density == pytest.approx(density, abs=0.01)
    assert not torch.equal(space["uniform"]["conv1.weight"], space["chance"]["conv1.weight"])
    assert (space["model"].fc.weight[~space["custom"]["fc.weight"]] == 0).all()
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(space["small"](x), space["same"](x), atol=1e-4)
    assert {name: score.shape for name, score in space["lottery"].items()} == {
        name: score.shape for name, score in space["filters"].items()
    }


def test_the_page_of_torch_pruning_meets_its_budget_and_loads_its_plan(done: Any) -> None:
    space = done("from-torch-pruning")
    assert space["without_one"].get_submodule("layers.0.0.conv1").out_channels == 15
    selection, cost = space["selection"], space["cost"]
    assert selection.latency_us <= 0.5 * cost.dense_us * (1 + 1e-9)
    assert selection.counts["conv1"] == 16
    assert all(count % 8 == 0 for count in selection.counts.values())
    assert space["after"] < space["before"]
    assert space["parameters"] == sum(p.numel() for p in space["pruned"].parameters())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(space["again"].eval()(x), space["pruned"].eval()(x))
    assert cost.total_us(space["iee"].alive.counts) <= 0.5 * cost.dense_us * (1 + 1e-9)


def test_the_page_of_nncf_removes_half_and_exports_it(done: Any, tmp_path: Path) -> None:
    space = done("from-nncf")
    assert space["method"].finished
    kept = space["method"].alive
    assert sum(int(m.sum()) for m in kept.values()) == sum(m.numel() for m in kept.values()) / 2
    assert isinstance(space["compact"], torch.nn.Module)
    assert (tmp_path / "compact.onnx").is_file()
