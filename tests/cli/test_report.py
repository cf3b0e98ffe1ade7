"""``halpiee report``: the page again, layers on demand, and the exit code of the run's promise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from click.testing import CliRunner, Result

from halpiee.cli.app import program
from halpiee.errors import UsageError


def invoke(*options: object) -> Result:
    return CliRunner().invoke(program, ["report", *map(str, options)])


def test_a_kept_promise_is_shown_and_written_anew(finished_run: Path) -> None:
    shown = invoke(finished_run)
    assert shown.exit_code == 0
    assert "measured 124 µs is 98.8% of the budget of 125 µs; the page is" in shown.stderr
    assert "Promise kept" in (finished_run / "report.html").read_text()
    assert (finished_run / "report.md").read_text().startswith("# toy:net on toy:data")


def test_several_runs_stand_in_one_table_and_in_a_site(finished_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "run"
    shutil.copytree(finished_run, other)
    shown = invoke(finished_run, other, "--out", tmp_path / "site")
    assert shown.exit_code == 0, shown.exception
    rows = [line.split()[0] for line in shown.stdout.splitlines()]
    assert rows == ["Run", "run", "run-2"]
    assert sorted(path.name for path in (tmp_path / "site").iterdir()) == [
        "index.html",
        "run-2.html",
        "run.html",
    ]
    assert "toy:net on toy:data" in (tmp_path / "site" / "index.html").read_text()
    assert "name a new folder" in str(invoke(finished_run, other, "--out", tmp_path / "site").exception)
    assert [run["name"] for run in json.loads(invoke(finished_run, other, "--json").stdout)["runs"]] == rows[
        1:
    ]


def test_layers_are_timed_of_one_run_only(finished_run: Path) -> None:
    assert "times the layers of one RUN" in str(invoke(finished_run, finished_run, "--layers").exception)


def test_a_missed_promise_ends_in_four_with_everything_shown(finished_run: Path) -> None:
    path = finished_run / "report.json"
    report = json.loads(path.read_text())
    report["promise"] = {"met": False, "text": "measured 150 µs is 120.0% of the budget"}
    path.write_text(json.dumps(report))
    shown = invoke(finished_run, "--json")
    assert shown.exit_code == 4
    assert json.loads(shown.stdout)["promise"] == report["promise"]
    assert "Promise missed" in (finished_run / "report.html").read_text()


def test_layers_are_timed_on_demand_and_kept(finished_run: Path) -> None:
    for side, option in (("dense", ["--dense"]), ("pruned", [])):
        arguments = ["export", str(finished_run), *option, "--out", str(finished_run / f"{side}.onnx")]
        assert CliRunner().invoke(program, arguments).exit_code == 0
    shown = invoke(finished_run, "--layers")
    assert shown.exception is None, shown.exception
    report = json.loads((finished_run / "report.json").read_text())
    assert {"conv1", "conv2", "fc"} <= {row["layer"] for row in report["layers"]}
    assert "skipped" in report["pareto"]  # the folder holds no profile
    page = (finished_run / "report.html").read_text()
    assert "The network, layer by layer" in page
    assert "not drawn: " in page


def test_a_folder_without_a_finished_run_or_with_a_torn_report_says_what_to_type(finished_run: Path) -> None:
    (finished_run / "report.json").write_text('{"schema": 1')
    shown = invoke(finished_run)
    assert isinstance(shown.exception, UsageError)
    assert "is no report of a run" in str(shown.exception)
    assert "halpiee train --resume --out" in str(shown.exception)
    (finished_run / "report.json").unlink()
    assert "holds no finished run" in str(invoke(finished_run).exception)
    assert "was named as the folder of a run, and there is no such folder" in str(invoke("gone").exception)
