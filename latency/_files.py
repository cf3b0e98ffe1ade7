"""Writes a file whole or not at all, and lets one process own a folder.

A file is written beside its name as ``.NAME.PID.N.part``, flushed to the disk, and renamed. While it is written its
writer holds a lock on it, which the system lets go of when the writer dies: what a killed process has left is told
from what is being written, and the next write of that name, or the next owner of the folder, removes it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import weakref
from pathlib import Path

from latency.errors import OutputInUseError, WriteError

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
    _refuse(path, overwrite)
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
    except OSError as error:
        raise _refusal(path, error) from error


def check_place(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuses a file that could not be written, before the work for it is done; makes and changes nothing.

    Raises:
        OutputInUseError: it is there and may not be replaced.
        WriteError: a file stands where a folder above it belongs, or that folder may not be written.
    """
    path = Path(path)
    _refuse(path, overwrite)
    try:
        above = next(p for p in path.absolute().parents if os.path.lexists(p))
    except OSError as error:
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
    beginning = "." if of is None else f".{_short(of)}."
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
            self._make()
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

    def _make(self) -> None:
        missing = []
        folder = self.folder.absolute()
        while not os.path.lexists(folder):
            missing.append(folder)
            folder = folder.parent
        for one in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(one)
                self.made.append(one)

    def _remove_made(self) -> None:
        for one in reversed(self.made):
            try:
                os.rmdir(one)
            except OSError:  # something is in it
                break


def _refuse(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputInUseError(
            f"{path} was asked as the file to write, but is a folder; give the name of a file"
        )
    if not overwrite and os.path.lexists(path):
        raise OutputInUseError(f"{path} exists already and was left alone; give another name or remove it")


def _refusal(path: Path, error: OSError, *, what: str = "the file") -> WriteError:
    """Returns an error of the system as a WriteError of one sentence."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        cure = "free some space and type the same command again; what was there is unchanged"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        reason, cure = "a file stands where a folder belongs", "name another place"
    else:
        cure = "name a place that may be written"
    return WriteError(f"{what} {path} was to be written and could not be: {reason}; {cure}")


def _begin(path: Path, mode: int) -> tuple[Path, int]:
    """Makes and locks the file that ``path`` is written as; returns it and its descriptor."""
    while True:
        part = path.with_name(f".{_short(path.name)}.{os.getpid()}.{next(_numbers)}.part")
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


def _short(name: str) -> str:
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
