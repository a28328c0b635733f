"""What the DDPO engine's speed is worth, and where its time goes, on this machine.

    python benchmarks/ddpo.py recipes --seeds 0 1 2     the paper's recipe against the fast one
    python benchmarks/ddpo.py options                   each option by itself, and together
    python benchmarks/ddpo.py speed                     share of the matmul peak, overhead, growth

``recipes`` trains the same pipeline from the same seeds with the same reward, once as published
(50 steps, guidance, every timestep, LoRA in attention, two updates an epoch) and once with what
this repository offers, and asks how many UNet passes, and how many seconds, the fast one needs to
reach the APR at which the paper's ends. The paper's recipe gets the best of several learning rates.
``--jobs 2`` trains two at once, each on its share of the cores. ``options`` changes one thing of
the paper's recipe at a time and says what an image then costs, not what is learned from it.

All ratios are within one run: machines are noisy. Everything is written into
``benchmarks/results``; ``ddpo_<device>.json`` holds what was measured last.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from derm_rl import config as presets
from derm_rl import pipeline, provenance, reproduce, rewards
from derm_rl.config import Config
from derm_rl.ddpo import sampling, trainer
from derm_rl.ddpo.sampling import Policy, Task
from derm_rl.io import read_csv, read_json, write_csv, write_json
from derm_rl.paths import RUNS
from derm_rl.settings import DDPOConfig
from derm_rl.training import discard_checkpoint

RESULTS = Path(__file__).parent / "results"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# What there is an aim for; stands at the top level of the JSON too.
BARS = (
    "unet_passes_ratio", "wall_time_ratio", "peak_fraction", "overhead_fraction",
    "linearity_deviation",
)  # fmt: skip
# 32 px images with 8 × 8 latents, 64 images an epoch: small enough for 50 epochs of the paper's
# recipe in half an hour on one core.
SMALL = ["image_size=32", "finetune.steps=600"]

SHARED = {
    "method": "lora", "images_per_prompt": 8, "prompts_per_epoch": 8, "rewards": {"hard": 1.0},
    "batch_size": 128, "eval_images_per_prompt": 8, "eval_inference_steps": 20,
    "checkpoint_every": 5, "mixed_precision": "bf16", "objective": "ddpo", "anchor": 0.0,
}  # fmt: skip
PAPER = SHARED | {
    "lora_rank": 4, "lora_layers": "attention", "inference_steps": 50, "guidance_scales": [5.0],
    "learning_rate": 3e-4, "learning_rate_floor": 1.0, "clip_range": 1e-4, "updates_per_epoch": 2,
    "timestep_fraction": 1.0, "drop_last_steps": 0, "step_weighting": "none", "epochs": 50,
    "advantages": "running", "buffer_size": 32, "min_count": 16, "min_std": 0.0, "eval_every": 5,
    "ema_decay": 0.0,
}  # fmt: skip
FAST = SHARED | {
    "lora_rank": 4, "lora_layers": "attention", "inference_steps": 12,
    "guidance_scales": [1.0, 5.0], "learning_rate": 1e-3, "learning_rate_floor": 0.1,
    "clip_range": 1e-3, "updates_per_epoch": 4, "timestep_fraction": 1.0, "drop_last_steps": 2,
    "step_weighting": "output", "epochs": 40, "advantages": "group", "min_std": 0.05,
    "eval_every": 4, "ema_decay": 0.95,
}  # fmt: skip
RECIPES = {"paper": PAPER, "fast": FAST}

# What `options` changes in the paper's recipe, one at a time; in the last row several together.
# Without torch.compile, whose code for a CPU takes minutes to make; gpu.py measures it on CUDA.
OPTIONS = {
    "as published": {},
    "12 steps": {"inference_steps": 12},
    "window of 10 trained steps": {"stochastic_steps": 10},
    "a fifth of the timesteps": {"timestep_fraction": 0.2},
    "no guidance in training": {"guidance_scales": [1.0]},
    "groups without spread skipped": {"advantages": "group", "min_std": 0.05},
    "batches of 16, not 128": {"batch_size": 16},
    "float32, not bfloat16": {"mixed_precision": "no"},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "channels_last": {"channels_last": True},
    "decoded in slices of 8": {"decode_batch_size": 8},
    "reward in the background": {"background_reward": True},
    "12 steps, no guidance, spread, channels_last": {
        "inference_steps": 12, "guidance_scales": [1.0], "advantages": "group", "min_std": 0.05,
        "channels_last": True,
    },
}  # fmt: skip


def small(seed: int) -> Config:
    """The preset of the comparison."""
    return presets.load("demo", [*SMALL, *([f"seed={seed}"] if seed else [])])


def prepare(seed: int) -> None:
    """Data, classifiers and stage 1 of the small setting."""
    reproduce.run(small(seed), until="03")


def stage1(config: Config):
    return pipeline.load(config.require("03_finetune_stable_diffusion") / "pipeline")


def images_of(settings: DDPOConfig, task: Task) -> int:
    """Images an epoch."""
    return (settings.prompts_per_epoch or len(task.texts)) * settings.images_per_prompt


def trained_steps(settings: DDPOConfig, folder: Path) -> int:
    """Steps of each image that an update runs through: those with noise, or a share of them."""
    with_noise = read_csv(folder / "steps.csv")["step"].nunique()
    return round(settings.timestep_fraction * (settings.stochastic_steps or with_noise))


def unet_passes(
    settings: DDPOConfig, guidance_scale: float, images: int, trained: int, backward: int = 1
) -> int:
    """UNet passes of sampling ``images``, and of updating from ``trained`` pairs of image and step.

    A backward pass counts as ``backward`` more; one gives the paper's 300 an image: 50 steps, two
    for guidance, sampled, run forward again, and back.
    """
    each = 2 if guidance_scale > 1 else 1
    return each * (images * settings.inference_steps + (1 + backward) * trained)


def learning_curve(recipe: str, changes: dict, seed: int) -> pd.DataFrame:
    """APR by the judge against UNet passes and seconds of sampling and updating, one row an
    evaluation; kept in ``runs``, so that a run that was broken off goes on."""
    config = small(seed)
    settings = config.ddpo.model_copy(update=RECIPES[recipe] | changes)
    name = "-".join([recipe, *(f"{k}={v}" for k, v in changes.items()), str(seed)])
    folder = RUNS / "benchmark_ddpo" / name
    if not (folder / "curve.csv").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        task = trainer.task_of(config)
        log = trainer.train(stage1(config), task, settings, folder, seed, progress=False)
        seconds = read_csv(folder / "timing.csv")
        images, steps = images_of(settings, task), trained_steps(settings, folder)
        spent = [
            unet_passes(settings, r.guidance_scale, images, steps * (images - r.skipped_images))
            for r in log.iloc[:-1].itertuples()
        ]
        log["unet_passes"] = np.cumsum([0, *spent])
        log["seconds"] = np.cumsum([0, *(seconds["seconds_sample"] + seconds["seconds_update"])])
        log["images_per_second_rollout"] = images / seconds["seconds_sample"].median()
        log["images_per_second_update"] = images / seconds["seconds_update"].median()
        log["peak_memory_gb"] = peak_memory_gb()
        rows = log.dropna(subset="eval_judge_apr")
        columns = ["epoch", "unet_passes", "seconds", "eval_judge_apr", "eval_reward_hard",
                   "images_per_second_rollout", "images_per_second_update",
                   "peak_memory_gb"]  # fmt: skip
        write_csv(folder / "curve.csv", rows[columns].assign(recipe=recipe, seed=seed))
    curve = read_csv(folder / "curve.csv")
    minutes, apr = curve["seconds"].iloc[-1] / 60, curve["eval_judge_apr"]
    print(f"{name}: {minutes:.1f} min, APR {apr.iloc[0]:.3f} to {apr.iloc[-1]:.3f}", flush=True)
    return curve


def peak_memory_gb() -> float:
    """Most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def reached(curve: pd.DataFrame, target: float, column: str) -> float:
    """``column`` where the APR, a mean of three evaluations, first reaches ``target``."""
    smooth = curve["eval_judge_apr"].rolling(3, min_periods=1).mean()
    above = np.flatnonzero(smooth >= target)
    return float(curve[column].iloc[above[0]]) if len(above) else float("nan")


