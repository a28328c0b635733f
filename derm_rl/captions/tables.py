"""Tables and numbers of a set of pairs: counts, outcomes, and how metadata shape answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from derm_rl import provenance
from derm_rl.captions import diagnoses
from derm_rl.captions.agreement import wilson
from derm_rl.data.open_access import reading

if TYPE_CHECKING:
    from derm_rl.config import Config


def counts(frame: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Images, lesions, patients and pairs by source and modality; the last row is the total."""
    found = reading.counts(frame)
    by = ["source", "modality"]
    each = pairs[by].astype("string").groupby(by, dropna=False).size().rename("pairs")
    found = found.merge(each.reset_index(), on=by, how="left")
    found["pairs"] = found["pairs"].fillna(0).astype("Int64")
    found.loc[found["source"] == "total", "pairs"] = len(pairs)
    return found


def rationalization(pairs: pd.DataFrame) -> pd.DataFrame:
    """How often the first diagnosis that an answer names is the recorded one, by mode and type.

    A teacher that was told the diagnosis may argue towards it. What it finds only where it was
    told, it does not see: the difference between grounded and blind answers measures that.

    Returns:
        ``question_type, mode, n`` (answers that name a diagnosis, about images with a recorded
        one), ``named`` (share of them), ``low, high`` (Wilson, 95 %). A type of which answers in
        one mode name a diagnosis has a row for each mode in which it was answered, if with n = 0.
    """
    ok = pairs[pairs["status"] == "ok"]
    recorded = [
        diagnoses.of_label(*(None if pd.isna(x) else x for x in known))
        for known in zip(ok["label"], ok["diagnosis"], strict=True)
    ]
    first = [diagnoses.mentions(diagnoses.normalize(text)) for text in ok["answer"]]
    first = [found[0].concept if found else None for found in first]
    known = ok.assign(recorded=recorded, first=first).dropna(subset=["recorded", "first"])
    known["named"] = [
        one in diagnoses.covers(truth)
        for one, truth in zip(known["first"], known["recorded"], strict=True)
    ]
    rows = []
    for kind, mode in sorted(set(zip(ok["question_type"], ok["mode"], strict=True))):
        if not (of_type := known["question_type"] == kind).any():
            continue
        part = known[of_type & (known["mode"] == mode)]
        share = wilson(int(part["named"].sum()), len(part))
        rows.append((kind, mode, share.n, share.value, share.low, share.high))
    return pd.DataFrame(rows, columns=["question_type", "mode", "n", "named", "low", "high"])


def metrics(config: Config, pairs: pd.DataFrame, flags: pd.DataFrame) -> dict[str, Any]:
    total = len(pairs)
    shares = {
        "answered": int((pairs["status"] == "ok").sum()),
        "flagged": int(pairs["pair_id"].isin(flags["pair_id"]).sum()),
    }
    found = {
        f"captions.{name}": provenance.metric(
            config, *wilson(count, total), csv="captions_checks.csv"
        )
        for name, count in shares.items()
    }
    found["captions.pairs"] = provenance.metric(config, total, csv="captions_images.csv")
    images = pairs["image_id"].nunique()
    found["captions.images"] = provenance.metric(config, images, csv="captions_images.csv")
    return found
