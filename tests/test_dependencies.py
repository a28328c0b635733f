"""What becomes stale by which edit: stages and caches depend on the code that they import."""

import dis
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import CodeType

import nbformat
import numpy as np
import pytest
import torch
from conftest import contents, no_descriptors

from derm_rl import dependencies, paths, prompts
from derm_rl.captions import ledger, measured, pairs, store
from derm_rl.captions.ledger import Ledger, LedgerError
from derm_rl.captions.schema import Answer, Prompt, Question, Reply, Request
from derm_rl.data import table
from derm_rl.data.open_access import reading as open_access
from derm_rl.dependencies import SOURCES, import_closure
from derm_rl.evaluation import generation
from derm_rl.io import is_set_aside

PACKAGE = SOURCES / "derm_rl"
FILES = [f for f in dependencies.files_in(PACKAGE) if "__pycache__" not in f.parts]
# Caches by the module whose code fills them; every call that makes a key names one.
NAMED = re.compile(r"\b(?:identity|dependencies\.code)\(\s*\"([\w.]+)\"")
CACHES = sorted({n for f in FILES if f.suffix == ".py" for n in NAMED.findall(f.read_text())})


def stage_sources():
    for notebook in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        cells = nbformat.read(notebook, 4).cells
        yield notebook.stem, [c.source for c in cells if c.cell_type == "code"]


ROOTS = {name: [f"import {name}"] for name in CACHES} | dict(stage_sources())


@cache
def bytecode_imports(file: Path) -> set[str]:
    """Every module that a file imports, as the compiler sees it: nothing of ours reads it."""
    found, waiting = set(), [compile(file.read_bytes(), str(file), "exec")]
    while waiting:
        code = waiting.pop()
        waiting += [c for c in code.co_consts if isinstance(c, CodeType)]
        name = ""
        for step in dis.get_instructions(code):
            if step.opname == "IMPORT_NAME":
                name = step.argval
                found.add(name)
            elif step.opname == "IMPORT_FROM":
                found.add(f"{name}.{step.argval}")
    return found


def widest(sources) -> set[str]:
    """Modules that could be imported at all, those for type checkers and by name among them."""
    text = "\n".join(map(dependencies.plain_python, sources))
    waiting = set(re.findall(r"derm_rl[\w.]*", text))
    for start, names in re.findall(r"from (derm_rl[\w.]*) import ([\w, ]+)", text):
        waiting |= {f"{start}.{n.split(' as ')[0].strip()}" for n in names.split(",")}
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        file = dependencies.module_file(name, SOURCES) if name.startswith("derm_rl") else None
        if file is None or name in found:
            continue
        found[name] = file
        waiting |= bytecode_imports(file) | {name.rpartition(".")[0]}
        if "import_module" in file.read_text():  # the readers of the sources
            waiting |= {f"{name.rpartition('.')[0]}.{f.stem}" for f in file.parent.glob("[!_]*.py")}
    return set(found)


