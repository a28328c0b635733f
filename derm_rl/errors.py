"""Errors that whoever runs this can mend; the command line shows them as one line.

An expected error is a :class:`Mendable` or an ``OSError`` (:func:`mendable`). Anything else is a
fault of the program and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

_ELSEWHERE = "the environment variable DERM_RL_RUNS names another folder for all results"
_REMEDIES = {
    errno.EACCES: f"get the right to it; {_ELSEWHERE}",
    errno.EPERM: f"get the right to it; {_ELSEWHERE}",
    errno.EROFS: f"nothing can be written there; {_ELSEWHERE}",
    errno.ENOTDIR: f"a file stands where a folder is needed: move it away; {_ELSEWHERE}",
    errno.EEXIST: f"something else stands there: move it away; {_ELSEWHERE}",
    errno.EISDIR: "a folder stands where a file is needed: move it away",
    errno.ENOENT: "correct the path, or make what is missing",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
}
_NO_SPACE = ("no space left on device", "database or disk is full", "disk quota exceeded")


class Mendable(Exception):
    """What whoever runs this can mend; the message names the file or key, and what to do."""

    exit_status = 1  # of the command; 2 where it was called wrongly


class FileError(Mendable, ValueError):
    """A file whose content cannot be used."""


class DiskFull(Mendable, OSError):
    """Nothing more can be written; the message names the file system and its free space."""


def mendable(error: BaseException) -> str | None:
    """The one line about an error that its reader can mend; None for a fault of the program."""
    if isinstance(error, Mendable):
        return str(error)
    if isinstance(error, MemoryError):
        return f"memory ran out ({error}); choose smaller batches or images, or fewer jobs"
    if not isinstance(error, OSError) or error.errno == errno.EPIPE:
        return None
    if says_full(error):
        return full_disk(error.filename or Path.cwd())
    if error.errno is None or error.filename is None:
        return str(error)
    remedy = _REMEDIES.get(error.errno)
    return f"{error.filename}: {error.strerror}" + (f"; {remedy}" if remedy else "")


def says_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that of a full disk, as far as it says so."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error).lower() for words in _NO_SPACE):
            return True
        error = error.__cause__ or error.__context__
    return False


def nearly_full(path: str | Path) -> bool:
    """Whether next to nothing fits on the disk of ``path``: some writers fail without a reason."""
    free = os.statvfs(_folder(path))
    return free.f_bavail * free.f_frsize < 1 << 16


def full_disk(path: str | Path) -> str:
    """What to say where the disk of ``path`` is full."""
    folder = _folder(path)
    mount = next(p for p in (folder, *folder.parents) if p.is_mount())
    state = os.statvfs(folder)
    free = f"{state.f_bavail * state.f_frsize / 1e6:.1f} MB free"
    if state.f_files and not state.f_favail:
        free += " and room for no further file"
    return (
        f"{path}: the disk is full: file system {mount} has {free}; nothing half-written is kept. "
        f"Free some space and run the same again; {_ELSEWHERE}"
    )


def _folder(path: str | Path) -> Path:
    path = Path(path).resolve()
    return next(p for p in (path, *path.parents) if p.is_dir())
