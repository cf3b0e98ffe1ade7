"""The YAML of a comparison: what it may say, and how it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from halpiee.compare.cells import cells, settings_of
from halpiee.compare.comparison import CONTESTANTS, Comparison, contestant, read_comparison
from halpiee.errors import UsageError

GOOD = "network: resnet20\ndata: digits\nbudgets: [0.5, 0.3]\nseeds: [0, 1]\ncontestants: [dense, uniform]\n"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "compare.yaml"
    path.write_text(text)
    return path


def test_a_comparison_has_a_cell_for_each_contestant_budget_and_seed_and_one_dense_network_a_seed(
    tmp_path: Path,
) -> None:
    found = read_comparison(written(tmp_path, GOOD))
    assert [(c.contestant, c.budget, c.seed) for c in cells(found)] == [
        ("dense", 1.0, 0),
        ("uniform", 0.5, 0),
        ("uniform", 0.3, 0),
        ("dense", 1.0, 1),
        ("uniform", 0.5, 1),
        ("uniform", 0.3, 1),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "epoch: 3\n", "did you mean 'epochs'"),
        (GOOD.replace("[0.5, 0.3]", "[1.5]"), "budgets.*1.5"),
        (GOOD.replace("[0.5, 0.3]", "[0.5, 0.5]"), "give at least one, each once"),
        (GOOD.replace("uniform", "unifrom"), "the contestant 'unifrom' was asked; did you mean 'uniform'"),
        (GOOD.replace("network: resnet20\n", ""), "names no network"),
        (GOOD + "seeds: [1]\n", "stands twice"),
        ("- 1\n- 2\n", "holds a list; write one `option: value` a line"),
        ("a: [", "is not YAML"),
        (GOOD + "epochs: many\n", "epochs.*many"),
    ],
)
def test_a_bad_file_is_refused_by_its_name_with_what_to_type(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=words) as caught:
        read_comparison(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        read_comparison(tmp_path / "none.yaml")


def test_seeds_budgets_and_contestants_are_no_part_of_the_setting_and_all_else_is() -> None:
    def setting(**more: object) -> str:
        values: dict[str, Any] = {"network": "resnet20", "data": "digits", "budgets": (0.5,), **more}
        return Comparison(**values).setting

    assert setting() == setting(seeds=(3,), budgets=(0.2,), contestants=("iee",), profile="p.jsonl")
    assert len({setting(), setting(epochs=3), setting(lr=0.2), setting(width=2.0), setting(bf16=True)}) == 5


def test_every_contestant_gives_settings_that_a_run_takes() -> None:
    names = [
        *CONTESTANTS,
        *(f"{n}-distilled" for n in CONTESTANTS if n not in ("dense", "torch-pruning", "repair")),
    ]
    comparison = Comparison(network="resnet20", data="digits", budgets=(0.5,), contestants=tuple(names))
    for cell in cells(comparison):
        s = settings_of(cell, Path("out"))
        assert (s.weights is not None) == cell.who.pretrained
        assert s.budget == ("1" if cell.contestant == "dense" else "0.5")
        assert s.seed == cell.seed
        assert (s.distill == "dense") == cell.contestant.endswith("-distilled")
        assert s.distill_weight == comparison.distill
        assert s.lr == (comparison.tuning_lr if cell.who.pretrained else comparison.lr)


def test_what_cannot_be_distilled_is_no_contestant() -> None:
    for name in ("dense-distilled", "torch-pruning-distilled", "repair-distilled"):
        with pytest.raises(UsageError, match="was asked"):
            contestant(name)


@pytest.mark.parametrize("name", ["compare-cpu.yaml", "compare-gpu.yaml"])
def test_the_comparisons_of_the_benchmarks_can_be_read(name: str) -> None:
    assert read_comparison(Path(__file__).parents[2] / "benchmarks" / name).contestants[0] == "dense"
