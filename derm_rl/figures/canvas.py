"""What all figures share: the canvas, saving a picture with its numbers, sheets of images."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from derm_rl import prompts
from derm_rl.io import atomic_path, write_csv

if TYPE_CHECKING:
    import pandas as pd

    from derm_rl.config import Config

DPI = 130
PHANTOM = "phantom images: a test instrument, not patients"
BEFORE, AFTER = "#8c96a3", "#d1495b"  # stage 1 and RL, the same two colours in every figure
COLOURS = ("#2e6f95", "#d1495b", "#edae49", "#3c9d6f", "#7a5195", "#8c6d46", "#555555", "#17a2b8")


class Picture(Figure):
    """A figure outside pyplot that a notebook shows as the value of a cell."""

    path: Path | None = None  # where it was saved

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI * 0.7)
        return buffer.getvalue()


def save_fig(
    fig: Figure, name: str, frame: pd.DataFrame, config: Config, folder: Path | None = None
) -> Path:
    """Write ``name.png`` and the numbers behind it, ``name.csv``; returns the path of the PNG.

    The bytes depend on the figure and the matplotlib version alone: no date, no software entry.

    Args:
        folder: elsewhere than ``config.figures_dir``, for pictures that must not be committed.
    """
    path = (folder or config.figures_dir) / f"{name}.png"
    with atomic_path(path) as temporary:
        fig.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    write_csv(path.with_suffix(".csv"), frame)
    if isinstance(fig, Picture):
        fig.path = path
    return path


def axes(rows: int, columns: int, width: float, height: float, **options) -> tuple[Picture, list]:
    """A new figure and its axes (rows × columns), ``width`` × ``height`` inches each, as rows."""
    fig = Picture(figsize=(width * columns, height * rows), layout="constrained")
    return fig, fig.subplots(rows, columns, squeeze=False, **options).tolist()


def halves(rows: int, columns: int, width: float, height: float) -> tuple[Picture, list]:
    """Axes of two halves of ``columns`` each, a line between them: rows of 2 × ``columns``."""
    gap = 0.25  # in columns
    fig = Picture(figsize=(width * (2 * columns + gap), height * rows), layout="constrained")
    ratios = [1.0] * columns + [gap] + [1.0] * columns
    grid = fig.subplots(rows, 2 * columns + 1, squeeze=False, width_ratios=ratios).tolist()
    for row in grid:
        between = row.pop(columns)
        between.axis("off")
        line = {"transform": between.transAxes, "clip_on": False, "color": "0.3", "linewidth": 1.2}
        between.plot([0.5, 0.5], [-0.1, 1.1], **line)
    return fig, grid


def show(ax: Axes, image: np.ndarray, title: str = "", frame: str | None = None) -> None:
    """One image without ticks; ``frame`` is the colour of its border."""
    ax.imshow(image, interpolation="nearest" if image.shape[0] < 128 else "antialiased")
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=7, pad=2)
    for side in ax.spines.values():
        side.set_visible(frame is not None)
        side.set(color=frame, linewidth=2.5)


def caption(finding: prompts.Finding) -> str:
    """A prompt in few words: "MEL: hair, ink"."""
    names = ", ".join(prompts.ARTIFACTS[a] for a in finding.artifacts)
    return f"{finding.diagnosis}: {names or 'no artifacts'}"


def wrapped(finding: prompts.Finding, width: int = 20) -> str:
    return textwrap.fill(caption(finding), width)


def spread(findings: Sequence[prompts.Finding], n: int) -> list[int]:
    """Indices of ``n`` prompts, evenly over their order, with diagnoses taking turns."""
    half = len(findings) // 2
    at = np.unique(np.linspace(0, half - 1, min(n, half)).round().astype(int))
    return [int(i) + (half if turn % 2 else 0) for turn, i in enumerate(at)]


def plain(ax: Axes) -> None:
    """Light grid, no box."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def bars(
    ax: Axes,
    x: np.ndarray,
    found: pd.DataFrame,
    width: float,
    whisker: tuple[float, float] = (2, 0.9),
    **options,
) -> None:
    """Bars with whiskers, of ``found`` (columns value, low, high; no whisker where those are NaN).

    Args:
        whisker: half the width of its cap and its line's width, in points.
    """
    value, low, high = (found[name].to_numpy(float) for name in ("value", "low", "high"))
    error = np.nan_to_num(np.clip([value - low, high - value], 0, None))
    cap, line = whisker
    ax.bar(x, value, width, yerr=error, capsize=cap, error_kw={"linewidth": line}, **options)


def note(config: Config, sources: Sequence[str] | None = None) -> str:
    """Addition to a title on every page that shows the phantom.

    Args:
        sources: of the images shown; default: that of stage 01.
    """
    shown = [config.data.source] if sources is None else sources
    return f" ({PHANTOM})" if "phantom" in shown else ""
