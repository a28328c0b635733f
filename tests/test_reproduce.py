"""The runner, on small notebooks: what reruns, what is skipped, and how a failure reads."""

import base64
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import psutil
import pytest

from derm_rl import config, dependencies, masking, paths
from derm_rl.execute import Papermill, _failure, _kill
from derm_rl.reproduce import ReproduceError, Stage, run

STAGES = (Stage("01_data"), Stage("02_reward_classifier", ("01_data",)))
PARAMETERS = 'preset = "smoke"\noverrides = []\ndata_root = ""'


def write_notebook(folder, name, code, parameters=PARAMETERS):
    cells = [
        nbformat.v4.new_markdown_cell("# Title"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_markdown_cell("## Work"),
        nbformat.v4.new_code_cell(code),
    ]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell{i}"
    notebook = nbformat.v4.new_notebook(
        cells=cells,
        metadata={"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}},
    )
    nbformat.write(notebook, folder / f"{name}.ipynb")


def code_of(stage, text):
    return (
        "from derm_rl import config\n"
        "c = config.load(preset, overrides, data_root or None)\n"
        f"d = c.stage_dir({stage!r}); d.mkdir(parents=True, exist_ok=True)\n"
        f"(d / 'result.txt').write_text({text!r})\n"
        "(d / 'stage.json').write_text('{}')\n"
    )


def in_this_process(self, notebook, copy, parameters, variables=None):
    """Stands in for papermill: the same cells, parameters and variables, without a kernel."""
    names = {}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (variables or {}).items():
            environment.setenv(name, value)
        for cell in nbformat.read(notebook, 4).cells:
            if cell.cell_type == "code":
                exec(cell.source, names)
                names |= parameters if cell.metadata.get("tags") == ["parameters"] else {}
    copy.write_text("executed")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(Papermill, "execute", in_this_process)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    for stage in STAGES:
        write_notebook(notebooks, stage.name, code_of(stage.name, "one"))
    return notebooks


def go(project, *overrides, **options):
    return run(config.load("smoke", overrides), stages=STAGES, notebooks=project, **options)


def test_only_what_depends_on_a_change_reruns(project, quick, capsys):
    assert go(project) == ["01_data", "02_reward_classifier"]
    assert (paths.RUNS / "smoke/notebooks/01_data.ipynb").is_file()
    capsys.readouterr()
    assert go(project) == []
    out = capsys.readouterr().out
    assert out.count("up to date") == 3 and "nothing was done" in out

    write_notebook(project, "02_reward_classifier", code_of("02_reward_classifier", "two"))
    assert go(project) == ["02_reward_classifier"]
    (paths.RUNS / "smoke/02_reward_classifier/result.txt").write_text("tampered with")
    assert go(project) == ["02_reward_classifier"]
    write_notebook(project, "01_data", code_of("01_data", "two"))
    assert go(project) == ["01_data", "02_reward_classifier"]
    assert go(project, start="2") == ["02_reward_classifier"]
    assert go(project, only="01") == ["01_data"]
    # An override of what only the second stage reads leaves the first alone.
    assert go(project, "classifier.epochs=2") == ["02_reward_classifier"]


ALL = tuple(
    Stage(name, needs)
    for name, needs in {
        "01_data": (), "02_reward_classifier": ("01_data",), "05_alignment": ("01_data",),
        "09_image_text_pairs": (), "10_review_and_release": ("09_image_text_pairs",),
    }.items()
)  # fmt: skip
NAMES = [stage.name for stage in ALL]


@pytest.fixture
def whole(project, quick):
    """Every stage draws a figure of its own and has been run for the plain preset."""
    for name in NAMES:
        write_notebook(project, name, figure_of(name, name))

    def again(*overrides, **options):
        chosen = config.load("smoke", overrides)
        ran = run(chosen, stages=ALL, notebooks=project, **options)
        return [name[:2] for name in ran]

    assert again() == ["01", "02", "05", "09", "10"]
    return again


def test_only_stages_that_read_a_setting_rerun(whole):
    plain = {f.name: f.stat().st_mtime_ns for f in config.load("smoke").figures_dir.iterdir()}
    assert whole("alignment.images_per_prompt=3") == ["05"]
    assert whole("release.test=0.2") == ["10"]
    many = ("captions.teacher=openai:gpt-4o", "captions.budget=5", "alignment.seed=7")
    assert whole(*many, start="09") == ["09", "10"]
    assert whole(*many) == ["05"]
    assert whole(*reversed(many)) == []  # the same settings in another order
    assert whole("description=another") == []  # no stage reads it
    assert whole("alignment.images_per_prompt=9", "alignment.images_per_prompt=3") == []
    # Every set of settings has all figures, and those of the plain preset are left alone.
    for overrides in ((), ("alignment.images_per_prompt=3",), ("release.test=0.2",), many):
        folder = config.load("smoke", overrides).figures_dir
        assert sorted(f.stem for f in folder.glob("*.csv")) == NAMES
        assert (folder / "01_data.csv").read_text() == "01_data"
    assert whole() == []
    again = {f.name: f.stat().st_mtime_ns for f in config.load("smoke").figures_dir.iterdir()}
    assert again == plain


def test_a_preset_s_own_value_is_no_override(whole):
    smoke = config.load("smoke")
    same = f"ddpo.epochs={smoke.ddpo.epochs}"
    assert whole(same) == whole("seed=0", same) == []
    assert config.load("smoke", ["seed=3", "seed=0"]) == smoke
    assert not list((paths.RUNS / "smoke").glob("*-*"))


def test_what_is_run_between_from_and_until(whole, project):
    assert whole(start="05") == ["05", "09", "10"]
    assert whole(start="02", until="05") == ["02", "05"]
    assert whole(until="02") == []
    assert whole(only="9") == ["09"]
    for wrong in ({"start": "05", "until": "02"}, {"only": "05", "until": "02"}):
        with pytest.raises(ReproduceError):
            whole(**wrong)
    # What a stage does not need is not run before it, however old.
    write_notebook(project, "01_data", figure_of("01_data", "new"))
    assert whole(start="09") == ["09", "10"]
    assert whole(start="05", until="05") == ["01", "05"]
    assert whole() == ["02"]


def test_a_lost_figure_comes_back_without_a_run(whole):
    folder = config.load("smoke").figures_dir
    (folder / "05_alignment.csv").unlink()
    (folder / "01_data.csv").write_text("scribble")
    assert whole() == []
    for name in ("01_data", "05_alignment"):
        assert (folder / f"{name}.csv").read_text() == name


def test_a_figure_that_is_no_longer_drawn_is_no_longer_published(whole, project):
    plain, other = config.load("smoke"), config.load("smoke", ["release.test=0.2"])
    assert whole("release.test=0.2") == ["10"]
    for folder in (plain.figures_dir, other.figures_dir):
        (folder / "of_a_reader.csv").write_text("mine")
    # As written before stamps named figures.
    stamp = plain.stage_dir("05_alignment") / "reproduced.json"
    old = json.loads(stamp.read_text())
    old.pop("figures")
    stamp.write_text(json.dumps(old))
    code = figure_of("05_alignment", "new")
    write_notebook(project, "05_alignment", code + "raise KeyError('no such thing')")
    with pytest.raises(KeyError):
        whole()
    assert (plain.figures_dir / "05_alignment.csv").read_text() == "05_alignment"
    write_notebook(project, "05_alignment", code.replace("05_alignment.csv", "renamed.csv"))
    assert whole() == ["05"]
    assert whole("release.test=0.2") == []  # shares the stage, has figures of its own
    left = {f"{name}.csv" for name in NAMES} - {"05_alignment.csv"}
    for folder in (plain.figures_dir, other.figures_dir):
        found = {file.name for file in folder.glob("*.csv")}
        assert found == left | {"renamed.csv", "of_a_reader.csv"}


def test_a_figure_that_another_stage_draws_now_stays(whole, project):
    code = figure_of("02_reward_classifier", "moved")
    code = code.replace("02_reward_classifier.csv", "05_alignment.csv")
    write_notebook(project, "02_reward_classifier", code)
    write_notebook(project, "05_alignment", code_of("05_alignment", "no figure"))
    file = config.load("smoke").figures_dir / "05_alignment.csv"
    for ran in (["02", "05"], []):
        assert whole() == ran
        assert file.read_text() == "moved"
    assert not file.with_name("02_reward_classifier.csv").exists()


def test_parameters_saved_in_a_notebook_change_nothing(whole, project):
    other = 'preset = "demo"\noverrides = ["seed=3"]\ndata_root = "/nowhere"'
    write_notebook(project, "01_data", figure_of("01_data", "01_data"), other)
    assert whole() == []


def test_a_stage_run_alone_from_an_old_result_is_run_again_with_it(whole, project):
    write_notebook(project, "01_data", figure_of("01_data", "new"))
    assert whole(only="05") == ["05"]  # from the result of the old 01
    assert whole() == ["01", "02", "05"]
    assert whole() == []


def test_files_fetched_for_pairs_belong_to_what_stage_09_depends_on(whole):
    chosen = "captions.sources=[hiba]"
    folder = paths.RUNS / "sources" / "hiba"
    folder.mkdir(parents=True)
    (folder / "metadata.csv").write_text("a")
    assert whole(chosen) == ["09", "10"]
    (folder / "metadata.csv").write_text("b")
    assert whole(chosen) == ["09", "10"]
    assert whole(chosen) == []


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_torn_stamp_is_no_stamp(whole, content):
    (paths.RUNS / "smoke/05_alignment/reproduced.json").write_text(content)
    assert whole() == ["05"]


def test_a_failure_names_notebook_cell_error_and_copy(project):
    write_notebook(project, "02_reward_classifier", "x = 1\nraise KeyError('no such thing')")
    with pytest.raises(ReproduceError) as error:
        go(project)
    text = str(error.value)
    for word in ("02_reward_classifier.ipynb", "cell 4 ", "x = 1", "KeyError", "no such thing"):
        assert word in text
    copy = paths.RUNS / "smoke/notebooks/02_reward_classifier.ipynb"
    assert str(copy) in text and copy.is_file()
    # What failed runs again; what had succeeded does not.
    write_notebook(project, "02_reward_classifier", code_of("02_reward_classifier", "now"))
    assert go(project) == ["02_reward_classifier"]


def test_mistakes_are_found_before_anything_runs(project):
    with pytest.raises(ReproduceError, match="unknown stage '07'"):
        go(project, only="07")
    with pytest.raises(config.MissingArtifact, match="--only 01"):
        go(project, only="02")
    write_notebook(project, "02_reward_classifier", "1", "preset = 'smoke'\nepochs = 3")
    with pytest.raises(ReproduceError, match="must define exactly preset, overrides, data_root"):
        go(project)
    (project / "02_reward_classifier.ipynb").write_text('{"cells": [')
    with pytest.raises(ReproduceError, match=r"02_reward_classifier\.ipynb: not a notebook"):
        go(project)
    assert not (paths.RUNS / "smoke").exists()


def test_metrics_of_all_stages_are_merged(project):
    entry = {k: None for k in ("low", "high", "n", "seeds", "preset", "commit", "csv")}
    metrics = json.dumps({"a.b": entry | {"value": 1.0}})
    code = code_of("01_data", "one") + f"(d / 'metrics.json').write_text({metrics!r})\n"
    write_notebook(project, "01_data", code)
    go(project)
    merged = json.loads((config.load("smoke").figures_dir / "metrics.json").read_text())
    assert merged["a.b"]["value"] == 1.0
    assert merged["reproduce.minutes"]["value"] > 0
    assert 0.05 < merged["reproduce.peak_memory_gb"]["value"] < 10


def test_one_stage_alone_loses_no_number_of_the_others(project, quick):
    entry = {k: None for k in ("low", "high", "n", "seeds", "preset", "commit", "csv")}
    metrics = json.dumps({"a.b": entry | {"value": 1.0}})
    code = code_of("01_data", "one") + f"(d / 'metrics.json').write_text({metrics!r})\n"
    write_notebook(project, "01_data", code)
    file = config.load("smoke").figures_dir / "metrics.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    before = {"a.b": entry | {"value": 0.0}, "c.d": entry | {"value": 2.0}}
    before["panel.audit.visible"] = entry | {"value": 3.0}  # nobody has read these images
    file.write_text(json.dumps(before))
    go(project, only="01")
    now = json.loads(file.read_text())
    assert {name: metric["value"] for name, metric in now.items()} == {"a.b": 1.0, "c.d": 2.0}


def test_a_run_until_a_stage_is_not_taken_for_a_whole_one(project, quick):
    metrics = json.dumps({"a.b": {"value": 1.0}})
    code = code_of("01_data", "one") + f"(d / 'metrics.json').write_text({metrics!r})\n"
    write_notebook(project, "01_data", code)
    assert go(project, until="01") == ["01_data"]
    file = config.load("smoke").figures_dir / "metrics.json"
    assert set(json.loads(file.read_text())) == {"a.b"}  # no minutes of the whole
    assert go(project) == ["02_reward_classifier"]
    assert "reproduce.minutes" in json.loads(file.read_text())


def test_the_import_closure_follows_every_kind_of_import(tmp_path):
    package = tmp_path / "p"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from p.sub import b\n")
    (package / "sub/__init__.py").write_text("from p import c\n")
    (package / "sub/b.py").write_text("import p.d\n")
    for name in "cde":
        (package / f"{name}.py").write_text("")
    closure = dependencies.import_closure(["import os\nfrom p import a"], tmp_path, "p")
    assert set(closure) == {"p", "p.a", "p.sub", "p.sub.b", "p.c", "p.d"}
    (package / "d.py").write_text("x = 1")
    changed = dependencies.import_closure(["from p import a"], tmp_path, "p")
    assert {k for k in closure if closure[k] != changed[k]} == {"p.d"}


def figure_of(stage, text):
    return code_of(stage, "one") + (
        "c.figures_dir.mkdir(parents=True, exist_ok=True)\n"
        f"(c.figures_dir / '{stage}.csv').write_text({text!r})\n"
    )


def test_a_figure_belongs_to_the_stage_that_drew_it(project, quick):
    """Stage 03 starts within a second of the last figure of 02, which it does not read."""
    stages = (*STAGES, Stage("03_finetune_stable_diffusion", ("01_data",)))
    for stage in stages:
        write_notebook(project, stage.name, figure_of(stage.name, "one"))
    smoke = config.load("smoke")
    assert len(run(smoke, stages=stages, notebooks=project)) == 3
    write_notebook(project, STAGES[1].name, figure_of(STAGES[1].name, "two"))
    assert run(smoke, stages=stages, notebooks=project) == [STAGES[1].name]


def test_metrics_come_back_if_a_call_was_killed_before_writing_them(project, quick):
    go(project)
    file = config.load("smoke").figures_dir / "metrics.json"
    content = file.read_text()
    file.unlink()
    assert go(project) == []
    assert file.read_text() == content
    changed = file.stat().st_mtime_ns
    go(project)
    assert file.stat().st_mtime_ns == changed  # doing nothing writes nothing


def test_magics_are_read_over_and_a_syntax_error_is_reported_by_its_cell(project):
    magic = "%matplotlib inline\n!true\n" + code_of("01_data", "one")
    write_notebook(project, "01_data", magic)
    write_notebook(project, "02_reward_classifier", "x = (")
    with pytest.raises(ReproduceError, match=r"(?s)02_reward_classifier.*cell 4 .*SyntaxError"):
        go(project)
    closure = dependencies.import_closure([dependencies.plain_python(magic)], paths.ROOT)
    assert "derm_rl.config" in closure


INTERRUPTED = """
import functools, sys
from pathlib import Path
from derm_rl import __main__, paths, reproduce
paths.RUNS, notebooks = Path(sys.argv[1]), Path(sys.argv[2])
stages = (reproduce.Stage("01_data"),)
reproduce.run = functools.partial(reproduce.run, stages=stages, notebooks=notebooks)
sys.argv = ["derm-rl", "reproduce", "--preset", "smoke"]
__main__.main()
"""


def _runs(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupt_ends_the_notebook_and_its_kernel_at_once(project, tmp_path, sent):
    file = tmp_path / "kernel"
    code = f"import os, time\nopen({str(file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)"
    write_notebook(project, "01_data", code)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "runs"), str(project)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while process.poll() is None and not (file.is_file() and file.read_text()):
            time.sleep(0.1)
        process.send_signal(sent)  # to the runner alone; a terminal tells the group
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert sent == signal.SIGKILL or "interrupted; the same command continues" in stderr
    # What is killed may stay a zombie until whoever inherited it has collected it.
    deadline = time.monotonic() + 30
    while (running := _runs(int(file.read_text()))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running
    (stamp,) = (tmp_path / "runs").rglob("reproduced.json")
    assert json.loads(stamp.read_text()) == {"figures": []}  # begun, not finished


WORKERS = """
import os, signal, time
from joblib import Parallel, delayed
pids = Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(4))
open({file!r}, "w").write(" ".join(map(str, {{os.getpid(), *pids}})))
os.kill({victim}, signal.SIGKILL)
time.sleep(300)
"""


@pytest.mark.parametrize("victim", ["os.getpid()", "os.getppid()"])  # the kernel; its runner
def test_a_killed_notebook_ends_with_its_workers_and_names_the_cell(project, tmp_path, victim):
    file = tmp_path / "pids"
    write_notebook(project, "01_data", WORKERS.format(file=str(file), victim=victim))
    began = time.monotonic()
    with pytest.raises(ReproduceError) as error:
        Papermill().execute(
            project / "01_data.ipynb",
            tmp_path / "copy.ipynb",
            {"preset": "smoke", "overrides": [], "data_root": ""},
        )
    assert time.monotonic() - began < 60  # idle workers hold what they inherited for 300 s
    text = str(error.value)
    assert "01_data.ipynb failed in cell 4 (import os, signal, time)" in text
    assert "killed" in text and "memory" in text and "GB" in text
    deadline = time.monotonic() + 10
    pids = [int(pid) for pid in file.read_text().split()]
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) > 1 and not any(map(_runs, pids))


def test_who_has_the_number_of_an_ended_process_now_is_left_alone():
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    stranger = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        child = psutil.Process(int(stranger.stdout.readline()))
        ended, running = psutil.Process(stranger.pid), psutil.Process(stranger.pid)
        ended._ident = (ended.pid, ended.create_time() - 100)  # had the number before
        _kill(ended, "no such mark")
        assert running.is_running() and child.is_running()
        _kill(running, "no such mark")
        assert stranger.wait(30) == -signal.SIGKILL and not _runs(child.pid)
    finally:
        stranger.kill()
        stranger.stdout.close()


def test_a_copy_that_is_only_a_part_does_not_hide_the_failure(tmp_path):
    (tmp_path / "copy.ipynb").write_text('{"cells": [')
    text = _failure("01_data", tmp_path / "copy.ipynb", "No such kernel", 1)
    assert text.startswith("01_data.ipynb could not be executed: No such kernel")


def test_an_executed_copy_keeps_the_last_state_of_a_progress_bar_and_no_key(
    project, tmp_path, monkeypatch
):
    key = 'Zx9/very+private"7q'
    monkeypatch.setenv("MINE", key)
    monkeypatch.setenv("DERM_RL_KEY_VARIABLES", "MINE")
    write_notebook(
        project,
        "03_bar",
        "import base64, os, sys\n"
        "for i in range(3):\n    sys.stderr.write(f'\\r{i} of 2'); sys.stderr.flush()\n"
        "key = os.environ['MINE']\n"
        "print(key, repr(key), base64.b64encode(f'me:{key}'.encode()).decode())\n"
        "raise ValueError(key)",
    )
    copy = tmp_path / "copy.ipynb"
    values = {"preset": "smoke", "overrides": [f"x={key}"], "data_root": ""}
    with pytest.raises(ReproduceError, match=r"ValueError: \*\*\*") as caught:
        Papermill().execute(project / "03_bar.ipynb", copy, values)
    outputs = {o.get("name", "error"): o for o in nbformat.read(copy, 4).cells[-1].outputs}
    assert outputs["stderr"].text == "2 of 2" and outputs["error"].evalue == "***"
    assert outputs["stdout"].text.startswith("*** '***' bW")
    for shown in (copy.read_text(), str(caught.value)):
        assert "private" not in shown and base64.b64encode(key.encode()).decode()[4:16] not in shown


def test_a_kernel_sends_no_key(monkeypatch):
    """Streams, results, errors and widgets: all messages of a kernel are packed by its session."""
    from jupyter_client.session import Session

    session = Session(key=b"")
    shell = SimpleNamespace(kernel=SimpleNamespace(session=session))
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setenv("SOME_API_KEY", 'pri"vate-key-9')
    masking.guard()
    masking.guard()
    content = {"traceback": ['\x1b[31mpri"vate-key-9\x1b[0m'], "é": 1}
    assert session.unpack(session.pack(content)) == {"traceback": ["\x1b[31m***\x1b[0m"], "é": 1}
