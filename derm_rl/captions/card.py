"""What a dataset card says of a release: all of it is counted from the pairs, nothing is typed.

How it says so is :mod:`derm_rl.captions.card_text`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from derm_rl.data import licences
from derm_rl.prompts import near

# What only the caller can know, and what stands there if it is not told.
FACTS: dict[str, Any] = {
    "title": "Dermatology image-text pairs",
    "description": "Questions and answers about dermatological images.",
    "version": "0.1.0",  # major.minor.patch, as Croissant expects
    "date_published": None,  # ISO date; not the clock's, or two runs would differ
    "url": None,
    "cite_as": None,
    "creators": (),  # names
    "commit": None,  # of the code that made the pairs
    "settings": {},  # further facts about how the pairs were made: name -> value
    "review": None,  # review.summary(...)
    "limits": (),  # further sentences
}
RULE_BASED = "measured"  # name of the rule-based teacher
PHANTOM = "phantom"  # source of drawn images
# SPDX ids, in lower case, that dataset hubs know as they are, and those they know by another name.
_HUB_LICENCES = {
    "apache-2.0", "mit", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
}  # fmt: skip
_HUB_NAMES = {"pddl-1.0": "pddl", "odc-by-1.0": "odc-by", "odbl-1.0": "odbl"}


def complete(facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """Facts with the defaults of ``FACTS``.

    Raises:
        ValueError: a fact is unknown.
    """
    for name in facts or {}:
        if name not in FACTS:
            raise ValueError(f"unknown fact {name!r}{near(name, FACTS)}")
    return FACTS | dict(facts or {})


def describe(
    kept: pd.DataFrame,
    left_out: pd.DataFrame,
    flags: pd.DataFrame | None,
    blocking: Collection[str] | None,
    facts: Mapping[str, Any],
    shares: Mapping[str, float],
    seed: int,
    images: str,
    rewritten: int,
) -> dict[str, Any]:
    """Everything that card and Croissant say: facts, and tables counted from the pairs.

    Args:
        rewritten: pairs with a text that :func:`derm_rl.captions.export_parquet.inert` changed.
    """
    text = kept.assign(source=kept["source"].astype("string").fillna("unknown"))
    by = {"split": "Split", "source": "Source", "question_type": "Question type"}
    by |= {"language": "Language", "mode": "Mode", "style": "Style", "teacher": "Teacher"}
    sources = text[["source", "licence", "attribution"]].astype("string").fillna("")
    sources = sources.assign(image_id=text["image_id"]).drop_duplicates()
    sources = sources.groupby(["source", "licence", "attribution"]).size()
    reasons = left_out.assign(source=left_out["source"].astype("string").fillna("unknown"))
    review = kept["review"].astype("string").fillna("")
    phantom = kept["source"].astype("string").fillna("") == PHANTOM
    by_rules = (kept["teacher"].astype("string").fillna("") == RULE_BASED) & (review != "edit")
    grounded = kept["mode"].astype("string").fillna("") == "grounded"
    known = kept["diagnosis"].notna() | kept["label"].notna()
    return dict(facts) | {
        "pairs": len(kept),
        "images": int(kept["image_id"].nunique()),
        "conversations": int(kept["conversation"].nunique()),
        "patients": _known(kept, "patient_id"),
        "lesions": _known(kept, "lesion_id"),
        "counts": {title: _counts(text, column) for column, title in by.items()},
        "languages": sorted(set(kept["language"].dropna().astype(str))),
        "splits": [s for s in shares if (kept["split"] == s).any()],
        "shares": dict(shares),
        "seed": seed,
        "layout": images,
        "licence_ids": sorted(set(kept["licence"].dropna().astype(str))),
        "licences": sources.rename("images").reset_index().values.tolist(),
        "left_out": reasons.groupby(["reason", "source"]).size().reset_index().values.tolist(),
        "checked": flags is not None,
        "handed_in": len(kept) + len(left_out),
        "checks": _checks(flags, blocking, kept, left_out),
        "rewritten": rewritten,
        "phantom_images": int(kept.loc[phantom, "image_id"].nunique()),
        "rule_based": int(by_rules.sum()),
        "rule_based_photographs": int((by_rules & ~phantom).sum()),
        "told": int((grounded & known & ~by_rules).sum()),
        "skin_types": int(kept.loc[kept["skin_type"].notna(), "image_id"].nunique()),
        "verdicts": {name: int((review == name).sum()) for name in ("accept", "edit")},
    }


def _known(kept: pd.DataFrame, column: str) -> int:
    return int(kept[["source", column]].dropna(subset=[column]).drop_duplicates().shape[0])


def _counts(kept: pd.DataFrame, column: str) -> list[list]:
    found = kept.groupby(kept[column].astype("string").fillna("unknown"))
    table = found.agg(pairs=("pair_id", "size"), images=("image_id", "nunique"))
    return table.sort_index().reset_index().values.tolist()


def _checks(
    flags: pd.DataFrame | None,
    blocking: Collection[str] | None,
    kept: pd.DataFrame,
    left_out: pd.DataFrame,
) -> list[list]:
    """Rows ``check, blocks, pairs flagged, pairs left out by it``, of the pairs handed in."""
    if flags is None:
        return []
    flags = flags[flags["pair_id"].isin({*kept["pair_id"], *left_out["pair_id"]})]
    flagged = flags.groupby("check")["pair_id"].nunique()
    out = left_out["reason"].value_counts()
    return [
        [check, "yes" if blocking is None or check in blocking else "no", int(n)]
        + [int(out.get(f"flagged by check: {check}", 0))]
        for check, n in flagged.sort_index().items()
    ]


def hub_licence(names: Sequence[str]) -> list[str]:
    """Identifiers of licences as dataset hubs know them; "other" for what they do not."""
    ids = {(licences.normalise(name) or "").lower() for name in names}
    found = {_HUB_NAMES.get(i, i if i in _HUB_LICENCES else "other") for i in ids}
    return sorted(found) or ["other"]


def clean(value: Any) -> str:
    """One line of printable text."""
    text = re.sub(r"\s+", " ", str(value))
    return "".join(c for c in text if c.isprintable()).strip()
