"""PAD-UFES-20 (Pacheco et al. 2020): clinical images from smartphones, with patients' answers.

``metadata.csv`` and the images in ``imgs_part_1/`` to ``imgs_part_3/`` (folders or zip archives,
with or without a folder ``images/`` around them).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from derm_rl.data import columns
from derm_rl.data.dermoscopy import Exclusions, table_file
from derm_rl.data.open_access import labels, layout, values

NAMES = {
    "ack": "actinic keratosis",
    "bcc": "basal cell carcinoma",
    "mel": "melanoma",
    "nev": "nevus",
    "scc": "squamous cell carcinoma",  # Bowen's disease is among them
    "sek": "seborrheic keratosis",
}
WANTED = columns.known("pad_ufes_20")


def read(root: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Rows of all images; the patients' answers are further columns."""
    file = table_file(root, "metadata.csv")
    raw = columns.read(file, WANTED, exclusions.notes)
    raw = columns.with_ids(raw, WANTED.get(raw, "image_id"), file)
    raw = layout.one_row_each(raw, file, exclusions)
    patient = values.named(raw["patient_id"], "PAT_")
    code = values.lower(raw["diagnostic"])
    label = code.replace(NAMES)
    frame = pd.DataFrame(
        {
            "image_id": raw["image_id"],
            # The number of a lesion with its patient's, as other sources count lesions too.
            "lesion_id": patient + "_" + values.named(raw["lesion_id"], ""),
            "patient_id": patient,
            "diagnosis": labels.codes(label),
            "label": label,
            **layout.about(raw, WANTED),
        }
    ).join(layout.further(raw, WANTED))
    frame = layout.with_values(frame, file, exclusions)
    images = layout.locate(root, "imgs_part_*", "images/imgs_part_*", "images*")
    return layout.with_paths(frame, images, root, exclusions)
