"""DERM12345 (Yilmaz et al. 2024): dermoscopic images in a hierarchy of 40 subclasses.

One or more files with ``metadata`` in their names (``.csv``, ``.tab`` or ``.tsv``; one each for
training and test), and the images in folders or zip archives that start with ``derm12345``,
``images``, ``train`` or ``test``.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from derm_rl.data import columns
from derm_rl.data.dermoscopy import Exclusions
from derm_rl.data.open_access import labels, layout, values
from derm_rl.data.table import TableError

LEVELS = ("sub_class", "main_class_2", "main_class_1")  # from the finest
WANTED = columns.known("derm12345")
PLACES = ("derm12345*", "DERM12345*", "images*", "train*", "test*", "ISIC*")


def read(root: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Rows of all images; the levels of the hierarchy are further columns.

    Raises:
        TableError: no metadata file, or one without the levels.
    """
    files = sorted(
        f for f in root.iterdir() if "metadata" in f.name.lower() and f.suffix.lower() in _ENDINGS
    )
    if not files:
        raise TableError(f"{root}: expected files *metadata*.csv (or .tab, .tsv) in this folder")
    parts = []
    for file in files:
        part = columns.read(file, WANTED, exclusions.notes)
        part = columns.with_ids(part, WANTED.get(part, "image_id"), file)
        split = next((s for s in ("train", "test") if s in file.stem.lower()), pd.NA)
        part["split"] = WANTED.get(part, "split").fillna(split)
        parts.append(layout.one_row_each(part, file, exclusions))
    raw = layout.one_row_each(pd.concat(parts, ignore_index=True), files[-1], exclusions)
    finest = [WANTED.there(raw, name) for name in LEVELS]
    levels = [values.lower(raw[column]) for names in finest for column in names]
    frame = pd.DataFrame(
        {
            "image_id": raw["image_id"],
            "lesion_id": values.named(WANTED.get(raw, "lesion_id"), "DERM12345_"),
            "patient_id": values.named(WANTED.get(raw, "patient_id"), "DERM12345_"),
            "diagnosis": labels.codes(*levels),
            "label": values.lower(WANTED.get(raw, "sub_class")),
            **layout.about(raw, WANTED),
        }
    ).join(layout.further(raw, WANTED))
    frame = layout.with_values(frame, files[0], exclusions)
    return layout.with_paths(frame, layout.locate(root, *PLACES), root, exclusions)


_ENDINGS = (".csv", ".tab", ".tsv")
