"""The committed results: each picture has its table, each number follows from a table."""

import math
import subprocess

import numpy as np
import pytest
from scipy.stats import binomtest, sem
from scipy.stats import t as student

from derm_rl import config as presets
from derm_rl.evaluation import alignment_stage, audit, bootstrap, panel, quality_stage
from derm_rl.io import read_csv, read_json
from derm_rl.paths import FIGURES, ROOT
from derm_rl.provenance import METRIC_FIELDS

FOLDERS = [f.parent for f in sorted(FIGURES.rglob("metrics.json"))]
pytestmark = pytest.mark.skipif(not FOLDERS, reason="no results are committed in figures/")


@pytest.fixture(params=FOLDERS, ids=lambda f: f.name)
def folder(request):
    return request.param


def test_every_figure_has_its_table_and_every_metric_names_one(folder):
    for picture in folder.glob("*.png"):
        assert picture.with_suffix(".csv").is_file(), f"{picture} has no CSV"
    for name, metric in read_json(folder / "metrics.json").items():
        assert tuple(sorted(metric)) == tuple(sorted(METRIC_FIELDS)), name
        if not name.startswith("reproduce."):
            assert (folder / metric["csv"]).is_file(), f"{name}: {metric['csv']} is missing"
        if metric["low"] is not None:
            assert metric["low"] <= metric["value"] <= metric["high"], name


def same(metrics, name, value):
    assert math.isclose(metrics[name]["value"], value, rel_tol=1e-5, abs_tol=2e-4), (name, value)


def test_alignment_follows_from_the_samples(folder):
    metrics = read_json(folder / "metrics.json")
    samples = read_csv(folder / "alignment_samples.csv")
    found = alignment_stage.headline(samples, read_csv(folder / "attributes.csv"), resamples=100)
    assert {n for n in metrics if n.startswith("alignment.")} == set(found)
    for name, interval in found.items():
        same(metrics, name, interval.value)
    # And by hand: the share of images whose artifacts are all as wanted.
    artifacts = [c.removeprefix("wanted_") for c in samples if c.startswith("wanted_")][:-1]
    right = np.ones(len(samples), bool)
    for a in artifacts:
        right &= (samples[f"judge_{a}"] > 0.5) == (samples[f"wanted_{a}"] > 0.5)
    by_model = right.groupby(samples["model"]).mean()
    same(metrics, "alignment.apr.gain", by_model["rl"] - by_model["stage1"])


def test_panel_and_quality_follow_from_their_tables(folder):
    metrics = read_json(folder / "metrics.json")
    if "panel.apr.rl" not in metrics:
        pytest.skip(f"the results in {folder} are from before the panel")
    samples = read_csv(folder / "alignment_samples.csv")
    found = panel.headline(samples, read_csv(folder / "panel.csv"), resamples=100)
    by_eye = {"panel.audit.visible"}  # follows from verdicts, not from this table
    assert {n for n in metrics if n.startswith("panel.")} - by_eye == set(found)
    for name, interval in found.items():
        same(metrics, name, interval.value)
    # And by hand: the share of images that are right by both.
    right = np.ones(len(samples), bool)
    for a in (c.removeprefix("rules_") for c in samples if c.startswith("rules_")):
        wanted = samples[f"wanted_{a}"] > 0.5
        right &= (samples[f"judge_{a}"] > 0.5) == wanted
        right &= (samples[f"rules_{a}"] > 0.5) == wanted
    by_model = right.groupby(samples["model"]).mean()
    same(metrics, "panel.apr.gain", by_model["rl"] - by_model["stage1"])
    for name, interval in quality_stage.headline(read_csv(folder / "quality.csv")).items():
        same(metrics, name, interval.value)


