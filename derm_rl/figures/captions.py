"""Figures of stages 09 and 10: what was asked, what was answered, and what the checks say."""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from derm_rl.captions import pairs as stage
from derm_rl.captions import release, sources
from derm_rl.captions.agreement import wilson
from derm_rl.captions.schema import ARTIFACTS, QUESTION_TYPES
from derm_rl.figures import canvas
from derm_rl.figures.canvas import (
    AFTER,
    BEFORE,
    COLOURS,
    Picture,
    axes,
    plain,
    save_fig,
    show,
)
from derm_rl.io import read_csv, write_csv

if TYPE_CHECKING:
    from derm_rl.config import Config

TONES = ("very light", "light", "intermediate", "tan", "brown", "dark")
# What a reader would call a finding, by name and by the value that has it.
MANY_COLOURS = 3  # as many raise suspicion by the ABCD rule
NOTABLE = ("asymmetric", "irregular border", "three colours or more", *ARTIFACTS)


def note(config: Config) -> str:
    return canvas.note(config, config.captions.sources)


def label(kind: str) -> str:
    return kind.replace("_", " ")


def pair_counts(config: Config) -> Picture:
    """Pairs by source and question type, and by style; images and pairs by modality as a table."""
    made, _ = stage.load(config)
    kinds = [k for k in QUESTION_TYPES if (made["question_type"] == k).any()]
    table = made.groupby(["source", "question_type"]).size().unstack(fill_value=0)
    table = table.reindex(columns=kinds, fill_value=0)
    styles = made.groupby(["source", "style"]).size().unstack(fill_value=0)
    fig, [[left, right]] = axes(1, 2, 5.2, 1.4 + 0.55 * len(table))
    for ax, counts, title in ((left, table, "question type"), (right, styles, "style")):
        start = np.zeros(len(counts))
        for colour, name in zip(COLOURS, counts, strict=False):
            values = counts[name].to_numpy()
            ax.barh(counts.index.astype(str), values, left=start, color=colour, label=label(name))
            start += values
        for y, total in enumerate(start):
            ax.text(total, y, f" {int(total):,}", va="center", fontsize=8)
        ax.set(xlabel=f"pairs by {title}", xlim=(0, start.max() * 1.18))
        ax.invert_yaxis()
        ax.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
        plain(ax)
    fig.suptitle(f"{len(made):,} pairs{note(config)}", fontsize=10)
    frame = pd.concat(
        [t.stack().rename("pairs").rename_axis(["source", "value"]).reset_index().assign(by=by)
         for by, t in (("question_type", table), ("style", styles))]
    )  # fmt: skip
    save_fig(fig, "captions_counts", frame[["source", "by", "value", "pairs"]], config)
    counted = read_csv(config.require(stage.STAGE) / "counts.csv")
    write_csv(config.figures_dir / "captions_images.csv", counted)
    return fig


def openings(config: Config, least: float = 0.012) -> Picture | None:
    """Sunburst of the first three words of English questions; None if there are none."""
    made, _ = stage.load(config)
    questions = made.loc[made["language"] == "en", "question"].astype(str)
    words = [tuple(q.lower().replace(",", "").split()[:3]) for q in questions]
    words = [w for w in words if len(w) == 3]
    if not words:
        return None
    fig = Picture(figsize=(6.4, 6.6), layout="constrained")
    ax = fig.add_subplot(projection="polar")
    ax.set_axis_off()
    ax.set_theta_zero_location("N")
    ax.set_theta_direction(-1)
    rows: list[tuple[str, int, float]] = []
    first = Counter(w[:1] for w in words)
    colours = {w[0]: COLOURS[i % len(COLOURS)] for i, (w, _) in enumerate(first.most_common())}
    _ring(ax, words, (), 0.0, 2 * np.pi, colours, least * len(words), rows)
    ax.text(0, 0, f"{len(words):,}\nquestions", ha="center", va="center", fontsize=9)
    ax.set_ylim(0, 4)
    fig.suptitle(f"How questions begin{note(config)}", fontsize=10)
    frame = pd.DataFrame(rows, columns=["opening", "questions", "share"])
    save_fig(fig, "captions_openings", frame, config)
    return fig


