"""Review by human readers: pairs dealt to them by a plan, their verdicts applied and counted.

Verdicts themselves, and where they are stored, are :mod:`derm_rl.captions.verdicts`; how many
pairs to review, and how far readers agree, is :mod:`derm_rl.captions.agreement`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from typing import Any

import pandas as pd

from derm_rl.captions import agreement
from derm_rl.captions.agreement import keyed
from derm_rl.captions.verdicts import (
    RATINGS,
    SCALE,
    VERDICTS,
    ReviewError,
    Store,
    Verdict,
    history,
    reader_name,
    verdicts,
)

__all__ = [
    "RATINGS", "SCALE", "VERDICTS", "Queue", "ReviewError", "Store", "Verdict", "apply", "decide",
    "history", "summary", "verdicts",
]  # fmt: skip
ORDERS = ("flagged_first", "mixed")


class Queue:
    """The pairs that one reader reviews, in an order of their own; resumes where it was.

    ``sample`` (of ``agreement.sample``) is dealt out by a keyed hash of each pair, so that a larger
    sample later changes nothing about a smaller one: about a share ``overlap`` goes to every
    reader, for agreement to be measured, and each other pair to one of ``readers`` alone.
    ``flagged`` pairs outside the sample come in addition, dealt in the same way; they say nothing
    about the error rate of all pairs, so only ``sample`` counts for it.

    Args:
        sample: ids of the pairs that the plan drew.
        reader: who reviews.
        readers: everybody who does; default: the reader alone, who then gets every pair.
        overlap: share of the pairs that all readers see, 0 to 1, give or take chance.
        flagged: ids of pairs that checks have flagged.
        order: "flagged_first", or "mixed": so that a flag cannot be guessed from the order.
        seed: of the dealing and the orders. All readers must be given the same.
    """

    def __init__(
        self,
        sample: Sequence[str],
        reader: str,
        readers: Sequence[str] | None = None,
        overlap: float = 0.2,
        flagged: Collection[str] = (),
        order: str = "mixed",
        seed: int = 0,
    ) -> None:
        everybody = sorted({reader_name(r) for r in readers or [reader]})
        self.reader = reader_name(reader)
        if self.reader not in everybody:
            raise ReviewError(f"reader {reader!r} is none of the readers: {', '.join(everybody)}")
        if not 0 <= overlap <= 1:
            raise ReviewError(f"overlap must lie between 0 and 1, got {overlap}")
        if order not in ORDERS:
            raise ReviewError(f"order must be one of {ORDERS}, got {order!r}")
        self.sample, flags = set(sample), set(flagged)
        dealt = {p: int(keyed(f"deal{seed}", p), 16) for p in self.sample | flags}
        shared = {p for p, number in dealt.items() if number / 2**256 < overlap}
        own = {p for p, n in dealt.items() if everybody[n % len(everybody)] == self.reader}
        mine = own - shared
        self.pairs = sorted(
            shared | mine,
            key=lambda p: (
                order == "flagged_first" and p not in flags,
                keyed(f"order{seed}\0{self.reader}", p),
            ),
        )
        self.shared = shared

    def __len__(self) -> int:
        return len(self.pairs)

    def only(self, pairs: Collection[str]) -> Queue:
        """The same queue without the pairs that are not among these."""
        part, wanted = copy(self), set(pairs)
        part.pairs = [p for p in self.pairs if p in wanted]
        return part

    def position(self, store: Store) -> int:
        """Number of the first pair without verdict; the length if there is none."""
        todo = (i for i, p in enumerate(self.pairs) if store.get(p).verdict is None)
        return next(todo, len(self))

    def done(self, store: Store) -> int:
        """How many pairs have a verdict."""
        return sum(store.get(p).verdict is not None for p in self.pairs)


# ----------------------------------------------------------------------------------- applied


def decide(given: pd.DataFrame, adjudicators: Collection[str] = ()) -> pd.DataFrame:
    """One verdict a pair from those of its readers.

    1. If an adjudicator has judged the pair, only adjudicators count for it.
    2. One rejection rejects: of two experts who disagree on harm, the careful one is followed.
    3. Else one edit edits; of several edits the latest counts.
    4. Else it is accepted.

    Returns:
        a row a pair: ``pair_id, verdict, answer, readers`` (who counted), ``disputed`` (whether
        these said different things).
    """
    rows = []
    for pair, group in given.dropna(subset=["verdict"]).groupby("pair_id"):
        judged = group[group["reader"].isin(list(adjudicators))]
        group = (judged if len(judged) else group).sort_values(["at", "reader"])
        said = set(group["verdict"])
        verdict = next(v for v in ("reject", "edit", "accept") if v in said)
        edits = group.loc[group["verdict"] == "edit", "answer"]
        rows.append(
            {"pair_id": pair, "verdict": verdict}
            | {"answer": edits.iloc[-1] if verdict == "edit" else None}
            | {"readers": len(group), "disputed": len(said) > 1 or edits.nunique() > 1}
        )
    return pd.DataFrame(rows, columns=["pair_id", "verdict", "answer", "readers", "disputed"])


def apply(
    pairs: pd.DataFrame,
    given: pd.DataFrame,
    adjudicators: Collection[str] = (),
    drop: bool = True,
) -> pd.DataFrame:
    """Pairs after review, with a column ``review``: accept, edit, reject, or missing if unread.

    Edited answers replace, rejected pairs drop out; which of several readers counts, says
    :func:`decide`. Checks should run on the result: an edit can mend a fault, or make one.

    Args:
        pairs: a row a pair, with ``pair_id`` and ``answer``; not changed.
        given: of :func:`verdicts`. Those of pairs that are not there are ignored.
        drop: False keeps rejected rows, so that a release can count them.
    """
    decided = decide(given, adjudicators).set_index("pair_id")
    out = pairs.copy()
    out["review"] = out["pair_id"].map(decided["verdict"]).astype("string")
    edited = out["pair_id"].map(decided["answer"].astype(object))
    change = (out["review"] == "edit").fillna(False).to_numpy(bool)
    answers = out["answer"].astype(object)
    answers[change] = edited[change]
    out["answer"] = answers
    rejected = (out["review"] == "reject").fillna(False).to_numpy(bool)
    return out[~rejected].reset_index(drop=True) if drop else out


def summary(
    given: pd.DataFrame,
    sample: Collection[str] | None = None,
    adjudicators: Collection[str] = (),
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Figures of a review, as plain numbers: JSON can hold them, the dataset card shows them.

    Args:
        given: of :func:`verdicts`.
        sample: pairs that count for the rates: those that the plan drew, not those reviewed
            because they were flagged. Default: all.

    Returns:
        ``pairs``, ``readers``, ``disputed``, ``verdicts`` (pairs of each), ``rates`` (``rejected``,
        ``rejected or edited``: value, low, high by Wilson, ``upper`` one-sided exact, n),
        ``ratings`` (mean over pairs of the readers' means, n), ``agreement`` (rows).
    """
    decided = decide(given, adjudicators)
    counted = decided if sample is None else decided[decided["pair_id"].isin(list(sample))]
    rates = {}
    for name, bad in (("rejected", ["reject"]), ("rejected or edited", ["reject", "edit"])):
        errors = int(counted["verdict"].isin(bad).sum())
        if len(counted):
            upper = agreement.upper_bound(errors, len(counted), confidence)
            rates[name] = agreement.wilson(errors, len(counted), confidence)._asdict()
            rates[name] |= {"errors": errors, "upper": upper}
    ratings = {}
    for name in RATINGS:
        means = given.dropna(subset=[name]).groupby("pair_id")[name].mean()
        if len(means):
            ratings[name] = {"mean": float(means.mean()), "n": int(len(means))}
    rows = agreement.agreement(given, RATINGS).to_dict("records") if len(given) else []
    missing = {"kappa": None, "low": None, "high": None}
    return {
        "pairs": len(decided),
        "readers": int(given["reader"].nunique()),
        "disputed": int(decided["disputed"].sum()),
        "verdicts": {v: int((decided["verdict"] == v).sum()) for v in VERDICTS},
        "rates": rates,
        "ratings": ratings,
        "agreement": [r | {k: None for k in missing if r[k] != r[k]} for r in rows],
    }
