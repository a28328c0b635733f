"""What each way to refine a pipeline gains and costs, from the same start, at the same work.

    python benchmarks/objectives.py                          all variants, seeds 0 to 2
    python benchmarks/objectives.py --only awm ddpo --seeds 0

Every variant of ``VARIANTS`` changes a few settings of the demo's ``ddpo`` and is trained from the
demo's stage 1, with its reward, for as many epochs as bring it next to the same number of passes of
an image through the UNet (a backward one counts as two more). Learning rate, adapters and batch are
the demo's; clipping and steps of AWM and NFT are those of the demo when it was AWM's. Then every
one is measured: by judge, rules and the panel of both, and by what it keeps of the distribution,
against fresh phantoms. Like in training, samples of DDPO have noise in each step (η = 1), those of
the forward objectives none. Gains are over one stage 1 for all, from the same initial noise, and
without noise in its steps: so it draws best. Seeds change the training's noise and prompts, and the
noise of the measured images; stage 1 is the same.

Writes ``benchmarks/results/objectives_demo.csv``, a row a training, and ``.json``: means over seeds
and 95 % t-intervals. Trainings and images are kept in ``runs`` and not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from seeds import costs, mean_interval
from torch import Tensor

from derm_rl import classifier, config, data, pipeline, prompts, provenance, rewards
from derm_rl.classifier.model import LabelClassifier
from derm_rl.config import Config
from derm_rl.data import phantom
from derm_rl.ddpo import trainer
from derm_rl.ddpo.sampling import Task
from derm_rl.evaluation import features, panel, quality
from derm_rl.evaluation.alignment_stage import graded
from derm_rl.evaluation.generation import generate
from derm_rl.io import read_csv, write_csv, write_json
from derm_rl.paths import RUNS
from derm_rl.settings import DDPOConfig
from derm_rl.training import discard_checkpoint, identity

RESULTS = Path(__file__).parent / "results"
WORK = RUNS / "benchmark_objectives"
PASSES = 61_440  # of an image through the UNet: two fifths of the demo's
MEASURED = 16  # images of each prompt
DDPO = {"objective": "ddpo", "anchor": 0.0, "gae_lambda": None}
CREDIT = DDPO | {"gae_lambda": 0.5}
PLAIN = DDPO | {"objective": "awm", "clip_range": 1e-2, "inference_steps": 8}
NFT = PLAIN | {"objective": "nft"}
HELD = {"anchor": 0.5}

# What a variant changes of the preset's ``ddpo``; ``closeness`` adds that reward.
VARIANTS: dict[str, dict[str, Any]] = {
    "awm": PLAIN,
    "awm, anchor 0.5": PLAIN | HELD,
    "awm, anchor 0.25": PLAIN | {"anchor": 0.25},
    "awm, anchor 1": PLAIN | {"anchor": 1.0},
    "awm, KL": PLAIN | {"kl_weight": 1.0},
    "awm, anchor, variety, closeness": PLAIN | HELD | {"variety": 1.0, "closeness": 0.3},
    "nft": NFT,
    "nft, anchor 0.5": NFT | HELD,
    "ddpo": DDPO,
    "ddpo, credit by step": CREDIT,
    "ddpo, credit, anchor 0.25": CREDIT | {"anchor": 0.25},
    "ddpo, credit, KL": CREDIT | {"kl_weight": 1.0},
    "ddpo, credit, variety": CREDIT | {"variety": 1.0},
    "ddpo, credit, closeness": CREDIT | {"closeness": 0.3},
    "ddpo, credit, label by label": CREDIT | {"advantages": "per_label"},
}


def closeness(reward: LabelClassifier, images: np.ndarray) -> rewards.Reward:
    """How near an image lies to training images, in (0, 1]: usual / (usual + distance).

    Distance to the nearest in the reward classifier's features, standardized on the training
    images; usual is the median distance of these to their nearest other one.
    """
    known = reward.features(images)
    reference = torch.from_numpy(quality.standardized(known, known)).float()
    between = torch.cdist(reference, reference).fill_diagonal_(torch.inf)
    usual = between.amin(1).median()

    @torch.no_grad()
    def pay(images: Tensor, wanted: Tensor) -> Tensor:
        found = quality.standardized(reward.features(images), known)
        distance = torch.cdist(torch.from_numpy(found).float(), reference).amin(1)
        return (usual / (usual + distance)).to(images.device)

    return pay


def task_of(preset: Config, weight: float) -> Task:
    """The preset's task, with ``closeness`` at this weight beside its reward."""
    task = trainer.task_of(preset)
    if not weight:
        return task
    reward = classifier.load(preset.require("02_reward_classifier") / "reward")
    near = closeness(reward, np.asarray(data.load(preset, "diffusion").images[:2000]))
    paid = rewards.combine({task.reward: 1.0, near: weight})
    return replace(task, reward=paid, judges=f"{task.judges} closeness {weight}")


