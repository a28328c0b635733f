"""Figures of stages 03 and 04: how both trainings went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from derm_rl import data, prompts
from derm_rl.figures.canvas import (
    AFTER,
    BEFORE,
    COLOURS,
    Picture,
    axes,
    halves,
    note,
    plain,
    save_fig,
    show,
    spread,
    wrapped,
)
from derm_rl.io import read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from derm_rl.config import Config
    from derm_rl.settings import AlarmConfig

FINETUNE, DDPO = "03_finetune_stable_diffusion", "04_ddpo"
GUIDANCE = 2.0  # of the sample sheets; stage 05 measures which scale is best


def finetune_loss(config: Config) -> Picture:
    """Loss and gradient norm of the fine-tuning, each step and smoothed."""
    log = read_csv(config.require(FINETUNE) / "log.csv")
    window = max(1, len(log) // 8)
    log["loss_smooth"] = log["loss"].rolling(window, center=True).mean()
    fig, (row,) = axes(1, 2, 4.4, 2.8)
    row[0].plot(log["step"], log["loss"], color=BEFORE, alpha=0.35, linewidth=0.6)
    label = f"mean of {window} steps"
    row[0].plot(log["step"], log["loss_smooth"], color=AFTER, linewidth=1.6, label=label)
    row[0].set(xlabel="step", title="min-SNR weighted loss", yscale="log")
    row[0].legend(fontsize=8)
    row[1].plot(log["step"], log["grad_norm"], color=COLOURS[0], linewidth=0.7)
    row[1].set(xlabel="step", title="gradient norm", yscale="log")
    for ax in row:
        plain(ax)
    save_fig(fig, "finetune_loss", log, config)
    return fig


def finetune_samples(config: Config, n_prompts: int = 8, n_images: int = 4) -> Picture:
    """The same prompts and noise by the base pipeline (left) and after stage 1 (right)."""
    folder = config.require(FINETUNE)
    words = data.vocabulary(config)
    every = prompts.all_prompts(words.diagnoses, words.artifacts)
    findings = [every[i] for i in spread(every, n_prompts)]
    sources = {"base": config.pipeline.base, "stage1": folder / "pipeline"}
    images = {
        name: _generate(config, source, findings, n_images, folder / f"samples_{name}.npy")
        for name, source in sources.items()
    }
    fig, grid = halves(len(findings), n_images, 1.0, 1.05)
    for i, (row, finding) in enumerate(zip(grid, findings, strict=True)):
        for k, ax in enumerate(row):
            model, j = ("base", k) if k < n_images else ("stage1", k - n_images)
            show(ax, images[model][i * n_images + j])
        row[0].set_ylabel(wrapped(finding, 17), fontsize=6, rotation=0, ha="right", va="center")
    grid[0][0].set_title("base", fontsize=8, loc="left")
    grid[0][n_images].set_title("after stage 1", fontsize=8, loc="left")
    fig.suptitle(f"Generated, guidance {GUIDANCE:g}, same noise{note(config)}", fontsize=9)
    means = {name: x.reshape(len(x), -1).mean(1) for name, x in images.items()}
    frame = pd.DataFrame(
        {
            "prompt": [prompts.render(f) for f in findings for _ in range(n_images)],
            "index": np.tile(np.arange(n_images), len(findings)),
            **{f"mean_intensity_{name}": x.round(2) for name, x in means.items()},
        }
    )
    save_fig(fig, "finetune_samples", frame, config)
    return fig


def _generate(config: Config, source, findings, n: int, out) -> np.ndarray:
    import torch

    from derm_rl import pipeline
    from derm_rl.evaluation.generation import generate

    pipe = pipeline.load(source).to("cuda" if torch.cuda.is_available() else "cpu")
    settings = config.alignment
    images = generate(
        pipe,
        findings,
        n,
        settings.seed + 2,
        settings.inference_steps,
        GUIDANCE,
        settings.eta,
        settings.batch_size,
        config.image_size,
        settings.mixed_precision,
        out=out,  # kept with the stage: drawing again generates nothing
    )
    return np.asarray(images)


def ddpo_curves(config: Config) -> Picture:
    """Reward, the independent judge, clipping and KL; and what a hacked reward would change."""
    log = read_csv(config.require(DDPO) / "log.csv")
    fig = learning(log, config.ddpo.alarm)
    save_fig(fig, "ddpo_curves", log, config)
    return fig


def learning(log: pd.DataFrame, limits: AlarmConfig) -> Picture:
    """The curves of a log, a row an epoch. What is optimized and what judges share no panel."""
    fig, grid = axes(2, 3, 4.2, 2.7, sharex=True)
    (reward, judge, clip), (gap, look, kl) = grid
    scales = log["guidance_scale"].dropna().unique()
    for scale, colour in zip(scales, COLOURS[::-1], strict=False):
        rows = log[log["guidance_scale"] == scale]
        _line(reward, rows, "reward", f"training samples, guidance {scale:g}", colour)
    _line(reward, log, "eval_reward", "evaluation: fixed noise, averaged weights", AFTER)
    reward.set(title="reward (what is optimized)")
    _line(judge, log, "eval_judge_hard", "labels right", AFTER)
    _line(judge, log, "eval_judge_apr", "all artifacts right (APR)", COLOURS[2])
    judge.set(title="the judge (never optimized)")
    _line(clip, log, "clip_fraction", "share of clipped ratios", COLOURS[0])
    clip.set(title="clip fraction")
    _line(kl, log, "approx_kl", "approximate KL", COLOURS[4])
    kl.set(title="approximate KL of an epoch's updates")
    drift_panels(gap, look, log, limits)
    for ax in (cells := (reward, judge, clip, gap, look, kl)):
        plain(ax)
        if not any(len(line.get_xdata()) for line in ax.get_lines() if line.get_marker() == "o"):
            ax.text(0.5, 0.5, "not measured in this run", ha="center", transform=ax.transAxes)
        elif ax not in (clip, kl):
            ax.legend(fontsize=7)
    for ax in cells[3:]:
        ax.set(xlabel="epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
    return fig


def drift_panels(gap: Axes, look: Axes, log: pd.DataFrame, limits: AlarmConfig) -> None:
    """How far reward and judge came apart, and how the images changed, with the alarm's limits."""
    _line(gap, log, "drift_gap", "reward's minus judge's labels right", AFTER)
    gap.axhline(limits.gap, color=BEFORE, linestyle="--", linewidth=0.8, label="alarm")
    gap.set(title="gap to the judge, since stage 1")
    for name, colour in zip(("saturation", "edges", "diversity"), COLOURS, strict=False):
        _line(look, log, f"drift_{name}", name, colour)
    for side in (-limits.look, limits.look):
        look.axhline(side, color=BEFORE, linestyle="--", linewidth=0.8)
    look.set(title="look of the images since stage 1 (log2)")


