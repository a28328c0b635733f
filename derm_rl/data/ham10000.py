"""HAM10000 (Tschandl et al. 2018), as a download of the original or as one folder or zip of images.

Expected in the data root: ``HAM10000_metadata`` (``.csv``, ``.tab`` or no ending, as on the
Dataverse); the images in ``HAM10000_images_part_1/`` and ``_part_2/``, in zip archives of these
names, or in any ``HAM10000_images*`` folder or zip; and the artifact annotations
``isic2019_artifacts.csv`` (see :func:`derm_rl.data.dermoscopy.annotate`). The metadata may also be
those that the ISIC archive gives for these images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from derm_rl.data import columns
from derm_rl.data.dermoscopy import (
    Exclusions,
    OnError,
    annotate,
    find_images,
    found,
    of_diagnoses,
    table_file,
    unique,
)
from derm_rl.data.open_access import labels, layout, values
from derm_rl.data.table import validate

LICENCE = "CC BY-NC 4.0"
ATTRIBUTION = (
    "P. Tschandl, C. Rosendahl, H. Kittler: The HAM10000 dataset, Scientific Data 5, 180161 "
    "(2018), doi:10.1038/sdata.2018.161"
)
FILES = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
WANTED = columns.known("ham10000")
# HAM10000's codes in those of ISIC 2019. Its akiec holds Bowen's disease too.
DIAGNOSES = {
    "mel": "MEL",
    "nv": "NV",
    "bcc": "BCC",
    "akiec": "AK",
    "bkl": "BKL",
    "df": "DF",
    "vasc": "VASC",
}


def read(
    root: str | Path, diagnoses: Sequence[str] = ("MEL", "NV"), on_error: OnError = "raise"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table of the annotated images of ``diagnoses``, and the exclusions (image_id, reason).

    Images are found, not decoded: that is done once, when they are loaded.

    Args:
        on_error: what an image with an unknown diagnosis, without or with contradicting annotation,
            with several rows or without file does: "raise" an error, or be left out ("exclude").

    Raises:
        TableError: a file or a column is missing, a value is not of its column's type; or any of
            the above. It names the file, the column and the images, and says what to do.
    """
    root, exclusions = Path(root), Exclusions(on_error)
    file = table_file(root, *FILES)
    raw = columns.read(file, WANTED, exclusions.notes)
    raw = unique(columns.with_ids(raw, WANTED.get(raw, "image_id"), file), file, exclusions)
    code = codes(raw)
    said = WANTED.get(raw, "diagnosis")
    reason = f"unknown diagnosis in {said.name!r} of {file.name} ({found(said[code.isna()])})"
    raw = exclusions.keep(raw, code.notna(), reason)
    frame = pd.DataFrame(
        {
            "image_id": raw["image_id"],
            "source": "ham10000",
            "lesion_id": raw["lesion_id"],
            "diagnosis": code[raw.index],
            **layout.about(raw, WANTED, licence=LICENCE, attribution=ATTRIBUTION),
        }
    )
    frame = of_diagnoses(frame, diagnoses, file)
    frame = layout.with_values(frame, file, exclusions)
    frame = annotate(frame, root, find_images(root, "HAM10000_images*"), exclusions)
    return validate(frame, file), exclusions.table()


def codes(raw: pd.DataFrame) -> pd.Series:
    """Diagnoses in the codes of ISIC 2019, of HAM10000's own codes or of the archive's names."""
    levels = [values.lower(raw[name]) for name in WANTED.there(raw, "diagnosis")]
    return labels.codes(*(level.replace(DIAGNOSES) for level in levels))