def test_every_cache_names_the_module_that_fills_it():
    assert set(CACHES) == {
        "derm_rl.base", "derm_rl.captions.measured", "derm_rl.captions.store",
        "derm_rl.classifier.training", "derm_rl.data.phantom", "derm_rl.data.same",
        "derm_rl.ddpo.trainer",
        "derm_rl.evaluation.generation", "derm_rl.finetune",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no module"):
        dependencies.code("derm_rl.captions.stor")


@pytest.mark.parametrize("root", ROOTS)
def test_a_closure_holds_nothing_that_cannot_be_imported(root):
    closure = {name for name in import_closure(ROOTS[root], SOURCES) if "/" not in name}
    assert closure and closure <= widest(ROOTS[root])


USED = {
    "derm_rl.captions.store": """
from derm_rl.captions import store
from derm_rl.data.open_access import reading as open_access
from PIL import Image
frame = open_access.read("phantom", None, images=1, seed=3)[0]
before = {n for n in sys.modules if n.startswith("derm_rl.data.open_access")}
Image.new("RGB", (90, 90)).save(folder + "/a.png")
frame.loc[1] = {"image_id": "a", "path": folder + "/a.png"}
store.prepare(frame, folder + "/parts", 48, 48, progress=False)
""",
    "derm_rl.captions.measured": """
import asyncio
from derm_rl.captions.measured import MeasuredTeacher
from derm_rl.captions.schema import Prompt, Question, Request
before = set()
image = open(folder + "/a.png", "rb").read()
q = Question("i", "overview", "What?", "ja", "grounded", "single", "c", 0)
row = {"age": 50, "site": "back", "source": "hiba"}
assert asyncio.run(MeasuredTeacher().ask(Request(q, Prompt("", ""), image, row))).status == "ok"
""",
}


def test_what_runs_for_a_cache_is_in_its_closure(tmp_path):
    """Run, in a process of its own, and looked up in ``sys.modules`` and in the files opened."""
    for root, code in USED.items():
        watch = (
            "import builtins, io, json, os, sys\nfolder, opened = sys.argv[1], []\n"
            "sys.addaudithook(lambda e, a: opened.append(str(a[0])) if e == 'open' else None)\n"
        )
        tell = "\nprint(json.dumps([sorted(set(sys.modules) - before), opened]))"
        done = subprocess.run(
            [sys.executable, "-c", watch + code + tell, str(tmp_path)],
            capture_output=True, text=True, check=True, cwd=SOURCES,
        )  # fmt: skip
        modules, opened = json.loads(done.stdout.splitlines()[-1])
        closure = import_closure([f"import {root}"], SOURCES)
        assert {m for m in modules if m.startswith("derm_rl")} <= set(closure)
        data = {Path(f) for f in opened if Path(f).suffix in (".yaml", ".j2")}
        inside = {f.relative_to(SOURCES).as_posix() for f in data if f.is_relative_to(PACKAGE)}
        assert inside <= set(closure)


def test_an_edit_of_any_file_makes_stale_what_may_read_it_and_nothing_else(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "derm_rl", ignore=shutil.ignore_patterns("__pycache__"))
    before = {root: import_closure(sources, tmp_path) for root, sources in ROOTS.items()}
    names = {}
    for file in FILES:
        relative = file.relative_to(SOURCES)
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        names[file] = module if file.suffix == ".py" else relative.as_posix()
    # Every file in `make test-all`, which takes minutes; else what is not Python, what was
    # forgotten once, and something from each room.
    chosen, roots = FILES, tuple(ROOTS)
    if "DERM_RL_TEST_ALL" not in os.environ:
        few = ("shape.py", "loss.py", "scin.py")
        chosen = [f for f in FILES if f.suffix != ".py" or f.name in few]
        roots = ("derm_rl.captions.store", "derm_rl.captions.measured", "09_image_text_pairs")
    for file in chosen:
        copy = tmp_path / file.relative_to(SOURCES)
        content = copy.read_bytes()
        copy.write_bytes(content + b"\n# edited\n")
        stale = {r for r in roots if import_closure(ROOTS[r], tmp_path) != before[r]}
        assert stale == {r for r in roots if names[file] in before[r]}, file
        copy.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "stale", "fresh"),
    [
        ("derm_rl.data.shape", ["store", "measured", "01", "09"], ["classifier", "generation"]),
        ("derm_rl.captions.wording.ja_facts", ["measured", "09"], ["store", "01", "04"]),
        ("derm_rl.data.open_access.scin", ["09"], ["store", "measured", "01", "finetune"]),
        ("derm_rl.pipeline", ["02", "03", "04", "finetune"], ["store", "measured", "09", "10"]),
        ("derm_rl.ddpo.loss", ["ddpo", "04"], ["store", "finetune", "02", "09", "generation"]),
        ("derm_rl.classifier.augment", ["classifier", "02", "ddpo"], ["finetune", "store", "01"]),
        ("derm_rl.captions.review_widget", ["10"], ["store", "measured", "05"]),
        ("derm_rl/captions/pools/general.yaml", ["09", "measured"], ["store", "01"]),
        ("derm_rl/captions/faults.yaml", [], ["store", "measured", "09"]),
        ("derm_rl/captions/checks/patterns.yaml", ["09", "10"], ["store", "measured"]),
    ],
)
def test_who_depends_on_a_file(file, stale, fresh):
    for begin in (*stale, *fresh):
        root = next(r for r in ROOTS if begin in r.split("_")[0] or f".{begin}" in r)
        assert (file in import_closure(ROOTS[root], SOURCES)) == (begin in stale), root


