"""The demo's alignment gain for several seeds: is the headline number luck?

    python benchmarks/seeds.py --seeds 0 1 2
    python benchmarks/seeds.py --set ddpo.gae_lambda=null      the same with another setting

Runs stages 01 to 06 of the preset once per seed (what is up to date is not rerun), then writes
``benchmarks/results/seeds_<preset>.csv`` and ``.json``, or ``seeds_<preset>_<setting>`` for other
settings: of each seed alignment by judge and panel, what it cost in quality, and RL's passes of an
image through the UNet (a backward one counts as two more); their means, and 95 % t-intervals.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from derm_rl import config, provenance, reproduce
from derm_rl.io import read_csv, read_json, write_csv, write_json

RESULTS = Path(__file__).parent / "results"
METRICS = (
    "alignment.apr.stage1",
    "alignment.apr.rl",
    "alignment.apr.gain",
    "alignment.diagnosis.gain",
    "panel.apr.stage1",
    "panel.apr.rl",
    "panel.apr.gain",
    "panel.apr.least",
    "panel.rules.apr.gain",
    *(
        f"panel.rules.recall.{name}"
        for name in ("hair", "gel_bubble", "ruler", "ink", "ruler_with_ink")
    ),
    *(
        f"quality.{space}.{measure}.{model}"
        for space in ("judge", "imagenet")
        for measure in ("precision", "recall", "coverage")
        for model in ("stage1", "gain")
    ),
    "quality.spread.ratio",
)
COSTS = ("unet_passes", "seconds")


def measure(preset: str, seed: int, overrides: list[str]) -> dict[str, float | int | str]:
    """Headline metrics of one seed."""
    other = [] if config.load(preset).seed == seed else [f"seed={seed}"]
    settings = config.load(preset, [*overrides, *other])
    reproduce.run(settings, until="06")
    stage = settings.require("04_ddpo")
    logs = [read_csv(stage / f"{name}.csv") for name in ("log", "timing")]
    return summarized(seed, read_json(settings.figures_dir / "metrics.json"), *logs)


def summarized(
    seed: int, metrics: dict, log: pd.DataFrame, timing: pd.DataFrame
) -> dict[str, float | int | str]:
    """A row of the table: the numbers of one seed, what RL took, and the commit they are of."""
    values = {name: metrics[name]["value"] for name in METRICS}
    spent = costs(log, timing)
    spent["seconds"] = round(spent["seconds"])
    return {"seed": seed, **values, **spent, "commit": metrics[METRICS[0]]["commit"]}


def costs(log: pd.DataFrame, timing: pd.DataFrame) -> dict[str, float]:
    """What a training took, from its ``log.csv`` and ``timing.csv``: ``COSTS``."""
    seconds = timing[["seconds_sample", "seconds_update"]].to_numpy().sum()
    return dict(zip(COSTS, (int(log["unet_passes"].sum()), float(seconds)), strict=True))


def mean_interval(values: np.ndarray) -> dict[str, float | int | None]:
    """Mean and its 95 % t-interval; no interval of a single value."""
    n = len(values)
    half = stats.sem(values) * stats.t.ppf(0.975, n - 1) if n > 1 else None
    mean = float(values.mean())
    bounds = (None, None) if half is None else (float(mean - half), float(mean + half))
    return {"value": mean, "low": bounds[0], "high": bounds[1], "n": n}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    preset, overrides = arguments.preset, arguments.overrides
    rows = pd.DataFrame([measure(preset, seed, overrides) for seed in arguments.seeds])
    RESULTS.mkdir(exist_ok=True)
    name = "_".join(["seeds", preset, *[each.replace("=", "-") for each in overrides]])
    write_csv(RESULTS / f"{name}.csv", rows)
    summary = {name: mean_interval(rows[name].to_numpy()) for name in (*METRICS, *COSTS)}
    facts = {"preset": preset, "overrides": overrides, "seeds": arguments.seeds}
    facts["commit"] = provenance.commit()
    write_json(RESULTS / f"{name}.json", facts | {"metrics": summary})
    print(rows.to_string(index=False))
    for name in ("alignment.apr.gain", "panel.apr.gain", "unet_passes"):
        print(f"mean {name} {summary[name]}")


if __name__ == "__main__":
    main()
