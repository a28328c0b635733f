"""Splits by lesion: all that shows one lesion stands in one split, every finding in every split.

What must not be parted is decided here and nowhere else (:func:`components`): images of a lesion,
of a patient where one is known, and near-identical images, whatever their ids (:func:`with_ties`).
A person can overrule what was found, in a file ``same_images.csv`` beside the images: a row a pair,
columns ``image_id_1, image_id_2, same`` (yes or no) and, for others to know, ``by`` and ``why``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from derm_rl.data import columns
from derm_rl.data.table import TableError, few
from derm_rl.prompts import ARTIFACTS

SPLITS = ("diffusion", "reward", "judge", "test")
STRATIFY = ("diagnosis", *ARTIFACTS)
OVERRULED = "same_images.csv"
TIES = ["image_id_1", "image_id_2", "score", "lesion_id_1", "lesion_id_2", "tied", "said_by"]
_LEVELS = ("patient_id", "lesion_id", "image_id")


def components(rows: pd.DataFrame) -> np.ndarray:
    """Number of what must stay together (N,): rows that share an id, or are tied, at any remove.

    Args:
        rows: with ``image_id`` and, where known, ``patient_id`` and ``lesion_id`` (both within one
            ``source``) and ``same_image_as``, the id of an image that shows the same.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    missing = pd.Series(pd.NA, index=rows.index, dtype="string")
    text = {c: rows.get(c, missing).astype("string") for c in ("source", *_LEVELS, "same_image_as")}
    source = text["source"].fillna("") + "\0"
    keys = [
        "image\0" + text["image_id"],
        "image\0" + text["same_image_as"],
        "lesion\0" + source + text["lesion_id"],
        "patient\0" + source + text["patient_id"],
    ]
    code, _ = pd.factorize(pd.concat(keys))
    at = np.flatnonzero(code >= 0)
    size = len(rows) + int(code.max(initial=-1)) + 1
    edges = coo_array(
        (np.ones(len(at), bool), (at % max(len(rows), 1), len(rows) + code[at])), shape=(size, size)
    )
    return connected_components(edges, directed=False)[1][: len(rows)]


def groups(frame: pd.DataFrame) -> pd.Series:
    """Name of what must stay together with each image (N,): the first of its lesions.

    An image without lesion id is a lesion of its own, named ``image:`` and its id.
    """
    lesion = frame["lesion_id"].astype("string").fillna("image:" + frame["image_id"])
    if "source" in frame and frame["source"].nunique() > 1:  # lesion 1 of each is another
        lesion = frame["source"].astype("string").fillna("") + ":" + lesion
    part = pd.Series(components(frame), index=frame.index)
    return lesion.groupby(part).transform("min").astype("string").rename("lesion_id")


