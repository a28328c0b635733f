"""Figures of stage 06: stage 1 and RL against real images, and the images that fall out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from derm_rl import prompts
from derm_rl.figures.alignment import COLOURS, MODELS
from derm_rl.figures.canvas import Picture, axes, bars, note, plain, save_fig, show, wrapped
from derm_rl.io import read_csv, read_json

if TYPE_CHECKING:
    from derm_rl.config import Config

STAGE = "06_quality"
SPACES = {"judge": "the judge's features", "imagenet": "ImageNet's features"}
MEASURES = ("precision", "recall", "density", "coverage")


def _real(config: Config) -> str:
    """What stands for real images: a phantom is never called one where it is shown."""
    return "fresh phantoms" if config.data.source == "phantom" else "real images"


def _table(config: Config) -> pd.DataFrame:
    return read_csv(config.require(STAGE) / "quality.csv")


def quality(config: Config) -> Picture:
    """Precision, recall, density and coverage of stage 1 and RL, with what real images get.

    One panel a feature space; 95 % intervals. The line: images that were held out.
    """
    table = _table(config)
    part = table[(table["group"] == "all") & table["measure"].isin(MEASURES)]
    fig, (row,) = axes(1, len(SPACES), 4.4, 3.2, sharey=True)
    for ax, (space, title) in zip(row, SPACES.items(), strict=True):
        cells = part[part["features"] == space].set_index(["model", "measure"])
        for k, (model, label) in enumerate(MODELS.items()):
            x = np.arange(len(MEASURES)) + (k - 0.5) * 0.36
            found = cells.loc[model].loc[list(MEASURES)]
            bars(ax, x, found, 0.34, color=COLOURS[model], label=label)
        top = cells.loc["held_out"].loc[list(MEASURES), "value"]
        ax.hlines(
            top, np.arange(len(MEASURES)) - 0.4, np.arange(len(MEASURES)) + 0.4, color="0.2",
            linewidth=1.2, label=_real(config),
        )  # fmt: skip
        ax.set_xticks(range(len(MEASURES)), MEASURES)
        ax.set_title(title, fontsize=9)
        plain(ax)
    row[0].set_ylim(0, None)
    row[0].set_ylabel("share of images (density: balls)")
    fig.legend(*row[0].get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside lower center")
    fig.suptitle(f"line: what other {_real(config)} get{note(config)}", fontsize=8)
    save_fig(fig, "quality", table, config)
    return fig


def front(config: Config) -> Picture:
    """What alignment costs: the panel's APR against coverage, over guidance and adapter scale.

    Few images a point, on other noise than everything else, so bounds are wide. A ring: the point
    that the tables are of. Dashed: without noise in the steps. Above each panel the coverage of as
    many held-out images. Up and to the right is better.
    """
    table = read_csv(config.require(STAGE) / "front.csv")
    fig, (row,) = axes(1, len(SPACES), 4.8, 4.4, sharey=True)
    for ax, (space, title) in zip(row, SPACES.items(), strict=True):
        part = table[table["features"] == space]
        made = part[part["model"] != "held_out"]
        for model, label in MODELS.items():
            mine = made[made["model"] == model]
            whole = mine["adapter_scale"] == float(model == "rl")
            at, eta = mine.loc[mine["chosen"], ["guidance_scale", "eta"]].iloc[0]
            noisy = mine["eta"] == eta
            lines = [("guidance_scale", mine[whole & noisy], "-", "over guidance")]
            if not noisy.all():
                lines.append(("guidance_scale", mine[~noisy], "--", "the same without noise"))
            if not whole.all():
                scaled = mine[noisy & (mine["guidance_scale"] == at)]
                what = f"over adapter scale, guidance {at:g}"
                lines.append(("adapter_scale", scaled, ":", what))
            for scale, points, style, what in lines:
                points = points.sort_values(scale)
                ax.plot(
                    points["coverage"], points["panel_apr"], style, marker="o", markersize=3,
                    color=COLOURS[model], label=f"{label}, {what}", linewidth=1.2,
                )  # fmt: skip
                sign, away = ("g", (3, 3)) if scale == "guidance_scale" else ("×", (3, -8))
                for point in points.itertuples():
                    if style == "--" or (sign == "×" and point.adapter_scale == 1):
                        continue  # in the order of the solid line; on the other line, too
                    ax.annotate(
                        f"{sign}{getattr(point, scale):g}", (point.coverage, point.panel_apr),
                        away if model == "rl" else (-13, 3), fontsize=6,
                        textcoords="offset points", color=COLOURS[model],
                    )  # fmt: skip
        bounds = {
            bar: made[[f"{name}_low", f"{name}_high"]].sub(made[name], axis=0).abs().T
            for bar, name in (("xerr", "coverage"), ("yerr", "panel_apr"))
        }
        ax.errorbar(
            made["coverage"], made["panel_apr"], **bounds, fmt="none", ecolor="0.88", zorder=0
        )
        chosen = made[made["chosen"]]
        ax.plot(chosen["coverage"], chosen["panel_apr"], "o", mfc="none", mec="0.2", markersize=9)
        ceiling = part.loc[part["model"] == "held_out", "coverage"].iloc[0]
        ax.set_title(f"{_real(config)}: coverage {ceiling:.2f}", fontsize=8)
        ax.set_xlabel(f"coverage, {title}")
        plain(ax)
    row[0].set_ylabel("APR, judge and rules agree")
    handles = row[0].get_legend_handles_labels()
    fig.legend(*handles, fontsize=7, ncols=2, loc="outside lower center")
    n = int(table["n"].max())
    told = f"{n} images a point; g: guidance, ×: adapter; ring: used in the tables"
    fig.suptitle(told + note(config), fontsize=8)
    save_fig(fig, "front", table, config)
    return fig


def results_table(config: Config) -> Picture:
    """The paper's table: distance to real images, diversity, alignment; stage 1 against RL.

    Distances name their features. Only those of Inception and LPIPS, which are there where their
    files were (`features.PUBLISHED`), can be compared with numbers published elsewhere; perceptual
    diversity is LPIPS's distance with EfficientNet-Lite0 and without learned weights.
    """
    stage5 = read_json(config.require("05_alignment") / "metrics.json")
    stage6 = read_json(config.require(STAGE) / "metrics.json")
    lines = [
        ("APR, judge and rules agree ↑", "panel.apr", "truth"),
        ("APR, judge alone ↑", "alignment.apr", "truth"),
        ("APR, rules alone ↑", "panel.rules.apr", "truth"),
        ("FID, judge's features, standardized ↓", "quality.judge.fid", "held_out"),
        ("FID, ImageNet's features ↓", "quality.imagenet.fid", "held_out"),
        ("KID, ImageNet's features ↓", "quality.imagenet.kid", "held_out"),
        ("MMD², ImageNet's features ↓", "quality.imagenet.mmd", "held_out"),
        ("FID, Inception's features ↓", "quality.inception.fid", "held_out"),
        ("KID, Inception's features ↓", "quality.inception.kid", "held_out"),
        ("coverage, judge's features ↑", "quality.judge.coverage", "held_out"),
        ("coverage, ImageNet's features ↑", "quality.imagenet.coverage", "held_out"),
        ("perceptual diversity within prompts", "quality.perceptual.spread", "held_out"),
        ("LPIPS within prompts", "quality.lpips.spread", "held_out"),
    ]
    metrics, rows = stage5 | stage6, []
    lines = [line for line in lines if f"{line[1]}.rl" in metrics]
    for title, name, ceiling in lines:
        for column in ("stage1", "rl", ceiling):
            if (found := metrics.get(f"{name}.{column}")) is not None:
                column = _real(config) if column == ceiling else MODELS[column]
                rows.append({"measure": title, "of": column} | found)
    table = pd.DataFrame(rows)[["measure", "of", "value", "low", "high", "n"]]
    columns = [*MODELS.values(), _real(config)]
    texts = [[_cell(table, title, column) for column in columns] for title, _, _ in lines]
    fig, ((ax,),) = axes(1, 1, 8.2, 0.26 * len(lines) + 0.7)
    ax.axis("off")
    drawn = ax.table(
        texts, rowLabels=[title for title, _, _ in lines], colLabels=columns,
        cellLoc="center", edges="horizontal", bbox=(0.02, 0, 0.98, 1),
    )  # fmt: skip
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    ax.set_title(f"stage 1 against RL{note(config)}", fontsize=9)
    save_fig(fig, "results_table", table, config)
    return fig


def _cell(table: pd.DataFrame, title: str, column: str) -> str:
    found = table[(table["measure"] == title) & (table["of"] == column)]
    if found.empty:
        return "too few images"
    value, low, high = found.iloc[0][["value", "low", "high"]].astype(float)
    digits = 3 if abs(value) < 10 else 1
    text = f"{value:.{digits}f}"
    return text if np.isnan(low) else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def fallen_out(config: Config, n: int = 12) -> Picture:
    """What lowers precision and coverage, at random: look at it before you believe the numbers.

    Above, images after RL that lie near no real one; below, real images near which RL draws none
    (by ImageNet's features).
    """
    folder = config.require(STAGE)
    table = read_csv(folder / "images.csv")
    table = table[(table["features"] == "imagenet") & (table["model"] == "rl")]
    pixels = {
        "precision": np.load(config.require("05_alignment") / "images_rl.npy", mmap_mode="r"),
        "coverage": np.load(folder / "reference.npy", mmap_mode="r"),
    }
    out = 1 - table.groupby("measure")["inside"].mean()
    titles = {
        "precision": f"after RL, near none of the {_real(config)}: {out['precision']:.2f} of all",
        "coverage": f"{_real(config)}, nothing like it after RL: {out['coverage']:.2f} of all",
    }
    fig, grid = axes(2, n, 0.95, 1.55)
    chosen = []
    for row, (measure, title) in zip(grid, titles.items(), strict=True):
        part = table[(table["measure"] == measure) & (table["inside"] == 0)]
        part = part.sample(min(n, len(part)), random_state=0).sort_values("image")
        for ax in row:
            ax.axis("off")
        for ax, record in zip(row, part.itertuples(), strict=False):
            ax.axis("on")
            show(ax, pixels[measure][record.image], wrapped(prompts.parse(record.prompt), 18))
            ax.title.set_fontsize(5.5)
        if part.empty:
            row[0].text(0, 0.5, f"{title}: none", transform=row[0].transAxes, fontsize=8)
        else:
            row[(len(part) - 1) // 2].set_xlabel(title, fontsize=8)
        chosen.append(part)
    fig.suptitle(f"by ImageNet's features{note(config)}", fontsize=7)
    save_fig(fig, "fallen_out", pd.concat(chosen), config)
    return fig