def test_classifier_accuracy_follows_from_the_predictions(folder):
    from sklearn.metrics import roc_auc_score

    metrics = read_json(folder / "metrics.json")
    for model, rows in read_csv(folder / "classifier_predictions.csv").groupby("model"):
        labels = [c.removeprefix("p_") for c in rows if c.startswith("p_")]
        aucs = {label: roc_auc_score(rows[label], rows[f"p_{label}"]) for label in labels}
        for label, auc in aucs.items():
            same(metrics, f"classifier.{model}.auc.{label}", auc)
        same(metrics, f"classifier.{model}.auc.min", min(aucs.values()))
    if (decoys := folder / "decoys.csv").is_file():
        for model, rows in read_csv(decoys).groupby("model"):
            same(metrics, f"decoys.false.{model}", rows["called"].mean())
    table = read_csv(folder / "autoencoder.csv")
    kept = bootstrap.ratio(
        table[["reconstruction", "original"]].to_numpy(float), np.ones((1, len(table)))
    )
    same(metrics, "autoencoder.exact_match_kept", float(kept[0]))


def test_pairs_follow_from_their_tables(folder):
    metrics = read_json(folder / "metrics.json")
    if "captions.pairs" not in metrics:
        pytest.skip(f"no image-text pairs are among the results in {folder}")
    total = read_csv(folder / "captions_images.csv").set_index("source").loc["total"]
    same(metrics, "captions.pairs", total["pairs"])
    same(metrics, "captions.images", total["images"])
    checks = read_csv(folder / "captions_checks.csv")
    every = checks[(checks["source"] == "all") & (checks["check"] == "any")].iloc[0]
    same(metrics, "captions.flagged", every["flagged"] / every["pairs"])
    release = read_csv(folder / "captions_release.csv").groupby("what")["pairs"].sum()
    same(metrics, "captions.released", release["split"])
    same(metrics, "captions.reviewed", release["reviewed"])
    assert release["split"] + release.get("left out", 0) == total["pairs"]


ARTIFACTS = ("hair", "gel_bubble", "ruler", "ink")
GAINS = ("stage1", "rl", "gain", "truth")
QUALITY = ("stage1", "rl", "gain", "held_out")
TABLES = {  # row of the README: metric, and the last part of the name in each column
    FIGURES: [
        ("APR, judge and rules agree", "panel.apr", GAINS),
        ("APR, rules alone", "panel.rules.apr", GAINS),
        ("APR, judge alone", "alignment.apr", GAINS),
        ("APR with the diagnosis, judge", "alignment.apr_diagnosis", GAINS),
        ("diagnosis accuracy, judge", "alignment.diagnosis", GAINS),
        ("labels right, judge", "alignment.labels", GAINS),
        ("reward minus judge", "alignment.reward_judge_gap", GAINS),
        *(
            (f"{measure}, {title} features", f"quality.{space}.{measure}", QUALITY)
            for space, title in (("judge", "judge's"), ("imagenet", "ImageNet's"))
            for measure in ("precision", "recall", "coverage")
        ),
    ],
    FIGURES / "ham10000": [
        ("APR", "alignment.apr", GAINS),
        ("APR with the diagnosis", "alignment.apr_diagnosis", GAINS),
        ("diagnosis accuracy", "alignment.diagnosis", GAINS),
        ("labels right", "alignment.labels", GAINS),
    ],
}  # fmt: skip


def stated(metric):
    """A number as the README writes it."""
    return f"{metric['value']:.2f} [{metric['low']:.2f}, {metric['high']:.2f}]"


