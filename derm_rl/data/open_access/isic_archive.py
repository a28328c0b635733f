"""BCN20000 and HIBA, as the ISIC archive distributes them: a metadata file and ISIC_* images.

BCN20000 (Combalia et al. 2019) also comes with names of its own, ``bcn_filename``. HIBA (Ricci Lara
et al. 2023) holds clinical images beside dermoscopic ones, and licence and attribution per image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from derm_rl.data import columns
from derm_rl.data.columns import Columns
from derm_rl.data.dermoscopy import Exclusions, found, table_file
from derm_rl.data.images import ENDING
from derm_rl.data.open_access import labels, layout, values
from derm_rl.prompts import DIAGNOSES

SPELLED = {code.lower(): name for code, name in DIAGNOSES.items()}
BCN_FILES = ("metadata.csv", "bcn_20k_train.csv", "BCN20000_metadata.csv", "bcn20000.csv")


def bcn20000(root: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Rows of BCN20000."""
    file = table_file(root, *BCN_FILES)
    places = ("BCN_*", "bcn_*", "BCN20000*", "bcn20000*", "ISIC*", "images*")
    return _rows(root, file, columns.known("bcn20000"), places, "BCN20000_", exclusions)


def hiba(root: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Rows of HIBA; the levels of the diagnosis are further columns."""
    file = table_file(root, "metadata.csv", "hiba_metadata.csv", "HIBA_metadata.csv")
    places = ("ISIC*", "images*", "hiba*", "HIBA*")
    return _rows(root, file, columns.known("hiba"), places, "HIBA_", exclusions)


def _rows(
    root: Path,
    file: Path,
    wanted: Columns,
    places: Sequence[str],
    prefix: str,
    exclusions: Exclusions,
) -> pd.DataFrame:
    raw = columns.read(file, wanted, exclusions.notes)
    images = layout.locate(root, *places)
    ids = _best(raw, wanted.there(raw, "image_id"), images)
    raw = layout.one_row_each(columns.with_ids(raw, raw[ids], file), file, exclusions)
    kinds = wanted.get(raw, "image_type")
    modality = _modality(kinds)
    odd = kinds.notna() & modality.isna()
    reason = f"image_type in {file.name} is neither dermoscopic nor clinical ({found(kinds[odd])})"
    raw = exclusions.keep(raw, ~odd, reason)
    levels = [values.lower(raw[name]).replace(SPELLED) for name in wanted.there(raw, "diagnosis")]
    frame = pd.DataFrame(
        {
            "image_id": raw["image_id"],
            "lesion_id": values.named(wanted.get(raw, "lesion_id"), prefix),
            "patient_id": values.named(wanted.get(raw, "patient_id"), prefix),
            "diagnosis": labels.codes(*levels),
            "label": labels.first(*levels),
            "modality": modality[raw.index],
            **layout.about(raw, wanted),
        }
    ).join(layout.further(raw, wanted))
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
