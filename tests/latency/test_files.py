"""Files are there whole or not at all, whoever is killed when; a folder belongs to one process at a time."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latency import files as _files
from latency.errors import OutputInUseError, WriteError
from latency.files import FolderLock, check_place, contents, remove_leftovers, write

KILLED = """
import os, signal, sys
from latency.files import write

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

really = os.write
os.write = (lambda fd, data: (really(fd, bytes(data)[: len(data) // 2]), kill())) if sys.argv[2] == "write" else really
if sys.argv[2] != "write":
    setattr(os, sys.argv[2], kill)
write(sys.argv[1], "new " * 1000, overwrite=sys.argv[3] == "over")
"""


def python(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("at", ["write", "fsync", "replace", "unlink"])
def test_a_process_killed_while_it_replaces_a_file_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, at: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with python(KILLED, path, at, "over") as process:
        assert process.wait() == -signal.SIGKILL
    assert path.read_text() == ("new " * 1000 if at == "unlink" else "old")
    left = [name for name in os.listdir(tmp_path) if name != "a.json"]
    assert len(left) == (at != "unlink")
    assert contents(tmp_path) == ["a.json"]  # what it left is no content
    write(path, "third", overwrite=True)
    assert os.listdir(tmp_path) == ["a.json"]
    assert path.read_text() == "third"


@pytest.mark.parametrize("at", ["write", "fsync", "link", "unlink"])
def test_a_process_killed_while_it_makes_a_file_leaves_nothing_that_the_next_does_not_remove(
    tmp_path: Path, at: str
) -> None:
    path = tmp_path / "a.json"
    with python(KILLED, path, at, "new") as process:
        assert process.wait() == -signal.SIGKILL
    assert contents(tmp_path) == (["a.json"] if at == "unlink" else [])
    assert len(os.listdir(tmp_path)) == 1 + (at == "unlink")
    assert len(remove_leftovers(tmp_path)) == 1
    assert os.listdir(tmp_path) == (["a.json"] if at == "unlink" else [])


WAITS = """
import os, sys
from latency import files as _files

really = os.fsync
os.fsync = lambda fd: (print("writing", flush=True), sys.stdin.readline(), really(fd))
_files._sync_folder = lambda folder: None
_files.write(sys.argv[1], "theirs", overwrite=True)
"""


def test_what_a_living_process_is_writing_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with python(WAITS, path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert remove_leftovers(tmp_path) == []
        write(path, "ours", overwrite=True)
        assert len(os.listdir(tmp_path)) == 2
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait() == 0
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["a.json"]


def test_only_names_of_unfinished_files_are_cleaned_up(tmp_path: Path) -> None:
    mine = [".env", ".a.json.part", "a.json.12.0.part", ".a.json.12", ".a.12.0.part.txt"]
    for name in (*mine, ".a.json.12.0.part", ".b.json.7.31.part"):
        (tmp_path / name).touch()
    write(tmp_path / "a.json", "")
    assert sorted(os.listdir(tmp_path)) == sorted([*mine, "a.json", ".b.json.7.31.part"])
    assert remove_leftovers(tmp_path) == [".b.json.7.31.part"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "a", b"new")
        write(tmp_path / "a", b"over", overwrite=True)
        write(tmp_path / "key", b"secret", private=True)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_of_two_processes_that_make_one_file_the_second_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, really = tmp_path / "a.json", os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (path.write_text("theirs"), really(fd)))
    with pytest.raises(OutputInUseError, match="exists already and was left alone; give another name"):
        write(path, "ours")
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["a.json"]


FULL = """
import sys
from latency.files import write
from latency.errors import WriteError

try:
    write(sys.argv[1], b"x" * 10_000, overwrite=True)
except WriteError as error:
    print(error)
"""


def test_a_disk_that_is_full_is_said_in_one_sentence_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    process = subprocess.run(
        [sys.executable, "-c", FULL, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert process.stdout == (
        f"the file {path} was to be written and could not be: File too large; "
        "free some space and type the same command again; what was there is unchanged\n"
    )
    assert os.listdir(tmp_path) == ["a.bin"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EROFS, "Read-only file system; name a place"),
    ],
)
def test_what_the_system_refuses_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(fd: int, data: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(WriteError, match=words):
        write(tmp_path / "a", "text")
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    check_place(tmp_path / "new" / "deep" / "a.json")
    assert os.listdir(tmp_path) == ["file"]
    for place in ("file/a.json", "file/deep/a.json"):
        with pytest.raises(WriteError, match="a file stands where a folder belongs; name another place"):
            check_place(tmp_path / place)
        with pytest.raises(WriteError, match="a file stands where a folder belongs; name another place"):
            write(tmp_path / place, "")
    with pytest.raises(OutputInUseError, match="exists already"):
        check_place(tmp_path / "file")
    check_place(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputInUseError, match="is a folder; give the name of a file"):
        check_place(tmp_path, overwrite=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(WriteError, match="may not be written; name a place that may be written"):
        check_place(tmp_path / "a.json")
    with pytest.raises(WriteError, match="it may not be written; name a place that may be written"):
        FolderLock(tmp_path / "run")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("name", "why"),
    [("x" * 300, "File name too long"), ("a/" * 3000 + "b", "File name too long"), ("a\0b", "null")],
)
def test_what_is_no_name_is_refused_before_the_work_and_nothing_is_made(
    name: str, why: str, tmp_path: Path
) -> None:
    said = f"could not be: .*{why}.*; name a place that may be written"
    with pytest.raises(WriteError, match=said):
        check_place(tmp_path / name)
    with pytest.raises(WriteError, match=said):
        write(tmp_path / name, b"")
    assert not contents(tmp_path)


def test_a_file_below_a_thousand_folders_is_written(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"a" * 1010)
    try:
        write(deep / "f", b"1")
        assert (deep / "f").read_bytes() == b"1"
    finally:  # shutil's own way, which pytest goes, is a recursion
        subprocess.run(["rm", "-r", str(tmp_path / "a")], check=True)


def test_a_name_as_long_as_names_may_be_is_written(tmp_path: Path) -> None:
    name = "é" * 125 + ".json"  # 255 bytes
    write(tmp_path / name, "µ")
    write(tmp_path / name, "µs", overwrite=True)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == "µs".encode()


HOLDS = """
import sys
from pathlib import Path
from latency.files import FolderLock

lock = FolderLock(Path(sys.argv[1]))
print("mine", flush=True)
sys.stdin.readline()
"""


def test_a_folder_belongs_to_one_process_until_it_dies(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with python(HOLDS, folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        with pytest.raises(
            OutputInUseError, match=r"another process is writing it; wait for it to end, or name another"
        ):
            FolderLock(folder)
        process.kill()
        process.wait()
    with FolderLock(folder):
        assert os.listdir(folder) == []  # the lock is no file
        with pytest.raises(OutputInUseError, match="another process is writing it"):
            FolderLock(folder)
    FolderLock(folder).undo()  # it made nothing
    assert folder.is_dir()


def test_what_was_made_for_a_folder_and_is_empty_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    FolderLock(tmp_path / "mine" / "a" / "b").undo()
    assert os.listdir(tmp_path / "mine") == []
    lock = FolderLock(tmp_path / "mine" / "a" / "b")
    (tmp_path / "mine" / "a" / "note").touch()
    lock.undo()
    assert sorted(p.name for p in (tmp_path / "mine").rglob("*")) == ["a", "note"]


def test_a_folder_that_was_removed_while_it_was_waited_for_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, really = tmp_path / "run", _files.lock
    removed: list[Path] = []

    def lock(descriptor: int) -> bool | None:
        if not removed:
            folder.rmdir()
            removed.append(folder)
        return really(descriptor)

    monkeypatch.setattr(_files, "lock", lock)
    with FolderLock(folder):
        assert folder.is_dir()
        with pytest.raises(OutputInUseError):
            FolderLock(folder)


def test_where_folders_cannot_be_locked_a_file_in_them_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, which locks only what was opened to be written."""
    import fcntl

    really = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)):
            raise OSError(errno.EBADF, "Bad file descriptor")
        really(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with FolderLock(tmp_path):
        with pytest.raises(OutputInUseError, match="another process is writing it"):
            FolderLock(tmp_path)
        assert contents(tmp_path) == []


@pytest.mark.slow  # two dozen starts of Python
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    program = (
        "import sys\nfrom latency.files import write\n"
        "while True:\n    for c in 'ab':\n        write(sys.argv[1], c * 100_000, overwrite=True)\n"
    )
    for n in range(24):
        with python(program, path) as process:
            while not path.exists():
                time.sleep(0.001)
            time.sleep(0.002 + 0.001 * n)
            process.kill()
            process.wait()
        text = path.read_text()
        assert text in ("a" * 100_000, "b" * 100_000)
    write(path, "", overwrite=True)
    assert os.listdir(tmp_path) == ["a.json"]