def compare(seeds: list[int], tune: list[float], jobs: int) -> dict:
    """The paper's recipe at its best learning rate against the fast one; mean over seeds."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))  # of the workers
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool:
        list(pool.map(prepare, seeds))
        # On the first seed: 10 epochs show whether a rate learns.
        rates = {
            rate: pool.submit(
                learning_curve, "paper", {"learning_rate": rate, "epochs": 10}, seeds[0]
            )
            for rate in tune
        }
        fast = {seeds[0]: pool.submit(learning_curve, "fast", {}, seeds[0])}
        ends = {k: float(v.result()["eval_judge_apr"].iloc[-2:].mean()) for k, v in rates.items()}
        rate = max(ends, key=ends.get) if ends else PAPER["learning_rate"]
        changes = {"learning_rate": rate}
        paper = {seed: pool.submit(learning_curve, "paper", changes, seed) for seed in seeds}
        fast |= {seed: pool.submit(learning_curve, "fast", {}, seed) for seed in seeds[1:]}
        pairs = {seed: (paper[seed].result(), fast[seed].result()) for seed in seeds}
    table = pd.DataFrame([{"seed": seed} | ratios(*pair) for seed, pair in pairs.items()])
    curves = pd.concat([curve for pair in pairs.values() for curve in pair])
    write_csv(RESULTS / f"ddpo_{DEVICE}_curves.csv", curves)
    write_csv(RESULTS / f"ddpo_{DEVICE}_recipes.csv", table)
    print(table.to_string(index=False))
    return {
        "seeds": seeds,
        "jobs": jobs,
        "paper_learning_rates_tried": {f"{k:g}": v for k, v in ends.items()},
        "paper_learning_rate": rate,
        "unet_passes_ratio": over_seeds(table["unet_passes_ratio"], "mean"),
        "wall_time_ratio": over_seeds(table["wall_time_ratio"], "mean"),
        # A mean of ratios is ruled by a seed whose paper recipe ends hardly above its start.
        "least_unet_passes_ratio": over_seeds(table["unet_passes_ratio"], "min"),
        "least_wall_time_ratio": over_seeds(table["wall_time_ratio"], "min"),
        "images_per_second": {
            recipe: {
                part: float(rows[f"images_per_second_{part}"].mean())
                for part in ("rollout", "update")
            }
            for recipe, rows in curves.groupby("recipe")
        },
        "peak_memory_gb": float(curves["peak_memory_gb"].max()),  # of one training
    }


def ratios(paper: pd.DataFrame, fast: pd.DataFrame) -> dict[str, float]:
    """Where the paper's recipe ends, and how much less the fast one spends to get there.

    And the same for its best mean of three evaluations, against what it had spent by then.
    """
    end = float(paper["eval_judge_apr"].iloc[-3:].mean())
    best = paper["eval_judge_apr"].rolling(3, min_periods=3).mean().max()
    spent = {
        c: reached(paper, best, c) / reached(fast, best, c) for c in ("unet_passes", "seconds")
    }
    return {
        "start": paper["eval_judge_apr"].iloc[0],
        "paper_end": end,
        "fast_end": fast["eval_judge_apr"].iloc[-3:].mean(),
        "unet_passes_ratio": paper["unet_passes"].iloc[-1] / reached(fast, end, "unet_passes"),
        "wall_time_ratio": paper["seconds"].iloc[-1] / reached(fast, end, "seconds"),
        "paper_best": best,
        "unet_passes_ratio_to_best": spent["unet_passes"],
        "wall_time_ratio_to_best": spent["seconds"],
    }


def over_seeds(values: pd.Series, how: str) -> float | None:
    """The mean, or the min, over seeds; None if one of them never got there."""
    return None if values.isna().any() else float(values.agg(how))


def best_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def matmul_peak(dtype: torch.dtype, n: int = 2048) -> float:
    """Floating point operations a second of the best square matrix product."""
    a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
    return 2 * n**3 / best_seconds(lambda: a @ b)


class Clock:
    """Seconds spent inside the functions it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable) -> Callable:
        def timed(*arguments, **options):
            began = time.perf_counter()
            result = function(*arguments, **options)
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - began
            return result

        return timed


