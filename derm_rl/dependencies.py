"""What a result depends on: hashes of code, settings and input files; one way for every cache.

A stage, a measurement, an answer of the rule-based teacher, a classifier, a checkpoint and a file
of drawn images all depend on code by the *import closure* of a module: every module of the package
that it imports, directly or not, anywhere in it, and every file that one of these names.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from derm_rl.io import cannot_read, is_set_aside
from derm_rl.paths import ROOT

SOURCES = Path(__file__).resolve().parents[1]  # the folder that holds the package


def digest(value: Any) -> str:
    """Hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> list[Path]:
    """Every file below ``folder``, by path; none if it is absent, an error if it cannot be read."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise cannot_read(error.filename or folder, error) from error

    found = (
        Path(place, name) for place, _, names in os.walk(folder, onerror=refuse) for name in names
    )
    return sorted(path for path in found if path.is_file())


def files_under(folder: Path, exclude: Iterable[str] = ()) -> dict[str, str]:
    """Hash of every file below ``folder`` by relative path.

    Hidden files, ``exclude`` and what was set aside (:func:`derm_rl.io.set_aside`), alone or with
    its folder, do not count.
    """
    skip = set(exclude)
    return {
        inside.as_posix(): file_hash(folder / inside)
        for inside in (path.relative_to(folder) for path in files_in(folder))
        if not inside.name.startswith(".")
        and inside.name not in skip
        and not any(map(is_set_aside, (inside, *inside.parents)))
    }


def fingerprint(folder: Path) -> dict[str, Any]:
    """Name and size of every file of a data folder; tables by content. Quick on many gigabytes."""
    tables = (".csv", ".tab", ".tsv", "")  # HAM10000_metadata comes with any of these
    return {
        path.relative_to(folder).as_posix(): (
            file_hash(path) if path.suffix in tables else path.stat().st_size
        )
        for path in files_in(folder)
    }


# -------------------------------------------------------------------------------------- code


@cache
def code(*modules: str) -> str:
    """Hash of the import closure of modules and of the lock file: part of the key of a cache.

    As of its first call in a process: that is about when the code was imported, too.

    Raises:
        ValueError: there is no such module.
    """
    for name in modules:
        if module_file(name, SOURCES) is None:
            raise ValueError(f"{name}: no module below {SOURCES}")
    closure = import_closure([f"import {name}" for name in modules], SOURCES)
    return digest({"modules": closure, "lock": lock()})


def lock() -> str | None:
    """Hash of the exact versions of the libraries; None where they are not pinned."""
    file = ROOT / "requirements.lock"
    return file_hash(file) if file.is_file() else None


def import_closure(sources: Iterable[str], root: Path, package: str = "derm_rl") -> dict[str, str]:
    """Hash of every module of ``package`` that ``sources`` import, directly or not, by name.

    Imports in functions count, and modules named in a string (``import_module``); imports for type
    checkers alone do not. Other files of the package (YAML, templates) count by path: with the
    modules that name them or their folder in a string, or with all modules of their package if
    none does.
    """
    waiting = set().union(*(_Source(text, package).imports for text in sources))
    files: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        if name.endswith(".*"):  # any module of a folder
            waiting |= {
                f"{name[:-2]}.{file.stem}" for file in _folder(name[:-2], root).glob("[!_]*.py")
            }
            continue
        file = module_file(name, root)
        if name in files or file is None:
            continue
        files[name] = file
        waiting |= _source(file.read_bytes(), package).imports
        if "." in name:  # importing a.b runs a/__init__.py
            waiting.add(name.rpartition(".")[0])
    closure = {name: file_hash(file) for name, file in files.items()}
    for data in _data_files(set(files.values()), root / package):
        closure[data.relative_to(root).as_posix()] = file_hash(data)
    return closure


class _Source:
    """What of a module's text matters here: ``imports`` from its package, ``words`` in strings."""

    def __init__(self, text: str | bytes, package: str) -> None:
        self.imports: set[str] = set()
        self.words: set[str] = set()
        self.package = package
        self._read(ast.parse(text))
        self.imports = {n for n in self.imports if (n + ".").startswith(package + ".")}

    def _read(self, node: ast.AST) -> None:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for child in node.orelse:
                self._read(child)
            return
        if isinstance(node, ast.Import):
            self.imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            self.imports |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            self.words |= set(node.value.split("/"))
            if re.fullmatch(r"\w+(\.\w+)+", node.value):
                self.imports.add(node.value)
        elif isinstance(node, ast.JoinedStr):  # f"package.folder.{module}"
            begin = getattr(node.values[0], "value", None) if node.values else None
            if isinstance(begin, str) and re.fullmatch(r"\w+(\.\w+)*\.", begin):
                self.imports.add(f"{begin}*")
        for child in ast.iter_child_nodes(node):
            self._read(child)


@lru_cache(maxsize=1024)
def _source(content: bytes, package: str) -> _Source:
    return _Source(content, package)


def _folder(name: str, root: Path) -> Path:
    return root.joinpath(*name.split("."))


def module_file(name: str, root: Path) -> Path | None:
    """Source file of a module below ``root``, the folder that holds the package."""
    path = _folder(name, root)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _data_files(modules: set[Path], package: Path) -> Iterator[Path]:
    """Files of the package that are no modules, and that one of ``modules`` may read."""
    if not package.is_dir():
        return
    every = [f for f in files_in(package) if "__pycache__" not in f.parts]
    texts = {f: f.read_bytes() for f in every if f.suffix == ".py"}
    for file in every:
        if file in texts or file.name.startswith("."):
            continue
        home, names = file.parent, {file.name}
        while home / "__init__.py" not in texts and home != package:
            names.add(home.name)
            home = home.parent
        readers = {
            module
            for module, text in texts.items()
            if any(name.encode() in text for name in names)  # quick, before it is parsed
            and names & _source(text, package.name).words
        }
        homes = {module for module in modules if module.parent == home}
        if readers & modules or (not readers and homes):
            yield file


# --------------------------------------------------------------------------------- notebooks


def plain_python(cell: str) -> str:
    """Source of a notebook cell without its magics, which are no Python; for reading its imports.

    A cell that still is not Python has no imports: running it shows the error where it is.
    """
    kept = [x for x in cell.splitlines() if not x.lstrip().startswith(("%", "!"))]
    source = "" if cell.lstrip().startswith("%%") else "\n".join(kept)
    try:
        ast.parse(source)
    except SyntaxError:
        return ""
    return source