def ddpo_steps(config: Config) -> Picture | None:
    """Clipping, KL, gradient, advantage of every denoising step by epoch: where the policy moves.

    None under ``ddpo.direct_steps``, which has no ratio to clip.
    """
    from seaborn import heatmap

    if config.ddpo.direct_steps:
        return None
    steps = read_csv(config.require(DDPO) / "steps.csv")
    fig, (row,) = axes(1, 4, 3.6, 2.9, sharey=True)
    titles = {
        "clip_fraction": "clip fraction",
        "approx_kl": "approximate KL",
        "output_grad_norm": "gradient at the UNet's output",
        "advantage": "mean size of the advantage",
    }
    for ax, (column, title) in zip(row, titles.items(), strict=True):
        values = steps.pivot(index="timestep", columns="epoch", values=column)
        heatmap(values.sort_index(ascending=False), ax=ax, cmap="viridis", vmin=0)
        ax.set(title=title, ylabel="timestep (noisy at the top)")
        ax.tick_params(axis="y", labelsize=7, rotation=0)
    save_fig(fig, "ddpo_steps", steps, config)
    return fig


def _line(ax, log: pd.DataFrame, column: str, label: str, colour: str) -> None:
    if column in log:
        rows = log[["epoch", column]].dropna()
        ax.plot(rows["epoch"], rows[column], "o-", ms=2.5, color=colour, label=label, linewidth=1.3)