def wider(pipe, factor: int):
    """The pipeline with an untrained UNet of ``factor`` times the channels."""
    plan = dict(pipe.unet.config)
    plan["block_out_channels"] = [factor * c for c in plan["block_out_channels"]]
    pipe.unet = type(pipe.unet).from_config(plan)
    return pipe


def epoch_time(pipe, task: Task, settings: DDPOConfig) -> dict[str, float]:
    """Seconds of the last epoch and its parts, and the UNet's operations a second."""
    plan = pipe.unet.config
    x = torch.zeros(1, plan.in_channels, plan.sample_size, plan.sample_size)
    text = torch.zeros(1, pipe.tokenizer.model_max_length, plan.cross_attention_dim)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        pipe.unet(x, torch.tensor([1]), text)
    one_pass = flops.get_total_flops()

    passes, rest = Clock(), Clock()
    reward = rest.around(task.reward)
    reward.per_label = rest.around(rewards.per_label(task.reward))
    watched = {name: rest.around(f) for name, f in task.watched.items()}
    task = dataclasses.replace(task, reward=reward, watched=watched)
    folder = RUNS / "benchmark_ddpo/speed"
    folder.mkdir(parents=True, exist_ok=True)
    discard_checkpoint(folder / "checkpoint.pt")
    marks: list[tuple[float, float]] = []
    with ExitStack() as patches:
        for owner, name, clock in (
            (Policy, "denoise", passes),
            (Accelerator, "backward", passes),
            (sampling, "decode_latents", rest),
        ):
            timed = clock.around(getattr(owner, name))
            patches.enter_context(mock.patch.object(owner, name, timed))
        log = trainer.train(
            pipe, task, settings, folder, 0, progress=False,
            callback=lambda row: marks.append((passes.seconds, rest.seconds)),
        )  # fmt: skip
    timing = read_csv(folder / "timing.csv")
    seconds = float((timing["seconds_sample"] + timing["seconds_update"]).iloc[-1])
    unet, models = (marks[-1][i] - marks[-2][i] for i in (0, 1))
    # Full fine-tuning: a backward pass is two forward ones, for activations and for weights. With
    # adapters the weights need none; run again under checkpointing, it is not counted.
    scale, images = settings.guidance_scales[0], images_of(settings, task)
    backward = 2 if settings.method == "full" else 1
    trained = (images - int(log["skipped_images"].iloc[-2])) * trained_steps(settings, folder)
    forwards = unet_passes(settings, scale, images, trained, backward)
    return {
        "images": images,
        "unet_passes": forwards,
        "seconds": seconds,
        "unet_seconds": unet,
        "overhead": (seconds - unet - models) / seconds,
        "unet_flops_per_second": one_pass * forwards / unet,
        "images_per_second_rollout": images / timing["seconds_sample"].iloc[-1],
        "images_per_second_update": images / timing["seconds_update"].iloc[-1],
    }


