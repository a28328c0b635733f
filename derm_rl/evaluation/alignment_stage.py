"""Stage 05: the same prompts and noise before and after RL, graded by a panel.

Both pipelines run at ``alignment.guidance_scale``, or, where that is null, each at the scale that
suits it best on a small sample of other seeds, and RL's at the least adapter scale that is as good
there, both by the reward classifier: nothing is chosen by what measures afterwards. Files:

- ``images_stage1.npy``, ``images_rl.npy``: all images, uint8, prompts in their fixed order.
- ``samples.csv``: one row per image: what was wanted, what judge, reward and rules saw. Its
  third ``model``, ``truth``, are images that show what they should without any doubt: what the
  judge says of these is the most that a model can reach, short of drawing for the judge.
- ``per_prompt.csv``, ``attributes.csv``: tables of :mod:`derm_rl.evaluation.alignment` with a
  column ``model``, by the judge; ``per_prompt.csv`` also has the APR by the rules and by the panel.
- ``front.csv``: what each guidance scale and adapter scale gives, by the reward classifier, and by
  the panel (``panel_apr``), which has no say in the choice; its images are ``front_*.npy``.
- ``panel.csv``: :func:`derm_rl.evaluation.panel.table`, by judge, rules and both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from derm_rl import classifier, data, pipeline, prompts, provenance
from derm_rl.classifier.model import LabelClassifier
from derm_rl.evaluation import alignment, bootstrap, panel
from derm_rl.evaluation.bootstrap import Interval
from derm_rl.evaluation.generation import generate, image_seed
from derm_rl.io import write_csv

if TYPE_CHECKING:
    from derm_rl.config import Config

STAGE = "05_alignment"
MODELS = {"stage1": "03_finetune_stable_diffusion", "rl": "04_ddpo"}


def run(config: Config, progress: bool = True) -> Path:
    """Generate, judge, tabulate and record; returns the folder of stage 05."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classifiers = config.require("02_reward_classifier")
    judge = classifier.load(classifiers / "judge", device)
    reward = classifier.load(classifiers / "reward", device)
    sources = {model: config.require(stage) / "pipeline" for model, stage in MODELS.items()}
    vocabulary = data.load(config)
    _check_labels(judge, reward, vocabulary.label_names)
    findings = prompts.all_prompts(vocabulary.diagnoses, vocabulary.artifacts)
    folder = config.stage_dir(STAGE)
    folder.mkdir(parents=True, exist_ok=True)

    scales, samples = [], []
    unets = {m: pipeline.load(f).to(device).unet.state_dict() for m, f in sources.items()}
    for model, source in sources.items():
        pipe = pipeline.load(source).to(device)
        found = _measure(config, model, pipe, unets, judge, reward, findings, folder, progress)
        scales.append(found[0])
        samples.append(found[1])
    samples.append(_truth(config, judge, reward, findings))
    samples = pd.concat(samples, ignore_index=True)
    tables = {
        "samples": samples,
        "front": pd.concat(scales, ignore_index=True),
        "per_prompt": _per_model(samples, alignment.prompt_table, config).merge(
            panel.by_prompt(samples), on=["model", "prompt"]
        ),
        "attributes": _per_model(samples, alignment.attribute_table, config),
        "panel": panel.table(samples, config.alignment.bootstrap, config.seed),
    }
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table)
    metrics = headline(samples, tables["attributes"], config.alignment.bootstrap, config.seed)
    metrics |= panel.headline(samples, tables["panel"], config.alignment.bootstrap, config.seed)
    provenance.record_metrics(
        config,
        STAGE,
        {
            name: provenance.metric(config, *found, csv="alignment_samples.csv")
            for name, found in metrics.items()
        },
    )
    provenance.stamp(config, STAGE, images=len(samples))
    _summarize(metrics, tables["front"])
    return folder


def _check_labels(
    judge: LabelClassifier, reward: LabelClassifier, label_names: Sequence[str]
) -> None:
    for name, model in (("judge", judge), ("reward classifier", reward)):
        if model.label_names != list(label_names):
            raise ValueError(
                f"the {name} of stage 02 knows the labels {', '.join(model.label_names)}, but the "
                f"data of stage 01 has {', '.join(label_names)}; run 02_reward_classifier again"
            )


