"""Profile files: what is read, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from latency.errors import OutputInUseError, ProfileError, UsageError
from latency.op import Op
from latency.profiles import SCHEMA, Profile

HERE = {"backend": "fake", "device": "this", "threads": 1, "id": "abc"}


def cell(c_out: int, us: float, **fields: Any) -> dict[str, Any]:
    return {"op": "linear", "c_in": 8, "c_out": c_out, "us": us, **fields}


def written(path: Path, *lines: str) -> None:
    path.write_text("\n".join(lines) + "\n")


def head(**environment: object) -> str:
    return json.dumps({"schema": SCHEMA, "environment": {**HERE, **environment}})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    profile = Profile(HERE, [cell(16, 2.0, n=9, role="sweep"), cell(8, 1.0)])
    profile.save(tmp_path / "p.jsonl")
    again = Profile.load(tmp_path / "p.jsonl")
    assert again.environment == HERE
    assert sorted(again.cells, key=str) == sorted(profile.cells, key=str)
    assert float(again.table(Op(kind="linear", c_in=8, c_out=16)).lookup(8, 16)) == 2.0


def test_saved_cells_are_sorted_so_that_order_of_measuring_does_not_show(tmp_path: Path) -> None:
    Profile(HERE, [cell(16, 2.0), cell(8, 1.0)]).save(tmp_path / "a")
    Profile(HERE, [cell(8, 1.0), cell(16, 2.0)]).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("mine")
    with pytest.raises(OutputInUseError, match="exists already and was left alone"):
        Profile(HERE, []).save(tmp_path / "p")
    assert (tmp_path / "p").read_text() == "mine"


def test_the_last_line_for_a_key_wins(tmp_path: Path) -> None:
    written(tmp_path / "p", head(), json.dumps(cell(8, 1.0)), json.dumps(cell(8, 3.0)))
    (only,) = Profile.load(tmp_path / "p").cells
    assert only["us"] == 3.0


def test_roles_are_kept_apart() -> None:
    assert len(Profile(HERE, [cell(8, 1.0), cell(8, 2.0, role="repeat")]).cells) == 2


@pytest.mark.parametrize("torn", ['{"op":"lin', '{"op":"linear","c_in":8,"c_out":16,"us":2.0'])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    (tmp_path / "p").write_text(head() + "\n" + json.dumps(cell(8, 1.0)) + "\n" + torn)
    assert [c["c_out"] for c in Profile.load(tmp_path / "p").cells] == [8]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    written(tmp_path / "p", head(), json.dumps(cell(8, 1.0)), "{broken", json.dumps(cell(16, 1.0)))
    with pytest.raises(ProfileError, match="line 3 is damaged; remove that line"):
        Profile.load(tmp_path / "p")


@pytest.mark.parametrize(
    "first", ["", "no json", '{"schema": "other/7", "environment": {}}', "[1]", "\x80\x04"]
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, first: str) -> None:
    written(tmp_path / "p", first)
    with pytest.raises(ProfileError, match="measure again: halpiee profile"):
        Profile.load(tmp_path / "p")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"p\.jsonl was asked for, and there is no such file"):
        Profile.load(tmp_path / "p.jsonl")


def test_cells_of_another_environment_are_refused() -> None:
    with pytest.raises(ProfileError, match="measured in the environment xyz, this profile is of abc"):
        Profile(HERE, [cell(8, 1.0, env="xyz")])


def test_another_device_is_refused_with_the_field_that_differs() -> None:
    with pytest.raises(ProfileError, match="device is 'this' in the profile, 'that' here"):
        Profile(HERE, []).require({**HERE, "device": "that"})


def test_fields_that_do_not_decide_speed_may_differ() -> None:
    Profile({**HERE, "python": "3.11"}, []).require({**HERE, "python": "3.13", "kernel": "6"})


def test_merging_takes_the_newer_of_two_cells() -> None:
    old = Profile(HERE, [cell(8, 1.0, time=100), cell(16, 5.0, time=300)])
    new = Profile(HERE, [cell(8, 2.0, time=200), cell(16, 4.0, time=250)])
    merged = {c["c_out"]: c["us"] for c in old.merge(new).cells}
    assert merged == {8: 2.0, 16: 5.0}


def test_merging_refuses_another_environment() -> None:
    with pytest.raises(ProfileError, match="threads is"):
        Profile(HERE, []).merge(Profile({**HERE, "threads": 2}, []))


def test_an_op_without_cells_is_named_with_its_shape() -> None:
    asked = Op(kind="conv", c_in=8, c_out=8, h=4, w=4, kernel=(3, 3), tail=("relu",))
    profile = Profile(HERE, [cell(8, 1.0)])
    assert not profile.has_table(asked)
    with pytest.raises(ProfileError, match=r"conv 3×3 at 4×4 batch 1 \+ relu; no cell of it was measured"):
        profile.table(asked)


def test_a_cell_without_a_time_is_refused() -> None:
    with pytest.raises(ProfileError, match="cell 0 of a profile was read; it has no us"):
        Profile(HERE, [{"op": "linear", "c_in": 8, "c_out": 8}])


@pytest.mark.parametrize("given", [{"kernel": 3}, {"stride": [1, 1]}, {"tail": "relu"}])
def test_an_op_takes_tuples(given: dict[str, Any]) -> None:
    [(name, value)] = given.items()
    with pytest.raises(UsageError, match=re.escape(f"{name}={value!r} was given to an op; give a tuple")):
        Op(kind="conv", c_in=8, c_out=8, h=4, w=4, **given)
