"""Thresholds of the checks, learned from what reviewers said about the pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from derm_rl.captions.checks.base import CHECKS, Settings

MINIMUM = 30  # reviewed pairs with a score of a check, below which nothing is learned about it
WRONG = 0.5  # share of wrong pairs from which on a score is worth a flag
NEVER = 1.01
# What these find may harm: verdicts can make them stricter, never more lenient.
STRICT = ("hostile", "schema", "unsafe_advice")


def learn(
    scores: pd.DataFrame,
    verdicts: pd.DataFrame,
    settings: Settings | None = None,
    minimum: int = MINIMUM,
) -> Settings:
    """Thresholds from which on reviewed pairs were more often wrong than right.

    The share of wrong pairs (edited or rejected) is fitted to a check's score by isotonic
    regression (Barlow et al. 1972), and the threshold is the least score at which it reaches
    ``WRONG``. So a further rejection can only lower a threshold, a further acceptance only raise
    it. A check that reviewers never confirm is switched off, unless it is one of ``STRICT``.

    Args:
        scores: ``pair_id, check, score`` of ``checks.scores``: also those below the thresholds.
        verdicts: ``pair_id, verdict``; of several readers of a pair one who objects counts.
        minimum: reviewed pairs with a score that a check needs.

    Returns:
        new settings; ``learned`` says for every check what its threshold rests on.
    """
    settings = settings or Settings()
    bad = verdicts.assign(bad=verdicts["verdict"].isin(["edit", "reject"]))
    bad = bad.groupby("pair_id")["bad"].max()
    reviewed = scores[scores["pair_id"].isin(bad.index)]
    reviewed = reviewed.assign(bad=reviewed["pair_id"].map(bad).astype(float))
    thresholds, learned = dict(settings.thresholds), dict(settings.learned)
    for check in CHECKS:
        rows = reviewed[reviewed["check"] == check]
        if len(rows) < minimum:
            learned[check] = f"too few verdicts: {len(rows)} of {minimum}; threshold unchanged"
            continue
        least = _threshold(rows["score"].to_numpy(float), rows["bad"].to_numpy(float))
        if check in STRICT:
            least = min(least, settings.threshold_of(check))
        thresholds[check] = least
        learned[check] = f"{len(rows)} verdicts, {int(rows['bad'].sum())} of them wrong"
    return settings.model_copy(update={"thresholds": thresholds, "learned": learned})


def _threshold(score: np.ndarray, bad: np.ndarray) -> float:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1).fit(score, bad)
    levels = np.unique(score)
    enough = levels[fitted.predict(levels) >= WRONG]
    return float(enough[0]) if len(enough) else NEVER
