"""Reads files from outside and writes files whole or not at all; lets one process own a folder.

What is read is read up to a size limit, converted to a type, or refused in one sentence. Every kind of file has one
type (a dataclass, a ``TypedDict`` or plain ``dict[str, …]``) whose annotations state what each field may hold; msgspec
fits the values to it. Nothing of a file is ever executed.

What is written is written beside its name as ``.NAME.PID.N.part``, flushed to the disk, and renamed. While it is
written its writer holds a lock on it, which the system lets go of when the writer dies: what a killed process has left
is told from what is being written, and the next write of that name, or the next owner of the folder, removes it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import weakref
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from latency.errors import HalpieeError, OutputInUseError, UsageError, WriteError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and what a killed process left stays
    fcntl = None  # type: ignore[assignment]


_LEFT = re.compile(r"\..+\.\d+\.\d+\.part", re.DOTALL)
"""Names of files that are being written, or were when their writer died."""

LOCK = ".lock"
"""A lock file, used only where the file system cannot lock folders, as on NFS."""

_numbers = itertools.count()


def write(path: str | Path, content: bytes | str, *, overwrite: bool = False, private: bool = False) -> None:
    """Writes a file, whole or not at all; folders above it are made.

    Args:
        path: the file.
        content: all of it; text is encoded as UTF-8.
        overwrite: whether a file that is there is replaced.
        private: whether nobody else may read it; otherwise its mode is what the umask leaves.

    Raises:
        OutputInUseError: it is there and may not be replaced, also where another process made it just now.
        WriteError: the disk is full, the folder cannot be made, or may not be written; what was there is unchanged.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        _refuse(path, overwrite)
        _make(path.parent, [])
        remove_leftovers(path.parent, of=path.name)
        part, descriptor = _begin(path, 0o600 if private else 0o666)
        try:
            rest = memoryview(data)
            while len(rest):
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
            _name(part, path, overwrite)
            _sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from error