def stage1(preset: Config) -> Path:
    return preset.require("03_finetune_stable_diffusion") / "pipeline"


def passes_of(settings: DDPOConfig) -> float:
    """UNet passes that an image costs, if all of them have something to teach."""
    scales = settings.guidance_scales
    guided = sum(2 if g > 1 else 1 for g in scales) / len(scales)
    sampled, trained = settings.inference_steps, settings.inference_steps - settings.drop_last_steps
    each = 3 + bool(settings.kl_weight)  # forward and back
    if settings.objective != "ddpo":
        trained = settings.noised_timesteps
        return guided * sampled + trained * (1 + each + 3 * settings.anchor)
    return guided * (sampled + trained * each) + 3 * settings.anchor * trained


def trained(preset: Config, changes: Mapping[str, Any], seed: int, passes: int) -> Path:
    """Folder of a training, which is done unless it was: ``pipeline``, ``log.csv``, ``done``."""
    changes = dict(changes)
    weight = changes.pop("closeness", 0.0)
    settings = DDPOConfig.model_validate(preset.ddpo.model_dump() | changes)
    images = len(prompts_of(preset)) * settings.images_per_prompt
    epochs = max(1, round(passes / images / passes_of(settings)))
    settings = settings.model_copy(update={"epochs": epochs})
    stamp = (stage1(preset).parent / "stage.json").read_text(encoding="utf-8")
    task = task_of(preset.model_copy(update={"ddpo": settings}), weight)
    known = {"settings": settings.model_dump(), "start": stamp, "seed": seed, "paid": task.judges}
    folder = WORK / identity("derm_rl.ddpo.trainer", **known)[:12]
    if not (folder / "done").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        pipe = pipeline.load(stage1(preset))
        trainer.train(pipe, task, settings, folder, seed)
        pipeline.save(pipe, folder / "pipeline")
        discard_checkpoint(folder / "checkpoint.pt")
        (folder / "done").touch()
    return folder


def prompts_of(preset: Config) -> list[prompts.Finding]:
    words = data.vocabulary(preset)
    return prompts.all_prompts(words.diagnoses, words.artifacts)


