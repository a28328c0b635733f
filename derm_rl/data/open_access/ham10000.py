"""HAM10000 for captions: all seven diagnoses, whether or not artifacts are annotated.

Files as for :mod:`derm_rl.data.ham10000`; ``isic2019_artifacts.csv`` may be absent, and fills
in the artifacts of the images it has.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from derm_rl.data import ham10000
from derm_rl.data.dermoscopy import ARTIFACT_COLUMNS, ARTIFACT_FILE, Exclusions, table_file
from derm_rl.data.open_access import layout, values
from derm_rl.data.table import coerce
from derm_rl.prompts import ARTIFACTS

NAMES = {
    "akiec": "actinic keratosis or bowen's disease",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis-like lesion",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevus",
    "vasc": "vascular lesion",
}
FILES = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")


def read(root: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Rows of all images."""
    file = table_file(root, *FILES)
    raw = layout.read_table(file, ("image_id", "lesion_id", "dx", "age", "sex", "localization"))
    raw = layout.one_row_each(layout.with_ids(raw, raw["image_id"], file), file, exclusions)
    code = values.lower(raw["dx"])
    frame = pd.DataFrame(
        {
            "image_id": raw["image_id"],
            "lesion_id": raw["lesion_id"],
            "diagnosis": code.map(ham10000.DIAGNOSES).astype("string"),
            "label": code.replace(NAMES),
            "age": raw["age"],
            "sex": values.sexes(raw["sex"]),
            "site": values.lower(raw["localization"]),
            "skin_type": pd.Series(pd.NA, index=raw.index, dtype="string"),
            "dx": code,
            "dx_type": values.lower(layout.column(raw, "dx_type")),
        }
    )
    frame = layout.with_values(frame, file, exclusions)
    frame = layout.with_paths(frame, layout.locate(root, "HAM10000_images*"), root, exclusions)
    notes = root / ARTIFACT_FILE
    return _with_artifacts(frame, notes) if notes.is_file() else frame


def _with_artifacts(frame: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Annotations of an image that contradict one another count as none."""
    notes = layout.read_table(file, ARTIFACT_COLUMNS)
    notes = layout.with_ids(notes, notes["image"], file)
    notes = notes.assign(image_id=notes["image_id"].str.removesuffix("_downsampled"))
    notes = notes[["image_id", *ARTIFACTS]].drop_duplicates()
    notes = notes[~notes["image_id"].duplicated(keep=False)]
    known = {name: coerce(notes, name, file).array for name in ARTIFACTS}
    return frame.merge(notes[["image_id"]].assign(**known), on="image_id", how="left")
