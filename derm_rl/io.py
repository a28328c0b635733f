"""Reading and writing: a file is there whole, or not at all, and what is wrong with it is named."""

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

from derm_rl.errors import DiskFull, FileError, Mendable, full_disk, nearly_full, says_full
from derm_rl.masking import mask

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def _failing_clearly(path: Path) -> Iterator[None]:
    """A failure to write ``path`` says so if the disk is full, and names no temporary file."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        vague = isinstance(error, OSError | RuntimeError) and nearly_full(path)
        if vague or says_full(error):
            raise DiskFull(full_disk(path)) from error
        ours = f".{path.stem}."  # how temporary names begin
        if isinstance(error, OSError) and Path(str(error.filename)).name.startswith(ours):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to; takes its name when the block succeeds.

    Raises:
        DiskFull: there is no room; what was there before stays.
    """
    path, temporary = Path(path), None
    try:
        with _failing_clearly(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # The suffix stays: np.save and matplotlib decide by it.
            handle, name = tempfile.mkstemp(
                dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix
            )
            os.close(handle)
            temporary = Path(name)
            yield temporary
            _flush(temporary)
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)  # mkstemp made it private
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``path``; replaces ``path`` when the block succeeds.

    Raises:
        DiskFull: there is no room; what was there before stays.
    """
    path, temporary = Path(path), None
    try:
        with _failing_clearly(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
            old = temporary.with_name(temporary.name + ".old")
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            temporary.chmod(0o755)
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
    finally:
        if temporary is not None:
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


def reserve(path: str | Path) -> None:
    """Take the room of a file that is as long as it will be, but empty.

    A process that writes to a memory map is killed, without an error, where the disk is full.

    Raises:
        DiskFull: there is no room; the file is removed.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            if not says_full(error):
                return  # a file system that cannot reserve
            message = full_disk(path)
            Path(path).unlink()
            raise DiskFull(message) from error


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
    """What a JSON file holds.

    Raises:
        FileError: it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(
            f"{path}: not valid JSON ({error}); restore it, or delete it and run again what made it"
        ) from error


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FileError: it is not JSON, or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise FileError(
            f"{path}: expected a JSON object, found {type(value).__name__}; restore it, or delete "
            "it and run again what made it"
        )
    return value


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars of transformers and diffusers for files of a few megabytes."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    enabled = [x for x in (diffusers, transformers) if x.is_progress_bar_enabled()]
    for library in enabled:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in enabled:
            library.enable_progress_bar()


@contextmanager
def loading(model: str | Path) -> Iterator[None]:
    """Around the loading of a model, by folder or hub id, which libraries do: without their bars.

    Raises:
        FileError: it cannot be loaded, for whatever reason; names the damaged file.
    """
    try:
        with quietly():
            yield
    except (Mendable, ImportError, MemoryError):
        raise
    except Exception as error:
        file, reason = _damaged(Path(model)) or (model, error)
        said = " ".join(f"{type(reason).__name__}: {reason}".split())[:300]
        raise FileError(
            f"{file}: cannot be loaded ({said}); restore it, or run again what made it"
        ) from error


def _damaged(folder: Path) -> tuple[Path, Exception] | None:
    """The first file below a model's folder that is no whole safetensors or JSON, and why."""
    from safetensors import safe_open

    for file in sorted(folder.rglob("*")):
        try:
            if file.suffix == ".json":
                read_json(file)
            elif file.suffix == ".safetensors":
                with safe_open(file, "np"):
                    pass
        except Exception as error:
            return file, error
    return None


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        FileError: it cannot be read, is not UTF-8 or YAML, or a key stands twice.
    """
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: not text in UTF-8 ({error}); save it as UTF-8") from error
    except ValueError as error:
        raise FileError(f"{path}: {error}") from error
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); a file is needed") from error


def parse_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        ValueError: it is not YAML, or a key stands twice in one mapping.
    """
    import yaml

    class Strict(yaml.SafeLoader):
        """YAML forbids a key that stands twice; PyYAML silently takes the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
            seen: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                    continue
                if (key.tag, key.value) in seen:
                    line = key.start_mark.line + 1
                    raise ValueError(f"key {key.value!r} stands twice, again in line {line}")
                seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Strict)
    except Exception as error:  # PyYAML lets through what its converters raise
        raise ValueError(f"not valid YAML ({' '.join(str(error).split())})") from error


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
        raise FileError(f"{path}: not a readable CSV table ({error})") from error
