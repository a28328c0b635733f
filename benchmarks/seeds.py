"""The demo's alignment gain for several seeds: is the headline number luck?

    python benchmarks/seeds.py --seeds 0 1 2
    python benchmarks/seeds.py --set ddpo.gae_lambda=null      the same with another setting

Runs stages 01 to 05 of the preset once per seed (what is up to date is not rerun), then writes
``benchmarks/results/seeds_<preset>.csv`` and ``.json``, or ``seeds_<preset>_<setting>`` for other
settings: the gain of each seed, their mean, and the 95 % t-interval of that mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from derm_rl import config, provenance, reproduce
from derm_rl.io import read_json, write_csv, write_json

RESULTS = Path(__file__).parent / "results"
METRICS = (
    "alignment.apr.stage1",
    "alignment.apr.rl",
    "alignment.apr.gain",
    "alignment.diagnosis.gain",
)


def measure(preset: str, seed: int, overrides: list[str]) -> dict[str, float | int | str]:
    """Headline metrics of one seed."""
    other = [] if config.load(preset).seed == seed else [f"seed={seed}"]
    settings = config.load(preset, [*overrides, *other])
    reproduce.run(settings, until="05")
    return summarized(seed, read_json(settings.figures_dir / "metrics.json"))


def summarized(seed: int, metrics: dict) -> dict[str, float | int | str]:
    """A row of the table: the headline numbers of one seed, and the commit they are of."""
    values = {name: metrics[name]["value"] for name in METRICS}
    return {"seed": seed, **values, "commit": metrics[METRICS[0]]["commit"]}


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
    summary = {name: mean_interval(rows[name].to_numpy()) for name in METRICS}
    facts = {"preset": preset, "overrides": overrides, "seeds": arguments.seeds}
    facts["commit"] = provenance.commit()
    write_json(RESULTS / f"{name}.json", facts | {"metrics": summary})
    print(rows.to_string(index=False))
    print(f"mean APR gain {summary['alignment.apr.gain']}")


if __name__ == "__main__":
    main()
