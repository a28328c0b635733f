"""What a notebook's result depends on: hashes of code, settings and input files."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """Hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_under(folder: Path, exclude: Iterable[str] = ()) -> dict[str, str]:
    """Hash of every file below ``folder`` by relative path; hidden files and ``exclude`` aside."""
    skip = set(exclude)
    return {
        str(path.relative_to(folder)): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.name not in skip
    }


def fingerprint(folder: Path) -> dict[str, Any]:
    """Name and size of every file of a data folder; tables by content. Quick on many gigabytes."""
    tables = (".csv", ".tab", "")  # HAM10000_metadata comes with any of these
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {
        str(p.relative_to(folder)): file_hash(p) if p.suffix in tables else p.stat().st_size
        for p in files
    }


def imported_modules(source: str, package: str = "derm_rl") -> set[str]:
    """Modules of ``package`` that a source imports anywhere, functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name == package or name.startswith(package + ".")}


def module_file(name: str, root: Path) -> Path | None:
    """Source file of a module below ``root``, the folder that holds the package."""
    path = root.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


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


def import_closure(sources: Iterable[str], root: Path, package: str = "derm_rl") -> dict[str, str]:
    """Hash of every module of ``package`` that ``sources`` import, directly or not, by name.

    YAML files in the folders of these modules count as well, by path.
    """
    waiting = set().union(*(imported_modules(s, package) for s in sources))
    closure: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        file = module_file(name, root)
        if name in closure or file is None:
            continue
        closure[name] = file_hash(file)
        waiting |= imported_modules(file.read_text(encoding="utf-8"), package)
        if "." in name:  # importing a.b runs a/__init__.py
            waiting.add(name.rpartition(".")[0])
        for data in _data_files(file.parent):
            closure[data.relative_to(root).as_posix()] = file_hash(data)
    return closure


def _data_files(folder: Path) -> list[Path]:
    """YAML that a package may read: beside its modules, and in subfolders without modules."""
    inside = [d for d in folder.iterdir() if d.is_dir() and not (d / "__init__.py").is_file()]
    return sorted(f for d in (folder, *inside) for f in d.glob("*.yaml"))
