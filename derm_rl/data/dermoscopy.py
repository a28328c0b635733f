"""What the readers of HAM10000 and ISIC 2019 share: finding images, joining tables, exclusions."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from derm_rl.data.images import ENDINGS
from derm_rl.data.table import TableError, coerce, few
from derm_rl.io import read_csv
from derm_rl.prompts import ARTIFACTS, DIAGNOSES

OnError = Literal["raise", "exclude"]
ARTIFACT_FILE = "isic2019_artifacts.csv"
ARTIFACT_COLUMNS = ("image", *ARTIFACTS)
SUFFIX = "_downsampled"  # ends some names of ISIC 2019, in files and in tables


@dataclass
class Exclusions:
    """Images left out, with the reason; or, if ``on_error`` is "raise", the first is an error."""

    on_error: OnError
    setting: str = "data.on_error"  # what a preset calls it, for whoever reads the error
    rows: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.on_error not in get_args(OnError):
            raise ValueError(f"on_error must be one of {get_args(OnError)}, got {self.on_error!r}")

    def add(self, image_ids: Sequence[str], reason: str) -> None:
        """Leave out ``image_ids``. ``reason`` names the file and what is wrong."""
        image_ids = list(image_ids)
        if image_ids and self.on_error == "raise":
            raise TableError(
                f"{len(image_ids)} images ({few(image_ids)}): {reason}. Correct the files, or set "
                f"{self.setting}=exclude to leave such images out"
            )
        self.rows += [{"image_id": i, "reason": reason} for i in image_ids]

    def keep(self, frame: pd.DataFrame, good: pd.Series, reason: str) -> pd.DataFrame:
        """Rows of ``frame`` (column image_id) that are ``good``; each other image is left out."""
        good = good.fillna(False).astype(bool)
        self.add(frame["image_id"][~good].drop_duplicates(), reason)
        return frame[good]

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=["image_id", "reason"])


def table_file(root: Path, *names: str) -> Path:
    """The first of ``names`` that is in ``root``."""
    for name in names:
        if (root / name).is_file():
            return root / name
    raise TableError(f"{root}: expected a file {' or '.join(names)} in this folder")


def read_columns(file: Path, columns: Sequence[str], key: str) -> pd.DataFrame:
    """A table as text; ``columns`` must be there. Column ``key`` becomes image_id, the first one.

    Commas or tabs separate the columns, whichever the header has.
    """
    with open(file, encoding="utf-8-sig", errors="replace") as opened:
        separator = "\t" if "\t" in opened.readline() else ","
    frame = read_csv(
        file, dtype="string", keep_default_na=False, sep=separator, encoding="utf-8-sig"
    )
    if missing := [c for c in columns if c not in frame]:
        raise TableError(
            f"{file}: missing columns {', '.join(missing)}; found {', '.join(frame.columns)}"
        )
    ids = frame.pop(key).str.strip().str.removesuffix(SUFFIX)
    if (empty := ids == "").any():
        raise TableError(f"{file}: column {key!r} is empty in lines {few(ids.index[empty] + 2)}")
    frame.insert(0, "image_id", ids)
    return frame


def unique(frame: pd.DataFrame, file: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Leave out images with several rows: which of them is right, the file does not say."""
    double = frame["image_id"].duplicated(keep=False)
    return exclusions.keep(frame, ~double, f"more than one row in {file.name}")


def find_images(root: Path, pattern: str) -> dict[str, str]:
    """Address of every image file, by its ending, by image id.

    Looks into folders (at any depth) and zip archives in ``root`` that match ``pattern``, and at
    ``ISIC_*`` files in ``root`` itself. A zip beside the folder unpacked from it is passed over.

    Raises:
        TableError: no image at all, an image in two places, or a broken archive.
    """
    found: dict[str, str] = {}
    for name, address in _candidates(root, pattern):
        image_id = name.rpartition(".")[0].removesuffix(SUFFIX)
        if image_id in found:
            raise TableError(
                f"{root}: image {image_id} is there twice, {found[image_id]} and {address}; keep "
                "one of the two folders or archives"
            )
        found[image_id] = address
    if not found:
        raise TableError(
            f"{root}: expected images in folders or zip archives {pattern}, or files ISIC_*.jpg"
        )
    return found


