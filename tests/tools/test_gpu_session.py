"""The session on a GPU: what it writes, how it goes on, and that no part takes another down; here on a CPU."""

from __future__ import annotations

import json
import os
import signal
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tools import gpu_session
from tools.gpu_session import Session, pack, unpack
from tools.gpu_session_parts import MORE, Part, Place, parts

HERE = "tests.tools.test_gpu_session:"


def says(place: Place, say: Any, *, word: str = "said") -> None:
    """A part with one finding."""
    print(f"in {os.getpid()}")
    say(word=word)


def fails(place: Place, say: Any) -> None:
    """A part that finds something and then breaks."""
    say(word="before")
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def refuses(place: Place, say: Any) -> str:
    """A part that fails and leaves its process sound, as one does whose own child failed."""
    return "pytest ended with code 1"


def dies(place: Place, say: Any) -> None:
    """A part whose process dies."""
    say(word="last")
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps(place: Place, say: Any) -> None:
    """A part that takes too long the first time, and ends when it is told to."""
    if not (place.out / "slept").exists():
        (place.out / "slept").touch()
        say(word="begun")
        time.sleep(60)
    say(word="went on")


def deaf(place: Place, say: Any) -> None:
    """A part that does not end the first time when it is told to."""
    if not (place.out / "heard").exists():
        (place.out / "heard").touch()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(60)
    say(word="went on")


def in_pieces(place: Place, say: Any) -> str | None:
    """A part in three pieces."""
    path = place.out / "pieces"
    done = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(done))
    say(piece=done)
    return MORE if done < 3 else None


def part(name: str, seconds: float = 20.0, **more: Any) -> Part:
    return Part(name, f"{HERE}{name.partition('-')[0]}", seconds, **{"least": 0.1, **more})


