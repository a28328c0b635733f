"""SCIN (Ward et al. 2024): clinical images sent in by volunteers, one to three a case.

``scin_cases.csv`` and ``scin_labels.csv``, with the images in ``images/``, all three in a folder
``dataset/`` or in the root. A case becomes a row for each of its images and is their lesion and
patient. Dermatologists named several conditions a case, with weights; a row's label is the
heaviest of them ("… or …" if several are), and ``label_weights`` keeps them all as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from derm_rl.data.dermoscopy import Exclusions, table_file
from derm_rl.data.open_access import labels, layout, values

IMAGES = ("image_1_path", "image_2_path", "image_3_path")
FLAGS = {  # columns of these beginnings hold YES or nothing
    "textures": "textures_",
    "body_parts": "body_parts_",
    "symptoms": "condition_symptoms_",
    "other_symptoms": "other_symptoms_",
}
RATED = tuple(f"dermatologist_fitzpatrick_skin_type_label_{i}" for i in (1, 2, 3))


def read(root: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Rows of all images, with what the volunteers and the dermatologists said of the case."""
    file = table_file(root, "scin_cases.csv", "dataset/scin_cases.csv")
    label_file = table_file(root, "scin_labels.csv", "dataset/scin_labels.csv")
    cases = layout.read_table(file, ["case_id", *IMAGES])
    cases = layout.one_row_each(_by_case(cases, file), file, exclusions)
    said = layout.read_table(label_file, ["case_id", "weighted_skin_condition_label"])
    said = _by_case(said, label_file)
    labelled = set(said["image_id"])
    said = layout.one_row_each(said, label_file, exclusions)
    said = said.drop(columns=[c for c in said if c != "image_id" and c in cases])
    # Left out with their labels, which contradict one another.
    cases = cases[~cases["image_id"].isin(labelled - set(said["image_id"]))]
    both = cases.merge(said, on="image_id", how="left").reset_index(drop=True)

    weights, good = values.parsed(both["weighted_skin_condition_label"], values.weights)
    both = exclusions.keep(both, good, f"unreadable weighted label in {label_file.name}")
    weights = [w or {} for w in weights[both.index]]
    top = [values.heaviest(w) for w in weights]
    code = [{labels.code_of(name) for name in names} for names in top]
    skin_type, came_from = _skin_type(both)
    frame = pd.DataFrame(
        {
            "image_id": both["image_id"],
            "lesion_id": "SCIN_" + both["image_id"],
            "patient_id": "SCIN_" + both["image_id"],
            "diagnosis": pd.array([next(iter(c)) if len(c) == 1 else None for c in code], "string"),
            "label": pd.array([" or ".join(names) or None for names in top], "string"),
            "age": layout.column(both, "age", "age_group"),
            "sex": values.sexes(layout.column(both, "sex_at_birth")),
            "site": _flags(both, "body_parts_"),
            "skin_type": skin_type,
            "skin_type_from": came_from,
            "label_weights": pd.array([_json(w) for w in weights], "string"),
            **{name: _flags(both, start) for name, start in FLAGS.items()},
            "duration": values.lower(layout.column(both, "condition_duration")),
            "related_category": values.lower(layout.column(both, "related_category")),
            "combined_race": values.lower(layout.column(both, "combined_race")),
            **{c: both[c] for c in (*IMAGES, *_shots(both))},
        },
        index=both.index,
    )
    frame = layout.with_values(frame, file, exclusions)
    frame = _row_per_image(frame, file, exclusions)
    base = file.parent
    return layout.with_paths(frame, layout.locate(base, "images*"), base, exclusions)


def _by_case(frame: pd.DataFrame, file: Path) -> pd.DataFrame:
    return layout.with_ids(frame, frame["case_id"], file).drop(columns="case_id")


def _json(weights: dict[str, float]) -> str | None:
    return json.dumps(weights, ensure_ascii=False) if weights else None


def _flags(frame: pd.DataFrame, start: str) -> pd.Series:
    """``textures_flat`` and ``textures_rough_or_flaky`` set: "flat, rough or flaky"."""
    names = [c for c in frame if str(c).startswith(start)]
    words = [c.removeprefix(start).replace("_", " ") for c in names]
    is_set = frame[names].apply(lambda c: values.tokens(c).isin(["yes", "1"])).to_numpy(bool)
    texts = [", ".join(w for w, s in zip(words, row, strict=True) if s) or None for row in is_set]
    return pd.Series(texts, index=frame.index, dtype="string")


def _skin_type(frame: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The volunteer's own answer, or else what most dermatologists saw; and whose it is."""
    own = layout.column(frame, "fitzpatrick_skin_type")
    rated = frame.reindex(columns=RATED).apply(lambda row: _most(row.dropna().tolist()), axis=1)
    rated = rated.astype("string") if len(frame) else own
    came_from = pd.Series(pd.NA, index=frame.index, dtype="string")
    came_from = came_from.mask(rated.notna(), "dermatologists").mask(own.notna(), "self-report")
    return own.fillna(rated), came_from


def _most(votes: Sequence[str]) -> str | None:
    counts = pd.Series(votes, dtype="string").value_counts()
    return None if counts.empty or (counts == counts.max()).sum() > 1 else str(counts.index[0])


def _shots(frame: pd.DataFrame) -> list[str]:
    return [
        c for c in ("image_1_shot_type", "image_2_shot_type", "image_3_shot_type") if c in frame
    ]


def _row_per_image(cases: pd.DataFrame, file: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Cases without image are left out; an image in two cases is nobody's."""
    cases = exclusions.keep(
        cases, cases[list(IMAGES)].notna().any(axis=1), f"case without image path in {file.name}"
    )
    parts = []
    for number, name in enumerate(IMAGES, start=1):
        shot = values.lower(layout.column(cases, f"image_{number}_shot_type"))
        part = cases.drop(columns=[*IMAGES, *_shots(cases)]).assign(shot_type=shot, number=number)
        part = part.assign(address=cases[name])
        parts.append(part[part["address"].notna()])
    rows = pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
    rows = layout.with_ids(rows, rows.pop("address"), file).drop(columns="number")
    return layout.one_row_each(rows, file, exclusions)
