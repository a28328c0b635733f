"""What the DDPO engine's benchmarks measured: drawn from ``benchmarks/results``, trains nothing.

Numbers of one machine, one run each (``benchmarks/ddpo.py``), and not of the preset whose notebook
shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from derm_rl.figures.canvas import AFTER, BEFORE, COLOURS, PHANTOM, Picture, axes, plain, save_fig
from derm_rl.io import read_csv, read_json
from derm_rl.paths import ROOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from derm_rl.config import Config

RESULTS = ROOT / "benchmarks/results"
RECIPES = {"paper": (BEFORE, "the paper's recipe"), "fast": (AFTER, "the fast recipe")}


def ddpo_recipes(config: Config, device: str = "cpu") -> Picture:
    """APR by the judge against what it cost, for the paper's recipe and the fast one.

    The titles name the seed that saves least: a mean of ratios is ruled by a seed in which the
    paper's recipe ends hardly above its start.
    """
    curves = read_csv(RESULTS / f"ddpo_{device}_curves.csv")
    facts = read_json(RESULTS / f"ddpo_{device}.json")["recipes"]
    curves["minutes"] = curves["seconds"] / 60
    curves["unet_passes_millions"] = curves["unet_passes"] / 1e6
    fig, (row,) = axes(1, 2, 4.6, 3.2, sharey=True)
    for ax, (column, label, ratio) in zip(
        row,
        (
            ("unet_passes_millions", "UNet passes (millions)", "unet_passes_ratio"),
            ("minutes", "minutes of sampling and updating", "wall_time_ratio"),
        ),
        strict=True,
    ):
        _learning_curves(ax, curves, column)
        least = facts[f"least_{ratio}"]
        said = "not by every seed" if least is None else f"{least:.1f} × less, at least"
        ax.set(xlabel=label, title=f"to the APR at which the paper's ends: {said}")
        ax.title.set_fontsize(9)
        plain(ax)
    row[0].set_ylabel("APR by the judge")
    row[0].legend(fontsize=8, loc="lower right")
    fig.suptitle(
        f"32 px, seeds {', '.join(map(str, facts['seeds']))} thin, their mean thick; "
        f"{_measured(facts)} ({PHANTOM})",
        fontsize=8,
    )
    save_fig(fig, "ddpo_recipes", curves, config)
    return fig


def _measured(facts: Mapping[str, Any]) -> str:
    """When, and with which commit: that in which the numbers stand if none held the code then."""
    if "recorded" in facts:
        return f"{facts['date']}, numbers of commit {facts['recorded']}"
    return f"{facts['date']}, commit {facts['commit']}"


def _learning_curves(ax: Axes, curves: pd.DataFrame, column: str) -> None:
    """Each seed thin, the mean of the seeds thick, by epoch."""
    for recipe, (colour, label) in RECIPES.items():
        rows = curves[curves["recipe"] == recipe]
        for _, one in rows.groupby("seed"):
            ax.plot(one[column], one["eval_judge_apr"], color=colour, alpha=0.4, linewidth=0.8)
        mean = rows.groupby("epoch")[[column, "eval_judge_apr"]].mean()
        ax.plot(mean[column], mean["eval_judge_apr"], color=colour, linewidth=2.2, label=label)


def ddpo_objectives(config: Config, preset: str = "demo") -> Picture:
    """What each way to refine gains, and what of the distribution it keeps, at about the same work.

    A dot a seed, a bar their mean; both feature spaces of stage 06.
    """
    table = read_csv(RESULTS / f"objectives_{preset}.csv")
    facts = read_json(RESULTS / f"objectives_{preset}.json")
    variants = list(dict.fromkeys(table["variant"]))
    panels = {
        "APR gained": {"panel_gain": "judge and rules", "judge_gain": "judge alone"},
        "coverage gained": {"coverage_judge_gain": "judge's features",
                            "coverage_imagenet_gain": "ImageNet's"},
        "spread within a prompt, over stage 1's": {"spread_judge_ratio": "judge's features",
                                                   "spread_imagenet_ratio": "ImageNet's"},
    }  # fmt: skip
    fig, (row,) = axes(1, len(panels), 3.6, 0.36 * len(variants) + 1.2, sharey=True)
    for ax, (label, columns) in zip(row, panels.items(), strict=True):
        for k, (column, said) in enumerate(columns.items()):
            for y, variant in enumerate(variants):
                values = table.loc[table["variant"] == variant, column]
                at = y + 0.22 * (k - 0.5)
                ax.plot(values, [at] * len(values), "o", color=COLOURS[k], ms=3, alpha=0.6)
                ax.plot([values.mean()] * 2, [at - 0.13, at + 0.13], color=COLOURS[k], lw=2.5,
                        label=said if y == 0 else None)  # fmt: skip
        ax.axvline(float("ratio" in column), color=BEFORE, linestyle="--", linewidth=0.8)
        ax.set(xlabel=label, yticks=range(len(variants)), yticklabels=variants)
        ax.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2, frameon=False)
        plain(ax)
    row[0].invert_yaxis()
    seeds, passes = ", ".join(map(str, sorted(table["seed"].unique()))), facts["passes"]
    fig.suptitle(
        f"{preset}: about {passes:,} UNet passes each, seeds: {seeds}; {_measured(facts)}"
        f" ({PHANTOM})",
        fontsize=8,
    )
    save_fig(fig, "ddpo_objectives", table, config)
    return fig


def ddpo_options(config: Config, device: str = "cpu") -> Picture:
    """How much less an image costs with each option alone, and with those that pay together."""
    table = read_csv(RESULTS / f"ddpo_{device}_options.csv")
    facts = read_json(RESULTS / f"ddpo_{device}.json")["options"]
    fig, ((ax,),) = axes(1, 1, 7.0, 3.8)
    bars = ax.barh(table["option"], table["speedup"], color=COLOURS[0])
    ax.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
    ax.axvline(1, color=BEFORE, linestyle="--", linewidth=0.8)
    ax.invert_yaxis()
    ax.set(
        xlabel="images a second, over those of the paper's recipe",
        xlim=(0, 1.1 * table["speedup"].max()),
    )
    fig.suptitle(
        f"one change at a time; {facts['device']}; {_measured(facts)}\n({PHANTOM})",
        fontsize=8,
    )
    ax.tick_params(axis="y", labelsize=8)
    plain(ax)
    save_fig(fig, "ddpo_options", table, config)
    return fig
