"""What the readers of HAM10000 and ISIC 2019 share: finding images, joining tables, exclusions."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from derm_rl.data import columns
from derm_rl.data.columns import SUFFIX
from derm_rl.data.images import ENDINGS
from derm_rl.data.table import TableError, coerce, few
from derm_rl.prompts import ARTIFACTS, DIAGNOSES

OnError = Literal["raise", "exclude"]
ARTIFACT_FILE = "isic2019_artifacts.csv"


@dataclass
class Exclusions:
    """Images left out, with the reason; or, if ``on_error`` is "raise", the first is an error."""

    on_error: OnError
    setting: str = "data.on_error"  # what a preset calls it, for whoever reads the error
    rows: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # on the tables: what is missing for all images
    listed: set[str] = field(default_factory=set)  # images that the tables name, left out or not

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
        if good.all():
            return frame
        self.add(frame["image_id"][~good].drop_duplicates(), reason)
        return frame[good]

    def table(self) -> pd.DataFrame:
        """The images left out; ``attrs["notes"]`` holds the notes on the tables."""
        frame = pd.DataFrame(self.rows, columns=["image_id", "reason"])
        frame.attrs["notes"] = list(dict.fromkeys(self.notes))
        return frame


def table_file(root: Path, *names: str) -> Path:
    """The first of ``names`` that is in ``root``."""
    for name in names:
        if (root / name).is_file():
            return root / name
    raise TableError(f"{root}: expected a file {' or '.join(names)} in this folder")


def found(texts: pd.Series) -> str:
    """The different texts of cells, the first few, for an error."""
    return few([str(t)[:40] for t in texts.fillna("nothing").unique()]) or "nothing"


def unique(frame: pd.DataFrame, file: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Leave out images with several rows: which of them is right, the file does not say."""
    exclusions.listed |= set(frame["image_id"])
    double = frame["image_id"].duplicated(keep=False)
    return exclusions.keep(frame, ~double, f"more than one row in {file.name}")


def note_unlisted(images: Iterable[str], root: Path, exclusions: Exclusions) -> None:
    """Say which image files no table names: rows were lost, or a table was cut off."""
    listed = {name.casefold() for name in exclusions.listed}
    if alone := sorted(name for name in images if name.casefold() not in listed):
        exclusions.notes.append(
            f"{root.name}: {len(alone)} image files are in no row of the tables, and not used "
            f"({few(alone)}); were rows lost?"
        )


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
    file, wanted = root / ARTIFACT_FILE, columns.known("isic2019", "artifacts")
    if not file.is_file():
        raise TableError(
            f"{root}: expected artifact annotations in {ARTIFACT_FILE} with columns "
            f"image, {', '.join(ARTIFACTS)} (0 or 1) and, if known, official_split; they are "
            "published with RL4Med (arXiv 2503.15784) for MEL and NV images of ISIC 2019"
        )
    note_unlisted(images, root, exclusions)
    notes = annotations(file, exclusions)
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
    checked = [c for c in DIAGNOSES if wanted.there(named, c.lower())]
    for code in checked:
        claimed = columns.numbers(wanted.get(named, code.lower())) > 0.5
        agrees = claimed.fillna(False) == (named["diagnosis"] == code)
        named = exclusions.keep(named, agrees, f"another diagnosis in {ARTIFACT_FILE}")
    if unchecked := [c for c in DIAGNOSES if c.lower() in wanted.all and c not in checked]:
        exclusions.notes.append(
            f"{ARTIFACT_FILE}: no column {' and '.join(unchecked)}: whether it means the same "
            "diagnosis is not checked"
        )
    kept = [c for c in ("image_id", *ARTIFACTS, "official_split") if c in named]
    frame = frame.merge(named[kept], on="image_id", how="inner")
    return frame.assign(path=frame["image_id"].map(images))


def annotations(file: Path, exclusions: Exclusions) -> pd.DataFrame:
    """The artifact annotations as text, by image_id.

    Raises:
        TableError: the file is no table, or one of the columns is missing.
    """
    wanted = columns.known("isic2019", "artifacts")
    notes = columns.read(file, wanted, exclusions.notes)
    return columns.with_ids(notes, wanted.get(notes, "image_id"), file)


def of_diagnoses(frame: pd.DataFrame, diagnoses: Sequence[str], file: Path) -> pd.DataFrame:
    """Rows of the wanted diagnoses; not one is an error."""
    if unknown := [d for d in diagnoses if d not in DIAGNOSES]:
        raise TableError(f"data.diagnoses: unknown {few(unknown)}; known: {', '.join(DIAGNOSES)}")
    kept = frame[frame["diagnosis"].isin(diagnoses)]
    if kept.empty:
        raise TableError(f"{file}: no image with a diagnosis among {', '.join(diagnoses)}")
    return kept
