"""Splits by lesion: all images of a lesion stand in one split, every finding in every split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from derm_rl.prompts import ARTIFACTS

SPLITS = ("diffusion", "reward", "judge", "test")
STRATIFY = ("diagnosis", *ARTIFACTS)


def groups(frame: pd.DataFrame) -> pd.Series:
    """Lesion of each image (N,); an image without lesion id is a lesion of its own."""
    return frame["lesion_id"].astype("string").fillna("image:" + frame["image_id"])


def assign(
    frame: pd.DataFrame,
    fractions: Mapping[str, float],
    seed: int,
    stratify: Sequence[str] = STRATIFY,
) -> pd.Series:
    """Name of the split of each image (N,): whole lesions, near ``fractions`` of every finding.

    Iterative stratification (Sechidis et al., ECML PKDD 2011) of lesions instead of single images.
    The finding with the fewest lesions left is dealt first, each of its lesions to the split that
    still wants most of it. One rule comes before that: a split without the finding is served
    first, so that a rare finding reaches every split. Findings are the values of ``stratify``
    (absent columns are skipped) and each diagnosis with each artifact. (scikit-learn's
    StratifiedGroupKFold makes equal folds only, and takes one label.)

    The result depends on ``seed`` and on the rows, not on the order of the rows.

    Raises:
        ValueError: a fraction is not positive, or there are fewer lesions than splits.
    """
    names, shares = list(fractions), np.array(list(fractions.values()), dtype=float)
    if not names or (shares <= 0).any():
        raise ValueError(f"fractions must be positive, got {dict(fractions)}")
    shares = shares / shares.sum()
    group = groups(frame)
    counts = _findings(frame, stratify).groupby(group.to_numpy(str)).sum()
    images = counts.to_numpy(float)  # (lesions, findings)
    if len(images) < len(names):
        raise ValueError(f"{len(images)} lesions cannot fill {len(names)} splits ({names})")

    # Not the biggest lesions first: they would all end in the biggest splits.
    order = np.random.default_rng(seed).permutation(len(images))
    wanted = shares[:, None] * images.sum(0)  # images still wanted (splits, findings)
    lacks = np.ones(wanted.shape, bool)
    chosen = np.full(len(images), -1)
    while (chosen < 0).any():
        left = (images[chosen < 0] > 0).sum(0)
        finding = int(np.where(left > 0, left, len(images) + 1).argmin())
        for lesion in order[(chosen[order] < 0) & (images[order, finding] > 0)]:
            has = images[lesion] > 0
            keys = (
                wanted[:, 0],  # column 0 counts all images
                wanted[:, finding],
                (lacks & has).sum(1),
                lacks[:, finding],
            )
            # lexsort's last key is the first to decide; of equal splits the last is taken.
            best = np.lexsort(keys)[-1] if keys[-1].any() else np.lexsort(keys[:2])[-1]
            chosen[lesion] = best
            wanted[best] -= images[lesion]
            lacks[best] &= ~has
    of_lesion = dict(zip(counts.index, np.array(names)[chosen], strict=True))
    return group.map(of_lesion).astype("string").rename("split")


def _findings(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Indicators (N, 1 + findings): column 0 is one everywhere, then values and their pairs."""
    columns = [c for c in columns if c in frame]
    text = {c: frame[c].astype("string") for c in columns}
    found = {"all": np.ones(len(frame), bool)}
    flags, values = {}, {}
    for column in columns:
        for value in sorted(text[column].dropna().unique()):
            at = (text[column] == value).fillna(False).to_numpy(bool)
            boolean = value in ("True", "False")
            if value != "False":  # absence of an artifact needs no balancing of its own
                (flags if boolean else values)[f"{column}={value}"] = at
    pairs = {f"{v}&{f}": values[v] & flags[f] for v in values for f in flags}
    return pd.DataFrame(found | values | flags | pairs, index=frame.index)


def shared_lesions(frame: pd.DataFrame, column: str = "official_split") -> pd.DataFrame:
    """How many lesions, and images of them, stand in more than one split of ``column``.

    Returns:
        a row for each pair of splits and, last, one for "any two or more": splits, lesions, images.

    Raises:
        ValueError: the table has no such column.
    """
    if column not in frame:
        raise ValueError(f"column {column!r} is missing; the table has {', '.join(frame.columns)}")
    known = frame[frame["lesion_id"].notna() & frame[column].notna()]
    found = set(known[column])
    splits = [s for s in ("train", "val", *SPLITS) if s in found]
    splits = list(dict.fromkeys(splits + sorted(found)))
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
