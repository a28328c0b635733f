"""Open-access dermatology images of several sources (arXiv 2502.00196) in the one table.

A reader for each, from the files as they are published. They agree in this:

- ``diagnosis`` is a code of :data:`derm_rl.prompts.DIAGNOSES` where the published diagnosis is
  plainly one of them, and missing otherwise; ``label`` is the published diagnosis in words, in
  lower case.
- ``age`` is missing if only a band is known; then ``age_band`` and ``age_midpoint`` hold it.
- Whatever else is published of an image follows in further columns: as text in lower case, yes and
  no for truth values, missing where missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from derm_rl.data.dermoscopy import Exclusions, OnError
from derm_rl.data.open_access.sources import SOURCES, Source, find
from derm_rl.data.table import TableError, validate
from derm_rl.prompts import DIAGNOSES

__all__ = ["SOURCES", "Source", "counts", "find", "read", "subset"]


def read(
    source: str,
    root: str | Path | None,
    *,
    on_error: OnError = "raise",
    images: int | None = None,
    seed: int = 0,
    verify: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table of the images of a source, and what was left out (image_id, reason).

    A row that the metadata repeat word for word is reported there too, though its image is used.

    Args:
        source: a key of ``SOURCES``.
        root: the folder with the files that ``SOURCES[source].layout`` lists; None for the phantom.
        on_error: what an image with a defect does (no file, damage, several rows that differ, the
            content of one with another diagnosis, an unreadable value): "raise" an error, or be
            left out ("exclude").
        images: of whole patients, at most this many; the phantom draws exactly this many.
        seed: which ones.
        verify: decode every image to its end, and compare the content of files of equal size
            (column ``same_image_as``); else both is left to whoever looks at them.

    Raises:
        TableError: a file or a column is missing; or any of the above. It names the file, the
            column and the images.
        ValueError: the source is unknown, or ``images`` or ``on_error`` is not valid.
    """
    about = find(source)
    exclusions = Exclusions(on_error, "captions.on_error")  # whose sources these are
    if images is not None and (isinstance(images, bool) or int(images) != images or images < 1):
        raise ValueError(f"images must be a whole number of at least 1, or None; got {images!r}")
    if about.name == "phantom":
        return _phantom(about, images, seed), exclusions.table()
    if root is None or not Path(root).is_dir():
        raise TableError(
            f"{root}: expected a folder with the files of {about.title}: {'; '.join(about.layout)}"
        )
    frame = subset(about.reader(Path(root), exclusions), images, seed)
    if verify:
        from derm_rl.data.open_access import layout

        frame = layout.without_damage(frame, exclusions)
        frame = layout.with_doubles(frame, exclusions)
    return validate(_described(frame, about), f"{about.title} in {root}"), exclusions.table()


def _described(frame: pd.DataFrame, about: Source) -> pd.DataFrame:
    """Add what the source says of all its images, where they do not say it themselves."""
    frame = frame.assign(source=about.name)
    for name in ("licence", "attribution", "modality"):
        known = frame[name] if name in frame else pd.Series(pd.NA, index=frame.index)
        default = getattr(about, name)
        known = known.astype("string")
        frame[name] = known if default is None else known.fillna(default)
    return frame


def _phantom(about: Source, images: int | None, seed: int) -> pd.DataFrame:
    from derm_rl.data import phantom

    if images is None:
        raise ValueError("the phantom has no end: images must say how many to draw")
    frame = phantom.table(images, seed)
    frame = frame.assign(label=frame["diagnosis"].map(DIAGNOSES))
    return validate(_described(frame, about), about.title)


def subset(frame: pd.DataFrame, images: int | None, seed: int = 0) -> pd.DataFrame:
    """Whole patients (lesions, where no patient is known), drawn at random: at most ``images``.

    Depends on ``seed`` and on the rows, not on their order; keeps the order of the rows.
    """
    if images is None or images >= len(frame):
        return frame
    ids = [c for c in ("patient_id", "lesion_id") if c in frame]
    group = pd.Series(pd.NA, index=frame.index, dtype="string")
    for name in ids:
        group = group.fillna(f"{name}:" + frame[name].astype("string"))
    group = group.fillna("image_id:" + frame["image_id"].astype("string"))
    sizes = group.value_counts().sort_index()
    chosen, left = [], images
    for i in np.random.default_rng(seed).permutation(len(sizes)):
        if sizes.iloc[i] <= left:  # else a smaller one that comes later may fit
            chosen.append(sizes.index[i])
            left -= int(sizes.iloc[i])
    return frame[group.isin(chosen)]


def counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Images, lesions and patients by source and modality, with a row for all.

    Lesions and patients are those with an id, missing where no image has one. A lesion seen in two
    modalities counts in both, but once in the total.
    """
    columns = ["source", "modality", "image_id", "lesion_id", "patient_id"]
    if missing := [c for c in columns if c not in frame]:
        raise TableError(f"counts: the table has no column {', '.join(missing)}")
    text = frame[columns].astype("string")
    rows = [
        {"source": source, "modality": modality, **_count(part)}
        for (source, modality), part in text.groupby(["source", "modality"], dropna=False)
    ]
    rows.append({"source": "total", "modality": pd.NA, **_count(text)})
    kinds = {"source": "string", "modality": "string"}
    kinds |= dict.fromkeys(("images", "lesions", "patients"), "Int64")
    return pd.DataFrame(rows).astype(kinds)


def _count(part: pd.DataFrame) -> dict[str, object]:
    def distinct(name: str) -> object:
        known = part[part[name].notna()]
        return len(known[["source", name]].drop_duplicates()) if len(known) else pd.NA

    return {
        "images": len(part), "lesions": distinct("lesion_id"), "patients": distinct("patient_id")
    }  # fmt: skip
