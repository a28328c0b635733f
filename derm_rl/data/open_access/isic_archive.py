"""BCN20000 and HIBA, as the ISIC archive distributes them: a metadata file and ISIC_* images.

BCN20000 (Combalia et al. 2019) also comes with names of its own, ``bcn_filename``. HIBA (Ricci Lara
et al. 2023) holds clinical images beside dermoscopic ones, and licence and attribution per image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from derm_rl.data.dermoscopy import Exclusions, table_file
from derm_rl.data.images import ENDING
from derm_rl.data.open_access import labels, layout, values
from derm_rl.prompts import DIAGNOSES

# From the finest to the coarsest. diagnosis_1 is only benign, malignant or indeterminate.
LEVELS = ("diagnosis_5", "diagnosis_4", "diagnosis_3", "diagnosis", "diagnosis_2")
IDS = ("isic_id", "bcn_filename", "image_id", "image", "filename")
USED = {
    *LEVELS, *IDS, "age", "age_approx", "anatom_site_general", "sex", "lesion_id", "patient_id",
    "fitzpatrick_skin_type", "image_type", "copyright_license", "license", "licence", "attribution",
}  # fmt: skip
SPELLED = {code.lower(): name for code, name in DIAGNOSES.items()}
BCN_FILES = ("metadata.csv", "bcn_20k_train.csv", "BCN20000_metadata.csv", "bcn20000.csv")


def bcn20000(root: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Rows of BCN20000."""
    file = table_file(root, *BCN_FILES)
    ids = ("bcn_filename", *(i for i in IDS if i != "bcn_filename"))
    needed = (ids, ("diagnosis", "diagnosis_3"), "lesion_id")
    places = ("BCN_*", "bcn_*", "BCN20000*", "bcn20000*", "ISIC*", "images*")
    return _rows(root, file, needed, places, "BCN20000_", exclusions)


def hiba(root: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Rows of HIBA; the levels of the diagnosis are further columns."""
    file = table_file(root, "metadata.csv", "hiba_metadata.csv", "HIBA_metadata.csv")
    needed = (IDS, ("diagnosis_3", "diagnosis"), "image_type")
    places = ("ISIC*", "images*", "hiba*", "HIBA*")
    return _rows(root, file, needed, places, "HIBA_", exclusions)


def _rows(
    root: Path,
    file: Path,
    needed: Sequence[str | tuple[str, ...]],
    places: Sequence[str],
    prefix: str,
    exclusions: Exclusions,
) -> pd.DataFrame:
    raw = layout.read_table(file, needed)
    images = layout.locate(root, *places)
    key = _best(raw, [i for i in needed[0] if i in raw], images)
    raw = layout.one_row_each(layout.with_ids(raw, raw[key], file), file, exclusions)
    levels = [values.lower(layout.column(raw, name)).replace(SPELLED) for name in LEVELS]
    frame = pd.DataFrame(
        {
            "image_id": raw["image_id"],
            "lesion_id": values.named(layout.column(raw, "lesion_id"), prefix),
            "patient_id": values.named(layout.column(raw, "patient_id"), prefix),
            "diagnosis": labels.codes(*levels),
            "label": labels.first(*levels),
            "modality": _modality(layout.column(raw, "image_type")),
            "age": layout.column(raw, "age_approx", "age"),
            "sex": values.sexes(layout.column(raw, "sex")),
            "site": values.lower(layout.column(raw, "anatom_site_general")),
            "skin_type": layout.column(raw, "fitzpatrick_skin_type"),
            "licence": layout.column(raw, "copyright_license", "license", "licence"),
            "attribution": layout.column(raw, "attribution"),
        }
    )
    kept = {f"diagnosis_{i}" for i in range(1, 6)} | {"image_type"}
    frame = frame.join(layout.further(raw, USED - kept))
    frame = layout.with_values(frame, file, exclusions)
    return layout.with_paths(frame, images, root, exclusions)


def _best(raw: pd.DataFrame, names: Sequence[str], images: Mapping[str, str]) -> str:
    """The column of ids that most image files are named after; the first in doubt."""
    return max(names, key=lambda n: raw[n].str.replace(ENDING, "", regex=True).isin(images).sum())


def _modality(image_type: pd.Series) -> pd.Series:
    """dermoscopic; clinical for close-ups, overviews and tiles of body scans; else missing."""
    text = values.lower(image_type).fillna("")
    out = pd.Series(pd.NA, index=text.index, dtype="string")
    out = out.mask(text.str.match("dermoscop"), "dermoscopic")
    return out.mask(text.str.match("clinical|tbp|overview|close"), "clinical")
