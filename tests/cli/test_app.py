"""The program as a user meets it: help, errors of one sentence, exit codes; as a process where that is the question."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest

from halpiee.cli.app import main, program
from halpiee.cli.output import ScreenTalk, printable
from halpiee.errors import ScoreWarning

VERBS = (
    "demo",
    "train",
    "profile",
    "plan",
    "explain",
    "export",
    "verify",
    "bench",
    "report",
    "inspect",
    "doctor",
)


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the program as a user does."""
    command = [sys.executable, "-m", "halpiee", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def halpiee(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the program's main here, where torch is imported already."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main(list(arguments))
    return subprocess.CompletedProcess(arguments, int(end.value.code or 0), out.getvalue(), err.getvalue())


@pytest.mark.parametrize("typed", [["train"], ["export", "nothing"], ["compare", "x.yaml"]])
def test_an_option_that_must_be_given_is_asked_for(typed: list[str]) -> None:
    done = halpiee(*typed)
    assert done.returncode == 2
    assert "Missing option '--out'" in done.stderr


def test_a_warning_of_this_project_is_one_plain_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command("warns")
    def warns() -> None:
        warnings.warn("all scores are equal", ScoreWarning, stacklevel=1)

    monkeypatch.setitem(program.commands, "warns", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.raises(SystemExit):
            main(["warns"])
    assert capsys.readouterr().err == "note: all scores are equal\n"


def test_help_names_every_verb() -> None:
    shown = process("--help")
    assert shown.returncode == 0
    for verb in VERBS:
        assert f"\n  {verb} " in shown.stdout


def test_help_loads_no_torch() -> None:
    code = "import sys, halpiee.cli.app; sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_latency_loads_no_torch() -> None:
    code = "import sys, latency; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_ends_its_help_in_examples(verb: str) -> None:
    shown = halpiee(verb, "--help")
    assert "Examples:\n" in shown.stdout
    assert shown.stdout.rstrip().splitlines()[-1].strip().startswith("halpiee ")


def test_an_unknown_model_is_one_sentence_with_close_names_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    shown = halpiee("train", "resnet2O", "--data", "digits", "--budget", "0.5", "--out", str(out))
    assert shown.returncode == 2
    assert "resnet2O" in shown.stderr
    assert "resnet20" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "quick"), "such as 0.5 or 50%"),
        (("--budget", "1.5"), "give a share up to 1"),
        (("--budget", "300"), "such as 300us or 300ms"),
        (("--epochs", "0"), "at least 1"),
        (("--data", "no/such/folder"), "no/such/folder"),
        (("--weights", "no.safetensors"), "no such file"),
        (("--profile", "no.jsonl"), "no such file"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    out = tmp_path / "run"
    base = ["train", "resnet20", "--data", "digits", "--budget", "0.5", "--out", str(out)]
    shown = halpiee(*base, *options)
    assert shown.returncode == 2, shown.stderr
    assert words in shown.stderr
    assert "Traceback" not in shown.stderr
    assert not out.exists()


def test_an_empty_data_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shown = halpiee(
        "train",
        "resnet20",
        "--data",
        str(tmp_path / "empty"),
        "--budget",
        "0.5",
        "--out",
        str(tmp_path / "run"),
    )
    assert shown.returncode == 2
    assert "empty" in shown.stderr


def test_a_folder_in_use_is_not_touched(tmp_path: Path) -> None:
    kept = tmp_path / "mine.txt"
    kept.write_text("mine")
    shown = halpiee("train", "resnet20", "--data", "digits", "--budget", "0.5", "--out", str(tmp_path))
    assert shown.returncode == 2
    assert "choose another folder" in shown.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt"]
    assert halpiee("demo", "--out", str(tmp_path)).returncode == 2


def test_resuming_what_is_no_run_says_so(tmp_path: Path) -> None:
    shown = halpiee("train", "--resume", "--out", str(tmp_path))
    assert shown.returncode == 2
    assert "holds no run" in shown.stderr


def test_an_error_under_json_is_one_object(tmp_path: Path) -> None:
    shown = halpiee(
        "train", "resnet20", "--data", "digits", "--budget", "x", "--out", str(tmp_path / "r"), "--json"
    )
    answer = json.loads(shown.stdout)
    assert answer["exit_code"] == shown.returncode == 2


@pytest.mark.slow
def test_doctor_answers_in_json_with_a_fix_for_what_is_broken() -> None:
    shown = process("doctor", "--json")
    answer = json.loads(shown.stdout)
    assert shown.returncode == (0 if answer["healthy"] else 3)
    whats = [f["what"] for f in answer["findings"]]
    assert {"Python", "torch", "onnxruntime", "cores", "OMP_WAIT_POLICY", "contention"} <= set(whats)
    for finding in answer["findings"]:
        assert finding["fix"] or finding["state"] != "broken"


def test_a_usage_error_under_json_is_one_object_too() -> None:
    shown = halpiee("profile", "resnet20", "--size", "banana", "--json")
    answer = json.loads(shown.stdout)
    assert answer["exit_code"] == shown.returncode == 2
    assert "banana" in answer["error"]


def interrupted(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Returns what is said of an interruption; the verb is stopped by what the test has put into it."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 130
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("written", [True, False])
def test_an_interrupted_training_promises_to_go_on_only_once_it_has_begun(
    written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(settings: object, folder: Path, *_: object, **__: object) -> None:
        if written:
            folder.mkdir()
            (folder / "settings.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("halpiee.training.preflight.open_run", begin)
    out = tmp_path / "my run"
    said = interrupted(capsys, "train", "resnet20", "--data", "digits", "--budget", "0.5", f"--out={out}")
    going = f"the run is saved; `halpiee train --resume --out '{out}'` continues it"
    lost = "nothing was saved; type the same command again"
    assert said == f"halpiee: interrupted; {going if written else lost}"


@pytest.mark.parametrize("written", [True, False])
def test_an_interrupted_sweep_promises_to_go_on_only_where_it_wrote(
    written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.jsonl"

    def sweep(*_: object, **__: object) -> None:
        if written:
            out.write_text("")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("latency.sweep", sweep)
    before = signal.getsignal(signal.SIGTERM)
    said = interrupted(capsys, "profile", "resnet20", "--width", "0.25", "--size", "8", "--out", str(out))
    going = f"what was measured is in {out}; the same command continues it"
    assert said.endswith(going if written else "nothing was saved; type the same command again")
    assert signal.getsignal(signal.SIGTERM) is before


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    talk = ScreenTalk()
    talk.stage("Profile mynets:two:x [bold]")
    talk.note("mynets:two:x [red]")
    assert capsys.readouterr().err.splitlines() == ["Profile mynets:two:x [bold]", "  mynets:two:x [red]"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("runs/größe is 3 × 4 µs", "runs/größe is 3 × 4 µs"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[2J\u202e\udcff", "\\x1b[2J\\u202e\\udcff"),
        (f"path {'a' * 200}{'b' * 200} end", f"path {'a' * 150} … {'b' * 150} end"),
        ("a" * 300, "a" * 300),
    ],
)
def test_a_line_is_one_line_and_moves_no_cursor(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_name_that_is_no_text_is_printed_as_far_as_it_is(tmp_path: Path) -> None:
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True)
    with redirect_stdout(out), pytest.raises(SystemExit) as end:
        main(["methods"])
    assert (end.value.code, out.errors) == (0, "replace")


def test_the_progress_line_names_the_figure_of_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"loss": 0.5, "accuracy": 0.25, "latency_us": 120.4, "figure": "Mean IoU"}
    ScreenTalk().training("pruned", 10, 10, entry, "limited by the loader")
    said = "training pruned: 10/10 loss 0.500  Mean IoU 25.0%  120 µs  limited by the loader"
    assert " ".join(capsys.readouterr().err.split()) == " ".join(said.split())


def test_cycles_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    shown = halpiee(
        "train",
        "resnet20",
        "--data",
        "digits",
        "--budget",
        "0.5",
        "--epochs",
        "1",
        "--batch-size",
        "512",
        "--method",
        "iee",
        "--out",
        str(out),
    )
    assert shown.returncode == 2
    assert "1 cycle was asked of 2 steps" in shown.stderr
    assert not out.exists()