def test_a_file_that_nobody_names_belongs_to_its_package(tmp_path):
    package = tmp_path / "p"
    (package / "sub/wording").mkdir(parents=True)
    (package / "other").mkdir()
    for name, text in {
        "__init__.py": "", "sub/__init__.py": "", "other/__init__.py": "",
        "sub/a.py": "open('card.md.j2')", "sub/b.py": "", "sub/wording/en.yaml": "",
        "sub/card.md.j2": "", "other/c.py": "from importlib import import_module\n"
        "def f(x): return import_module(f'p.sub.{x}')", "other/d.py": "import_module('p.sub.b')",
    }.items():  # fmt: skip
        (package / name).write_text(text)
    of_b = set(import_closure(["import p.sub.b"], tmp_path, "p"))
    assert of_b == {"p", "p.sub", "p.sub.b", "p/sub/wording/en.yaml"}
    of_a = set(import_closure(["import p.sub.a"], tmp_path, "p"))
    assert of_a == {"p", "p.sub", "p.sub.a", "p/sub/wording/en.yaml", "p/sub/card.md.j2"}
    assert {"p.sub.a", "p.sub.b"} <= set(import_closure(["import p.other.c"], tmp_path, "p"))
    assert set(import_closure(["import p.other.d"], tmp_path, "p")) == of_b | {
        "p.other",
        "p.other.d",
    }


# ------------------------------------------------------------------------------- the caches


def edited(*modules):
    return "another hash"


def test_other_code_measures_again_and_what_is_the_same_is_linked(tmp_path, monkeypatch):
    frame = open_access.read("phantom", None, images=2, seed=3)[0]
    store.prepare(frame, tmp_path / "a", 48, 48, progress=False)
    monkeypatch.setattr(store, "encode", None)  # nothing is drawn again
    store.prepare(frame, tmp_path / "b", 48, 48, progress=False, others=[tmp_path / "a"])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    monkeypatch.setattr(dependencies, "code", edited)
    with pytest.raises(TypeError):
        store.prepare(frame, tmp_path / "a", 48, 48, progress=False)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")  # nothing new, nothing lost


def test_a_torn_part_is_kept_and_made_again_and_a_damaged_one_says_so(tmp_path):
    frame = open_access.read("phantom", None, images=2, seed=3)[0]
    store.prepare(frame, tmp_path, 48, 48, progress=False)
    (part,) = tmp_path.glob("*.parquet")
    whole = part.read_bytes()
    part.write_bytes(whole[:-9])
    made = store.prepare(frame, tmp_path, 48, 48, progress=False)
    assert part.read_bytes() == whole and len(list(made)) == 2
    (aside,) = filter(is_set_aside, tmp_path.iterdir())
    assert aside.read_bytes() == whole[:-9]
    part.write_bytes(whole[:4] + bytes(len(whole) - 8) + whole[-4:])
    made = store.prepare(frame, tmp_path, 48, 48, progress=False)
    with pytest.raises(table.TableError, match="run the stage again"):
        made.measurements()
    assert not part.exists()


def test_only_the_rule_based_teacher_is_asked_again_after_an_edit(monkeypatch):
    class Model:
        name, settings = "openai:x", {"temperature": 0}

    question = Question("i", "overview", "What?", "en", "blind", "single", "c", 0)
    request = Request(question, Prompt("s", "u"), b"image", {})
    teachers = (Model(), measured.MeasuredTeacher())
    before = [ledger.key(request, t) for t in teachers]
    monkeypatch.setattr(dependencies, "code", edited)
    after = [ledger.key(request, t) for t in teachers]
    assert before[0] == after[0] and before[1] != after[1]
    # What a reader has said of a pair holds while question and answer are the same.
    reply = Reply("ok", Answer(answer="a", findings=[], confidence=1, abstained=False), "raw")
    other = replace(reply, raw="other")

    def name(key, reply, teacher):
        return pairs.pair(request, key, reply, teacher)["pair_id"]

    assert name(before[1], reply, teachers[1]) == name(after[1], reply, teachers[1])
    assert name(before[1], reply, teachers[1]) != name(before[1], other, teachers[1])
    assert name("key", reply, teachers[0]) != name("another key", reply, teachers[0])


