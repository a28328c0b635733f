"""Alignment: rates on hand-made cases, generation from fixed seeds, guidance choice, stage 05."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from derm_rl import pipeline, prompts, training
from derm_rl.evaluation import alignment, alignment_stage, generation, panel

NAMES = ["hair", "ink", "MEL"]
FINDINGS = prompts.all_prompts(["MEL", "NV"], ["hair", "ink"])


# --- rates --------------------------------------------------------------------------------------


def test_matches_by_hand():
    wanted = np.array([[1, 0, 1], [1, 0, 1], [0, 0, 0]])
    judged = np.array([[0.9, 0.1, 0.2], [0.9, 0.6, 0.9], [0.2, 0.3, 0.1]])
    found = alignment.matches(judged, wanted, NAMES)
    assert found["apr"].tolist() == [1, 0, 1]
    assert found["diagnosis"].tolist() == [0, 1, 1]
    assert found["apr_diagnosis"].tolist() == [0, 0, 1]
    assert found["labels"].tolist() == pytest.approx([2 / 3, 2 / 3, 1])


def test_of_several_diagnoses_the_likeliest_counts():
    names = ["hair", "MEL", "NV", "BCC"]
    judged = np.array([[0.2, 0.3, 0.4, 0.1], [0.9, 0.8, 0.7, 0.9]])
    assert alignment.decide(judged, names).tolist() == [
        [False, False, True, False],
        [True, False, False, True],
    ]


def test_apr_and_its_interval_respect_the_prompts():
    ids = ["a"] * 50 + ["b"] * 50
    wanted = np.tile([1.0, 0.0, 1.0], (100, 1))
    judged = wanted.copy()
    judged[50:, 1] = 1.0  # everything wrong for the second prompt: no noise within prompts
    found = alignment.apr(judged, wanted, ids, NAMES)
    assert found == (0.5, 0.5, 0.5, 100)


def test_attribute_table_counts_recall_and_false_additions_by_hand():
    wanted = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]])
    judged = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1.0]])
    table = alignment.attribute_table(judged, wanted, list("aabc"), NAMES).set_index("attribute")
    assert table.loc["hair", ["recall", "recall_n", "false_add", "false_add_n"]].tolist() == [
        0.5, 2, 0.5, 2,
    ]  # fmt: skip
    assert np.isnan(table.loc["ink", "recall"]) and table.loc["ink", "recall_n"] == 0
    assert table.loc["ink", "false_add"] == 0.25
    assert table.loc["MEL", "recall"] == 1 and table.loc["MEL", "false_add"] == 0


def test_prompt_table_has_one_row_per_prompt_in_order():
    wanted = np.tile([1.0, 0.0, 1.0], (4, 1))
    judged = wanted.copy()
    judged[3, 0] = 0.0
    table = alignment.prompt_table(judged, wanted, list("zzaa"), NAMES)
    assert table["prompt"].tolist() == ["z", "a"] and table["n"].tolist() == [2, 2]
    assert table["apr"].tolist() == [1.0, 0.5] and table["diagnosis"].tolist() == [1.0, 1.0]


def test_paired_gain_is_narrower_where_the_noise_decides():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(10), 40)
    before = rng.random(400) < 0.4
    after = before | (rng.random(400) < 0.3)
    paired = alignment.gain(before, after, ids)
    unpaired = alignment.gain(before, after, ids, paired=False)
    assert (
        paired.value == pytest.approx(unpaired.value) == pytest.approx(after.mean() - before.mean())
    )
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)
    assert paired.low > 0.1
    with pytest.raises(ValueError, match="the same prompts and seeds"):
        alignment.gain(before, after[:-1], ids)


# --- generation ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    rng = np.random.default_rng(0)
    return pipeline.build(
        rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
        [prompts.render(f) for f in FINDINGS],
        patch_size=4,
        latent_channels=8,
        whitening=0.5,
        unet={
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        },
        text_width=16,
        text_layers=1,
    )


def images(pipe, findings=FINDINGS[:3], n=2, seed=0, **changes):
    changes = {"inference_steps": 3, "guidance_scale": 2.0, "size": 16} | changes
    return generation.generate(pipe, findings, n, seed, **changes)


def test_images_are_uint8_in_the_order_of_the_findings(pipe):
    x = images(pipe)
    assert x.shape == (6, 16, 16, 3) and x.dtype == np.uint8
    assert np.array_equal(x, images(pipe)) and not np.array_equal(x, images(pipe, seed=1))
    assert np.array_equal(x[2:4], images(pipe, FINDINGS[1:2]))


def test_an_image_does_not_depend_on_its_batch_nor_on_how_many_there_are(pipe):
    x = images(pipe, n=3).astype(int)
    assert abs(images(pipe, n=3, batch_size=2) - x).max() <= 1  # rounding
    first_two = x.reshape(3, 3, 16, 16, 3)[:, :2].reshape(6, 16, 16, 3)
    assert abs(images(pipe, n=2) - first_two).max() <= 1


def test_half_precision_is_of_the_unet_alone_and_changes_little(pipe, monkeypatch):
    monkeypatch.setattr(training, "cpu_has_bf16", lambda: True)  # imitated where it has not
    whole, half = images(pipe).astype(int), images(pipe, mixed_precision="bf16").astype(int)
    assert 0 < np.abs(whole - half).mean() < 3  # of 255: the same noise, rounded in the UNet
    assert np.array_equal(whole, images(pipe))  # and the pipeline is as it was


def test_one_image_alone_through_plain_diffusers_is_the_same(pipe):
    text = prompts.render(FINDINGS[1])
    generator = torch.Generator().manual_seed(generation.image_seed(0, text, 1))
    alone = pipe(
        text, generator=generator, num_inference_steps=3, guidance_scale=2.0, eta=1.0,
        height=16, width=16, output_type="np",
    ).images[0]  # fmt: skip
    assert abs(alone * 255 - images(pipe)[3]).max() <= 1.5


def test_two_pipelines_start_from_the_same_noise(pipe, monkeypatch):
    seen = []
    real = type(pipe).prepare_latents

    def spy(self, *args, **kwargs):
        seen.append(real(self, *args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(type(pipe), "prepare_latents", spy)
    images(pipe, guidance_scale=1.0)
    images(pipe, guidance_scale=4.0)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0][0], seen[0][1])


def test_interrupted_generation_continues_and_a_finished_one_is_kept(pipe, tmp_path, monkeypatch):
    out, whole, calls = tmp_path / "images.npy", images(pipe, batch_size=2), []
    real = type(pipe).__call__

    def fails_at_third(self, *args, **kwargs):
        calls.append(kwargs["prompt"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "__call__", fails_at_third)
    with pytest.raises(KeyboardInterrupt):
        images(pipe, batch_size=2, out=out)
    assert not out.exists()
    assert np.array_equal(images(pipe, batch_size=2, out=out), whole) and len(calls) == 4
    assert np.array_equal(images(pipe, batch_size=2, out=out), whole) and len(calls) == 4
    assert np.array_equal(np.load(out), whole)
    images(pipe, batch_size=2, out=out, seed=5)  # other noise: nothing of the old file is used
    assert len(calls) == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.npy", "images.progress.json"]


def test_values_that_are_not_finite_are_an_error_not_a_black_image(pipe, monkeypatch):
    result = SimpleNamespace(images=torch.full((2, 3, 16, 16), float("nan")))
    monkeypatch.setattr(type(pipe), "__call__", lambda self, **kwargs: result)
    with pytest.raises(FloatingPointError, match="a dermoscopic image with .* at guidance 2"):
        images(pipe, FINDINGS[:1])


# --- the judge ----------------------------------------------------------------------------------


class Judge:
    """Sees hair in red images, ink in blue ones, melanoma in dark ones."""

    label_names = NAMES

    def predict(self, x):
        mean = np.asarray(x, float).mean((1, 2)) / 255
        return np.stack([mean[:, 0], mean[:, 2], 1 - mean[:, 1]], 1)


def paint(wanted):
    """Images in which ``Judge`` sees exactly these labels."""
    x = np.array(wanted)[:, [0, 2, 1]] * [1, -1, 1] + [0, 1, 0]
    return np.broadcast_to((x * 255).astype(np.uint8)[:, None, None], (len(x), 4, 4, 3)).copy()


def test_the_autoencoder_table_says_what_the_judge_finds_before_and_after():
    labels = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]] * 10, float)
    originals, decoded = paint(labels), paint(labels)
    originals[0] = paint([[0, 1, 1]])[0]  # the judge errs on one of forty originals
    decoded[:10] = paint(1 - labels[:10])  # and on ten reconstructions
    table = alignment.autoencoder_table(Judge(), originals, decoded, labels)
    assert table["original"].tolist() == [0] + [1] * 39
    assert table["reconstruction"].tolist() == [0] * 10 + [1] * 30


def test_the_best_guidance_has_the_highest_apr_and_is_the_smaller_of_equals():
    table = pd.DataFrame({"guidance_scale": [3.0, 1.0, 2.0], "apr": [0.9, 0.6, 0.9]})
    assert alignment.best_guidance(table) == 2.0


@pytest.mark.parametrize(
    ("rates", "expected"),
    [([0.5, 0.7, 0.75, 0.74], 0.75), ([0.5, 0.72, 0.75, 0.74], 0.5), ([0.5, 0.6, 0.7, 0.8], 1.2)],
)
def test_the_least_adapter_scale_within_a_standard_error_is_chosen(rates, expected):
    table = pd.DataFrame({"adapter_scale": [0.25, 0.5, 0.75, 1.2], "apr": rates, "n": 128})
    assert alignment.least_change(table) == expected  # a standard error of 0.75 is 0.038


def test_wanted_labels_and_prompt_ids_agree_with_the_order_of_generation():
    wanted = alignment.wanted_labels(FINDINGS[:2], 2, NAMES)
    ids = alignment.prompt_ids(FINDINGS[:2], 2)
    assert ids == [prompts.render(FINDINGS[0])] * 2 + [prompts.render(FINDINGS[1])] * 2
    assert wanted.tolist()[0] == wanted.tolist()[1] == prompts.labels(FINDINGS[0], NAMES)


# --- stage 05 -----------------------------------------------------------------------------------


@pytest.fixture
def stage(pipe, tmp_path, monkeypatch):
    """Stage 05 over two tiny pipelines, with the toy judge in both roles."""
    for name in ("03_finetune_stable_diffusion", "04_ddpo"):
        pipeline.save(pipe, tmp_path / name / "pipeline")
    recorded = {}
    vocabulary = SimpleNamespace(diagnoses=["MEL", "NV"], artifacts=["hair", "ink"])
    vocabulary.label_names = NAMES
    vocabulary.images = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    vocabulary.findings = [FINDINGS[0]] * 4 + [FINDINGS[1]]  # "real" test images
    monkeypatch.setattr(alignment_stage.classifier, "load", lambda folder, device: Judge())
    monkeypatch.setattr(alignment_stage.data, "load", lambda config, split=None: vocabulary)
    provenance = alignment_stage.provenance
    monkeypatch.setattr(provenance, "record_metrics", lambda c, s, m: recorded.update(m))
    monkeypatch.setattr(
        provenance,
        "metric",
        lambda config, value, low, high, n, csv: {
            "value": value, "low": low, "high": high, "n": n, "csv": csv,
        },
    )  # fmt: skip
    monkeypatch.setattr(provenance, "stamp", lambda config, stage, **facts: None)
    config = SimpleNamespace(
        seed=0,
        image_size=16,
        data=SimpleNamespace(source="phantom", phantom_seed=0),
        require=lambda name: tmp_path / name,
        stage_dir=lambda name: tmp_path / name,
        alignment=SimpleNamespace(
            images_per_prompt=2, inference_steps=2, eta=1.0, guidance_scale=None,
            guidance_scales=[1.0, 2.0], adapter_scales=[0.5], front_images_per_prompt=1,
            batch_size=8, bootstrap=50, seed=0, mixed_precision="no",
        ),
    )  # fmt: skip
    return config, recorded


def test_stage_writes_images_tables_and_metrics_that_follow_from_them(stage, capsys):
    config, recorded = stage
    folder = alignment_stage.run(config, progress=False)
    points = [f"{model}_{g}_{whole}_{eta}" for model, whole in (("rl", 1), ("stage1", 0))
              for g in (1, 2) for eta in (0, 1)] + ["rl_1_0.5_1"]  # fmt: skip
    names = [f"front_{point}.npy" for point in points] + ["images_rl.npy", "images_stage1.npy"]
    assert sorted(p.name for p in folder.glob("*.npy")) == sorted(names)
    stage1, rl = (np.load(folder / f"images_{model}.npy") for model in ("stage1", "rl"))
    assert stage1.shape == rl.shape == (16, 16, 16, 3)
    samples = pd.read_csv(folder / "samples.csv")
    assert samples["model"].tolist() == ["stage1"] * 16 + ["rl"] * 16 + ["truth"] * 16
    for _, part in samples[samples["model"] != "truth"].groupby("prompt", sort=False):
        assert part["index"].tolist() == [0, 1, 0, 1] and part["image_seed"].nunique() == 2
    assert np.array_equal(stage1, rl)  # the same pipeline and noise twice
    assert recorded["alignment.apr.gain"]["value"] == 0

    arrays, names = alignment_stage.arrays(samples)
    assert names == NAMES
    assert arrays["judge"][:16] == pytest.approx(Judge().predict(stage1), rel=1e-4)
    again = alignment_stage.headline(
        samples, pd.read_csv(folder / "attributes.csv"), config.alignment.bootstrap, config.seed
    ) | panel.headline(
        samples, pd.read_csv(folder / "panel.csv"), config.alignment.bootstrap, config.seed
    )
    found = samples.loc[samples["model"] == "rl", ["rules_hair", "rules_ink"]].to_numpy(bool)
    assert np.array_equal(panel.rules(rl, ["hair", "ink"]), found)
    assert set(again) == set(recorded)
    for name, found in again.items():
        got = [recorded[name][k] for k in ("value", "low", "high")]
        assert got == pytest.approx(list(found[:3]), abs=1e-4, nan_ok=True), name
    for name in ("apr.rl", "diagnosis.stage1", "apr_diagnosis.gain", "recall.ink.rl"):
        assert f"alignment.{name}" in recorded
    assert recorded["alignment.reward_judge_gap.rl"]["value"] == 0
    front = pd.read_csv(folder / "front.csv").set_index("model")
    assert front["chosen"].groupby("model").sum().tolist() == [1, 1]
    assert front.loc["stage1", "adapter_scale"].tolist() == [0, 0, 0, 0]
    assert front.loc["rl", "adapter_scale"].tolist() == [1, 1, 0.5, 1, 1]
    assert front["eta"].tolist() == [1, 1, 0, 0] + [1, 1, 1, 0, 0]
    measured = front.reset_index().query("guidance_scale == 1 and adapter_scale != 0.5")
    assert (measured.groupby("eta")["panel_apr"].nunique() == 1).all()  # the pipelines are the same
    assert len(pd.read_csv(folder / "per_prompt.csv")) == 24
    assert "apr" in capsys.readouterr().out


def test_a_guidance_scale_that_is_given_is_that_of_both_models(stage):
    config, _ = stage
    config.alignment.guidance_scale = 3.0  # though it is not among those tried
    folder = alignment_stage.run(config, progress=False)
    front = pd.read_csv(folder / "front.csv").set_index(["model", "guidance_scale"])
    assert front.loc["stage1"].index.tolist() == [1, 2, 3, 1, 2, 3]
    assert set(front.index[front["chosen"]]) == {("stage1", 3.0), ("rl", 3.0)}
    samples = pd.read_csv(folder / "samples.csv")
    assert set(samples.loc[samples["model"] != "truth", "guidance_scale"]) == {3.0}


def test_the_truth_of_real_data_is_its_test_images(stage):
    config, recorded = stage
    config.data.source = "ham10000"
    samples = pd.read_csv(alignment_stage.run(config, progress=False) / "samples.csv")
    truth = samples[samples["model"] == "truth"]
    first, second = (prompts.render(f) for f in FINDINGS[:2])
    assert truth["prompt"].tolist() == [first, first, second]  # at most two of each, as generated
    assert recorded["alignment.apr.truth"]["n"] == 3


def test_classifiers_of_another_vocabulary_are_refused(stage, monkeypatch):
    other = SimpleNamespace(label_names=["hair", "MEL"])
    monkeypatch.setattr(alignment_stage.classifier, "load", lambda folder, device: other)
    with pytest.raises(ValueError, match="the judge of stage 02 knows the labels hair, MEL"):
        alignment_stage.run(stage[0], progress=False)
