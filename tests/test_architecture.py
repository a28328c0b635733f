"""The layout shows the architecture: modules import only from their own floor or lower ones."""

import ast
from pathlib import Path

import pytest

import derm_rl

FLOORS = (
    ("prompts", "settings", "caption_settings", "config", "paths", "provenance", "io", "masking")
    + ("dependencies", "errors"),
    ("pipeline", "data"),
    ("training", "redraw", "finetune", "classifier", "rewards", "ddpo"),
    ("evaluation", "captions"),
    ("figures",),
    ("progress", "execute", "reproduce", "base", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PACKAGE = Path(derm_rl.__file__).parent
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def rooms_imported(file: Path) -> set[str]:
    """First part below ``derm_rl`` of everything that a file imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "derm_rl" and len(p) > 1} - {"__version__"}


def test_no_model_or_data_set_may_bring_code_along():
    calls = 0
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "attr", None)
            if not isinstance(node, ast.Call) or name not in ("from_pretrained", "load_dataset"):
                continue
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert given.get("trust_remote_code") == "False", f"{file}, line {node.lineno}"
            calls += 1
    assert calls >= 5


@pytest.mark.parametrize("file", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_go_down(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for imported in rooms_imported(file):
        assert FLOOR_OF[imported] <= FLOOR_OF[room], f"{file.name} imports {imported}"
