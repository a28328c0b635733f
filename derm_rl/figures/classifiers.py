"""Figures of stage 02: are the reward classifier and the judge to be trusted?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from derm_rl import data
from derm_rl.figures.canvas import (
    BEFORE,
    COLOURS,
    PHANTOM,
    Picture,
    axes,
    bars,
    plain,
    save_fig,
    show,
    wrapped,
)
from derm_rl.io import read_csv, write_csv

if TYPE_CHECKING:
    from derm_rl.config import Config

STAGE = "02_reward_classifier"


def classifier_roc(config: Config) -> Picture:
    """ROC and reliability of the reward classifier (top) and the judge, on held-out lesions.

    Also copies the stage's tables to the figures, as ``classifier_<table>.csv``.
    """
    folder = config.require(STAGE)
    tables = ("history", "attributes", "roc", "reliability", "predictions", "corners")
    found = {name: read_csv(folder / f"{name}.csv") for name in tables}
    for name, table in found.items():
        write_csv(config.figures_dir / f"classifier_{name}.csv", table)
    measured = found["attributes"]
    models = list(measured["model"].unique())
    fig, grid = axes(len(models), 2, 4.2, 3.6)
    for (left, right), model in zip(grid, models, strict=True):
        _curves(left, right, found, model)
    save_fig(fig, "classifier_roc", found["roc"], config)
    return fig


def _curves(left, right, tables: dict[str, pd.DataFrame], model: str) -> None:
    mine = {name: table[table["model"] == model] for name, table in tables.items()}
    for k, row in enumerate(mine["attributes"].itertuples()):
        roc = mine["roc"][mine["roc"]["attribute"] == row.attribute]
        label = f"{row.attribute} {row.auc:.3f} [{row.auc_low:.3f}, {row.auc_high:.3f}]"
        colour = COLOURS[k % len(COLOURS)]
        x, y = roc["false_positive_rate"], roc["true_positive_rate"]
        left.plot(x, y, color=colour, label=label, linewidth=1.4)
        stated = mine["reliability"][mine["reliability"]["attribute"] == row.attribute]
        error = stated[["low", "high"]].sub(stated["observed"], axis=0).abs().to_numpy().T
        few, many = stated["n"].min(), stated["n"].max()
        right.errorbar(
            stated["stated"], stated["observed"], error, fmt="o-", color=colour, ms=3, linewidth=1,
            elinewidth=0.7, capsize=1.5, label=f"{row.attribute}: {few:,} to {many:,}",
        )  # fmt: skip
    right.legend(
        title="images a point,\nbins of equal mass", fontsize=6.5, title_fontsize=7,
        loc="upper left", bbox_to_anchor=(1, 1),
    )  # fmt: skip
    left.legend(title="AUC [95 % interval]", fontsize=6.5, title_fontsize=7, loc="lower right")
    left.set(title=f"{model}: ROC", xlabel="false positive rate", ylabel="true positive rate")
    right.set(title=f"{model}: reliability", xlabel="stated", ylabel="observed, 95 % interval")
    for ax in (left, right):
        ax.plot([0, 1], [0, 1], ":", color="gray", linewidth=1)
        plain(ax)


def autoencoder(config: Config, n: int = 8) -> Picture:
    """What the base pipeline's autoencoder keeps: images for the phantom, the rate for all."""
    table = read_csv(config.require(STAGE) / "autoencoder.csv")
    fig = _reconstructions(config, table, n) if config.data.source == "phantom" else _bar(table)
    save_fig(fig, "autoencoder", table, config)
    return fig


def _bar(table: pd.DataFrame) -> Picture:
    fig, grid = axes(1, 1, 4, 3)
    rates = table[["original", "reconstruction"]].mean()
    bars = grid[0][0].bar(rates.index, rates.to_numpy(), 0.5, color=[BEFORE, COLOURS[0]])
    grid[0][0].bar_label(bars, fmt="{:.3f}")
    grid[0][0].set(ylabel="judge sees exactly the true artifacts", ylim=(0, 1.05))
    plain(grid[0][0])
    return fig


