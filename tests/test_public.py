"""What a user sees of the two packages."""

from __future__ import annotations

import halpiee
import latency


def test_every_public_name_is_there() -> None:
    for package in (halpiee, latency):
        for name in package.__all__:
            assert getattr(package, name) is not None, f"{package.__name__}.{name}"


def test_the_contracts_names_are_public() -> None:
    for name in [
        "trace",
        "shrink",
        "masked",
        "Plan",
        "LatencyCost",
        "select",
        "solve_grid",
        "IEE",
        "Latency",
        "Uniform",
        "ERK",
        "Global",
        "NM",
        "sparsity",
        "analysis",
        "BudgetError",
    ]:
        assert name in halpiee.__all__, name
    for name in ["Profile", "sweep", "measure", "Op"]:
        assert name in latency.__all__, name
    assert callable(latency.sweep)
    assert callable(halpiee.trace)
    assert callable(halpiee.sparsity.erk)
    assert callable(halpiee.analysis.train_flops)


def test_the_error_tree_knows_its_exit_codes() -> None:
    from halpiee import errors

    codes = {name: getattr(errors, name).exit_code for name in errors.__all__}
    assert codes["HalpieeError"] == 1
    for name in (
        "UsageError",
        "ProfileError",
        "BudgetError",
        "StructureError",
        "DataError",
        "OutputInUseError",
    ):
        assert codes[name] == 2
    for name in ("MissingError", "UnsupportedOpError"):
        assert codes[name] == 3
    for name in ("PromiseError", "MeasurementError", "MismatchError"):
        assert codes[name] == 4