def _ring(ax, words, prefix, start, width, colours, least, rows) -> None:
    """Arcs of the words that follow ``prefix``, and of those that follow them."""
    depth, end = len(prefix), start + width
    counts = Counter(w[depth] for w in words)
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        span = width * count / len(words)
        opening = (*prefix, word)
        rows.append((" ".join(opening), count, count / len(words)))
        if count >= least:
            ax.bar(
                start + span / 2, 0.96, span, 1 + depth, color=colours[opening[0]],
                alpha=1 - 0.25 * depth, edgecolor="white", linewidth=0.7,
            )  # fmt: skip
            angle = np.degrees(start + span / 2)
            turn = 90 - angle if angle < 180 else 270 - angle
            ax.text(
                start + span / 2, 1.48 + depth, textwrap.shorten(word, 13, placeholder="…"),
                rotation=turn, ha="center", va="center", fontsize=7,
                color="white" if depth == 0 else "black",
            )  # fmt: skip
            if depth < 2:
                inner = [w for w in words if w[depth] == word]
                _ring(ax, inner, opening, start, span, colours, least, rows)
            start += span
    if end - start > 1e-9:  # the many that are rare each
        middle, span = (start + end) / 2, end - start
        ax.bar(middle, 0.96, span, 1 + depth, color="0.9", edgecolor="white", linewidth=0.7)
        if depth == 0:
            ax.text(middle, 1.48, "others", ha="center", va="center", fontsize=7, color="0.4")


def answer_lengths(config: Config) -> Picture:
    """Length of the answers by question type: words of English, characters of Japanese."""
    made, _ = stage.load(config)
    ok = made[made["status"] == "ok"]
    languages = [x for x in ("en", "ja") if (ok["language"] == x).any()]
    kinds = [k for k in QUESTION_TYPES if (ok["question_type"] == k).any()]
    fig, [row] = axes(1, len(languages), 4.6, 3.4)
    frames = []
    for ax, language in zip(row, languages, strict=True):
        part = ok[ok["language"] == language]
        length = part["answer"].str.split().str.len() if language == "en" else (
            part["answer"].str.len()
        )  # fmt: skip
        groups = [length[part["question_type"] == k].to_numpy(float) for k in kinds]
        ax.boxplot(
            groups, orientation="horizontal", tick_labels=[label(k) for k in kinds],
            whis=(2.5, 97.5),
            showfliers=False, patch_artist=True, medianprops={"color": "white"},
            boxprops={"facecolor": COLOURS[0], "linewidth": 0},
        )  # fmt: skip
        ax.invert_yaxis()
        unit = "words" if language == "en" else "characters"
        ax.set(xlabel=f"{unit}, answers in {language}")
        plain(ax)
        for kind, values in zip(kinds, groups, strict=True):
            q = np.quantile(values, [0.025, 0.25, 0.5, 0.75, 0.975]) if len(values) else [None] * 5
            names = ("low", "q1", "median", "q3", "high")
            row_ = {"language": language, "unit": unit, "question_type": kind, "n": len(values)}
            frames.append(row_ | dict(zip(names, q, strict=True)))
    title = "Answer lengths: quartiles, whiskers 95 %"
    fig.suptitle(f"{title}{note(config)}", fontsize=9)
    save_fig(fig, "captions_lengths", pd.DataFrame(frames), config)
    return fig


