"""The command line starts quickly and stops early on bad input."""

import json
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


@pytest.mark.parametrize(("error", "status"), [(KeyError("a bug"), None), (OSError("gone"), 1)])
def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, error, status):
    import derm_rl.reproduce

    monkeypatch.setattr(derm_rl.reproduce, "run", lambda *a, **k: (_ for _ in ()).throw(error))
    result = CliRunner().invoke(app, ["reproduce", "--preset", "smoke"])
    if status is None:
        assert result.exception is error
    else:
        assert result.exit_code == status and result.output == "derm-rl: gone\n"


def test_results_that_cannot_be_written_are_one_line(monkeypatch, tmp_path):
    from derm_rl import paths

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(paths, "RUNS", tmp_path / "file")
    for command in (["reproduce"], ["captions", "read-batch", "x", "--requests", "y"]):
        teacher = ["--set=captions.teacher=vllm:m"]
        result = CliRunner().invoke(app, [*command, "-p", "smoke", *teacher])
        assert result.exit_code == 1
        (line,) = result.output.strip().splitlines()[-1:]
        assert line.startswith(f"derm-rl: {tmp_path / 'file'}") and "Traceback" not in line


def test_figures_of_nothing_fail_and_say_what_to_run(runs):
    result = CliRunner().invoke(app, ["figures", "-p", "smoke", "--set", "seed=1"])
    assert result.exit_code == 1
    assert "no figure was drawn. Run derm-rl reproduce --preset smoke --set seed=1" in result.output


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


def test_captions_estimate_measures_and_writes_nothing(runs, monkeypatch):
    from derm_rl.captions import store

    monkeypatch.setattr(store, "encode", lambda *_: pytest.fail("an image was prepared"))
    model = ["--set=captions.teacher=vllm:some-model", "--set=captions.images=300"]
    found = CliRunner().invoke(app, ["captions", "estimate", "-p", "smoke", *model])
    assert found.exit_code == 0 and "requests to ask (0 answered already)" in found.output
    assert not runs.exists()


def test_captions_estimate_asks_nothing_and_prices_a_model(runs):
    small = [f"--set=captions.{x}" for x in ("images=8", "image_size=48", "measured_size=48")]
    found = CliRunner().invoke(app, ["captions", "estimate", "-p", "smoke", *small])
    assert found.exit_code == 0 and "$0.00" in found.output, found.output
    model = [*small, "--set=captions.teacher=vllm:some-model", "--price", "2", "8"]
    found = CliRunner().invoke(app, ["captions", "estimate", "-p", "smoke", *model])
    assert found.exit_code == 0 and "requests to ask" in found.output, found.output


def test_captions_batches_go_out_and_come_back(runs, tmp_path):
    small = [f"--set=captions.{x}" for x in ("images=4", "image_size=48", "measured_size=48")]
    target = tmp_path / "batch" / "requests.jsonl"
    refused = CliRunner().invoke(app, ["captions", "write-batch", str(target), "-p", "smoke"])
    assert refused.exit_code == 2 and "captions.teacher is measured" in refused.output
    model = [*small, "--set=captions.teacher=vllm:some-model"]
    written = CliRunner().invoke(
        app, ["captions", "write-batch", str(target), "-p", "smoke", *model]
    )
    assert written.exit_code == 0, written.output
    file = target.with_name("requests-00000.jsonl")
    requests = [json.loads(line) for line in file.read_text().splitlines()]
    answer = {"answer": "A lesion.", "findings": [], "confidence": 0.5, "abstained": False}
    message = {"role": "assistant", "content": json.dumps(answer)}
    choice = {"finish_reason": "stop", "message": message}
    rows = [
        {
            "custom_id": r["custom_id"],
            "response": {"status_code": 200, "body": {"choices": [choice]}},
        }
        for r in requests
    ]
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["captions", "read-batch", str(results), "--requests", str(file), "-p", "smoke"]
    found = CliRunner().invoke(app, [*command, "--set=captions.teacher=vllm:some-model"])
    assert found.exit_code == 0 and f"{len(rows)} ok" in found.output, found.output
    again = CliRunner().invoke(app, [*command, "--set=captions.teacher=vllm:some-model"])
    assert f"answered before: {len(rows)}" in again.output


def test_captions_merge_names_a_ledger_that_is_not_there(runs):
    found = CliRunner().invoke(app, ["captions", "merge-ledgers", "nowhere.sqlite", "-p", "smoke"])
    assert found.exit_code == 1 and "nowhere.sqlite: no such ledger" in found.output