def _measure(
    config: Config,
    model: str,
    pipe: pipeline.StableDiffusionPipeline,
    unets: dict[str, dict[str, torch.Tensor]],
    judge: LabelClassifier,
    reward: LabelClassifier,
    findings: Sequence[prompts.Finding],
    folder: Path,
    progress: bool,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Front and samples table of one pipeline, the latter at the point chosen on the former."""
    settings = config.alignment
    common = {
        "inference_steps": settings.inference_steps,
        "batch_size": settings.batch_size,
        "size": config.image_size,
        "mixed_precision": settings.mixed_precision,
        "progress": progress,
    }

    def point(guidance: float, adapter: float, eta: float) -> dict:
        pipeline.interpolate(pipe, unets["stage1"], unets["rl"], adapter)
        n = settings.front_images_per_prompt
        out = folder / front_file(model, guidance, adapter, eta)
        # Other noise than that of the images measured below.
        images = generate(
            pipe,
            findings,
            n,
            settings.seed + 1,
            eta=eta,
            guidance_scale=guidance,
            out=out,
            **common,
        )
        part = graded(model, images, findings, n, judge, reward)
        a, names = arrays(part)
        correct = alignment.matches(a["reward"], a["wanted"], names)
        correct["panel_apr"] = panel.hits(part)["panel"].astype(float)
        row = {"model": model, "guidance_scale": guidance, "adapter_scale": adapter, "eta": eta}
        row["n"] = len(part)
        for measure in correct:
            found = alignment.rate(
                correct[measure], part["prompt"], settings.bootstrap, config.seed
            )
            row |= bootstrap.columns(measure, found)
        return row

    adapter = whole = float(model == "rl")  # stage 1 is RL's pipeline without its adapter
    fixed = settings.guidance_scale
    tried = {*settings.guidance_scales, fixed} - {None}
    table = pd.DataFrame([point(g, adapter, settings.eta) for g in sorted(tried)])
    scale = alignment.best_guidance(table) if fixed is None else fixed
    if adapter:
        others = sorted(set(settings.adapter_scales) - {adapter})
        scaled = pd.DataFrame([point(scale, a, settings.eta) for a in others])
        table = pd.concat([table, scaled])
        adapter = alignment.least_change(table[table["guidance_scale"] == scale])
    table["chosen"] = (table["guidance_scale"] == scale) & (table["adapter_scale"] == adapter)
    if settings.eta:  # what each is without noise in its steps, which does stage 1 good
        plain = pd.DataFrame([point(g, whole, 0.0) for g in sorted(tried)])
        table = pd.concat([table, plain.assign(chosen=False)], ignore_index=True)
    pipeline.interpolate(pipe, unets["stage1"], unets["rl"], adapter)
    n = settings.images_per_prompt
    out = folder / f"images_{model}.npy"
    images = generate(
        pipe, findings, n, settings.seed, eta=settings.eta, guidance_scale=scale, out=out, **common
    )
    samples = graded(model, images, findings, n, judge, reward)
    seeds = zip(samples["prompt"], samples["index"].tolist(), strict=True)
    found = [image_seed(settings.seed, text, i) for text, i in seeds]
    samples.insert(3, "image_seed", pd.array(found, "Int64"))  # also exact beside missing ones
    samples.insert(4, "guidance_scale", scale)
    samples.insert(5, "adapter_scale", adapter)
    return table, samples


def front_file(model: str, guidance: float, adapter: float, eta: float) -> str:
    """Name of the images of one point of the front."""
    return f"front_{model}_{guidance:g}_{adapter:g}_{eta:g}.npy"


def _truth(
    config: Config,
    judge: LabelClassifier,
    reward: LabelClassifier,
    findings: Sequence[prompts.Finding],
) -> pd.DataFrame:
    """Samples table of images known to show the findings: fresh phantoms, or real test images."""
    n = config.alignment.images_per_prompt
    if config.data.source == "phantom":
        from derm_rl.data import phantom

        asked = [finding for finding in findings for _ in range(n)]
        seed = config.alignment.seed + config.data.phantom_seed
        paths = [phantom.path_of(seed, i, f.diagnosis, f.artifacts) for i, f in enumerate(asked)]
        images, _ = phantom.render_paths(paths, config.image_size)
        return graded("truth", images, asked, 1, judge, reward)
    test = data.load(config, "test")
    rows, seen = [], Counter()
    for i, finding in enumerate(test.findings):
        seen[finding] += 1
        if seen[finding] <= n:
            rows.append(i)
    shown = [test.findings[i] for i in rows]
    return graded("truth", np.asarray(test.images[rows]), shown, 1, judge, reward)


def graded(
    model: str,
    images: np.ndarray,
    findings: Sequence[prompts.Finding],
    n: int,
    judge: LabelClassifier,
    reward: LabelClassifier,
) -> pd.DataFrame:
    """Samples table: what was wanted in each image, and what judge, reward and rules saw in it.

    Args:
        model: its name in column ``model``.
        images: (P·n, S, S, 3) uint8, those of a finding in a row.
        findings, n: what was asked for, P findings with n images each.

    Returns:
        model, prompt, index (within the prompt), and for each label wanted_*, judge_* and reward_*
        (probabilities), for each artifact rules_* (0 or 1).
    """
    names = judge.label_names
    samples = pd.DataFrame({"model": model, "prompt": alignment.prompt_ids(findings, n)})
    samples["index"] = samples.groupby("prompt").cumcount()
    columns = {
        "wanted": alignment.wanted_labels(findings, n, names),
        "judge": judge.predict(images),
        "reward": reward.predict(images),
    }
    for kind, values in columns.items():
        samples[[f"{kind}_{name}" for name in names]] = values
    artifacts = [name for name in names if name in prompts.ARTIFACTS]
    samples[[f"rules_{a}" for a in artifacts]] = panel.rules(images, artifacts).astype(int)
    return samples


def arrays(samples: pd.DataFrame) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays (N, L) ``wanted``, ``judge`` and ``reward`` of a samples table, and the labels."""
    names = [c.removeprefix("wanted_") for c in samples.columns if c.startswith("wanted_")]
    kinds = ("wanted", "judge", "reward")
    return {k: samples[[f"{k}_{n}" for n in names]].to_numpy(float) for k in kinds}, names


def _per_model(samples: pd.DataFrame, function, config: Config) -> pd.DataFrame:
    """``alignment.prompt_table`` or ``.attribute_table`` of each model, one below the other."""
    parts = []
    for model, rows in samples.groupby("model", sort=False):
        a, names = arrays(rows)
        part = function(
            a["judge"], a["wanted"], rows["prompt"], names, config.alignment.bootstrap, config.seed
        )
        part.insert(0, "model", model)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def headline(
    samples: pd.DataFrame, attributes: pd.DataFrame, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """The metrics of stage 05, from its ``samples.csv`` and ``attributes.csv``.

    ``alignment.{apr,apr_diagnosis,diagnosis,labels}.{stage1,rl,truth,gain}`` by the judge, gains
    (RL minus stage 1) paired by prompt and noise;
    ``alignment.{recall,false_add}.<label>.{stage1,rl,truth}``; and
    ``alignment.reward_judge_gap.{stage1,rl,truth,gain}``: share of labels right by the reward
    classifier minus by the judge. A gap that grows under RL is what reward hacking looks like.
    """
    correct, texts = {}, {}
    for model, rows in samples.groupby("model", sort=False):
        a, names = arrays(rows)
        texts[model] = rows["prompt"].tolist()
        correct[model] = alignment.matches(a["judge"], a["wanted"], names)
        by_reward = alignment.matches(a["reward"], a["wanted"], names)["labels"]
        correct[model]["reward_judge_gap"] = by_reward - correct[model]["labels"]
    out = {}
    for measure in (*alignment.MEASURES, "reward_judge_gap"):
        for model, frame in correct.items():
            key = f"alignment.{measure}.{model}"
            out[key] = alignment.rate(frame[measure], texts[model], resamples, seed)
        out[f"alignment.{measure}.gain"] = alignment.gain(
            correct["stage1"][measure], correct["rl"][measure], texts["rl"], True, resamples, seed
        )
    for row in attributes.itertuples():
        for measure in ("recall", "false_add"):
            fields = ("", "_low", "_high", "_n")
            values = Interval(*(getattr(row, measure + field) for field in fields))
            out[f"alignment.{measure}.{row.attribute}.{row.model}"] = values
    return out


def _summarize(metrics: dict[str, Interval], front: pd.DataFrame) -> None:
    chosen = front[front["chosen"]].set_index("model")
    for name in ("guidance_scale", "adapter_scale"):
        scales = ", ".join(f"{model} {scale:g}" for model, scale in chosen[name].items())
        print(f"{name.replace('_', ' ')}: {scales}")
    names = ["panel.apr", "panel.rules.apr"]
    names += [f"alignment.{measure}" for measure in (*alignment.MEASURES, "reward_judge_gap")]
    for name in names:
        cells = []
        for column in (*MODELS, "gain", "truth"):
            x = metrics[f"{name}.{column}"]
            cells.append(f"{column} {x.value:.3f} [{x.low:.3f}, {x.high:.3f}]")
        print(f"{name.removeprefix('alignment.'):17s}" + "   ".join(cells))
