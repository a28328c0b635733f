"""Figures of stage 05: before and after RL, the same prompts and the same noise."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from derm_rl import prompts
from derm_rl.figures.canvas import (
    AFTER,
    BEFORE,
    Picture,
    axes,
    bars,
    caption,
    halves,
    note,
    plain,
    save_fig,
    show,
    spread,
    wrapped,
)
from derm_rl.io import read_csv, write_csv

if TYPE_CHECKING:
    from derm_rl.config import Config

STAGE = "05_alignment"
MODELS = {"stage1": "stage 1", "rl": "after RL"}
TRUTH = {"truth": "known to show it"}
COLOURS = {"stage1": BEFORE, "rl": AFTER, "truth": "#9a9a9a"}
FRAMES = ("#d62839", "#edae49", "#2a9d4a")  # none, one, both of judge and rules say it is right


def _samples(config: Config) -> tuple[pd.DataFrame, list[prompts.Finding]]:
    """Samples of stage 05 with what says them right, also copied to the figures; the prompts.

    Columns ``judge``, ``rules`` and ``panel``: by it the image shows exactly what was asked for.
    """
    from derm_rl.evaluation.panel import hits

    samples = read_csv(config.require(STAGE) / "samples.csv", dtype={"image_seed": "string"})
    write_csv(config.figures_dir / "alignment_samples.csv", samples)
    samples = samples.join(hits(samples).astype(int))
    return samples, [prompts.parse(text) for text in samples["prompt"].unique()]


def before_after(config: Config, n_prompts: int = 6, n_images: int = 4) -> Picture:
    """The first images of several prompts by stage 1 and, from the same noise, after RL.

    Not chosen by how they look: prompts evenly spread, images 0, 1, … of each. A green frame says
    that judge and rules see exactly the wanted artifacts, an amber one that only one of them does.
    """
    folder = config.require(STAGE)
    samples, findings = _samples(config)
    by_model = {m: samples[samples["model"] == m].reset_index(drop=True) for m in MODELS}
    images = {m: np.load(folder / f"images_{m}.npy", mmap_mode="r") for m in MODELS}
    n = len(by_model["rl"]) // len(findings)
    shown = min(n_images, n)
    chosen = spread(findings, n_prompts)
    fig, grid = halves(len(chosen), shown, 1.05, 1.1)
    rows = []
    for line, p in zip(grid, chosen, strict=True):
        for k, ax in enumerate(line):
            model, j = ("stage1", k) if k < shown else ("rl", k - shown)
            record = by_model[model].iloc[p * n + j]
            frame = FRAMES[record["judge"] + record["rules"]]
            show(ax, images[model][p * n + j], frame=frame)
            rows.append(record[["model", "prompt", "index", "image_seed", "judge", "rules"]])
        line[0].set_ylabel(
            wrapped(findings[p], 17), fontsize=6.5, rotation=0, ha="right", va="center"
        )
    grid[0][0].set_title("stage 1", fontsize=9, loc="left")
    grid[0][shown].set_title("after RL, same noise", fontsize=9, loc="left")
    fig.suptitle(
        "green: judge and rules see exactly these artifacts, amber: one of the two, red: neither\n"
        + note(config).strip(),
        fontsize=8,
    )
    save_fig(fig, "before_after", pd.DataFrame(rows), config)
    return fig


def apr_heatmap(config: Config) -> Picture:
    """APR of every prompt by the panel: artifacts down, diagnosis across; each model, the gain."""
    from seaborn import heatmap

    _samples(config)
    table = read_csv(config.require(STAGE) / "per_prompt.csv")
    findings = [prompts.parse(text) for text in table["prompt"]]
    table["diagnosis"] = [f.diagnosis for f in findings]
    table["artifacts"] = [caption(f).split(": ", 1)[1] for f in findings]
    order, columns = table["artifacts"].unique(), table["diagnosis"].unique()
    panels = {
        label: table[table["model"] == model]
        .pivot(index="artifacts", columns="diagnosis", values="panel_apr")
        .reindex(index=order, columns=columns)
        for model, label in (MODELS | TRUTH).items()
    }
    panels["gain"] = panels["after RL"] - panels["stage 1"]
    height = 0.27 * len(order) + 1
    fig, (row,) = axes(1, len(panels), 2.6, height, sharey=True)
    for ax, (label, values) in zip(row, panels.items(), strict=True):
        gain = label == "gain"
        cmap, low = ("RdBu", -1) if gain else ("viridis", 0)
        heatmap(
            values,
            ax=ax,
            annot=True,  # in black or white, by the colour below; none where no image shows it
            fmt="+.2f" if gain else ".2f",
            annot_kws={"fontsize": 7},
            cmap=cmap,
            vmin=low,
            vmax=1,
            cbar_kws={"shrink": 0.6},
        )
        ax.set(xlabel="", ylabel="")
        ax.set_title(f"{label}: mean {np.nanmean(values):{'+' if gain else ''}.3f}", size=9)
    row[0].tick_params(axis="y", labelsize=7, rotation=0)
    fig.suptitle(f"APR by judge and rules together{note(config)}", fontsize=8)
    save_fig(fig, "apr_heatmap", table, config)
    return fig


def attributes(config: Config) -> Picture:
    """Recall and false-add rate of every label: stage 1, after RL and of images known to be right.

    With 95 % intervals. What misses in the last is the judge's mistake, not the model's.
    """
    _samples(config)
    table = read_csv(config.require(STAGE) / "attributes.csv")
    names = list(table["attribute"].unique())
    fig, (row,) = axes(1, 2, 4.4, 3.2, sharey=True)
    titles = {"recall": "wanted and there (recall)", "false_add": "there but not wanted"}
    for ax, (measure, title) in zip(row, titles.items(), strict=True):
        models = MODELS | TRUTH
        for k, (model, label) in enumerate(models.items()):
            part = table[table["model"] == model].set_index("attribute").loc[names]
            part = part[[measure, f"{measure}_low", f"{measure}_high"]]
            part.columns = ["value", "low", "high"]
            x = np.arange(len(names)) + (k - 1) * 0.27
            bars(ax, x, part, 0.25, color=COLOURS[model], label=label)
        ax.set_xticks(range(len(names)), [prompts.ARTIFACTS.get(n, n) for n in names])
        ax.set(title=title, ylim=(0, 1.05))
        plain(ax)
    row[0].set_ylabel("share of images, by the judge")
    row[1].legend(fontsize=8)
    save_fig(fig, "attributes", table, config)
    return fig


def panel(config: Config) -> Picture:
    """APR by the judge, by the rules and by both; how often each finds an artifact asked for.

    Where the judge sees what the rules do not, one of them is wrong: look, with :func:`audit`.
    """
    table = read_csv(config.require(STAGE) / "panel.csv")
    cells = table.set_index(["model", "instrument", "measure", "attribute"]).sort_index()
    models = MODELS | TRUTH
    shown = [("apr", "all")]
    shown += [("recall", a) for a in table["attribute"][table["measure"] == "recall"].unique()]
    instruments = {"judge": ("judge", None), "rules": ("rules", "//")}
    fig, (row,) = axes(1, len(shown), 1.75, 3.1, sharey=True)
    for ax, (measure, attribute) in zip(row, shown, strict=True):
        chosen = dict(instruments)
        if measure == "apr":
            chosen["panel"] = ("both", "xx")
        for i, (instrument, (_, hatch)) in enumerate(chosen.items()):
            for k, model in enumerate(models):
                cell = cells.loc[[(model, instrument, measure, attribute)]]
                bars(
                    ax, [i + (k - 1) * 0.28], cell, 0.26, (1.5, 0.8), color=COLOURS[model],
                    hatch=hatch, edgecolor="white", label=models[model] if i == 0 else None,
                )  # fmt: skip
        ax.set_xticks(range(len(chosen)), [label for label, _ in chosen.values()], fontsize=8)
        name = attribute.replace("_with_", " where\nalso asked: ").replace("_", " ")
        ax.set_title("APR" if measure == "apr" else f"recall: {name}", fontsize=8)
        ax.set_ylim(0, 1.05)
        plain(ax)
    row[0].set_ylabel("share of images")
    fig.legend(*row[0].get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside lower center")
    fig.suptitle(f"what the instruments see{note(config)}", fontsize=8)
    save_fig(fig, "panel", table, config)
    return fig


def audit(config: Config, columns: int = 8) -> Picture:
    """Random images after RL that the judge calls right, enlarged: is everything there to the eye?

    :func:`derm_rl.evaluation.audit.review` collects what readers say.
    """
    from derm_rl.evaluation.audit_sheet import sheet

    table, images = sheet(config)
    fig, grid = axes(max(1, -(-len(table) // columns)), columns, 1.5, 1.75)
    places = [ax for line in grid for ax in line]
    for ax in places:
        ax.axis("off")
    for ax, row, image in zip(places, table.itertuples(), images, strict=False):
        ax.axis("on")
        text = caption(prompts.parse(row.prompt))
        show(ax, image, f"{row.number}  ☐  {textwrap.fill(text, 24)}")
    fig.suptitle(
        f"after RL, where something was asked for: exactly right, says the judge{note(config)}",
        fontsize=9,
    )
    save_fig(fig, "audit", table, config)
    return fig