def unchanged(folder):
    """Whether the results are those committed, not what a run on this machine put there."""
    command = ["git", "diff", "--quiet", "HEAD", "--", str(folder / "metrics.json")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("folder", TABLES, ids=lambda f: f.name)
def test_the_readme_states_the_committed_numbers(folder):
    if not unchanged(folder):
        pytest.skip("the results in figures/ are not the committed ones: the README is about those")
    lines = (ROOT / "README.md").read_text(encoding="utf-8").replace("**", "").splitlines()
    metrics = read_json(folder / "metrics.json")
    for title, name, columns in TABLES[folder]:
        cells = [stated(metrics[f"{name}.{part}"]) for part in columns]
        assert "| " + " | ".join([title, *cells]) + " |" in lines
    if folder == FIGURES:
        table = read_csv(folder / "panel.csv").set_index(
            ["instrument", "model", "measure", "attribute"]
        )
        models = {"stage1": "after stage 1", "rl": "after RL", "truth": "known to show it"}
        for instrument, model, measure in (
            ("judge", "stage1", "recall"), ("judge", "rl", "recall"), ("rules", "stage1", "recall"),
            ("rules", "rl", "recall"), ("rules", "truth", "recall"),
            ("judge", "stage1", "false_add"), ("judge", "rl", "false_add"),
        ):  # fmt: skip
            title = f"{instrument}, {models[model]}"
            if measure == "false_add":
                title = f"not wanted but there, {title}"
            cells = [stated(table.loc[(instrument, model, measure, a)]) for a in ARTIFACTS]
            assert "| " + " | ".join([title, *cells]) + " |" in lines


def test_the_readme_states_the_measured_decoys():
    table = read_csv(ROOT / "benchmarks" / "results" / "decoys_phantom.csv")
    share = table[table["called"] == "any"].set_index(["instrument", "shown"])["share"]
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    shown = ("none", "line", "scratch", "crumple", "fringe", "arc", "confetti")
    instruments = {
        "reward classifier (ResNet)": "resnet", "judge (RegNet)": "regnet", "rules": "rules",
    }  # fmt: skip
    for title, name in instruments.items():
        cells = [f"{share[name, decoy]:.2f}" for decoy in shown]
        assert "| " + " | ".join([title, *cells]) + " |" in lines


def test_the_readme_states_what_the_eye_saw():
    seen = audit.readings(presets.load("demo"))
    if seen.empty or seen.isna().any(axis=None):
        pytest.skip("nobody has looked at the images in figures/audit.png")
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    every = seen.all(axis=1)
    for visible in (*seen.to_numpy(bool).T, every):
        low, high = binomtest(int(visible.sum()), len(visible)).proportion_ci(method="wilson")
        share = f"{visible.mean():.2f} [{low:.2f}, {high:.2f}]"
        assert f"{visible.sum()} of {len(visible)} ({share})" in text
    assert read_json(FIGURES / "metrics.json")["panel.audit.visible"]["value"] == pytest.approx(
        every.mean(), abs=1e-6
    )


def test_the_readme_states_what_readers_saw_blind():
    results = ROOT / "benchmarks" / "results"
    every = read_csv(results / "blind_reading_demo.csv")
    table = every[every["model"].isin(("stage1", "rl"))].reset_index(drop=True)
    readers = read_json(results / "blind_reading_demo.json")["readers"]

    def sees(who, rows=table):
        return rows[[f"{who}_{a}" for a in ARTIFACTS]].to_numpy(bool)

    if unchanged(FIGURES):  # the readings are about the images of the committed figures
        samples = read_csv(FIGURES / "alignment_samples.csv")
        same_images = table.merge(samples, on=["model", "prompt", "index"], suffixes=("", "_now"))
        assert len(same_images) == len(table)
        for a in ARTIFACTS:
            assert (same_images[f"rules_{a}"] == same_images[f"rules_{a}_now"]).all()
            called = same_images[f"judge_{a}_now"] > 0.5
            assert (same_images[f"judge_{a}"].astype(bool) == called).all()

    wanted, by_eye = sees("wanted"), [sees(reader) for reader in readers]
    right = np.all([(found == wanted).all(1) for found in by_eye], axis=0)
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for model in ("stage1", "rl"):
        part = right[table["model"] == model]
        low, high = binomtest(int(part.sum()), len(part)).proportion_ci(method="wilson")
        share = f"({part.mean():.2f} [{low:.2f}, {high:.2f}])"
        images = "images of stage 1 " if model == "stage1" else "after RL "
        assert f"{part.sum()} of {len(part)} {images}{share}" in text
    both, found = np.all(by_eye, axis=0), []
    for instrument in ("rules", "judge"):
        seen = sees(instrument)
        found += [f"{seen[both[:, j], j].mean():.2f}" for j in range(len(ARTIFACTS))]
    assert (
        "they find {} of hairs, {} of bubbles, {} of rulers and {} of ink "
        "(the judge {}, {}, {}, {})".format(*found)
    ) in text
    said = []
    for model, title in (("stage1", "images of stage 1"), ("rl", "images after RL")):
        rows = every[every["model"] == f"{model} at guidance 4"]
        asked = sees("wanted", rows)
        right = np.all([(sees(reader, rows) == asked).all(1) for reader in readers], axis=0)
        said.append(f"{right.sum()} of {len(right)} {title}")
    assert f"with guidance 4 in {said[0]} and in {said[1]}" in text


SEEDS = {
    "panel APR, gain": "panel.apr.gain",
    "judge's APR, gain": "alignment.apr.gain",
    "diagnosis accuracy, gain": "alignment.diagnosis.gain",
    "panel APR of the worst prompt": "panel.apr.least",
    "recall by rules after RL: hair": "panel.rules.recall.hair",
    "gel bubble": "panel.rules.recall.gel_bubble",
    "ruler": "panel.rules.recall.ruler",
    "ink": "panel.rules.recall.ink",
    "ruler, ink asked too": "panel.rules.recall.ruler_with_ink",
    "stage 1: precision, judge's features": "quality.judge.precision.stage1",
    "stage 1: coverage, judge's features": "quality.judge.coverage.stage1",
    "coverage, judge's features, gain": "quality.judge.coverage.gain",
    "coverage, ImageNet's features, gain": "quality.imagenet.coverage.gain",
    "precision, ImageNet's features, gain": "quality.imagenet.precision.gain",
    "recall, judge's features, gain": "quality.judge.recall.gain",
    "recall, ImageNet's features, gain": "quality.imagenet.recall.gain",
    "spread ratio, judge's features": "quality.spread.ratio",
}


def test_the_readme_states_what_other_seeds_gain():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    results = ROOT / "benchmarks" / "results"
    table, means = (
        read_csv(results / "seeds_demo.csv").set_index("seed"),
        read_json(results / "seeds_demo.json")["metrics"],
    )
    for title, name in SEEDS.items():
        cells = [f"{table.loc[seed, name]:.2f}" for seed in (0, 1, 2)]
        assert "| " + " | ".join([title, *cells, stated(means[name])]) + " |" in lines
    before = read_csv(results / "stage1_no_noise_demo.csv").set_index("seed")
    gain = table["panel.apr.rl"] - before["panel.apr.stage1"]
    half = sem(gain) * student.ppf(0.975, len(gain) - 1)
    mean = {"value": gain.mean(), "low": gain.mean() - half, "high": gain.mean() + half}
    cells = [f"{value:.2f}" for value in gain]
    title = "panel APR, gain over stage 1 without noise"
    assert "| " + " | ".join([title, *cells, stated(mean)]) + " |" in lines


def test_the_readme_states_what_ways_to_refine_gain():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    names = ["judge_gain", "panel_gain", *(f"rules_recall_{a}" for a in ARTIFACTS)]
    names += ["coverage_judge_gain", "coverage_imagenet_gain", "spread_judge_ratio"]
    table = read_csv(ROOT / "benchmarks" / "results" / "objectives_demo.csv")
    for variant, row in table.groupby("variant")[names].mean().iterrows():
        assert "| " + " | ".join([variant, *(f"{x:.2f}" for x in row)]) + " |" in lines


FRONT = {
    "stage 1": ("stage1", 0, 1),
    "stage 1, no noise": ("stage1", 0, 0),
    "RL, adapter scale 1": ("rl", 1, 1),
    "RL, adapter scale 1, no noise": ("rl", 1, 0),
}


def test_the_readme_states_the_front_and_what_rules_miss_after_rl():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    front = read_csv(FIGURES / "front.csv").query("features == 'judge'")
    if unchanged(FIGURES):
        for title, (model, scale, eta) in FRONT.items():
            part = front[(front["model"] == model) & (front["adapter_scale"] == scale)]
            part = part[part["eta"] == eta].sort_values("guidance_scale")
            cells = [f"{v:.2f}" for v in part["panel_apr"]]
            assert "| " + " | ".join([title, *cells]) + " |" in text.splitlines()
    table = read_csv(ROOT / "benchmarks" / "results" / "blind_reading_demo.csv")
    table, found = table[table["model"].isin(("stage1", "rl"))], []
    for artifact in ("gel_bubble", "hair"):
        seen = table[table[f"reader_1_{artifact}"] & table[f"reader_2_{artifact}"] == 1]
        by_model = seen.groupby("model")[f"rules_{artifact}"].mean()
        found += [f"{by_model[model]:.2f}" for model in ("stage1", "rl")]
    said = "find {} in images of stage 1 and {} after RL, of the hairs {} and {}."
    assert said.format(*found) in " ".join(text.split())
