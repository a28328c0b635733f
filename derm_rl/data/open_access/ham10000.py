"""HAM10000 for captions: all seven diagnoses, whether or not artifacts are annotated.

Files as for :mod:`derm_rl.data.ham10000`; ``isic2019_artifacts.csv`` may be absent, and fills
in the artifacts of the images it has.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from derm_rl.data import ham10000
from derm_rl.data.columns import read as read_table
from derm_rl.data.columns import with_ids
from derm_rl.data.dermoscopy import ARTIFACT_FILE, Exclusions, annotations, table_file
from derm_rl.data.open_access import layout, values
from derm_rl.data.table import coerce, few
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


def read(root: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Rows of all images."""
    file, wanted = table_file(root, *ham10000.FILES), ham10000.WANTED
    raw = read_table(file, wanted, exclusions.notes)
    raw = with_ids(raw, wanted.get(raw, "image_id"), file)
    raw = layout.one_row_each(raw, file, exclusions)
    said = values.lower(wanted.get(raw, "diagnosis"))
    frame = pd.DataFrame(
        {
            "image_id": raw["image_id"],
            "lesion_id": raw["lesion_id"],
            "diagnosis": ham10000.codes(raw),
            "label": said.replace(NAMES),
            **layout.about(raw, wanted),
            "dx": said,
        }
    ).join(layout.further(raw, wanted))
    frame = layout.with_values(frame, file, exclusions)
    frame = layout.with_paths(frame, layout.locate(root, "HAM10000_images*"), root, exclusions)
    notes = root / ARTIFACT_FILE
    return _with_artifacts(frame, notes, exclusions) if notes.is_file() else frame


def _with_artifacts(frame: pd.DataFrame, file: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Annotations of an image that contradict one another count as none."""
    notes = annotations(file, exclusions)[["image_id", *ARTIFACTS]].drop_duplicates()
    if (double := notes["image_id"].duplicated(keep=False)).any():
        ids = few(notes["image_id"][double].unique())
        exclusions.notes.append(f"{file.name}: rows that differ, of which none is used, for {ids}")
    notes = notes[~double]
    if not frame["image_id"].isin(notes["image_id"]).any():
        exclusions.notes.append(f"{file.name}: none of its images is among those of the metadata")
    known = {name: coerce(notes, name, file).array for name in ARTIFACTS}
    return frame.merge(notes[["image_id"]].assign(**known), on="image_id", how="left")