def check_place(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuses a file that could not be written, before the work for it is done; makes and changes nothing.

    Raises:
        OutputInUseError: it is there and may not be replaced.
        WriteError: a file stands where a folder above it belongs, or that folder may not be written.
    """
    path = Path(path)
    try:
        _refuse(path, overwrite)
        above = next(p for p in path.absolute().parents if os.path.lexists(p))
    except (OSError, ValueError) as error:
        raise _refusal(path, error) from error
    if not above.is_dir():
        raise _refusal(path, NotADirectoryError(errno.ENOTDIR, f"{above} is no folder"))
    if not os.access(above, os.W_OK | os.X_OK):
        raise _refusal(path, PermissionError(errno.EACCES, f"{above} may not be written"))


def contents(folder: Path) -> list[str]:
    """Returns the names in a folder without files that were being written, and without its lock."""
    return sorted(name for name in os.listdir(folder) if name != LOCK and not _LEFT.fullmatch(name))


def remove_leftovers(folder: Path, *, of: str | None = None) -> list[str]:
    """Removes the unfinished files of processes that died while writing, or only those of one name; returns them."""
    removed: list[str] = []
    beginning = "." if of is None else f".{_cut(of)}."
    try:
        names = os.listdir(folder)
    except OSError:  # it may be written and not be read
        return removed
    for name in names:
        if not (name.startswith(beginning) and _LEFT.fullmatch(name)):
            continue
        if of is not None and not re.fullmatch(r"\d+\.\d+\.part", name[len(beginning) :]):
            continue
        with contextlib.suppress(OSError):  # another process cleans up too
            descriptor = os.open(folder / name, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if lock(descriptor):
                    os.unlink(folder / name)
                    removed.append(name)
            finally:
                os.close(descriptor)
    return removed


class FolderLock:
    """A folder that belongs to this process until it closes the lock or dies; made where it is not there.

    The lock is the system's own, on the folder itself: it leaves no file, and nothing is to be cleaned up after a
    process that was killed.

    Attributes:
        made: the folders that were made for it, the outermost first.

    Raises:
        OutputInUseError: another process holds it, or it is a file.
        WriteError: it cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise OutputInUseError(f"{folder} is a file; choose a folder that does not exist yet")
        self.folder = folder
        self.made: list[Path] = []
        try:
            descriptor = self._locked()
        except OSError as error:
            self._remove_made()
            raise _refusal(folder, error, what="the folder") from error
        self._release = weakref.finalize(self, os.close, descriptor)

    def close(self) -> None:
        """Releases the folder."""
        self._release()

    def undo(self) -> None:
        """Releases the folder, and removes the folders that were made for it and are empty."""
        self._remove_made()
        self.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _locked(self) -> int:
        """Returns the descriptor that holds the lock."""
        while True:
            _make(self.folder, self.made)
            descriptor = os.open(self.folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
            try:
                self._claim(descriptor)
                if self._is(descriptor):
                    if not os.access(self.folder, os.W_OK | os.X_OK):
                        raise PermissionError(errno.EACCES, "it may not be written")
                    return descriptor
            except OSError as error:
                os.close(descriptor)
                if error.errno not in (errno.EBADF, errno.EINVAL, errno.EISDIR):
                    raise
                return self._locked_by_file()  # folders cannot be locked there
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # whoever had the folder has removed it: it is made again

    def _locked_by_file(self) -> int:
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._claim(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _claim(self, descriptor: int) -> None:
        if lock(descriptor) is False:
            raise OutputInUseError(
                f"{self.folder} was asked for, and another process is writing it; wait for it to end, or name another "
                "folder"
            )

    def _is(self, descriptor: int) -> bool:
        """Returns whether the path still names the folder that was opened."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.folder))
        except FileNotFoundError:
            return False

    def _remove_made(self) -> None:
        for one in reversed(self.made):
            try:
                os.rmdir(one)
            except OSError:  # something is in it
                break


def _make(folder: Path, made: list[Path]) -> None:
    """Makes a folder and those above it, and appends to ``made`` each that was not there, the outermost first."""
    missing = []
    folder = folder.absolute()
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(one)
            made.append(one)


def _refuse(path: Path, overwrite: bool) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(path)  # refuses what is no name: it is too long, or has a zero byte in it
    if path.is_dir():
        raise OutputInUseError(
            f"{path} was asked as the file to write, but is a folder; give the name of a file"
        )
    if not overwrite and os.path.lexists(path):
        raise OutputInUseError(f"{path} exists already and was left alone; give another name or remove it")


def _refusal(path: Path, error: OSError | ValueError, *, what: str = "the file") -> WriteError:
    """Returns an error of the system as a WriteError of one sentence."""
    number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        cure = "free some space and type the same command again; what was there is unchanged"
    elif number in (errno.EEXIST, errno.ENOTDIR):
        reason, cure = "a file stands where a folder belongs", "name another place"
    else:
        cure = "name a place that may be written"
    return WriteError(f"{what} {path} was to be written and could not be: {reason}; {cure}")


def _begin(path: Path, mode: int) -> tuple[Path, int]:
    """Makes and locks the file that ``path`` is written as; returns it and its descriptor."""
    while True:
        part = path.with_name(f".{_cut(path.name)}.{os.getpid()}.{next(_numbers)}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        # Whoever cleans up may have come in between.
        if lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return part, descriptor
        os.close(descriptor)
        part.unlink(missing_ok=True)


def _name(part: Path, path: Path, overwrite: bool) -> None:
    """Renames a written file; without ``overwrite`` the first of two processes wins."""
    if overwrite:
        os.replace(part, path)
        return
    try:
        os.link(part, path)
    except FileExistsError:
        _refuse(path, overwrite=False)
        raise
    except OSError:  # a file system without links
        _refuse(path, overwrite=False)
        os.replace(part, path)


def _cut(name: str) -> str:
    """Returns a name cut to 200 bytes: file systems take 255, and a part's name is longer."""
    return name.encode(errors="surrogateescape")[:200].decode(errors="ignore")


def lock(descriptor: int) -> bool | None:
    """Locks an open file or folder; returns whether that worked, or None where nothing can be locked."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            return None
        raise
    return True


def _sync_folder(folder: Path) -> None:
    """Flushes the names of a folder to the disk, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


MOST_BYTES = 64 * 2**20
"""Largest file that is read whole."""

DEPTH = 64
"""How deep a file may be nested."""

T = TypeVar("T")


def read_bytes(
    path: Path,
    *,
    what: str,
    advice: str,
    error: type[HalpieeError] = UsageError,
    most_bytes: int = MOST_BYTES,
) -> bytes:
    """Returns the bytes of a file or a pipe. ``what`` names it in the refusal, ``advice`` says what to do then.

    Raises:
        HalpieeError: of the class given: it cannot be read, or is larger.
    """
    try:
        with open(path, "rb", opener=_opened) as file:
            data = file.read(most_bytes + 1)
    except (OSError, ValueError) as problem:
        raise error(
            f"{what} cannot be read ({getattr(problem, 'strerror', None) or problem}); {advice}"
        ) from None
    if len(data) > most_bytes:
        raise error(f"{what} is larger than {most_bytes / 2**20:.0f} MiB, which no such file is; {advice}")
    return data


def _opened(path: str, flags: int) -> int:
    """Opens a file; a pipe that nobody writes into is at its end, and not waited for."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(descriptor, True)
    return descriptor


def parsed(data: bytes, *, what: str, advice: str, error: type[HalpieeError] = UsageError) -> Any:
    """Returns the value of a JSON text in UTF-8.

    Raises:
        HalpieeError: of the class given: it is none.
    """
    if _depth(data) > DEPTH:
        raise error(f"{what} is nested more than {DEPTH} deep, which no such file is; {advice}")
    try:
        value = json.loads(data.decode("utf-8"))
        if b"\\u" in data:  # half of a pair that no text holds and no screen shows
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise error(f"{what} is not UTF-8 text; {advice}") from None
    except ValueError as problem:
        raise error(f"{what} is not JSON ({_short(str(problem))}); {advice}") from None
    return value


def sound(value: Any, kind: type[T], *, what: str, advice: str, error: type[HalpieeError] = UsageError) -> T:
    """Returns a value of plain JSON types converted to ``kind``, whose annotations msgspec reads.

    Raises:
        HalpieeError: of the class given: it names the field, what was found and what was expected.
    """
    try:
        return msgspec.convert(value, kind)
    except RecursionError:
        raise error(f"{what} is nested too deep, which no such file is; {advice}") from None
    except (msgspec.ValidationError, OverflowError, UnicodeError) as problem:
        raise error(f"{what} {misfit(value, problem)}; {advice}") from None


def read_json(
    path: Path,
    kind: type[T],
    *,
    what: str,
    advice: str,
    error: type[HalpieeError] = UsageError,
    most_bytes: int = MOST_BYTES,
) -> T:
    """Returns the content of a JSON file, converted to a type; arguments as above."""
    data = read_bytes(path, what=what, advice=advice, error=error, most_bytes=most_bytes)
    return sound(
        parsed(data, what=what, advice=advice, error=error), kind, what=what, advice=advice, error=error
    )


def misfit(value: Any, problem: Exception) -> str:
    """Returns why a value does not fit: ``holds 'x' at groups[0].size, where int >= 1 is expected``."""
    text, _, place = str(problem).partition(" - at ")
    key = place.startswith("`key` in ")
    place = place.removeprefix("`key` in ").strip("`").removeprefix("$").removeprefix(".")
    text = text.replace("`", "")
    lacking = re.fullmatch(r"Object missing required field (.+)", text)
    inside = f" at {place}" if place else ""
    if lacking:
        return f"lacks the field {lacking[1]!r}{inside}"
    expected = text.removeprefix("Expected ").partition(", got ")[0]
    if not text.startswith("Expected "):
        return f"does not fit{inside}: {text[:1].lower()}{text[1:]}"
    found, known = (None, False) if key else found_in(value, place)
    shown = (
        f"holds {_short(repr(found))}" if known else "holds another name" if key else "holds something else"
    )
    return f"{shown}{inside or ' as a whole'}, where {expected} is expected"


def found_in(value: Any, place: str) -> tuple[Any, bool]:
    """Returns what stands at a place such as ``groups[0].size``, and whether the place says which one."""
    for name, at in re.findall(r"\.?([^.\[\]]+)|\[([^\]]*)\]", place):
        try:
            if at:
                if not at.isdigit():
                    return None, False
                value = value[int(at)]
            else:
                value = value[name]
        except (KeyError, IndexError, TypeError):
            return None, False
    return value, True


def _depth(data: bytes) -> int:
    """Returns how deep the brackets of a JSON text are nested."""
    deepest = depth = 0
    if data.count(b"[") + data.count(b"{") > DEPTH:
        for mark in re.sub(rb'[^\[\]{}"]+|"(?:[^"\\]|\\.)*"', b"", data, flags=re.DOTALL):
            depth += 1 if mark in b"[{" else -1
            deepest = max(deepest, depth)
    return deepest


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + " …"
