"""A panel instead of one judge: an image counts where instruments of different kinds agree.

A classifier can be fooled by what no one would call a ruler, and two classifiers that learned from
like images are fooled alike. So beside the judge stand the rules of
:mod:`derm_rl.captions.artifacts`, which look for what defines an artifact (evenly spaced ticks,
closed bright rims, long thin dark curves, saturated ink) and have learned nothing. The panel's APR
is the share of images that are right by *both*; the rules choose nothing anywhere.

Both still are instruments: what they see must be looked at, :mod:`derm_rl.evaluation.audit`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from derm_rl import prompts
from derm_rl.captions.measure import artifacts_in
from derm_rl.captions.sampling import wilson
from derm_rl.evaluation import bootstrap
from derm_rl.evaluation.alignment import decide
from derm_rl.evaluation.bootstrap import Interval

INSTRUMENTS = ("judge", "rules", "panel")
PAIR = ("ruler", "ink")  # the combination that fooled the judge most


def rules(images: np.ndarray, artifacts: Sequence[str], workers: int = -1) -> np.ndarray:
    """What the rules see in images (N, H, W, 3) uint8: (N, len(artifacts)) bool."""
    found = Parallel(n_jobs=workers)(delayed(artifacts_in)(np.asarray(x)) for x in images)
    return np.array([[f[a] for a in artifacts] for f in found], bool).reshape(-1, len(artifacts))


def seen(samples: pd.DataFrame) -> tuple[dict[str, np.ndarray], np.ndarray, list[str]]:
    """What each of ``INSTRUMENTS`` and the prompt say of the artifacts of a samples table.

    Returns:
        By instrument (N, A) bool, where ``panel`` sees what both see; wanted (N, A) bool; names.
    """
    labels = [c.removeprefix("wanted_") for c in samples if c.startswith("wanted_")]
    names = [name for name in labels if name in prompts.ARTIFACTS]
    columns = {
        kind: samples[[f"{kind}_{n}" for n in names]].to_numpy(float)
        for kind in ("judge", "rules", "wanted")
    }
    by = {"judge": decide(columns["judge"], names), "rules": columns["rules"] > 0.5}
    by["panel"] = by["judge"] & by["rules"]
    return by, columns["wanted"] > 0.5, names


def hits(samples: pd.DataFrame) -> pd.DataFrame:
    """Which images show exactly the artifacts asked for, by instrument: columns ``INSTRUMENTS``.

    For the panel both must say so; that is more than that what both see is what was asked for.
    """
    by, wanted, _ = seen(samples)
    frame = pd.DataFrame({k: (by[k] == wanted).all(1) for k in ("judge", "rules")}, samples.index)
    return frame.assign(panel=frame["judge"] & frame["rules"])


def table(samples: pd.DataFrame, n: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Rates of each model by each instrument, images resampled within their prompt.

    Columns: model, instrument, measure (``apr``, ``recall`` or ``false_add``), attribute, value,
    low, high, n. Attribute ``ruler_with_ink`` is the ruler in images that shall show ink too.
    """
    rows = []
    for model, part in samples.groupby("model", sort=False):
        part = part.reset_index(drop=True)
        by, wanted, names = seen(part)
        right, texts = hits(part), part["prompt"].to_numpy()
        for instrument in INSTRUMENTS:
            cells = {("apr", "all"): (right[instrument].to_numpy(), np.ones(len(part), bool))}
            for j, name in enumerate(names):
                cells["recall", name] = by[instrument][:, j], wanted[:, j]
                cells["false_add", name] = by[instrument][:, j], ~wanted[:, j]
            if set(PAIR) <= set(names):
                first, second = (names.index(name) for name in PAIR)
                both = wanted[:, first] & wanted[:, second]
                cells["recall", "_with_".join(PAIR)] = by[instrument][:, first], both
            for (measure, attribute), (values, of) in cells.items():
                found = bootstrap.interval(values[of], strata=texts[of], n=n, seed=seed)
                rows.append((model, instrument, measure, attribute, *found))
    names = ["model", "instrument", "measure", "attribute", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=names)


def by_prompt(samples: pd.DataFrame) -> pd.DataFrame:
    """APR of each prompt by the rules and by the panel: model, prompt, rules_apr, panel_apr."""
    right = hits(samples)[["rules", "panel"]].astype(float).add_suffix("_apr")
    keys = [samples["model"], samples["prompt"]]
    return right.groupby(keys, sort=False).mean().reset_index()


def headline(
    samples: pd.DataFrame, rates: pd.DataFrame, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """The panel's metrics, from a samples table and its :func:`table`.

    ``panel.apr.{stage1,rl,truth,gain}`` where judge and rules agree, ``panel.rules.apr.…`` by the
    rules alone (the judge alone: ``alignment.apr.…``), gains paired by prompt and noise;
    ``panel.rules.recall.<artifact>`` after RL; ``panel.apr.least``: of the prompt with the least
    after RL, with Wilson's interval (of that prompt: the least of many is low by chance too).
    """
    out: dict[str, Interval] = {}
    rates = rates.set_index(["instrument", "measure", "attribute"])
    parts = {m: samples[samples["model"] == m] for m in ("stage1", "rl")}
    right = {m: hits(part) for m, part in parts.items()}
    for name, instrument in (("panel.apr", "panel"), ("panel.rules.apr", "rules")):
        for row in rates.loc[(instrument, "apr", "all")].itertuples():
            out[f"{name}.{row.model}"] = Interval(row.value, row.low, row.high, row.n)
        before, after = (found[instrument].to_numpy(float) for found in right.values())
        out[f"{name}.gain"] = bootstrap.interval(
            after - before, strata=parts["rl"]["prompt"], n=resamples, seed=seed
        )
    for (measure, attribute), rows in rates.loc["rules"].groupby(level=[0, 1], sort=False):
        if measure == "recall":
            row = rows[rows["model"] == "rl"].iloc[0]
            out[f"panel.rules.recall.{attribute}"] = Interval(row.value, row.low, row.high, row.n)
    groups = right["rl"]["panel"].groupby(parts["rl"]["prompt"].to_numpy())
    least = groups.get_group(groups.mean().idxmin())
    out["panel.apr.least"] = Interval(*wilson(int(least.sum()), len(least)))
    return out