def with_ties(
    frame: pd.DataFrame,
    roots: Iterable[Path] = (),
    cache: Path | None = None,
    progress: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find near-identical images and tie them; every split of the table then keeps them together.

    Args:
        frame: with ``image_id`` and ``path``; of a column ``same_image_as`` the ties are kept.
        roots: folders that may hold a file ``same_images.csv``.
        cache: see :func:`derm_rl.data.same.find`.

    Returns:
        the table with column ``same_image_as`` (the first of the images that show the same, or
        missing), and a row for each pair (``TIES``): score (of those that were found), whether
        the pair is tied, and the file of the person who said so.

    Raises:
        TableError: such a file is not usable; names file, line and column.
    """
    from derm_rl.data import same

    score = {
        (one, two): value
        for one, two, value in same.find(frame, cache, progress).itertuples(index=False)
    }
    if "same_image_as" in frame:  # the same file
        known = frame[frame["same_image_as"].notna()]
        for pair in zip(known["image_id"], known["same_image_as"], strict=True):
            score.setdefault(_pair(*pair), 1.0)
    said: dict[tuple[str, str], tuple[bool, str]] = {}
    ids = set(frame["image_id"])
    for file in dict.fromkeys(Path(root) / OVERRULED for root in roots):
        if file.is_file():
            answers = overruled(file)
            said |= {p: v for p, v in answers.items() if ids.issuperset(p)}
            if absent := sorted({i for pair in answers for i in pair} - ids):
                print(
                    f"{file}: not among the images, so what it says of them holds for nothing: "
                    f"{few(absent)}"
                )
    lesion = dict(zip(frame["image_id"], frame["lesion_id"], strict=True))
    rows = [
        (*pair, score.get(pair), lesion[pair[0]], lesion[pair[1]],
         said.get(pair, (True, None))[0], said.get(pair, (True, None))[1])
        for pair in sorted(score.keys() | said.keys(), key=lambda p: (-score.get(p, 0), p))
    ]  # fmt: skip
    ties = pd.DataFrame(rows, columns=TIES).astype({"tied": bool, "score": float})
    tied = ties[ties["tied"]]
    both = pd.concat([tied["image_id_1"], tied["image_id_2"]])
    edges = pd.DataFrame({"image_id": both, "same_image_as": pd.concat([tied["image_id_2"]] * 2)})
    edges = edges.reset_index(drop=True)
    part = pd.Series(components(edges), index=edges.index)
    first = dict(zip(both, edges["image_id"].groupby(part).transform("min"), strict=True))
    for row in ties[~ties["tied"]].itertuples():
        if first.get(row.image_id_1, 1) == first.get(row.image_id_2, 2):
            through = [i for i, f in first.items() if f == first[row.image_id_1]]
            raise TableError(
                f"{row.said_by}: column 'same' says no of {row.image_id_1} and {row.image_id_2}, "
                f"but others tie them ({few(sorted(through))}); say no of those pairs too"
            )
    as_other = frame["image_id"].map(first).astype("string")
    frame = frame.assign(same_image_as=as_other.mask(as_other == frame["image_id"]))
    return frame, ties


def _pair(one: str, two: str) -> tuple[str, str]:
    return (one, two) if one <= two else (two, one)


def overruled(file: Path) -> dict[tuple[str, str], tuple[bool, str]]:
    """What a person says of pairs of images: the same or not, and the file and line."""
    needed = {name: (name,) for name in ("image_id_1", "image_id_2", "same")}
    rows = columns.read(file, columns.Columns(needed, {}, {}), [])
    for name in ("image_id_1", "image_id_2"):
        rows[name] = columns.stems(rows[name])
    out: dict[tuple[str, str], tuple[bool, str]] = {}
    for line, row in rows[list(needed)].fillna("").iterrows():
        one, two, said = row["image_id_1"], row["image_id_2"], row["same"].lower()
        if not one:
            raise TableError(f"{file}: line {line}, column 'image_id_1' is empty")
        if not two or one == two:
            raise TableError(
                f"{file}: line {line}, column 'image_id_2': expected the id of another image than "
                f"{one}; found {two!r}"
            )
        if said not in ("yes", "no"):
            raise TableError(
                f"{file}: line {line}, column 'same': expected yes or no; found {row['same']!r}"
            )
        answer = (said == "yes", f"{file}, line {line}")
        if out.setdefault(_pair(one, two), answer)[0] != answer[0]:
            raise TableError(
                f"{file}: line {line}, column 'same': says {said} of {one} and {two}, and "
                f"{out[_pair(one, two)][1].rpartition(', ')[2]} the contrary; keep one of them"
            )
    return out


def described(ties: pd.DataFrame, file: str) -> str:
    """One line on what :func:`with_ties` found."""
    one, two = (ties[c].astype("string") for c in ("lesion_id_1", "lesion_id_2"))
    apart = int((~ties["tied"]).sum())
    across = int((ties["tied"] & ~(one == two).fillna(False).astype(bool)).sum())
    return (
        f"same images: {across:,} pairs under different lesion ids, each kept in one split; "
        f"{len(ties) - apart - across:,} more of one lesion id ({file})"
        + (f"; {apart:,} kept apart by {OVERRULED}" if apart else "")
    )


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