def _candidates(root: Path, pattern: str) -> Iterator[tuple[str, str]]:
    def image(name: str) -> bool:
        return name.lower().endswith(ENDINGS) and not name.startswith(".")

    places = sorted(root.glob(pattern))
    folders = [p for p in places if p.is_dir()]
    for folder in folders:
        yield from ((f.name, str(f)) for f in sorted(folder.rglob("*")) if image(f.name))
    for place in places:
        if place.suffix.lower() == ".zip" and place.with_suffix("") not in folders:
            try:
                with zipfile.ZipFile(place) as archive:
                    members = archive.namelist()
            except zipfile.BadZipFile as error:
                raise TableError(
                    f"{place}: not a whole zip archive ({error}); download it again"
                ) from error
            for member in members:  # macOS adds "__MACOSX/._name" to its archives
                name = member.rpartition("/")[2]
                if image(name):
                    yield name, f"{place}::{member}"
    yield from ((f.name, str(f)) for f in sorted(root.glob("ISIC_*")) if image(f.name))


def annotate(
    frame: pd.DataFrame, root: Path, images: dict[str, str], exclusions: Exclusions
) -> pd.DataFrame:
    """Add path, artifacts and, if published, official_split to images that have them all.

    Raises:
        TableError: the annotations or one of their columns are missing or hold something else
            than 0 and 1; or what ``exclusions`` does not let pass.
    """
    file = root / ARTIFACT_FILE
    if not file.is_file():
        raise TableError(
            f"{root}: expected artifact annotations in {ARTIFACT_FILE} with columns "
            f"{', '.join(ARTIFACT_COLUMNS)} (0 or 1) and, if known, official_split; they are "
            "published with RL4Med (arXiv 2503.15784) for MEL and NV images of ISIC 2019"
        )
    notes = read_columns(file, ARTIFACT_COLUMNS, "image")
    notes = notes[notes["image_id"].isin(frame["image_id"])].reset_index(drop=True)
    known = frame["image_id"].isin(notes["image_id"])
    frame = exclusions.keep(frame, known, f"no annotation in {ARTIFACT_FILE}")
    present = frame["image_id"].isin(images.keys())
    frame = exclusions.keep(frame, present, f"no image file under {root}")
    notes = unique(notes[notes["image_id"].isin(frame["image_id"])], file, exclusions)
    for name in ARTIFACTS:
        notes = notes.assign(**{name: coerce(notes, name, file)})
        notes = exclusions.keep(notes, notes[name].notna(), f"no {name} in {ARTIFACT_FILE}")
    named = notes.merge(frame[["image_id", "diagnosis"]], on="image_id")
    for code in [c for c in DIAGNOSES if c in named]:
        claimed = pd.to_numeric(named[code], errors="coerce") > 0.5
        agrees = claimed == (named["diagnosis"] == code)
        named = exclusions.keep(named, agrees, f"another diagnosis in {ARTIFACT_FILE}")
    columns = [c for c in ("image_id", *ARTIFACTS, "official_split") if c in named]
    frame = frame.merge(named[columns], on="image_id", how="inner")
    return frame.assign(path=frame["image_id"].map(images))


def of_diagnoses(frame: pd.DataFrame, diagnoses: Sequence[str], file: Path) -> pd.DataFrame:
    """Rows of the wanted diagnoses; not one is an error."""
    if unknown := [d for d in diagnoses if d not in DIAGNOSES]:
        raise TableError(f"data.diagnoses: unknown {few(unknown)}; known: {', '.join(DIAGNOSES)}")
    kept = frame[frame["diagnosis"].isin(diagnoses)]
    if kept.empty:
        raise TableError(f"{file}: no image with a diagnosis among {', '.join(diagnoses)}")
    return kept