def found(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    assert all(line.pop("after_s") >= 0 for line in lines)
    return lines


def ended(folder: Path) -> dict[str, str]:
    record: Mapping[str, Mapping[str, str]] = json.loads((folder / "session.json").read_text())
    return {name: one["ended"] for name, one in record.items()}


def run(folder: Path, *chosen: Part, seconds: float = 100.0) -> int:
    with Session(Place(folder, "cpu"), folder.with_suffix(".tar.gz"), (__name__,)) as session:
        return session.run(chosen, seconds)


def test_a_part_that_fails_or_dies_does_not_stop_the_others(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, part("fails"), part("dies"), part("says")) == 4
    assert ended(out) == {"fails": "failed", "dies": "failed", "says": "well"}
    record = json.loads((out / "session.json").read_text())
    assert record["fails"]["why"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert record["dies"]["why"] == "its process ended with code -9"
    assert [found(out, name) for name in ("fails", "dies", "says")] == [
        [{"word": "before"}],
        [{"word": "last"}],
        [{"word": "said"}],
    ]


def test_parts_share_one_process_until_one_breaks_off(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, part("says-1"), part("refuses"), part("says-2"), part("fails"), part("says-3")) == 4
    first, second, third = ((out / f"says-{i}.log").read_text() for i in (1, 2, 3))
    assert first == second != third
    record = json.loads((out / "session.json").read_text())
    assert (record["refuses"]["ended"], record["refuses"]["why"]) == ("failed", "pytest ended with code 1")


def test_a_second_start_does_only_what_did_not_end_well(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        run(out, part("says"), part("fails"))
    assert (len(found(out, "says")), len(found(out, "fails"))) == (1, 2)


def test_a_session_goes_on_from_its_archive_alone(tmp_path: Path) -> None:
    first, archive = tmp_path / "out", tmp_path / "out.tar.gz"
    run(first, part("says"), part("in_pieces", least=200.0))
    assert ended(first) == {"says": "well", "in_pieces": "no time left"}
    first.rename(tmp_path / "elsewhere")
    assert archive.is_file()
    assert run(first, part("says"), part("in_pieces")) == 0
    assert len(found(first, "says")) == 1
    assert found(first, "in_pieces") == [{"piece": 1}, {"piece": 2}, {"piece": 3}]


def test_a_part_is_ended_at_its_limit_and_goes_on_when_the_others_had_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_session, "GRACE", 1.0)
    out = tmp_path / "out"
    assert run(out, part("sleeps", 3.0), part("deaf", 3.0), part("says")) == 0
    how = [line for line in capsys.readouterr().out.splitlines() if ": up to" not in line]
    assert how == [
        "sleeps: out of time",
        "deaf: out of time (it did not end when it was told to)",
        "says: well",
        "sleeps: well",
        "deaf: well",
    ]
    assert found(out, "sleeps") == [{"word": "begun"}, {"word": "went on"}]


def test_where_too_little_time_is_left_for_a_part_a_shorter_one_is_begun(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, part("sleeps", least=1e6), part("says")) == 4
    assert ended(out) == {"sleeps": "no time left", "says": "well"}


def test_what_waits_for_a_part_that_failed_is_not_begun(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, part("fails"), part("says", needs=("fails",))) == 4
    assert ended(out) == {"fails": "failed", "says": "waits for fails"}
    assert not (out / "says.jsonl").exists()


def test_the_archive_holds_every_file_and_names_those_that_it_has_no_room_for(tmp_path: Path) -> None:
    folder, archive = tmp_path / "in", tmp_path / "all.tar.gz"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "small").write_text("x")
    (folder / "large").write_bytes(os.urandom(200_000))
    assert pack(folder, archive) == []
    assert set(unpack(archive, tmp_path / "out")) == {"deep/small", "large"}
    assert (tmp_path / "out" / "large").read_bytes() == (folder / "large").read_bytes()
    assert pack(folder, archive, most_bytes=100_000) == ["large"]
    assert archive.stat().st_size < 100_000
    with tarfile.open(archive) as packed:
        assert packed.extractfile("left-out.txt").read() == b"large\n"  # type: ignore[union-attr]


@pytest.mark.parametrize(("device", "trial"), [("cuda", False), ("cpu", True)])
def test_every_part_needs_only_parts_before_it_and_no_two_have_one_name(
    tmp_path: Path, device: str, trial: bool
) -> None:
    seen: list[str] = []
    for one in parts(Place(tmp_path, device, trial, "digits")):
        assert set(one.needs) <= set(seen)
        assert one.name not in seen
        seen.append(one.name)
    assert seen[-1] == "compare"


def test_no_part_takes_longer_than_a_call_is_lent_for_and_the_first_ones_fit_nine_minutes(
    tmp_path: Path,
) -> None:
    listed = parts(Place(tmp_path, "cuda", False, "cifar10"))
    assert max(one.seconds for one in listed) <= 480
    first = [one.seconds for one in listed[: [one.name for one in listed].index("training") + 1]]
    assert sum(first) <= 540


def test_the_list_names_the_profiles_that_are_to_be_shipped(tmp_path: Path) -> None:
    names = {one.name for one in parts(Place(tmp_path))}
    for model in ("resnet50", "mobilenet_v1", "resnet20"):
        for precision in ("fp32", "fp16"):
            assert {f"profile-{model}-{precision}-b{batch}" for batch in (1, 32, 256)} <= names
    assert "compare" not in names  # no data was named


@pytest.mark.slow
@pytest.mark.timing  # every part of the session, with little networks: half a minute of one core
def test_a_trial_on_the_cpu_ends_well_in_every_part_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["--out", str(out), "--device", "cpu", "--trial", "--data", "digits", "--minutes", "30"]
    assert gpu_session.main(asked) == 0
    names = [one.name for one in parts(Place(out, "cpu", True, "digits"))]
    assert ended(out) == dict.fromkeys(names, "well")
    rows = {name: found(out, name) for name in names}
    assert all(rows.values())
    assert {row["search"] for row in rows["split"] if "search" in row} == {True, False}
    assert rows["split"][-1]["seconds"]["whole"] >= rows["split"][-1]["seconds"]["build"] > 0
    assert rows["profile-little-fp32-b1"][-1]["cells"] > 0
    assert [row["network"] for row in rows["fps"]] == ["dense", "0.95"]
    assert rows["fps"][0]["speedup"] == 1.0
    assert [row["stopped_at"] for row in rows["resume"]] == [4, 8]
    assert {row["table"] for row in rows["training"]} == {"training-step", "mask-change"}
    assert [row["left"] for row in rows["compare"]] == [1, 0]
    with tarfile.open(f"{out}.tar.gz") as archive:
        assert {f"{name}.jsonl" for name in names} <= set(archive.getnames())
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.jsonl")}
    assert gpu_session.main(asked) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.jsonl")} == before
