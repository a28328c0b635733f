"""DERM12345 (Yilmaz et al. 2024): dermoscopic images in a hierarchy of 40 subclasses.

One or more files with ``metadata`` in their names (``.csv``, ``.tab`` or ``.tsv``; one each for
training and test), and the images in folders or zip archives that start with ``derm12345``,
``images``, ``train`` or ``test``.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from derm_rl.data.dermoscopy import Exclusions
from derm_rl.data.open_access import labels, layout, values
from derm_rl.data.table import TableError

LEVELS = ("sub_class", "main_class_2", "main_class_1")  # from the finest
IDS = ("image_id", "isic_id", "image", "filename", "file_name", "img_id")
NEEDED = (IDS, "super_class", "malignancy", "main_class_1", "main_class_2", "sub_class")
USED = {
    *IDS,
    "patient_id",
    "lesion_id",
    "age",
    "sex",
    "gender",
    "licence",
    "license",
    "attribution",
}
USED |= {"copyright_license", "anatom_site_general", "site", "localization", "split"}
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
        part = layout.read_table(file, NEEDED)
        part = layout.with_ids(part, part["image_id"], file)
        split = next((s for s in ("train", "test") if s in file.stem.lower()), pd.NA)
        part["split"] = values.lower(layout.column(part, "split")).fillna(split)
        parts.append(layout.one_row_each(part, file, exclusions))
    raw = layout.one_row_each(pd.concat(parts, ignore_index=True), files[-1], exclusions)
    levels = [values.lower(raw[name]) for name in LEVELS]
    sites = ("anatom_site_general", "site", "localization")
    frame = pd.DataFrame(
        {
            "image_id": raw["image_id"],
            "lesion_id": values.named(layout.column(raw, "lesion_id"), "DERM12345_"),
            "patient_id": values.named(layout.column(raw, "patient_id"), "DERM12345_"),
            "diagnosis": labels.codes(*levels),
            "label": levels[0],
            "age": layout.column(raw, "age", "age_approx"),
            "sex": values.sexes(layout.column(raw, "sex", "gender")),
            "site": values.lower(layout.column(raw, *sites)),
            "skin_type": layout.column(raw, "skin_type", "fitzpatrick_skin_type"),
            "licence": layout.column(raw, "copyright_license", "license", "licence"),
            "attribution": layout.column(raw, "attribution"),
            "split": raw["split"],
        }
    ).join(layout.further(raw, USED))
    frame = layout.with_values(frame, files[0], exclusions)
    return layout.with_paths(frame, layout.locate(root, *PLACES), root, exclusions)


_ENDINGS = (".csv", ".tab", ".tsv")
