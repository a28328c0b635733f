"""The command line starts quickly and stops early on bad input."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from derm_rl.__main__ import app

HEAVY = ("torch", "diffusers", "transformers", "pandas", "sklearn", "matplotlib", "numpy")


@pytest.mark.parametrize("statement", ["import derm_rl", "import derm_rl.__main__"])
def test_importing_loads_nothing_heavy(statement):
    code = f"import sys; {statement}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_the_commands_and_options():
    out = CliRunner().invoke(app, ["--help"]).output
    assert all(word in out for word in ("reproduce", "presets", "figures", "fetch"))
    out = CliRunner().invoke(app, ["reproduce", "--help"], env={"COLUMNS": "120"}).output
    for option in ("--preset", "--only", "--from", "--set", "--data-root", "--jobs"):
        assert option in out
    out = CliRunner().invoke(app, ["fetch", "--help"], env={"COLUMNS": "120"}).output
    assert all(word in out for word in ("SOURCE", "--to", "--accept-licence", "--registry"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "dem"], "did you mean 'demo'"),
        (["--set", "ddpo.epoch=1"], "did you mean 'epochs'"),
        (["--preset", "ham10000"], "--data-root"),
    ],
)
def test_bad_settings_stop_before_anything_runs(arguments, words, monkeypatch):
    import derm_rl.reproduce

    monkeypatch.setattr(derm_rl.reproduce, "run", lambda *a, **k: pytest.fail("it ran"))
    result = CliRunner().invoke(app, ["reproduce", *arguments])
    assert result.exit_code == 2
    assert words in result.output


def test_presets_are_listed_and_shown():
    assert "ham10000" in CliRunner().invoke(app, ["presets"]).output
    shown = CliRunner().invoke(app, ["presets", "--show", "demo"], env={"COLUMNS": "160"}).output
    assert "ddpo.clip_range" in shown and "importance ratio" in shown


def test_a_missing_result_is_a_message_not_a_traceback(monkeypatch):
    import derm_rl.reproduce
    from derm_rl.config import MissingArtifact

    def run(*_, **__):
        raise MissingArtifact("run notebook 03")

    monkeypatch.setattr(derm_rl.reproduce, "run", run)
    result = CliRunner().invoke(app, ["reproduce", "--preset", "smoke", "--only", "04"])
    assert result.exit_code == 1 and "derm-rl: run notebook 03" in result.output