def options(prompts: int = 8, images: int = 4) -> dict:
    """What an image costs with each of ``OPTIONS``, in the second epoch of a training."""
    prepare(0)
    config = small(0)
    task = trainer.task_of(config)
    plain = config.ddpo.model_copy(
        update=PAPER | {"epochs": 2, "prompts_per_epoch": prompts, "images_per_prompt": images,
                        "min_count": 1, "eval_every": 1000, "eval_images_per_prompt": 1,
                        "eval_inference_steps": 4}
    )  # fmt: skip
    rows = []
    for name, changes in tqdm(OPTIONS.items(), desc="options"):
        found = epoch_time(stage1(config), task, plain.model_copy(update=changes))
        rows.append(
            {
                "option": name,
                "unet_passes_per_image": found["unet_passes"] / found["images"],
                "seconds_per_image": found["seconds"] / found["images"],
                "images_per_second_rollout": found["images_per_second_rollout"],
                "images_per_second_update": found["images_per_second_update"],
            }
        )
    table = pd.DataFrame(rows)
    table["speedup"] = table["seconds_per_image"].iloc[0] / table["seconds_per_image"]
    write_csv(RESULTS / f"ddpo_{DEVICE}_options.csv", table)
    print(table.to_string(index=False))
    return {"speedup": dict(zip(table["option"], table["speedup"], strict=True))}


