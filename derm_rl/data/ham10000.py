"""HAM10000 (Tschandl et al. 2018), as a download of the original or as one folder or zip of images.

Expected in the data root: ``HAM10000_metadata`` (``.csv``, ``.tab`` or no ending, as on the
Dataverse), the images in ``HAM10000_images_part_1/`` and ``_part_2/``, or any ``HAM10000_images*``
folder or zip, and the artifact annotations ``isic2019_artifacts.csv``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from derm_rl.data.dermoscopy import Exclusions, OnError, find_images, join, read_columns, table_file
from derm_rl.data.table import validate

LICENCE = "CC BY-NC 4.0"
ATTRIBUTION = "HAM10000: Tschandl, Rosendahl, Kittler, Scientific Data 5, 180161 (2018)"
COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
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

    Raises:
        TableError: a file or column is missing; or, unless ``on_error`` is "exclude", an image
            without annotation or without file.
    """
    root = Path(root)
    file = table_file(root, "HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
    raw = read_columns(file, COLUMNS, "image_id")
    unknown = ~raw["dx"].str.lower().isin(DIAGNOSES)
    exclusions = Exclusions(on_error)
    exclusions.add(raw["image_id"][unknown].tolist(), f"{file.name}: unknown diagnosis in 'dx'")
    raw = raw[~unknown]
    frame = pd.DataFrame(
        {
            "image_id": raw["image_id"],
            "source": "ham10000",
            "lesion_id": raw["lesion_id"],
            "diagnosis": raw["dx"].str.lower().map(DIAGNOSES),
            "age": raw["age"],
            "sex": raw["sex"],
            "site": raw["localization"],
            "licence": LICENCE,
            "attribution": ATTRIBUTION,
        }
    )
    images = find_images(root, ["HAM10000_images*", "ISIC_*.jpg"])
    joined = join(frame, root, images, diagnoses, exclusions)
    return validate(joined, file), exclusions.table()
