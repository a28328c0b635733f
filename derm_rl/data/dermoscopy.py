"""What the readers of HAM10000 and ISIC 2019 share: finding images, joining tables, exclusions."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from derm_rl.data.table import TableError
from derm_rl.io import read_csv

OnError = Literal["raise", "exclude"]
ARTIFACT_FILE = "isic2019_artifacts.csv"
ARTIFACT_COLUMNS = ("image", "dark_corner", "hair", "gel_bubble", "ruler", "ink")


@dataclass
class Exclusions:
    """Images left out, with the reason; or, if ``on_error`` is "raise", the first is an error."""

    on_error: OnError
    rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, image_ids: Sequence[str], reason: str) -> None:
        """Leave out ``image_ids``. ``reason`` names the file and what is wrong."""
        if len(image_ids) and self.on_error == "raise":
            few = ", ".join(image_ids[:5]) + (" …" if len(image_ids) > 5 else "")
            raise TableError(
                f"{len(image_ids)} images ({few}): {reason}. Correct the files, or set "
                "data.on_error=exclude to leave such images out"
            )
        self.rows += [{"image_id": i, "reason": reason} for i in image_ids]

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=["image_id", "reason"])


def table_file(root: Path, *names: str) -> Path:
    """The first of ``names`` that is in ``root``."""
    for name in names:
        if (root / name).is_file():
            return root / name
    raise TableError(f"{root}: expected a file {' or '.join(names)} in this folder")


def read_columns(file: Path, columns: Sequence[str], key: str) -> pd.DataFrame:
    """A table as text with at least ``columns``; ``key`` must be there and be unique."""
    separator = "\t" if file.suffix == ".tab" else ","
    frame = read_csv(file, dtype="string", keep_default_na=False, sep=separator)
    if missing := [c for c in columns if c not in frame]:
        raise TableError(f"{file}: missing columns {missing}; found {list(frame.columns)}")
    frame[key] = frame[key].str.strip()
    if (double := frame[key].duplicated()).any():
        raise TableError(
            f"{file}: column {key!r} names images twice: {', '.join(frame[key][double][:5])}"
        )
    return frame


def find_images(root: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Address of every JPEG or PNG by image id, in folders or zip files matching ``patterns``."""
    found: dict[str, str] = {}
    for pattern in patterns:
        for place in sorted(root.glob(pattern)):
            if place.is_dir():
                files = [f for f in place.iterdir() if f.suffix.lower() in (".jpg", ".jpeg", ".png")]
                found |= {f.stem.removesuffix("_downsampled"): str(f) for f in sorted(files)}
            elif place.suffix.lower() == ".zip":
                try:
                    with zipfile.ZipFile(place) as archive:
                        members = archive.namelist()
                except zipfile.BadZipFile as error:
                    raise TableError(f"{place}: not a whole zip file ({error})") from error
                found |= {
                    Path(m).stem.removesuffix("_downsampled"): f"{place}::{m}"
                    for m in members
                    if m.lower().endswith((".jpg", ".jpeg", ".png")) and "__MACOSX" not in m
                }
            elif place.suffix.lower() in (".jpg", ".jpeg", ".png"):
                found[place.stem.removesuffix("_downsampled")] = str(place)
    if not found:
        raise TableError(f"{root}: no images found; looked for {', '.join(patterns)}")
    return found


def artifacts(root: Path) -> pd.DataFrame:
    """Artifact annotations per image, indexed by image id, with the published split if named."""
    file = root / ARTIFACT_FILE
    if not file.is_file():
        raise TableError(
            f"{root}: expected artifact annotations in {ARTIFACT_FILE} with columns "
            f"{', '.join(ARTIFACT_COLUMNS)} (0 or 1) and, if known, official_split; they are "
            "published with RL4Med (arXiv 2503.15784) for MEL and NV images of ISIC 2019"
        )
    return read_columns(file, ARTIFACT_COLUMNS, "image").set_index("image")


def join(
    frame: pd.DataFrame,
    root: Path,
    images: dict[str, str],
    diagnoses: Sequence[str],
    exclusions: Exclusions,
) -> pd.DataFrame:
    """Keep images of ``diagnoses`` that have annotations and a file; add both to the table."""
    frame = frame[frame["diagnosis"].isin(diagnoses)].copy()
    if frame.empty:
        raise TableError(f"{root}: no image with a diagnosis among {', '.join(diagnoses)}")
    notes = artifacts(root)
    known = frame["image_id"].isin(notes.index)
    exclusions.add(frame["image_id"][~known].tolist(), f"no annotation in {ARTIFACT_FILE}")
    frame = frame[known]
    present = frame["image_id"].isin(images.keys())
    exclusions.add(frame["image_id"][~present].tolist(), f"image file not found under {root}")
    frame = frame[present].reset_index(drop=True)
    columns = [c for c in (*ARTIFACT_COLUMNS[1:], "official_split") if c in notes]
    annotated = notes.loc[frame["image_id"], columns].reset_index(drop=True)
    paths = frame["image_id"].map(images)
    return frame.assign(path=paths, **{c: annotated[c] for c in columns})
