"""The benchmarks that need hours or a GPU: that they run, on the tiny pipeline."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from derm_rl import pipeline

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("ddpo", "gpu"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import ddpo
    import gpu

    return {"ddpo": ddpo, "gpu": gpu}


def test_a_variant_of_the_gpu_benchmark_is_measured(
    benchmark, tiny_pipeline_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(benchmark["ddpo"], "RUNS", tmp_path)
    gpu = benchmark["gpu"]
    plain = gpu.settings(images=2, batch_size=4, steps=3, epochs=2)
    row = gpu.measure(
        lambda: pipeline.load(tiny_pipeline_folder), plain, {"background_reward": True}, 2
    )
    assert 0 < row["peak_fraction"] < 1
    assert 0 <= row["overhead"] < 1
    assert row["images_per_second_rollout"] > row["images_per_second_update"] > 0


def test_unet_passes_are_the_papers_300_an_image(benchmark):
    from derm_rl.config import load

    ddpo = benchmark["ddpo"]
    paper = load("smoke").ddpo.model_copy(update=ddpo.PAPER)
    one = paper.model_copy(update={"images_per_prompt": 1})
    assert ddpo.unet_passes(one, 5.0, 0, 1) == 300


def test_where_a_curve_reaches_a_target(benchmark):
    curve = pd.DataFrame(
        {"eval_judge_apr": [0.2, 0.5, 0.5, 0.6, 0.8], "seconds": [0.0, 1.0, 2.0, 3.0, 4.0]}
    )
    reached = benchmark["ddpo"].reached
    assert reached(curve, 0.5, "seconds") == 3.0  # means of three: 0.2, 0.35, 0.4, 0.53, 0.63
    assert np.isnan(reached(curve, 0.7, "seconds"))