@pytest.fixture
def drawn(tiny_pipeline_folder, tmp_path):
    """How many batches are drawn for a file of eight images, two a batch."""
    from derm_rl import pipeline

    pipe, calls = pipeline.load(tiny_pipeline_folder), []
    real = type(pipe).__call__

    def draw(stop=99, scale=None, **changes):
        if scale:
            with torch.no_grad():
                next(pipe.vae.parameters()).mul_(scale)
        calls.clear()

        def counted(self, *args, **kwargs):
            calls.append(1)
            if len(calls) > stop:
                raise KeyboardInterrupt
            return real(self, *args, **kwargs)

        settings = {"seed": 0, "inference_steps": 2, "batch_size": 2, "size": 16} | changes
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(pipe), "__call__", counted)
            out = tmp_path / "images.npy"
            try:
                generation.generate(pipe, prompts.all_prompts()[:4], 2, out=out, **settings)
            except KeyboardInterrupt:
                return None
        return len(calls)

    return draw


def test_drawn_images_belong_to_weights_code_and_settings(drawn, tmp_path, monkeypatch):
    assert [drawn(), drawn(), drawn(scale=1.5), drawn()] == [4, 0, 4, 0]
    finished = np.load(tmp_path / "images.npy")
    assert drawn(stop=2, seed=5) is None
    assert np.array_equal(np.load(tmp_path / "images.npy"), finished)  # until the new one is whole
    begun = (tmp_path / "images.partial.npy").read_bytes()
    monkeypatch.setattr(dependencies, "code", edited)
    assert [drawn(seed=5), drawn(seed=5)] == [4, 0]
    assert (tmp_path / "images.partial.npy.foreign-1").read_bytes() == begun


def test_torn_files_of_images_are_kept_and_drawn_again(drawn, tmp_path):
    drawn()
    out, progress = tmp_path / "images.npy", tmp_path / "images.progress.json"
    whole = out.read_bytes()
    for content in (whole[:-5], whole[:20], b""):
        out.write_bytes(content)
        assert drawn() == 4 and out.read_bytes() == whole
    assert len(list(tmp_path.glob("images.npy.torn-*"))) == 3
    progress.write_text("[]")
    assert drawn() == 4 and out.read_bytes() == whole
    assert drawn(stop=1, seed=3) is None
    progress.write_text("{")
    assert drawn(seed=3) == 4
    assert list(tmp_path.glob("images.partial.npy.foreign-*"))


def test_without_descriptors_no_cache_loses_anything(drawn, tmp_path):
    frame = open_access.read("phantom", None, images=2, seed=3)[0]
    store.prepare(frame, tmp_path / "parts", 48, 48, progress=False)
    drawn()
    with Ledger(tmp_path / "ledger.sqlite"):
        pass
    before = contents(tmp_path)
    with no_descriptors():
        with pytest.raises(OSError):
            store.prepare(frame, tmp_path / "parts", 48, 48, progress=False)
        with pytest.raises(OSError):
            drawn()
        with pytest.raises(OSError):
            drawn(seed=4)
        with pytest.raises((OSError, LedgerError)):
            Ledger(tmp_path / "ledger.sqlite")
        with pytest.raises(OSError):
            dependencies.files_under(tmp_path)
    assert contents(tmp_path) == before
    assert drawn() == 0


def test_without_descriptors_no_image_passes_for_a_damaged_one(tmp_path):
    """Or `on_error: exclude` would leave it out of the data."""
    from PIL import Image

    from derm_rl.data.open_access import layout

    file = tmp_path / "a.png"
    Image.new("RGB", (40, 40)).save(file)
    for read in (lambda f: table.load_image(f, 32), lambda f: store.encode(f, 32), layout.damage):
        read(str(file))
        with no_descriptors(), pytest.raises(OSError, match="cannot be read now"):
            read(str(file))