def speed() -> dict:
    """Share of the matmul peak, share of an epoch that is none of its models, growth."""
    config = presets.load("demo")
    task = trainer.task_of(config)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}
    plain = config.ddpo.model_copy(
        update={"method": "full", "epochs": 3, "guidance_scales": [1.0], "eval_every": 1000,
                "eval_images_per_prompt": 1, "checkpoint_every": 1000}
    )  # fmt: skip
    result: dict = {"peak_fraction": {}}
    for name, factor in (("demo", 1), ("wide", 4)):
        smaller = plain.model_copy(update={"images_per_prompt": 2}) if factor > 1 else plain
        pipe = stage1(config)
        found = epoch_time(wider(pipe, factor) if factor > 1 else pipe, task, smaller)
        peak = matmul_peak(dtype[plain.mixed_precision])
        result["peak_fraction"][name] = found["unet_flops_per_second"] / peak
        if factor == 1:
            result["overhead_fraction"] = found["overhead"]
        print(name, found, f"matmul peak {peak:.3g}/s", flush=True)
    growth = []
    for images in (2, 4, 8, 16, 32):
        update_ = {"images_per_prompt": images, "epochs": 2}
        found = epoch_time(stage1(config), task, plain.model_copy(update=update_))
        growth.append({"images": 32 * images, "seconds": found["seconds"]})
        print(growth[-1], flush=True)
    table = pd.DataFrame(growth)
    table["seconds_per_image"] = table["seconds"] / table["images"]
    middle = statistics.median(table["seconds_per_image"])
    write_csv(RESULTS / f"ddpo_{DEVICE}_growth.csv", table)
    result["linearity_deviation"] = float((table["seconds_per_image"] / middle - 1).abs().max())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("recipes", "options", "speed"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--tune", type=float, nargs="*", default=[3e-4, 1e-3, 3e-3, 1e-2],
        help="learning rates of the paper's recipe to try first (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="of recipes: trainings at once")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"ddpo_{DEVICE}.json"
    work = {
        "recipes": lambda: compare(arguments.seeds, arguments.tune, arguments.jobs),
        "options": options,
        "speed": speed,
    }
    found = work[arguments.what]()
    found.setdefault("peak_memory_gb", peak_memory_gb())
    jobs = arguments.jobs if arguments.what == "recipes" else 1
    facts = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name()
        if DEVICE == "cuda"
        else f"{DEVICE}, {max(1, torch.get_num_threads() // jobs)} threads",
        "commit": provenance.commit(),
    }
    known = read_json(file) if file.is_file() else {}
    bars = {name: found[name] for name in BARS if name in found}
    write_json(file, known | {arguments.what: found | facts} | bars)
    print(found)


if __name__ == "__main__":
    main()
