"""``inspect``, ``pack`` and ``merge`` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halpiee.cli import main
from latency.profiles import Profile

Capture = pytest.CaptureFixture[str]


def profile(path: Path, *times: float, env: str = "this") -> str:
    cells = [
        {"op": "linear", "c_in": 8, "c_out": 8 * (i + 1), "us": us, "time": 10 * i + len(path.name)}
        for i, us in enumerate(times)
    ]
    Profile({"device": env}, cells).save(path)
    return str(path)


def answer_of(arguments: list[str], capsys: Capture) -> tuple[object, dict[str, Any]]:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--json"])
    return stop.value.code, json.loads(capsys.readouterr().out)


def test_merge_takes_the_newest_cells_and_names_what_differs(tmp_path: Path, capsys: Capture) -> None:
    a, b = profile(tmp_path / "a.jsonl", 10.0, 20.0), profile(tmp_path / "bb.jsonl", 15.0)
    code, said = answer_of(["merge", a, b, "--out", str(tmp_path / "c.jsonl")], capsys)
    assert (code, said["cells"]) == (0, 2)
    assert [(c["c_out"], c["us"]) for c in said["conflicts"]] == [(8, [10.0, 15.0])]
    joined = Profile.load(tmp_path / "c.jsonl")
    assert sorted((c["c_out"], c["us"]) for c in joined.cells) == [(8, 15.0), (16, 20.0)]


def test_profiles_of_two_devices_are_not_merged(tmp_path: Path, capsys: Capture) -> None:
    a, b = profile(tmp_path / "a.jsonl", 10.0), profile(tmp_path / "b.jsonl", 15.0, env="another")
    code, said = answer_of(["merge", a, b, "--out", str(tmp_path / "c.jsonl")], capsys)
    assert code == 2
    assert "device is 'another'" in said["error"]
    assert not (tmp_path / "c.jsonl").exists()


def test_pack_sorts_and_never_overwrites(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "a.jsonl"
    profile(path, 10.0, 20.0)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[2], lines[1], lines[2]]) + "\n")
    out = tmp_path / "packed.jsonl"
    assert answer_of(["pack", str(path), "--out", str(out)], capsys)[0] == 0
    assert out.read_text().splitlines() == lines
    assert answer_of(["pack", str(path), "--out", str(out)], capsys)[0] == 2


def test_inspect_refuses_a_taken_picture_before_it_draws(tmp_path: Path, capsys: Capture) -> None:
    path = profile(tmp_path / "a.jsonl", 10.0, 20.0)
    (tmp_path / "taken.svg").write_text("mine")
    code, said = answer_of(["inspect", path, "--plot", str(tmp_path / "taken.svg")], capsys)
    assert code == 2
    assert "taken.svg" in said["error"]


def test_a_profile_without_cells_says_so_and_what_continues_it(tmp_path: Path, capsys: Capture) -> None:
    path = profile(tmp_path / "a.jsonl")
    with pytest.raises(SystemExit) as stop:
        main(["inspect", path, "--plot", str(tmp_path / "a.svg")])
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "holds no cells: its sweep was cut short; the `halpiee profile MODEL …" in said
    assert said.endswith("that began it continues it")
    assert "holds no cells" in answer_of(["inspect", path], capsys)[1]["warnings"][0]