def decoys(config: Config, each: int = 2) -> Picture | None:
    """How often a decoy of a held-out family is called an artifact; phantoms: ``each`` shown.

    A line across each bar is how often the same images were called one before. Nothing to draw
    where every test image shows an artifact.
    """
    from derm_rl.captions.sampling import wilson

    table = read_csv(config.require(STAGE) / "decoys.csv")
    if table.empty:
        return None
    families = list(table["family"].unique())
    shown = [f"{family} {i}" for family in families for i in range(each)]
    phantom = config.data.source == "phantom"
    fig = Picture(figsize=(1.3 * len(shown), 4.4 if phantom else 2.9), layout="constrained")
    rows = [["bars"] * len(shown), shown] if phantom else [["bars"]]
    ratios = [2.2, 1] if phantom else [1]
    grid = fig.subplot_mosaic(rows, height_ratios=ratios)
    for k, (model, mine) in enumerate(table.groupby("model", sort=False)):
        called = mine.groupby("family", sort=False)["called"].agg(["sum", "size"])
        found = pd.DataFrame([wilson(*map(int, row)) for row in called.to_numpy()])
        x = np.arange(len(families)) + 0.36 * (k - 0.5)
        label = f"{model}: {mine['called'].sum()} of {len(mine):,} ({mine['called'].mean():.3f})"
        bars(grid["bars"], x, found, 0.36, color=COLOURS[k], label=label)
        before = mine.groupby("family", sort=False)["before"].mean()
        label = "the same without the decoy" if k == 0 else None
        grid["bars"].hlines(before, x - 0.18, x + 0.18, color="black", linewidth=1.2, label=label)
    grid["bars"].set(xticks=range(len(families)), xticklabels=families,
                     ylabel="called an artifact,\n95 % interval")  # fmt: skip
    grid["bars"].margins(y=0.25)  # room for the legend
    grid["bars"].set_ylim(bottom=0)
    grid["bars"].legend(fontsize=8, loc="upper center", ncols=3)
    plain(grid["bars"])
    if phantom:
        _show_decoys(config, grid, table, each)
        fig.suptitle(f"Decoys that no classifier has trained on\n{PHANTOM}", fontsize=9)
    save_fig(fig, "decoys", table, config)
    return fig


def _show_decoys(config: Config, grid: dict, table: pd.DataFrame, each: int) -> None:
    from derm_rl.evaluation.classification import held_out_decoys

    images, drawn = held_out_decoys(data.load(config, "test"), config.seed)
    by = {model: mine["called"].to_numpy() for model, mine in table.groupby("model")}
    for family, rows in drawn.reset_index().groupby("family").groups.items():
        for i in range(each):
            grid[f"{family} {i}"].axis("off")
        for i, row in enumerate(rows[:each]):
            fooled = ", ".join(model for model, called in by.items() if called[row])
            grid[f"{family} {i}"].axis("on")
            show(grid[f"{family} {i}"], images[row], f"fooled: {fooled or 'none'}")


def _reconstructions(config: Config, table: pd.DataFrame, n: int) -> Picture:
    from derm_rl import pipeline

    test = data.load(config, "test", None)
    crowded = np.argsort(-test.labels.sum(1), kind="stable")[:n]
    originals = np.asarray(test.images[crowded])
    decoded = pipeline.reconstruct(pipeline.load(config.pipeline.base), originals)
    fig, grid = axes(2, len(crowded), 1.3, 1.6)
    for top, below, i, before, after in zip(*grid, crowded, originals, decoded, strict=True):
        show(top, before, wrapped(test.findings[i], 16))
        show(below, after)
    grid[0][0].set_ylabel("original", fontsize=8)
    grid[1][0].set_ylabel("decoded", fontsize=8)
    rates = table[["original", "reconstruction"]].mean()
    fig.suptitle(
        f"Judge sees exactly the true artifacts: {rates['original']:.3f} of the originals, "
        f"{rates['reconstruction']:.3f} after decoding\n{PHANTOM}",
        fontsize=9,
    )
    return fig
