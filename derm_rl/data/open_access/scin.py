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

from derm_rl.data import columns
from derm_rl.data.dermoscopy import Exclusions, found, table_file
from derm_rl.data.open_access import labels, layout, values
from derm_rl.data.table import few

IMAGES = ("image_1_path", "image_2_path", "image_3_path")
SHOTS = ("image_1_shot_type", "image_2_shot_type", "image_3_shot_type")
FLAGS = {  # columns of these beginnings hold YES or nothing
    "textures": "textures_",
    "body_parts": "body_parts_",
    "symptoms": "condition_symptoms_",
    "other_symptoms": "other_symptoms_",
}
RATED = tuple(f"dermatologist_fitzpatrick_skin_type_label_{i}" for i in (1, 2, 3))
CASES, LABELS = columns.known("scin", "cases"), columns.known("scin", "labels")


def read(root: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Rows of all images, with what the volunteers and the dermatologists said of the case."""
    file = table_file(root, "scin_cases.csv", "dataset/scin_cases.csv")
    label_file = table_file(root, "scin_labels.csv", "dataset/scin_labels.csv")
    cases = _by_case(columns.read(file, CASES, exclusions.notes), file)
    cases = cases.assign(**{name: CASES.get(cases, name) for name in (*IMAGES, *SHOTS)})
    for name in IMAGES:
        exclusions.listed |= set(columns.stems(cases[name]).dropna())
    named = set(cases["image_id"])
    cases = layout.one_row_each(cases, file, exclusions)
    for name, start in FLAGS.items():
        cases = _with_flags(cases, name, start, file, exclusions)
    said = _by_case(columns.read(label_file, LABELS, exclusions.notes), label_file)
    labelled = set(said["image_id"])
    for here, there, where in ((named, labelled, label_file), (labelled, named, file)):
        if alone := sorted(here - there):
            exclusions.notes.append(
                f"{where.name}: no row for {len(alone)} of {len(here)} cases of the other table: "
                f"{few(alone)}"
            )
    said = layout.one_row_each(said, label_file, exclusions)
    rated = _most_rated(said, label_file, exclusions)
    said = said[["image_id", "weighted_skin_condition_label"]].assign(rated=rated)
    # Left out with their labels, which contradict one another.
    cases = cases[~cases["image_id"].isin(labelled - set(said["image_id"]))]
    both = cases.merge(said, on="image_id", how="left").reset_index(drop=True)

    weights, good = values.parsed(both["weighted_skin_condition_label"], values.weights)
    odd = found(both["weighted_skin_condition_label"][~good])
    both = exclusions.keep(both, good, f"unreadable weighted label in {label_file.name}: {odd}")
    weights = [w or {} for w in weights[both.index]]
    top = [values.heaviest(w) for w in weights]
    code = [{labels.code_of(name) for name in names} for names in top]
    own = CASES.get(both, "skin_type")
    came_from = pd.Series(pd.NA, index=both.index, dtype="string")
    came_from = came_from.mask(both["rated"].notna(), "dermatologists")
    came_from = came_from.mask(own.notna(), "self-report")
    frame = pd.DataFrame(
        {
            "image_id": both["image_id"],
            "lesion_id": "SCIN_" + both["image_id"],
            "patient_id": "SCIN_" + both["image_id"],
            "diagnosis": pd.array([next(iter(c)) if len(c) == 1 else None for c in code], "string"),
            "label": pd.array([" or ".join(names) or None for names in top], "string"),
            "age": CASES.get(both, "age"),
            "sex": values.sexes(CASES.get(both, "sex")),
            "site": both["body_parts"],
            # The volunteer's own answer, or else what most dermatologists saw.
            "skin_type": own.fillna(both["rated"]),
            "skin_type_from": came_from,
            "label_weights": pd.array([_json(w) for w in weights], "string"),
            **{name: both[name] for name in FLAGS},
            "duration": values.lower(CASES.get(both, "duration")),
            "related_category": values.lower(CASES.get(both, "related_category")),
            "combined_race": values.lower(CASES.get(both, "combined_race")),
            **{name: both[name] for name in (*IMAGES, *SHOTS)},
        },
        index=both.index,
    )
    frame = layout.with_values(frame, file, exclusions)
    frame = _row_per_image(frame, file, exclusions)
    base = file.parent
    return layout.with_paths(frame, layout.locate(base, "images*"), base, exclusions)


def _by_case(frame: pd.DataFrame, file: Path) -> pd.DataFrame:
    ids = frame["case_id"].str.replace(r"^(-?\d+)\.0+$", r"\1", regex=True)  # of a column with gaps
    return columns.with_ids(frame, ids, file).drop(columns="case_id")


def _json(weights: dict[str, float]) -> str | None:
    return json.dumps(weights, ensure_ascii=False) if weights else None


def _with_flags(
    cases: pd.DataFrame, name: str, start: str, file: Path, exclusions: Exclusions
) -> pd.DataFrame:
    """``textures_flat`` and ``textures_rough_or_flaky`` set: textures "flat, rough or flaky"."""
    there = [c for c in cases if c.startswith(start)]
    said = cases[there].apply(values.tokens)
    odd = said.notna() & ~said.isin(["yes", "1", "no", "0"])
    texts = pd.Series([t for c in there for t in said[c][odd[c]]], dtype="string")
    reason = f"neither yes nor no in columns {start}* of {file.name} ({found(texts)})"
    cases = exclusions.keep(cases, ~odd.any(axis=1), reason)
    words = [c.removeprefix(start).replace("_", " ") for c in there]
    is_set = said.loc[cases.index].isin(["yes", "1"]).to_numpy(bool)
    texts = [", ".join(w for w, s in zip(words, row, strict=True) if s) or None for row in is_set]
    return cases.assign(**{name: pd.Series(texts, index=cases.index, dtype="string")})


def _most_rated(said: pd.DataFrame, file: Path, exclusions: Exclusions) -> pd.Series:
    """The skin type that most dermatologists saw, if one is ahead."""
    there = [name for name in RATED if name in said]
    votes, good = {}, {}
    for name in there:
        votes[name], good[name] = values.parsed(said[name], values.skin_type)
    odd = pd.Series([t for c in there for t in said[c][~good[c]]], dtype="string")
    if len(odd):
        exclusions.notes.append(
            f"{file.name}: skin types that are none, and not used: {found(odd)}"
        )
    rows = pd.DataFrame(votes, index=said.index).itertuples(index=False, name=None)
    most = [_most([str(int(v)) for v in row if v is not None]) for row in rows]
    return pd.Series(most, index=said.index, dtype="string")


def _most(votes: Sequence[str]) -> str | None:
    counts = pd.Series(votes, dtype="string").value_counts()
    return None if counts.empty or (counts == counts.max()).sum() > 1 else str(counts.index[0])


def _row_per_image(cases: pd.DataFrame, file: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Cases without image are left out; an image in two cases is nobody's."""
    cases = exclusions.keep(
        cases, cases[list(IMAGES)].notna().any(axis=1), f"case without image path in {file.name}"
    )
    parts = []
    for number, name in enumerate(IMAGES, start=1):
        shot = values.lower(cases[f"image_{number}_shot_type"])
        part = cases.drop(columns=[*IMAGES, *SHOTS]).assign(shot_type=shot, number=number)
        part = part.assign(address=cases[name])
        parts.append(part[part["address"].notna()])
    rows = pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
    rows = columns.with_ids(rows, rows.pop("address"), file).drop(columns="number")
    return layout.one_row_each(rows, file, exclusions)
