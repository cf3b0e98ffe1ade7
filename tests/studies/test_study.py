"""A study's file: what it multiplies out to, and what is refused with the nearest that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from halpiee.errors import UsageError
from halpiee.methods.registry import METHODS
from halpiee.studies import Study, names, read
from halpiee.studies.study import scale_of
from halpiee.studies.work import settings_of

SMALL: dict[str, Any] = {
    "about": "two sparsities",
    "options": {"model": "resnet8", "epochs": 10, "method": "static", "data": "digits"},
    "grid": {"sparsity": [0.5, 0.9], "method": {"static": {}, "RigL": {"method": "rigl", "interval": 40}}},
    "values": ["accuracy"],
    "table": {"rows": ["method"], "columns": ["sparsity"], "values": ["accuracy"]},
    "figure": {"x": "sparsity", "y": "accuracy", "series": ["method"]},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(
        yaml.safe_dump({**SMALL, **changes}, allow_unicode=True, sort_keys=False), encoding="utf-8"
    )
    return path


def study(folder: Path, **changes: Any) -> Study:
    return read(written(folder, **changes))


def test_the_cells_are_the_product_of_the_axes_for_every_seed(tmp_path: Path) -> None:
    cells = study(tmp_path).cells(2)
    assert [(c.seed, *c.labels.values()) for c in cells] == [
        (seed, sparsity, method)
        for seed in (0, 1)
        for sparsity in ("0.5", "0.9")
        for method in ("static", "RigL")
    ]
    assert len({c.name for c in cells}) == 8
    assert cells[1].options == {
        "model": "resnet8",
        "epochs": 10,
        "method": "rigl",
        "data": "digits",
        "sparsity": 0.5,
        "interval": 40,
    }


def test_a_scale_shortens_epochs_and_what_is_counted_in_steps(tmp_path: Path) -> None:
    cell = read(written(tmp_path), scale=0.25).cells(1)[1]
    assert (cell.options["epochs"], cell.options["interval"]) == (3, 12)  # ⌈10/4⌉ and 40 · 3/10
    assert scale_of("smallest") == "smallest"
    assert scale_of("0.25") == 0.25
    for wrong in ("0", "2", "tiny", "nan"):
        with pytest.raises(UsageError, match=rf"--scale {wrong} was asked; give a share"):
            scale_of(wrong)


def test_the_smallest_scale_has_its_own_options_and_labels(tmp_path: Path) -> None:
    smallest = {"options": {"epochs": 1}, "grid": {"method": ["RigL"], "sparsity": [0.7]}}
    cells = read(written(tmp_path, smallest=smallest), scale="smallest").cells(1)
    assert [(c.options["epochs"], c.options["sparsity"], c.options["method"]) for c in cells] == [
        (1, 0.7, "rigl")
    ]


def test_a_recipe_lies_under_the_options_and_a_goal_replaces_its_own(tmp_path: Path) -> None:
    options = {"model": "resnet8", "recipe": "rigl-cifar", "epochs": 7, "data": "digits"}
    cell = study(tmp_path, options=options, grid={"sparsity": [0.5]}, **plain()).cells(1)[0]
    assert cell.options["method"] == "rigl"  # of the recipe
    assert cell.options["epochs"] == 7  # not 250
    assert cell.options["sparsity"] == 0.5  # not 0.9


def plain() -> dict[str, Any]:
    """A table and a figure of one axis."""
    return {
        "table": {"rows": ["sparsity"], "values": ["accuracy"]},
        "figure": {"x": "sparsity", "y": "accuracy"},
    }


def test_a_cell_after_another_begins_in_its_folder_and_comes_later(tmp_path: Path) -> None:
    grid = {
        "sparsity": [0.5],
        "method": {
            "again": {"after": "static", "mask": "{run}", "sparsity": None},
            "static": {},
        },
    }
    first, second = study(tmp_path, grid=grid).cells(1)
    assert first.labels["method"] == "static"
    assert second.after == first.name
    grid["method"] = {"again": {"after": "none", "mask": "{run}", "sparsity": None}}
    with pytest.raises(UsageError, match=r"has a training after .* which is not in its grid"):
        study(tmp_path, grid=grid)


def test_an_option_of_some_methods_is_left_out_with_the_others(tmp_path: Path) -> None:
    options = {**SMALL["options"], "interval": 5}
    cells = study(tmp_path, options=options, only={"interval": ["rigl"]}).cells(1)
    assert ["interval" in c.options for c in cells] == [False, True, False, True]


def test_the_version_follows_what_is_trained_and_not_what_is_shown(tmp_path: Path) -> None:
    one = study(tmp_path).version
    assert study(tmp_path, about="other words").version == one
    assert study(tmp_path, options={**SMALL["options"], "epochs": 11}).version != one
    assert read(written(tmp_path), scale=0.5).version != one
    assert read(written(tmp_path), over={"data": "cifar10"}).version != one


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"options": {"epoch": 3}}, r"has the option 'epoch', which .* did you mean 'epochs'\?"),
        ({"options": {"model": "resnet8", "epochs": "many"}}, r"mine.yaml hold.*'epochs'"),
        ({"values": ["acuracy"]}, r"has no quantity 'acuracy'; did you mean 'accuracy'\?"),
        (
            {"table": {"rows": ["methods"], "values": ["accuracy"]}},
            r"has no axis 'methods'; did you mean 'method'\?",
        ),
        ({"probe": "plasticty"}, r"has the probe 'plasticty'; did you mean 'plasticity'\?"),
        ({"tabel": {}}, r"is no study: Object contains unknown field `tabel`"),
        ({"grid": {"sparsity": 0.5}}, r"is no study: Expected `object \| array`"),
        ({"grid": {**SMALL["grid"], "epochs": [1, 2]}}, r"has an axis 'epochs' that its table does not show"),
        (
            {"table": {"rows": ["method"], "values": ["accuracy"]}},
            r"has an axis 'sparsity' that its table does not show",
        ),
        ({"smallest": {"grid": {"size": [1]}}}, r"has no axis 'size'"),
        ({"paper": [{"methd": "RigL", "accuracy": 0.9}]}, r"has no axis 'methd'; did you mean 'method'\?"),
    ],
)
def test_what_stands_for_nothing_is_refused_with_the_nearest(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        study(tmp_path, **changes)


def test_too_many_cells_are_refused_before_they_are_made(tmp_path: Path) -> None:
    held = study(tmp_path)
    with pytest.raises(UsageError, match="has 400,000 trainings, and at most 100,000"):
        held.cells(100_000)


def test_an_unknown_study_is_refused_with_the_closest_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither a file nor a study; did you mean 'plasticity'\?"):
        read("plasticty")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("a: [1", encoding="utf-8")
    with pytest.raises(UsageError, match="is not YAML"):
        read(tmp_path / "x.yaml")


def test_every_study_of_the_papers_is_there_with_its_source() -> None:
    assert set(names()) >= {
        *(
            "plasticity",
            "final-gap",
            "granet-cifar",
            "granet-scale",
            "reinit",
            "layer-budgets",
            "at-init-ladder",
        ),
        *("at-init-ablations", "at-step", "collapse", "gradient-flow-rounds", "gradient-flow-correlations"),
        *("layer-ratios", "iee-ablation", "iee-wrn", "iee-2-4", "exploration", "latency", "detection"),
    }
    for name in names():
        found = read(name)
        assert found.file.source, name
        assert found.cells(1), name
        assert len(read(name, scale="smallest").cells(1)) <= 8, name


OWN = {  # study of benchmarks/ → its cells, and those of its smallest scale
    **{"methods": (10, 3), "rewinding": (10, 4), "plasticity": (3, 1), "rounds": (4, 4)},
    **{"scale-change": (1, 1), "survival": (2, 2), "rewinding-digits": (8, 4), "orderings": (18, 3)},
}


@pytest.mark.parametrize("name", OWN)
def test_the_benchmarks_that_are_studies_can_be_read(name: str) -> None:
    cells, smallest = OWN[name]
    file = str(Path(__file__).parents[2] / "benchmarks" / f"{name}.yaml")
    assert len(read(file).cells(1)) == cells
    assert len(read(file, scale="smallest").cells(1)) == smallest


BENCHMARKS = [f"{Path(__file__).parents[2]}/benchmarks/{name}.yaml" for name in OWN]


@pytest.mark.parametrize("name", [*names(), *BENCHMARKS], ids=lambda name: Path(name).stem)
def test_every_training_of_a_study_is_one_that_train_takes(name: str, tmp_path: Path) -> None:
    data = {"data": "digits"}
    for found in (read(name, over=data), read(name, over=data, scale="smallest")):
        for cell in found.cells(1):
            assert settings_of(found, cell, tmp_path).method in METHODS


def test_the_ladder_has_nineteen_rungs_of_four_fifths() -> None:
    ladder = read("at-init-ladder")
    rungs = ladder.axes["sparsity"]
    assert rungs[:4] == ["0.0", "20.0", "36.0", "48.8"]
    assert rungs[-1] == "98.2"
    assert len(rungs) == 19
    found = [c.options["sparsity"] for c in ladder.cells(1) if c.labels["method"] == "SNIP"]
    assert found[1:] == pytest.approx([1 - 0.8**k for k in range(1, 19)], abs=1e-6)


def test_iee_has_the_eleven_rows_of_its_ablation() -> None:
    assert len(read("iee-ablation").cells(1)) == 11
