"""The benchmarks that need hours or a GPU: that they run, on the tiny pipeline."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from train_tiny import settings_of, task_of

from derm_rl import pipeline
from derm_rl.ddpo import trainer
from derm_rl.settings import Backbone

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("ddpo", "gpu"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import ddpo
    import gpu

    return {"ddpo": ddpo, "gpu": gpu}


def test_a_variant_of_the_gpu_benchmark_is_measured(
    benchmark, tiny_pipeline_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(benchmark["ddpo"], "RUNS", tmp_path)
    gpu = benchmark["gpu"]
    plain = gpu.settings(images=2, batch_size=4, steps=3, epochs=2)
    row = gpu.measure(
        lambda: pipeline.load(tiny_pipeline_folder), plain, {"background_reward": True}, 2
    )
    assert 0 < row["peak_fraction"] < 1
    assert 0 <= row["overhead"] < 1
    assert row["images_per_second_rollout"] > 0 and row["images_per_second_update"] > 0


def test_unet_passes_are_the_papers_300_an_image(benchmark, tmp_path):
    from derm_rl.config import load

    ddpo = benchmark["ddpo"]
    paper = load("smoke").ddpo.model_copy(update=ddpo.PAPER)
    assert ddpo.unet_passes(paper, 5.0, images=1, trained=50) == 300
    assert ddpo.unet_passes(paper, 1.0, images=2, trained=0) == 100  # two without advantage
    steps = pd.DataFrame({"epoch": [0, 0, 1, 1], "step": [0, 1, 0, 1]})
    steps.to_csv(tmp_path / "steps.csv", index=False)
    half = paper.model_copy(update={"timestep_fraction": 0.5})
    assert ddpo.trained_steps(paper, tmp_path) == 2 and ddpo.trained_steps(half, tmp_path) == 1


def test_ratios_say_what_the_paper_spends_and_the_fast_one_does_not(benchmark):
    def curve(apr, passes):
        at = np.arange(len(apr))
        return pd.DataFrame(
            {"eval_judge_apr": apr, "unet_passes": passes * at, "seconds": 2.0 * passes * at}
        )

    paper = curve([0.2, 0.4, 0.6, 0.6, 0.6], 100)
    found = benchmark["ddpo"].ratios(paper, curve([0.2, 0.6, 0.7, 0.8], 10))
    assert found["paper_end"] == pytest.approx(0.6)
    assert found["unet_passes_ratio"] == pytest.approx(400 / 30)  # there at the mean of 0.6 to 0.8
    assert found["wall_time_ratio"] == pytest.approx(400 / 30)
    never = benchmark["ddpo"].ratios(paper, curve([0.2, 0.3, 0.3], 10))
    assert np.isnan(never["unet_passes_ratio"])
    over_seeds = benchmark["ddpo"].over_seeds
    assert over_seeds(pd.Series([2.0, never["unet_passes_ratio"]]), "mean") is None
    assert over_seeds(pd.Series([2.0, 4.0]), "min") == 2.0


def test_where_a_curve_reaches_a_target(benchmark):
    curve = pd.DataFrame(
        {"eval_judge_apr": [0.2, 0.5, 0.5, 0.6, 0.8], "seconds": [0.0, 1.0, 2.0, 3.0, 4.0]}
    )
    reached = benchmark["ddpo"].reached
    assert reached(curve, 0.5, "seconds") == 3.0  # means of three: 0.2, 0.35, 0.4, 0.53, 0.63
    assert np.isnan(reached(curve, 0.7, "seconds"))


def test_what_readers_see_blind_is_scored_against_what_was_asked(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import blind_reading

    from derm_rl.config import load

    folder, names, rows = tmp_path / "05", ("hair", "ruler"), []
    for model in ("stage1", "rl"):
        for text, wanted in (("with hair", (1, 0)), ("with ruler", (0, 1))):
            for index in range(8):
                found = wanted if model == "rl" else (0, 0)
                row = {"model": model, "prompt": text, "index": index, "image_seed": index}
                row |= {f"wanted_{n}": x for n, x in zip(names, wanted, strict=True)}
                for who in ("judge", "rules"):
                    row |= {f"{who}_{n}": x for n, x in zip(names, found, strict=True)}
                rows.append(row)
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "samples.csv", index=False)
    random = np.random.default_rng(0)
    for model in ("stage1", "rl"):
        images = random.integers(0, 255, (16, 8, 8, 3), np.uint8)
        np.save(folder / f"images_{model}.npy", images)
    settings, guided = load("smoke"), pd.DataFrame(rows[5:7] + rows[13:15])
    guided["model"] = "stage1 at guidance 2"
    more = random.integers(0, 255, (4, 8, 8, 3), np.uint8)
    monkeypatch.setattr(blind_reading, "guided", lambda settings: [(guided, more)])
    monkeypatch.setattr(type(settings), "require", lambda self, stage: folder)
    sheets = tmp_path / "sheets"
    blind_reading.draw(settings, sheets, ["anna", "ben"])
    assert len(list(sheets.glob("*.png"))) == 2
    key = blind_reading.chosen(settings)[0].set_index("number")
    orders = []
    for reader in ("anna", "ben"):
        form = pd.read_csv(sheets / f"{reader}.csv")
        assert list(form.columns) == ["number", "image", "seen"] and len(form) == 12
        orders.append(form["number"].tolist())
        rl = key.loc[form["number"]]
        form["seen"] = np.where(rl["model"] != "stage1", rl["prompt"].str.removeprefix("with "), "")
        if reader == "ben":  # does not see one of RL's
            form.loc[(rl["model"] == "rl").to_numpy().argmax(), "seen"] = ""
        form.to_csv(sheets / f"{reader}.csv", index=False)
    assert orders[0] != orders[1]
    table, results = blind_reading.score(settings, sheets)
    assert results["apr.stage1"]["value"] == 0 and results["apr.rl"]["value"] == 0.75
    assert results["apr.gain"]["value"] == 0.75 and results["apr.gain"]["n"] == 4
    assert results["apr.stage1 at guidance 2"]["value"] == 1
    assert table["anna_hair"].sum() + table["anna_ruler"].sum() == 8
    assert results["judge.recall.hair"]["value"] == 1 and results["judge.false_add.hair"]["n"] > 0
    assert 0 < results["kappa.anna.ben"] < 1
    np.save(folder / "images_rl.npy", 255 - np.load(folder / "images_rl.npy"))
    with pytest.raises(ValueError, match=r"anna\.csv is about other images"):
        blind_reading.score(settings, sheets)


@pytest.fixture
def objectives(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import objectives

    return objectives


@pytest.mark.parametrize("changes", [
    {"objective": "awm"}, {"objective": "awm", "guidance_scales": [1.0], "anchor": 0.5},
    {"objective": "nft", "method": "lora", "kl_weight": 0.1}, {"drop_last_steps": 1},
    {"drop_last_steps": 1, "guidance_scales": [1.0], "anchor": 0.5},
], ids=str)  # fmt: skip
def test_an_image_takes_as_many_passes_as_training_counts(
    objectives, tiny_pipeline_folder, tmp_path, changes
):
    settings = settings_of(epochs=1, **changes)
    pipe = pipeline.load(tiny_pipeline_folder)
    log = trainer.train(pipe, task_of(), settings, tmp_path, 0, progress=False)
    images = 4 * settings.images_per_prompt
    assert log["unet_passes"].sum() == pytest.approx(images * objectives.passes_of(settings))
    found = objectives.spent(tmp_path)
    assert found["epochs"] == 1 and found["unet_passes"] == log["unet_passes"].sum()


def test_what_is_close_to_training_images_is_paid_more(objectives):
    from derm_rl import classifier

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 16, 16, 3), np.uint8)
    model = classifier.model.build(
        Backbone(architecture="resnet", widths=[8, 16], depths=[1, 1], pretrained=None),
        ["hair", "MEL"], 16,
    ).eval()  # fmt: skip
    pay = objectives.closeness(model, images)
    same = classifier.model.as_tensor(images[:8])
    values = [pay(x, torch.zeros(8, 2)) for x in (same, same.mean((2, 3), keepdim=True) * same)]
    assert torch.allclose(values[0], torch.ones(8), atol=1e-3)
    assert (values[1] < values[0]).all() and (values[1] > 0).all()


def test_a_row_says_what_was_gained_and_means_are_over_seeds(objectives, tmp_path):
    pd.DataFrame({"unet_passes": [10, 20, np.nan]}).to_csv(tmp_path / "log.csv", index=False)
    seconds = {"seconds_sample": [1.0, 2.0], "seconds_update": [3.0, 4.0]}
    pd.DataFrame(seconds).to_csv(tmp_path / "timing.csv", index=False)
    before = {"panel": 0.2, "rules_recall_ink": 0.1, "spread_judge": 2.0}
    after = {"panel": 0.5, "rules_recall_ink": 0.4, "spread_judge": 1.0}
    row = objectives.row_of("awm", 0, tmp_path, before, after)
    assert row["unet_passes"] == 30 and row["seconds"] == 10 and row["epochs"] == 2
    assert row["panel_gain"] == pytest.approx(0.3) and row["rules_recall_ink"] == 0.4
    assert row["spread_judge_ratio"] == 0.5
    table = pd.DataFrame([row, row | {"seed": 1, "panel_gain": 0.5}])
    found = objectives.over_seeds(table)["awm"]["panel_gain"]
    half = 12.7062 * 0.1  # of Student's t with one degree of freedom, times the standard error
    assert (found["value"], found["n"]) == (pytest.approx(0.4), 2)
    assert found["high"] - found["value"] == pytest.approx(half, rel=1e-4)