def flagged_by_type(report: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs flagged, and their share, by check (rows, "any" first) and question type, all sources.

    Args:
        report: as :func:`derm_rl.captions.checks.report` makes it.
    """
    sums = report[report["source"] != "all"].groupby(["check", "question_type"])
    sums = sums[["flagged", "pairs"]].sum()
    flagged = sums["flagged"].unstack(fill_value=0)
    kinds = [k for k in QUESTION_TYPES if k in flagged]
    names = ["any", *sorted(set(flagged.index) - {"any"})]
    pairs = sums["pairs"].unstack(fill_value=0).reindex(index=names, columns=kinds)
    flagged = flagged.reindex(index=names, columns=kinds, fill_value=0)
    return flagged, flagged / pairs


def check_outcomes(config: Config) -> Picture | None:
    """Share of the pairs that each check flags, by question type; None if no pair was flagged.

    Checks that flagged nothing are named below; the table, ``captions_checks.csv``, has all.
    """
    made, flags = stage.load(config)
    report = read_csv(config.require(stage.STAGE) / "checks.csv")
    flagged = int(made["pair_id"].isin(flags["pair_id"]).sum())
    title = f"Pairs flagged: {flagged:,} of {len(made):,}{note(config)}"
    if not flagged:
        write_csv(config.figures_dir / "captions_checks.csv", report)
        (config.figures_dir / "captions_checks.png").unlink(missing_ok=True)  # of an earlier run
        print(title)
        return None
    fig = outcomes(report, title)
    save_fig(fig, "captions_checks", report, config)
    return fig


def outcomes(report: pd.DataFrame, title: str) -> Picture:
    """The checks that flagged anything, by question type; the others by name."""
    counts, share = flagged_by_type(report)
    silent = [label(name) for name in counts.index[counts.sum(axis=1) == 0]]
    counts = counts[counts.sum(axis=1) > 0]
    share = share.loc[counts.index]
    kinds, names = counts.columns, counts.index
    fig, [[ax]] = axes(1, 1, 7.2, 1.9 + 0.27 * len(names))
    ax.imshow(share.to_numpy(float), cmap="Reds", vmin=0, vmax=max(0.02, share.max().max()),
              aspect="auto")  # fmt: skip
    for y, x in np.ndindex(share.shape):
        value, count = share.iat[y, x], counts.iat[y, x]
        percent = f"{value:.1%}" if value >= 0.0005 else "<0.1%"
        text = f"{count:,} ({percent})" if count else "0"
        dark = value > 0.6 * max(0.02, share.max().max())
        ax.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "0.3")
    ax.set_xticks(range(len(kinds)), [label(k) for k in kinds], rotation=30, ha="right", fontsize=8)
    ax.set_yticks(range(len(names)), [label(n) for n in names], fontsize=8)
    if silent:
        said = textwrap.fill(f"no pair flagged by: {', '.join(silent)}", 100)
        ax.set_xlabel(said, fontsize=7)
    ax.set_title(title, fontsize=9)
    return fig


def finding_coverage(config: Config) -> Picture:
    """How often answers report a finding, by diagnosis and by measured skin tone.

    A finding that is reported more rarely on dark skin though it is as frequent there is a bias of
    whoever looked. Numbers are shares of images; ± is half the 95 % interval (Wilson).
    """
    made, _ = stage.load(config)
    _, images = sources.load(config)
    measured = images.measurements()
    tone = made["image_id"].map({name: m.skin_tone for name, m in measured.items()})
    ok = made.assign(tone=tone)[made["status"] == "ok"]
    found = pd.DataFrame(
        [_notable(json.loads(text)) for text in ok["findings"]], index=ok.index, columns=NOTABLE
    )
    seen = found.assign(
        image_id=ok["image_id"], diagnosis=ok["diagnosis"].fillna("unknown"), tone=ok["tone"]
    )
    # An image counts once: a finding is reported if any of its answers reports it.
    per_image = seen.groupby("image_id").agg(
        dict.fromkeys(NOTABLE, "max") | {"diagnosis": "first", "tone": "first"}
    )
    groups = {"diagnosis": sorted(per_image["diagnosis"].unique())}
    groups["tone"] = [t for t in TONES if (per_image["tone"] == t).any()]
    fig, [row] = axes(1, 2, 5.4, 1.5 + 0.33 * len(NOTABLE), sharey=True)
    frames = []
    for ax, (by, values) in zip(row, groups.items(), strict=True):
        shares = np.zeros((len(NOTABLE), len(values)))
        for x, value in enumerate(values):
            part = per_image[per_image[by] == value]
            for y, name in enumerate(NOTABLE):
                rate = wilson(int(part[name].sum()), len(part))
                shares[y, x] = rate.value
                frames.append((by, value, name, rate.n, rate.value, rate.low, rate.high))
                half = (rate.high - rate.low) / 2
                ax.text(
                    x, y, f"{rate.value:.0%} ±{half:.0%}", ha="center", va="center", fontsize=7,
                    color="white" if rate.value > 0.6 else "black",
                )  # fmt: skip
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        sizes = per_image[by].value_counts()
        ax.set_xticks(range(len(values)), [f"{v}\n{sizes[v]:,}" for v in values], fontsize=8)
        ax.set_yticks(range(len(NOTABLE)), [label(n) for n in NOTABLE], fontsize=8)
        ax.set_title("diagnosis, images" if by == "diagnosis" else "skin tone (ITA), images",
                     fontsize=9)  # fmt: skip
    fig.suptitle(f"Images in which answers report a finding{note(config)}", fontsize=10)
    columns = ["by", "value", "finding", "n", "share", "low", "high"]
    save_fig(fig, "captions_coverage", pd.DataFrame(frames, columns=columns), config)
    return fig


def _notable(findings: list[dict]) -> list[bool]:
    """Which of ``NOTABLE`` an answer reports, from the values of its findings."""
    said = {f["name"]: f["value"] for f in findings}
    absent = re.compile(r"no\b|not\b|absent|none|なし|ない")
    named = re.split(r", | and |、", said.get("colours", ""))
    return [
        bool(re.match("asymmetr|.*非対称", said.get("asymmetry", ""))),
        bool(re.match("irregular|不整", said.get("border", ""))),
        len(named) >= MANY_COLOURS,
        *(name in said and not absent.match(said[name]) for name in ARTIFACTS),
    ]


def grounded_or_blind(config: Config) -> Picture:
    """Share of answers that name the recorded diagnosis first, with and without metadata.

    What is named only where it was told is not seen but rationalized.
    """
    table = read_csv(config.require(stage.STAGE) / "modes.csv")
    fig = told_or_seen(table, f"Told or seen?{note(config)}")
    save_fig(fig, "captions_modes", table, config)
    return fig


def told_or_seen(table: pd.DataFrame, title: str) -> Picture:
    """Bars of a table of ``rationalization``; where one is missing stands why."""
    kinds = [k for k in QUESTION_TYPES if (table["question_type"] == k).any()]
    fig, [[ax]] = axes(1, 1, 7.2, 3)
    for offset, colour, mode in ((-0.2, BEFORE, "blind"), (0.2, AFTER, "grounded")):
        part = table[table["mode"] == mode].set_index("question_type").reindex(kinds)
        x = np.arange(len(kinds)) + offset
        error = np.abs(part[["low", "high"]].sub(part["named"], axis=0).to_numpy(float).T)
        ax.bar(x, part["named"], 0.38, color=colour, label=mode, yerr=error, ecolor="0.4")
        for at, row in zip(x, part.itertuples(), strict=True):
            if row.n > 0:
                ax.text(at, row.high + 0.02, f"{row.named:.0%}\nof {row.n:,.0f}", fontsize=6.5,
                        ha="center", va="bottom")  # fmt: skip
            else:
                why = "no answer\nnames one" if row.n == 0 else "not asked"
                ax.text(at, 0.02, why, fontsize=6.5, ha="center", va="bottom", color="0.4")
    ax.set_xticks(range(len(kinds)), [label(k) for k in kinds], rotation=20, ha="right", fontsize=8)
    ax.set(ylabel="recorded diagnosis\nis named first", ylim=(0, 1.2))
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    plain(ax)
    ax.set_title(title, fontsize=10)
    return fig


def example_cards(config: Config, n: int = 6) -> Picture:
    """Pairs as a reader meets them. English ones: the fonts of figures have no Japanese.

    Real images are saved in the stage's own folder, never among the figures: those are committed.
    """
    from derm_rl.data.images import picture as opened

    chosen, images = release.examples(config, 8 * n)
    chosen = chosen[chosen["language"] == "en"].head(n)
    fig, grid = axes(-(-len(chosen) // 2), 2, 6.4, 2.6)
    for ax in (cells := [ax for row in grid for ax in row]):
        ax.set_axis_off()
    for ax, row in zip(cells, chosen.to_dict("records"), strict=False):
        picture = np.asarray(opened(images.image(row["image_id"])))
        inset = ax.inset_axes((0, 0.05, 0.34, 0.9))
        show(inset, picture)
        height, width = picture.shape[:2]
        for finding in json.loads(row["findings"]):
            if finding["box"]:
                x0, y0, x1, y1 = finding["box"]
                corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])
                inset.plot(*(corners * (width, height) - 0.5).T, color="#ffd400", linewidth=0.8)
        head = f"{label(row['question_type'])}, {row['mode']}, by teacher {row['teacher']}"
        ax.text(0.37, 0.97, head, fontsize=6.5, color="0.45", va="top", transform=ax.transAxes)
        question = textwrap.fill(row["question"], 62, max_lines=3, placeholder=" …")
        ax.text(0.37, 0.9, question, fontsize=7.5, weight="bold", va="top",
                transform=ax.transAxes)  # fmt: skip
        top = 0.86 - 0.075 * (question.count("\n") + 1)
        answer = textwrap.fill(row["answer"], 72, max_lines=11, placeholder=" …")
        ax.text(0.37, top, answer, fontsize=6.7, va="top", transform=ax.transAxes)
    fig.suptitle(f"Pairs of the release{note(config)}", fontsize=10)
    columns = ["pair_id", "image_id", "question_type", "mode", "teacher", "question", "answer"]
    phantom = set(config.captions.sources) == {"phantom"}
    folder = None if phantom else config.stage_dir(release.STAGE)
    save_fig(fig, "captions_cards", chosen[columns], config, folder)
    return fig
