"""One table for every data set: a row an image, the same columns everywhere, missing is missing.

Images are loaded lazily by the address in column ``path``: a file, a member of a zip archive
(``archive.zip::member.jpg``) or something drawn on demand (``phantom::seed/index/…``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from derm_rl.data import images
from derm_rl.errors import Mendable
from derm_rl.io import cannot_read, passing, read_csv, write_csv
from derm_rl.prompts import ARTIFACTS, DIAGNOSES

# image_id and path are needed; everything else may be missing, in single rows or altogether.
TYPES: dict[str, str] = {
    "image_id": "string",
    "path": "string",
    "source": "string",
    "lesion_id": "string",
    "patient_id": "string",
    "diagnosis": "string",
    "label": "string",
    "modality": "string",
    **dict.fromkeys(ARTIFACTS, "boolean"),
    "age": "Float64",
    "sex": "string",
    "site": "string",
    "skin_type": "Int64",
    "licence": "string",
    "attribution": "string",
}
COLUMNS = tuple(TYPES)
MODALITIES = ("clinical", "dermoscopic")
EXPECTED = {"boolean": "true/false or 1/0", "Float64": "numbers", "Int64": "whole numbers"}
_MISSING = {"", "nan", "none", "null", "n/a", "na", "unknown", "<na>"}
_TRUTH = {"true": True, "1": True, "1.0": True, "yes": True}
_TRUTH |= {"false": False, "0": False, "0.0": False, "no": False}


class TableError(Mendable, ValueError):
    """A table that cannot be used; the message names the file, the column and the rows."""


def validate(frame: pd.DataFrame, where: str | Path = "table") -> pd.DataFrame:
    """Bring a table to the common columns and types; further columns stay, behind them.

    Raises:
        TableError: a needed column is missing, an id is missing or double, or a value is not of
            its column's type.
    """
    for column in ("image_id", "path"):
        if column not in frame:
            raise TableError(f"{where}: column {column!r} is missing; found {list(frame.columns)}")
    out = {name: coerce(frame, name, where) for name in COLUMNS}
    for name in frame.columns:
        if name not in TYPES:
            text = pd.api.types.is_string_dtype(frame[name])
            out[name] = _text(frame[name]) if text else frame[name]
    table = pd.DataFrame(out, index=frame.index).reset_index(drop=True)
    for column in ("image_id", "path"):
        if (bad := table[column].isna()).any():
            raise TableError(f"{where}: column {column!r} is empty in rows {few(table.index[bad])}")
    if (double := table["image_id"].duplicated()).any():
        raise TableError(f"{where}: image_id occurs twice: {few(table['image_id'][double])}")
    known = table["diagnosis"].isin(DIAGNOSES)
    _within(table, "diagnosis", known, where, f"one of {', '.join(DIAGNOSES)}")
    known = table["modality"].isin(MODALITIES)
    _within(table, "modality", known, where, f"one of {', '.join(MODALITIES)}")
    _within(table, "skin_type", table["skin_type"].between(1, 6), where, "1 to 6 (Fitzpatrick)")
    _within(table, "age", table["age"].between(0, 120), where, "0 to 120 years")
    return table


def coerce(frame: pd.DataFrame, name: str, where: str | Path) -> pd.Series:
    """Column ``name`` in its type of ``TYPES``; all missing if the frame does not have it.

    Raises:
        TableError: names the file, the column, the values that are not of the type and their ids.
    """
    kind = TYPES[name]
    if name not in frame:
        return pd.Series(pd.NA, index=frame.index, dtype=kind)
    text = _text(frame[name])
    if kind == "string":
        return text
    if kind == "boolean":
        values = text.str.lower().map(_TRUTH).astype("boolean")
    else:
        values = pd.to_numeric(text, errors="coerce").astype("Float64")
        values = values.mask(values.abs() == np.inf)
        if kind == "Int64":
            values = values.mask(values % 1 != 0).astype("Int64")
    if (bad := values.isna() & text.notna()).any():
        raise TableError(
            f"{where}: column {name!r} must hold {EXPECTED[kind]}; got {few(text[bad])} "
            f"for {few(frame['image_id'][bad])}"
        )
    return values


def _text(column: pd.Series) -> pd.Series:
    # In Python, as each vectorized step costs more than some thousand texts.
    texts = [t.strip() if isinstance(t, str) else pd.NA for t in column.astype("string")]
    kept = [pd.NA if t is pd.NA or t.lower() in _MISSING else t for t in texts]
    return pd.Series(kept, index=column.index, dtype="string", name=column.name)


def _within(
    table: pd.DataFrame, column: str, good: pd.Series, where: str | Path, expected: str
) -> None:
    bad = table[column].notna() & ~good.fillna(False).astype(bool)
    if bad.any():
        raise TableError(
            f"{where}: column {column!r} must be {expected}; got {few(table[column][bad])} "
            f"for {few(table['image_id'][bad])}"
        )


def few(values: Sequence) -> str:
    """The first five values, each at most 300 characters of it, and how many more there are."""
    texts = [str(value) for value in values[:5]]
    shown = ", ".join(t if len(t) <= 300 else f"{t[:300]}…" for t in texts)
    return shown + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def read(path: str | Path) -> pd.DataFrame:
    """Read and validate a table written by :func:`write`."""
    return validate(read_csv(path, dtype="string", keep_default_na=False), path)


def write(path: str | Path, frame: pd.DataFrame) -> Path:
    """Validate and write a table as CSV; missing values are empty cells."""
    return write_csv(path, validate(frame, path))


# --------------------------------------------------------------------------------- images


def _draw_phantom(address: str, size: int) -> np.ndarray:
    from derm_rl.data.phantom import render_path

    return render_path(address, size)


# Drawn on demand, by the word before "::"; any other such word is the name of a zip archive.
OPENERS: dict[str, Callable[[str, int], np.ndarray]] = {"phantom": _draw_phantom}


def read_image(address: str, draft: int = 1) -> tuple[bytes, Image.Image]:
    """A file's bytes, and the one picture that they give (:mod:`derm_rl.data.images`).

    Args:
        draft: as for :func:`derm_rl.data.images.picture`.

    Raises:
        TableError: the file is absent, too large, not a whole image, or too small to show a lesion.
        OSError: it cannot be read just now.
    """
    try:
        content = images.read_bytes(address)
        with images.opened(content) as header:
            width, height = header.size
        if min(width, height) < images.MIN_SIDE:
            raise images.ImageError(
                f"cannot be used ({width} × {height} pixels, expected {images.MIN_SIDE} or more a "
                "side)"
            )
        return content, images.picture(content, draft)
    except (FileNotFoundError, KeyError) as error:
        raise TableError(f"image {address}: not found") from error
    except images.ImageError as error:
        raise TableError(f"image {address}: {error}") from error
    except Exception as error:  # what an archive is damaged by, its decoders name in many ways
        if passing(error):  # says nothing about the image: to leave it out would be wrong
            raise cannot_read(address, error) from error
        said = str(error) or type(error).__name__
        raise TableError(f"image {address}: cannot be decoded ({said})") from error


def load_image(address: str, size: int, crop: str | None = "center") -> np.ndarray:
    """One image (size, size, 3) uint8, fully decoded, resampled with Lanczos' filter.

    Args:
        crop: "center" cuts the largest centred square. It keeps shapes (asymmetry and border are
            what a diagnosis rests on), but loses an eighth of a 4:3 image at either end, where a
            ruler, ink or dark corner may be that the annotation still names. None keeps the whole
            field and squeezes it into the square.

    Raises:
        TableError: as for :func:`read_image`.
    """
    if crop not in ("center", None):
        raise ValueError(f"crop must be 'center' or None, got {crop!r}")
    scheme = address.partition("::")[0]
    if scheme in OPENERS:
        return OPENERS[scheme](address, size)
    image = read_image(address)[1]
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side) if crop else None
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box))


class Images(Sequence):
    """Images of a table, decoded when asked for, by position or by image id."""

    def __init__(self, frame: pd.DataFrame, size: int, crop: str | None = "center") -> None:
        self.paths = frame["path"].tolist()
        self.position = {name: i for i, name in enumerate(frame["image_id"])}
        self.size, self.crop = size, crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int | str) -> np.ndarray:
        """Image (size, size, 3) uint8."""
        if isinstance(key, str):
            if key not in self.position:
                raise KeyError(f"no image {key!r} in this table of {len(self)} images")
            key = self.position[key]
        return load_image(self.paths[key], self.size, self.crop)


def load_images(
    frame: pd.DataFrame, size: int, crop: str | None = "center", progress: bool = False
) -> np.ndarray:
    """All images of a table (N, size, size, 3) uint8.

    Raises:
        TableError: images are absent or damaged; the first few are named.
    """
    images = np.empty((len(frame), size, size, 3), np.uint8)
    if failed := decode_into(images, frame, crop, progress):
        raise TableError(f"{len(failed)} images cannot be read: {few(list(failed.values()))}")
    return images


def decode_into(
    out: np.ndarray, frame: pd.DataFrame, crop: str | None = "center", progress: bool = False
) -> dict[str, str]:
    """Decode the images of a table into ``out`` (N, S, S, 3), which may be a memory map.

    Returns:
        the reason by image id of those that failed; their rows of ``out`` are black.
    """
    from joblib import Parallel, delayed
    from tqdm import tqdm

    def decode(row: int) -> str | None:
        try:
            out[row] = load_image(addresses[row], out.shape[1], crop)
        except TableError as error:
            out[row] = 0
            return str(error)
        return None

    addresses = frame["path"].tolist()
    # Threads suffice: Pillow decodes and resizes outside the interpreter lock.
    parallel = Parallel(n_jobs=-1, prefer="threads", return_as="generator")
    done = parallel(delayed(decode)(row) for row in range(len(addresses)))
    bar = tqdm(
        done, total=len(addresses), desc="images", unit="image", mininterval=1, disable=not progress
    )
    results = zip(frame["image_id"], bar, strict=True)
    return {str(name): reason for name, reason in results if reason is not None}