class Measured:
    """Measures pipelines on the same noise, without guidance."""

    def __init__(self, preset: Config, seed: int) -> None:
        self.preset, self.seed, self.findings = preset, seed, prompts_of(preset)
        WORK.mkdir(parents=True, exist_ok=True)
        folder = preset.require("02_reward_classifier")
        self.judge, self.reward = (classifier.load(folder / n) for n in ("judge", "reward"))
        asked = [finding for finding in self.findings for _ in range(MEASURED)]
        at = preset.alignment.seed + preset.data.phantom_seed + 3 + seed  # not stage 06's
        paths = [phantom.path_of(at, i, f.diagnosis, f.artifacts) for i, f in enumerate(asked)]
        real, _ = phantom.render_paths(paths, preset.image_size)
        self.spaces = {"judge": self.judge.features, "imagenet": features.imagenet}
        self.real = {space: embed(real) for space, embed in self.spaces.items()}

    def samples(self, source: Path, eta: float) -> tuple[np.ndarray, pd.DataFrame]:
        """Images of a pipeline, and what judge and rules see in each."""
        settings = self.preset.alignment
        name = f"images_{source.parent.name}_{eta:g}_{self.seed}.npy"
        images = generate(
            pipeline.load(source), self.findings, MEASURED, settings.seed + 2 + self.seed,
            settings.inference_steps, 1.0, eta, settings.batch_size,
            mixed_precision=settings.mixed_precision, progress=True, out=WORK / name,
        )  # fmt: skip
        table = graded("rl", images, self.findings, MEASURED, self.judge, self.reward)
        return np.asarray(images), table

    def __call__(self, source: Path, eta: float) -> dict[str, float]:
        """Rates and distances of a pipeline's images."""
        images, samples = self.samples(source, eta)
        by, wanted, names = panel.seen(samples)
        hits = panel.hits(samples)
        found = hits.mean().to_dict()
        for who, least in hits.groupby(samples["prompt"]).mean().min().items():
            found[f"{who}_of_least_prompt"] = least
        for j, name in enumerate(names):
            found[f"rules_recall_{name}"] = by["rules"][wanted[:, j], j].mean()
        texts = samples["prompt"].tolist()
        for space, embed in self.spaces.items():
            real, made = self.real[space], embed(images)
            if space == "judge":  # its channels differ in scale by a hundred
                real, made = (quality.standardized(x, self.real[space]) for x in (real, made))
            near = quality.neighbours(real, made)
            for name in ("precision", "recall", "coverage"):
                found[f"{name}_{space}"] = getattr(near, name).mean()
            found[f"spread_{space}"] = quality.spread(made, texts).mean()
        return {name: float(value) for name, value in found.items()}


def spent(folder: Path) -> dict[str, float]:
    """What a training took: epochs, passes of an image through the UNet, seconds."""
    log, timing = (read_csv(folder / f"{n}.csv") for n in ("log", "timing"))
    return {"epochs": len(timing)} | costs(log, timing)


def row_of(name: str, seed: int, folder: Path, before: dict, after: dict) -> dict[str, Any]:
    """A row of the table: what it gained, where it is, and what it took."""
    row = {"variant": name, "seed": seed} | spent(folder)
    for key in after:
        if key.startswith("rules_recall_"):
            row[key] = after[key]
        elif key.startswith("spread_"):
            row[f"{key}_ratio"] = after[key] / before[key]
        else:
            row |= {key: after[key], f"{key}_gain": after[key] - before[key]}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--passes", type=int, default=PASSES)
    arguments = parser.parse_args()
    preset = config.load("demo")
    table, commit = RESULTS / "objectives_demo.csv", provenance.commit()
    for seed in arguments.seeds:
        measure = Measured(preset, seed)
        before = measure(stage1(preset), 0.0)
        for name in arguments.only:
            changes = VARIANTS[name]
            folder = trained(preset, changes, seed, arguments.passes)
            eta = preset.ddpo.eta if changes["objective"] == "ddpo" else 0.0
            after = measure(folder / "pipeline", eta)
            row = row_of(name, seed, folder, before, after) | {"commit": commit}
            rows = read_csv(table) if table.is_file() else pd.DataFrame(columns=["variant", "seed"])
            rows = rows[(rows["variant"] != name) | (rows["seed"] != seed)]
            rows = pd.concat([rows, pd.DataFrame([row])]) if len(rows) else pd.DataFrame([row])
            write_csv(table, rows)
            print(pd.Series(row).to_string(float_format="{:.3f}".format), flush=True)
    facts = {"passes": arguments.passes, "images_per_prompt": MEASURED, "commit": commit}
    facts["date"] = date.today().isoformat()
    write_json(table.with_suffix(".json"), facts | {"variants": over_seeds(read_csv(table))})


def over_seeds(table: pd.DataFrame) -> dict[str, dict[str, dict]]:
    """Of each variant the means of all columns over seeds, with 95 % t-intervals."""
    names = [name for name in table if name not in ("variant", "seed", "commit")]
    return {
        variant: {name: mean_interval(rows[name].to_numpy(float)) for name in names}
        for variant, rows in table.groupby("variant", sort=False)
    }


if __name__ == "__main__":
    main()
