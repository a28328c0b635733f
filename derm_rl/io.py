"""Atomic reading and writing: a file or folder is there whole, or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from derm_rl.masking import mask

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to; takes its name when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: np.save and matplotlib decide by it.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp made it private
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``path``; replaces ``path`` when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        temporary.chmod(0o755)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():  # failed between the two renames
            os.replace(old, path)
        shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    with open(path, "rb") as written:
        os.fsync(written.fileno())


# What the system says of a name that is wrong; every other error number may be gone next time.
_LASTING = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip


def passing(error: BaseException) -> bool:
    """Whether a read failed for want of something (descriptors, memory, rights, a disk that
    answers), and says nothing of what the file holds. Decoders raise OSError without a number."""
    if isinstance(error, (MemoryError, TimeoutError)):
        return True
    return isinstance(error, OSError) and error.errno not in (None, *_LASTING)


def cannot_read(path: str | Path, error: BaseException) -> OSError:
    """The error to raise for a file that could not be read, and therefore was not judged."""
    number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
    reason = getattr(error, "strerror", None) or error or type(error).__name__
    text = f"cannot be read now ({reason}). It was left as it is: mend this, then run again"
    return OSError(number, text, str(path))


def set_aside(path: str | Path, why: str, problem: str) -> Path:
    """Rename a file that was read and cannot be used to ``name.<why>-<n>``; say so on stderr.

    Args:
        why: "torn" or "foreign".
        problem: what is wrong with it.
    """
    path, number = Path(path), 1
    while (target := path.with_name(f"{path.name}.{why}-{number}")).exists():
        number += 1
    with suppress(FileNotFoundError):  # another process of the same run was quicker
        os.rename(path, target)
    print(f"{path}: {problem}; not used, kept as {target.name}", file=sys.stderr)
    return target


def is_set_aside(path: Path) -> bool:
    return re.search(r"\.(torn|foreign)-\d+$", path.name) is not None


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write text (UTF-8), in which no key remains, or bytes as they are."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(mask(content).encode() if isinstance(content, str) else content)
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write JSON with sorted keys; NaN and infinity are refused, they are not JSON."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return write_atomic(path, text + "\n")


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def write_csv(path: str | Path, frame: pd.DataFrame) -> Path:
    """Write a table without its index; missing values are empty cells."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
    return Path(path)


def read_csv(path: str | Path, **options: Any) -> pd.DataFrame:
    """Read a table; the error for a file that is not there or not a table names it."""
    import pandas as pd

    try:
        return pd.read_csv(path, **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable CSV table ({error})") from error
