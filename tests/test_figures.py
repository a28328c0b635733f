"""Figures on small made-up input: what stands in which panel, and that nothing is cut or blank."""

import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from derm_rl import config, data
from derm_rl.data import phantom
from derm_rl.figures import canvas, engine, training
from derm_rl.figures import data as data_figures


def drawn(fig) -> np.ndarray:
    """A figure as its file has it: (height, width, 3)."""
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=canvas.DPI)
    return np.asarray(Image.open(out).convert("RGB"))


def cut(fig) -> bool:
    """Whether anything that is drawn reaches over an edge of the figure."""
    fig.set_dpi(canvas.DPI)
    fig.draw_without_rendering()
    box, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    return min(box.x0, box.y0, width - box.x1, height - box.y1) < -0.03


LIMITS = SimpleNamespace(gap=0.1, look=1.0)


def log(**more) -> pd.DataFrame:
    columns = ("eval_reward", "eval_reward_hard", "eval_judge_hard", "eval_judge_apr", "reward")
    columns += ("clip_fraction", "approx_kl")
    return pd.DataFrame(
        {"epoch": [0, 1], "guidance_scale": 3.0} | dict.fromkeys(columns, 0.5) | more
    )


def test_the_judges_panel_holds_the_judge_alone():
    columns = log().columns.drop(["epoch", "guidance_scale"])
    table = log(**{name: [k, k + 0.5] for k, name in enumerate(columns)})  # told by their values
    panels = {ax.get_title(): ax for ax in training.learning(table, LIMITS).axes}
    judge = panels["the judge (never optimized)"]
    shown = {columns[int(line.get_ydata()[0])] for line in judge.get_lines()}
    assert shown == {"eval_judge_hard", "eval_judge_apr"}
    reward = panels["reward (what is optimized)"].get_lines()
    assert {columns[int(line.get_ydata()[0])] for line in reward} == {"reward", "eval_reward"}


def test_a_panel_without_numbers_says_so():
    for more, silent in (({}, 2), ({"drift_gap": [0, 0.01], "drift_edges": [0, 0.1]}, 0)):
        fig = training.learning(log(**more), LIMITS)
        texts = [t.get_text() for ax in fig.axes for t in ax.texts]
        assert texts.count("not measured in this run") == silent
        assert len(fig.axes) == 6 and not cut(fig)


def test_two_halves_stand_apart():
    fig, grid = canvas.halves(2, 3, 1.0, 1.0)
    assert [len(row) for row in grid] == [6, 6]
    for row in grid:
        for ax in row:
            canvas.show(ax, np.zeros((8, 8, 3), np.uint8))
    picture = drawn(fig)
    edges = [ax.get_position() for ax in grid[0]]
    gaps = [after.x0 - before.x1 for before, after in zip(edges, edges[1:], strict=False)]
    assert gaps[2] > 2 * max(gaps[:2] + gaps[3:]), gaps
    middle = int((edges[2].x1 + edges[3].x0) / 2 * picture.shape[1])
    columns = picture[:, middle - 4 : middle + 5].mean(axis=2)
    assert ((columns < 200).mean(axis=0) > 0.8).any()  # a line from top to bottom


def test_the_truth_of_phantoms_ends_without_a_blank_strip(tmp_path, monkeypatch):
    frame = phantom.table(12, 0)
    monkeypatch.setattr(data, "load", lambda *_: SimpleNamespace(frame=frame))
    saved = []
    monkeypatch.setattr(data_figures, "save_fig", lambda fig, *_: saved.append(fig))
    data_figures.phantom_truth(config.load("demo"))
    rows = (drawn(saved[0]) < 250).any(axis=(1, 2))
    blank = len(rows) - 1 - np.flatnonzero(rows)[-1]
    assert blank < 0.06 * len(rows) and not cut(saved[0])


@pytest.mark.parametrize("draw", [engine.ddpo_options, engine.ddpo_recipes, engine.ddpo_objectives])
def test_figures_of_measurements_are_whole_and_name_a_commit(draw, monkeypatch):
    saved = []
    monkeypatch.setattr(engine, "save_fig", lambda fig, *_: saved.append(fig))
    fig = draw(config.load("demo"))
    assert not cut(fig)
    assert "commit" in fig.get_suptitle() and "+changes" not in fig.get_suptitle()
