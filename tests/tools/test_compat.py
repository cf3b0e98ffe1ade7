"""The table of versions says what passed, what failed and what was not tried."""

from __future__ import annotations

from pathlib import Path

from tools.compat import counts, find, table


def row(folder: str, passed: int, **other: object) -> dict[str, object]:
    at = {"python": "3.11", "torch": "2.11.0", "torchvision": "0.26.0", "commit": "b", "slow": False}
    return {**at, "folder": folder, "passed": passed, "failed": 0, "skipped": 1, "failing": [], **other}


def test_folders_of_one_environment_are_added_up_and_older_commits_left_out() -> None:
    rows = [row("tests/zoo", 99, commit="a"), row("tests/zoo", 3), row("tests/cli", 4)]
    assert table(rows, []).splitlines()[-1] == "| 3.11 | 2.11.0 | 0.26.0 | 7 | 0 | 2 | no | b |"


def test_a_folder_that_ran_again_counts_once() -> None:
    assert "| 0.26.0 | 5 | 0 | 1 |" in table([row("tests/zoo", 3), row("tests/zoo", 5)], [])


def test_what_failed_and_what_was_not_tried_is_named() -> None:
    text = table([row("tests/zoo", 3, failed=1, failing=["tests.zoo::test_it"])], ["3.13"])
    assert "- torch 2.11.0, Python 3.11: `tests.zoo::test_it`" in text
    assert text.endswith("no such interpreter: Python 3.13.\n")


def test_passed_failed_and_skipped_are_read_off_the_report(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite><testcase classname='t' name='a'/><testcase classname='t' name='b'><failure/>"
        "</testcase><testcase classname='t' name='c'><error/></testcase><testcase classname='t' name='d'>"
        "<skipped/></testcase></testsuite></testsuites>"
    )
    assert counts(report) == {"passed": 1, "failed": 2, "skipped": 1, "failing": ["t::b", "t::c"]}


def test_a_shim_that_leads_nowhere_is_passed_over(tmp_path: Path) -> None:
    shims, real = tmp_path / "shims", tmp_path / "versions" / "3.12.1" / "bin"
    for folder, name, code in ((shims, "python3.12", 127), (real, "python", 0)):
        folder.mkdir(parents=True)
        (folder / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (folder / name).chmod(0o755)
    assert find("3.12", path=str(shims), roots=[tmp_path]) == str(real / "python")
    assert find("3.19", path=str(shims), roots=[tmp_path]) is None
