"""Checks of image–text pairs: each names itself, its reason, and how sure it is.

    flags = run(pairs, images, measurements)          # pair_id, check, reason, score
    report(pairs, flags)                              # per source and question type
    settings = learn(scores(pairs, images, measurements), verdicts)

A newcomer adds a check by writing one function, see :mod:`derm_rl.captions.checks.base`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

import pandas as pd

from derm_rl.captions.checks import (  # noqa: F401  (importing a module registers its checks)
    duplicates,
    form,
    hostile,
    label,
    leaks,
    measurement,
    safety,
)
from derm_rl.captions.checks.base import CHECKS, Check, Settings, check, pairs_of
from derm_rl.captions.checks.judge import judge
from derm_rl.captions.checks.learn import learn
from derm_rl.captions.schema import Measurements

__all__ = [
    "CHECKS", "Check", "Settings", "check", "flagged", "judge", "learn", "report", "run", "scores",
]  # fmt: skip
COLUMNS = ["pair_id", "check", "reason", "score"]
_CHUNK = 2000  # pairs that one worker checks at a time


def run(
    pairs: pd.DataFrame,
    images: pd.DataFrame | None = None,
    measurements: Mapping[str, Measurements] | None = None,
    settings: Settings | None = None,
    *,
    only: Collection[str] | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Every flag of every check: ``pair_id, check, reason, score``, in the order of the pairs.

    Args:
        pairs: table with ``PAIR_COLUMNS``.
        images: the images' table, for what is known of an image beside the pair's own columns.
        measurements: by image id; without them nothing is compared with them.
        only: names of checks; default: all.

    Raises:
        ValueError: a column is missing, a pair_id occurs twice, or a check is not known.
    """
    found = scores(
        pairs, images, measurements, settings, only=only, workers=workers, progress=progress
    )
    return flagged(found, settings)


def flagged(found: pd.DataFrame, settings: Settings | None = None) -> pd.DataFrame:
    """Those of :func:`scores` that reach their check's threshold."""
    least = found["check"].map((settings or Settings()).threshold_of).astype(float)
    return found[found["score"] >= least].reset_index(drop=True)


def scores(
    pairs: pd.DataFrame,
    images: pd.DataFrame | None = None,
    measurements: Mapping[str, Measurements] | None = None,
    settings: Settings | None = None,
    *,
    only: Collection[str] | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """As :func:`run`, also of scores below the thresholds: what thresholds are learned from."""
    from joblib import Parallel, delayed, effective_n_jobs
    from tqdm import tqdm

    settings = settings or Settings()
    _validate(pairs)
    chosen = _chosen(only)
    blocks = [pairs.iloc[i : i + _CHUNK] for i in range(0, len(pairs), _CHUNK)]
    single = [c.name for c in chosen if c.single]
    whole = [c.name for c in chosen if c.whole]
    jobs = [(single, block, *_about(block, images, measurements)) for block in blocks if single]
    # Tables as a whole go first: they take longest, and the others fill the other cores.
    slim = pairs.drop(columns="findings")  # most of the table's bytes travel to a worker in vain
    jobs = [([name], slim, None, None) for name in whole] + jobs
    count = effective_n_jobs(workers or -1) if len(blocks) > 1 else 1
    parallel = Parallel(n_jobs=min(count, os.cpu_count() or 1), return_as="generator")
    rows: list[tuple[str, str, str, float]] = []
    bar = tqdm(total=len(jobs), desc="checks", mininterval=1, disable=not progress)
    for part in parallel(delayed(_apply)(*job, settings) for job in jobs):
        rows += part
        bar.update()
    bar.close()
    found = pd.DataFrame(rows, columns=COLUMNS)
    order = found["pair_id"].map({name: i for i, name in enumerate(pairs["pair_id"])})
    rank = found["check"].map({name: i for i, name in enumerate(CHECKS)})
    found = found.assign(_order=order, _rank=rank).sort_values(["_order", "_rank"], kind="stable")
    return found[COLUMNS].reset_index(drop=True)


def report(pairs: pd.DataFrame, flags: pd.DataFrame) -> pd.DataFrame:
    """What the checks flagged, by source and question type.

    Returns:
        ``source, question_type, check, pairs, flagged, share``; the check "any" counts pairs that
        any check flagged; source and type "all" are sums.
    """
    known = pairs[["pair_id", "source", "question_type"]].astype("string").fillna("unknown")
    names = [*CHECKS, *sorted(set(flags["check"]) - set(CHECKS))]
    hits = flags[["pair_id", "check"]].drop_duplicates().merge(known, on="pair_id")
    anything = hits.drop_duplicates("pair_id").assign(check="any")
    hits = pd.concat([hits, anything], ignore_index=True)
    rows = []
    for (source, kind), total in _groups(known).items():
        here = hits
        if source != "all":
            here = here[here["source"] == source]
        if kind != "all":
            here = here[here["question_type"] == kind]
        counts = here["check"].value_counts()
        for name in (*names, "any"):
            n = int(counts.get(name, 0))
            rows.append((source, kind, name, total, n, n / total if total else 0.0))
    columns = ["source", "question_type", "check", "pairs", "flagged", "share"]
    return pd.DataFrame(rows, columns=columns)


def _groups(known: pd.DataFrame) -> dict[tuple[str, str], int]:
    """Number of pairs of each source and question type, and of all."""
    sizes = known.groupby(["source", "question_type"]).size().to_dict()
    return sizes | {("all", "all"): len(known)}


def _chosen(only: Collection[str] | None) -> list[Check]:
    if only is None:
        return list(CHECKS.values())
    if unknown := set(only) - set(CHECKS):
        raise ValueError(
            f"unknown checks: {', '.join(sorted(unknown))}; known: {', '.join(CHECKS)}"
        )
    return [CHECKS[name] for name in CHECKS if name in only]


def _validate(pairs: pd.DataFrame) -> None:
    needed = ("pair_id", "image_id", "question", "answer", "findings", "language", "status")
    if missing := [c for c in needed if c not in pairs]:
        raise ValueError(f"table of pairs: column {missing[0]!r} is missing")
    if (double := pairs["pair_id"].duplicated()).any():
        name = pairs["pair_id"][double].iloc[0]
        raise ValueError(f"table of pairs: pair_id occurs twice: {name!r}")


def _about(
    block: pd.DataFrame,
    images: pd.DataFrame | None,
    measurements: Mapping[str, Measurements] | None,
) -> tuple[pd.DataFrame | None, dict[str, Measurements] | None]:
    """Only what belongs to a block travels to its worker."""
    names = {name for name in block["image_id"] if isinstance(name, str)}
    here = None if images is None else images[images["image_id"].isin(names)]
    if measurements is None:
        return here, None
    return here, {n: measurements[n] for n in names if n in measurements}


def _apply(
    names: list[str],
    pairs: pd.DataFrame,
    images: pd.DataFrame | None,
    measurements: Mapping[str, Measurements] | None,
    settings: Settings,
) -> list[tuple[str, str, str, float]]:
    rows = []
    for name in names:
        if whole := CHECKS[name].whole:
            rows += [(pair, name, reason, score) for pair, score, reason in whole(pairs, settings)]
    singles = [CHECKS[name] for name in names if CHECKS[name].single]
    if singles:
        for pair in pairs_of(pairs, images, measurements, settings):
            for one in singles:
                if hit := one.single(pair, settings):
                    rows.append((pair.row["pair_id"], one.name, hit[1], float(hit[0])))
    return rows
