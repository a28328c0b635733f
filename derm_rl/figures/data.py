"""Figures of stage 01: what is in the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from derm_rl import data, prompts
from derm_rl.data import phantom, phantom_render, phantom_scene
from derm_rl.figures.canvas import (
    AFTER,
    BEFORE,
    COLOURS,
    PHANTOM,
    Picture,
    axes,
    caption,
    plain,
    save_fig,
    show,
    wrapped,
)
from derm_rl.io import read_csv

if TYPE_CHECKING:
    from derm_rl.config import Config

STAGE = "01_data"


def data_sheet(config: Config, rows: int = 4, columns: int = 6) -> Picture:
    """Training images and what their prompts say; every artifact is there at least twice.

    Real images are saved in the stage's own folder, never among the figures: those are committed.
    """
    training = data.load(config, "diffusion")
    chosen = _varied(training, rows * columns)
    fig, grid = axes(rows, columns, 1.45, 1.75)
    cells = [ax for row in grid for ax in row]
    for ax in cells:
        ax.axis("off")
    for ax, i in zip(cells, chosen, strict=False):
        ax.axis("on")
        show(ax, training.images[i], wrapped(training.findings[i]))
    real = config.data.source != "phantom"
    fig.suptitle(f"{config.data.source}, diffusion split" if real else PHANTOM, fontsize=10)
    frame = pd.DataFrame(
        {
            "image_id": training.frame["image_id"].to_numpy()[chosen],
            "caption": [prompts.render(training.findings[i]) for i in chosen],
        }
    )
    save_fig(fig, "data_sheet", frame, config, config.stage_dir(STAGE) if real else None)
    return fig


def _varied(dataset: data.Dataset, n: int) -> list[int]:
    """Up to ``n`` rows: two with each label first, then as they come."""
    labels = dataset.labels
    first = [int(i) for j in range(labels.shape[1]) for i in np.flatnonzero(labels[:, j])[:2]]
    return sorted(list(dict.fromkeys([*first, *range(len(dataset))]))[:n])


def phantom_truth(config: Config, n: int = 4) -> Picture | None:
    """Phantom images at 256 px and the truth that comes with them; None for real data."""
    if config.data.source != "phantom":
        return None
    frame = data.load(config, "diffusion").frame
    columns = list(phantom_scene.ARTIFACTS)
    melanoma = (frame["diagnosis"] == "MEL").to_numpy(bool)
    crowded = frame[columns].to_numpy(bool).sum(axis=1) + melanoma
    best = np.argsort(-crowded, kind="stable")
    mel = (frame["diagnosis"] == "MEL").to_numpy(bool)
    chosen = [*[i for i in best if mel[i]][: n // 2], *[i for i in best if not mel[i]]][:n]
    fig, grid = axes(2, len(chosen), 2.6, 2.0, height_ratios=[2.6, 0.9])
    paths = frame["path"].iloc[chosen].tolist()
    for top, below, path in zip(*grid, paths, strict=True):
        scene = phantom.scene_at(path)
        image, mask = phantom_render.render(scene, 256)
        show(top, image, caption(prompts.Finding(scene.diagnosis, scene.artifacts)))
        top.contour(mask, [0.5], colors="lime", linewidths=1)
        _drawn(below, scene)
    fig.suptitle(f"What was drawn, exactly: {PHANTOM}", fontsize=10)
    table = phantom.truth(paths).drop(columns=["path"])
    flat = [c for c in table if not table[c].map(lambda v: isinstance(v, tuple)).any()]
    table = table[flat].assign(colours=["; ".join(phantom.scene_at(p).colours) for p in paths])
    save_fig(fig, "phantom_truth", table, config)
    return fig


def _drawn(ax, scene: phantom_scene.Scene) -> None:
    """Swatches of the lesion's colours and the parameters that can be named."""
    ax.axis("off")
    ax.set(xlim=(0, 6), ylim=(0, 6))  # about 0.4 by 0.15 inches each
    for i, name in enumerate(scene.colours):
        ax.add_patch(_square(i, phantom_scene.COLOURS[name]))
    asymmetry, border = phantom_scene.drawn_shape(scene)
    text = (
        f"{', '.join(scene.colours)}\nasymmetry {asymmetry:.2f}   border {border:.3f}\n"
        f"skin type {scene.skin_type}   {len(scene.hairs)} hairs   {len(scene.bubbles)} bubbles\n"
        f"{len(scene.globules)} globules   {len(scene.streaks)} streaks"
        f"{'   blue-white veil' if scene.blue_white_veil else ''}"
    )
    ax.text(0, 4.2, text, va="top", fontsize=6.5, linespacing=1.5, wrap=True)


def _square(i: int, colour: tuple[float, float, float]):
    from matplotlib.patches import Rectangle

    return Rectangle((i, 4.6), 0.8, 1.3, facecolor=colour, edgecolor="black", linewidth=0.5)


def data_counts(config: Config) -> Picture:
    """Share of images with each finding, by split; and skin types where they are known."""
    dataset = data.load(config)
    counts = data.summary(dataset).reset_index()
    names = [c for c in counts.columns if c not in ("split", "images", "lesions")]
    known = dataset.frame["skin_type"].dropna() if "skin_type" in dataset.frame else pd.Series()
    fig, grid = axes(1, 2 if len(known) else 1, 5.2, 3)
    ax = grid[0][0]
    parts = counts[counts["split"] != "all"]
    for k, row in enumerate(parts.itertuples(index=False)):
        share = [getattr(row, name) / row.images for name in names]
        x = np.arange(len(names)) + (k - (len(parts) - 1) / 2) * 0.8 / len(parts)
        label = f"{row.split} ({row.images:,} images, {row.lesions:,} lesions)"
        ax.bar(x, share, 0.8 / len(parts), label=label, color=COLOURS[k])
    ax.set_xticks(range(len(names)), [prompts.ARTIFACTS.get(n, n) for n in names])
    ax.set(ylabel="share of images", title="findings by split")
    ax.legend(fontsize=7)
    plain(ax)
    if len(known):
        types = known.astype(int).value_counts().sort_index()
        grid[0][1].bar(types.index.astype(str), types.to_numpy(), color=COLOURS[0])
        grid[0][1].set(xlabel="Fitzpatrick skin type", ylabel="images", title="skin types")
        plain(grid[0][1])
    save_fig(fig, "data_counts", counts, config)
    return fig


def shared_lesions(config: Config) -> Picture | None:
    """Lesions that the splits published with the data share, against ours; None for the phantom."""
    file = config.require(STAGE) / "published_splits.csv"
    if config.data.source == "phantom" or not file.is_file():
        return None
    shared, dataset = read_csv(file), data.load(config)
    here = int((dataset.frame.groupby(dataset.lesion_ids)["split"].nunique() > 1).sum())
    label = next(c for c in shared.columns if c not in ("lesions", "images"))
    fig, grid = axes(1, 1, 6, 2.8)
    ax, y = grid[0][0], np.arange(len(shared))
    bars = ax.barh(y - 0.2, shared["lesions"], 0.38, color=AFTER, label="published splits")
    ours = ax.barh(y + 0.2, np.full(len(shared), here), 0.38, color=BEFORE, label="splits here")
    ax.bar_label(bars, fmt="{:,.0f}", padding=3)
    ax.bar_label(ours, fmt="{:.0f}", padding=3)
    ax.set_yticks(y, shared[label].astype(str))
    ax.invert_yaxis()
    ax.set(xlabel="lesions in more than one split")
    ax.legend(fontsize=8)
    plain(ax)
    save_fig(fig, "shared_lesions", shared.assign(lesions_here=here), config)
    return fig
