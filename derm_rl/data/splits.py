"""Splits by lesion: all images of a lesion, or of its patient's table row, stay together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd


def groups(frame: pd.DataFrame) -> pd.Series:
    """Lesion of each image (N,); an image without lesion id is a lesion of its own."""
    return frame["lesion_id"].fillna("image:" + frame["image_id"])


def assign(
    frame: pd.DataFrame,
    fractions: Mapping[str, float],
    seed: int,
    stratify: Sequence[str] = ("diagnosis",),
) -> pd.Series:
    """Name of the split of each image (N,): whole lesions, near ``fractions`` of every stratum.

    Strata are the combinations of the columns ``stratify`` over a lesion's images. Lesions are
    shuffled, ordered by stratum, the rarest first, and dealt one by one to the split that is
    furthest behind its share of that stratum; so even a stratum of four lesions reaches all four
    splits. (scikit-learn's StratifiedGroupKFold makes equal folds only and takes one label.)
    """
    rng = np.random.default_rng(seed)
    group = groups(frame)
    labels = frame[list(stratify)].astype("string").fillna("?")
    # A lesion has a finding if any of its images has it ("True" > "False" > "?").
    stratum = labels.groupby(group).max().agg("|".join, axis=1)
    sizes = group.value_counts()
    names, shares = list(fractions), np.array(list(fractions.values()), dtype=float)
    shares = shares / shares.sum()
    of_lesion: dict[str, str] = {}
    total = np.zeros(len(names))
    rarest_first = stratum.value_counts(ascending=True, sort=True)
    for value in sorted(rarest_first.index, key=lambda v: (rarest_first[v], v)):
        lesions = rng.permutation(sorted(stratum.index[stratum == value]))
        got = np.zeros(len(names))
        for lesion in lesions:
            n = int(sizes[lesion])
            behind = shares * (got.sum() + n) - got
            overall = shares * (total.sum() + n) - total  # breaks ties between small strata
            choice = int(np.argmax(behind + 1e-3 * overall))
            got[choice] += n
            total[choice] += n
            of_lesion[lesion] = names[choice]
    return group.map(of_lesion).astype("string").rename("split")


def shared_lesions(frame: pd.DataFrame, column: str = "split") -> pd.DataFrame:
    """How many lesions, and images of them, stand in more than one split of ``column``.

    Returns:
        a row for each pair of splits and one for "any two or more": lesions, images.
    """
    known = frame[frame["lesion_id"].notna() & frame[column].notna()]
    splits = sorted(known[column].unique())
    member = pd.crosstab(known["lesion_id"], known[column]) > 0
    pairs = [(a, b) for i, a in enumerate(splits) for b in splits[i + 1 :]]
    rows = [(f"{a} and {b}", member[a] & member[b]) for a, b in pairs]
    rows.append(("any two or more", member.sum(axis=1) > 1))
    per_lesion = known["lesion_id"].value_counts()
    return pd.DataFrame(
        [
            {
                "splits": name,
                "lesions": int(shared.sum()),
                "images": int(per_lesion[shared.index[shared]].sum()),
            }
            for name, shared in rows
        ]
    )
