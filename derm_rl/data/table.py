"""One table for every data set: a row an image, the same columns everywhere, missing is missing.

Images are loaded lazily by the address in column ``path``: a file, a member of a zip archive
(``archive.zip::member.jpg``) or a phantom (``phantom::seed/index/…``).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from derm_rl.io import read_csv, write_csv
from derm_rl.prompts import ARTIFACTS, DIAGNOSES

# image_id and path are needed; everything else may be missing, in single rows or altogether.
TYPES: dict[str, str] = {
    "image_id": "string",
    "path": "string",
    "source": "string",
    "lesion_id": "string",
    "patient_id": "string",
    "diagnosis": "string",
    **dict.fromkeys(ARTIFACTS, "boolean"),
    "age": "Float64",
    "sex": "string",
    "site": "string",
    "skin_type": "Int64",
    "licence": "string",
    "attribution": "string",
}
COLUMNS = tuple(TYPES)
_MISSING = {"", "nan", "none", "null", "n/a", "na", "unknown", "<na>"}


class TableError(ValueError):
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
    out = {name: _column(frame, name, where) for name in COLUMNS}
    extra = {name: frame[name] for name in frame.columns if name not in TYPES}
    table = pd.DataFrame(out | extra, index=frame.index).reset_index(drop=True)
    for column in ("image_id", "path"):
        if (bad := table[column].isna()).any():
            raise TableError(f"{where}: column {column!r} is empty in rows {_few(bad)}")
    if (double := table["image_id"].duplicated()).any():
        raise TableError(f"{where}: image_id occurs twice: {_few(double, table['image_id'])}")
    _known(table, "diagnosis", table["diagnosis"].isin(DIAGNOSES), where, list(DIAGNOSES))
    _known(table, "skin_type", table["skin_type"].between(1, 6), where, "1 to 6 (Fitzpatrick)")
    _known(table, "age", table["age"].between(0, 120), where, "0 to 120 years")
    return table


def _column(frame: pd.DataFrame, name: str, where: str | Path) -> pd.Series:
    kind = TYPES[name]
    if name not in frame:
        return pd.Series(pd.NA, index=frame.index, dtype=kind)
    text = frame[name].astype("string").str.strip()
    missing = text.isna() | text.str.lower().isin(_MISSING)
    text = text.mask(missing)
    if kind == "string":
        return text
    if kind == "boolean":
        lower = text.str.lower()
        truth = lower.map({"true": True, "1": True, "1.0": True, "yes": True}.get)
        false = lower.isin(["false", "0", "0.0", "no"])
        values = truth.astype("boolean").mask(false, False)
        expected = "true/false or 1/0"
    else:
        values = pd.to_numeric(text, errors="coerce").astype("Float64")
        if kind == "Int64" and (values.dropna() % 1 != 0).any():
            raise TableError(f"{where}: column {name!r} must hold whole numbers")
        values, expected = values.astype(kind), "numbers"
    if (bad := values.isna() & ~missing).any():
        raise TableError(
            f"{where}: column {name!r} must hold {expected}; got {_few(bad, frame[name])} "
            f"for {_few(bad, frame['image_id'])}"
        )
    return values


def _known(
    table: pd.DataFrame, column: str, good: pd.Series, where: str | Path, expected: object
) -> None:
    bad = table[column].notna() & ~good.fillna(False).astype(bool)
    if bad.any():
        raise TableError(
            f"{where}: column {column!r} must be one of {expected}; got "
            f"{_few(bad, table[column])} for {_few(bad, table['image_id'])}"
        )


def _few(chosen: pd.Series, values: pd.Series | None = None) -> str:
    found = (chosen.index if values is None else values)[chosen.to_numpy(bool)]
    return ", ".join(map(str, found[:5])) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def read(path: str | Path) -> pd.DataFrame:
    """Read and validate a table written by :func:`write`."""
    return validate(read_csv(path, dtype="string", keep_default_na=False), path)


def write(path: str | Path, frame: pd.DataFrame) -> Path:
    """Validate and write a table as CSV; missing values are empty cells."""
    return write_csv(path, validate(frame, path))


# --------------------------------------------------------------------------------- images


@lru_cache(maxsize=8)
def _archive(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _open_bytes(address: str) -> bytes:
    archive, inside, member = address.partition("::")
    return _archive(archive).read(member) if inside else Path(address).read_bytes()


def load_image(address: str, size: int, crop: str | None = "center") -> np.ndarray:
    """One image (size, size, 3) uint8.

    Args:
        crop: "center" cuts the largest centred square, which keeps shapes but may cut a ruler at
            the long ends; None squeezes the whole image into the square.

    Raises:
        TableError: the file is absent, or is not a whole image.
    """
    if address.startswith("phantom::"):
        from derm_rl.data.phantom import render_path

        return render_path(address, size)
    try:
        with Image.open(io.BytesIO(_open_bytes(address))) as opened:
            image = opened.convert("RGB")
    except (FileNotFoundError, KeyError) as error:
        raise TableError(f"image {address}: not found") from error
    except (OSError, UnidentifiedImageError, SyntaxError, zipfile.BadZipFile) as error:
        raise TableError(f"image {address}: cannot be decoded ({error})") from error
    if crop == "center":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif crop is not None:
        raise ValueError(f"crop must be 'center' or None, got {crop!r}")
    return np.asarray(image.resize((size, size), Image.Resampling.BOX if image.width > 2 * size
                                   else Image.Resampling.LANCZOS))  # fmt: skip


class Images(Sequence):
    """Images of a table, decoded when asked for, by position or by id."""

    def __init__(
        self,
        frame: pd.DataFrame,
        size: int,
        crop: str | None = "center",
        load: Callable[[str, int, str | None], np.ndarray] = load_image,
    ) -> None:
        self.paths = frame["path"].tolist()
        self.position = {name: i for i, name in enumerate(frame["image_id"])}
        self.size, self.crop, self.load = size, crop, load

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int | str) -> np.ndarray:
        """Image (size, size, 3) uint8."""
        index = self.position[key] if isinstance(key, str) else key
        return self.load(self.paths[index], self.size, self.crop)


def load_images(
    frame: pd.DataFrame, size: int, crop: str | None = "center", progress: bool = False
) -> tuple[np.ndarray, dict[str, str]]:
    """Decode all images of a table, in parallel.

    Returns:
        images (N, size, size, 3) uint8, black where one failed, and the reason by image id of
        those that failed.
    """
    from joblib import Parallel, delayed
    from tqdm.auto import tqdm

    addresses = frame["path"].tolist()
    chunks = [addresses[i : i + 100] for i in range(0, len(addresses), 100)]
    done = Parallel(n_jobs=-1, return_as="generator")(
        delayed(_load_chunk)(chunk, size, crop) for chunk in chunks
    )
    results = []
    for chunk in tqdm(done, total=len(chunks), desc="images", unit="×100", mininterval=1,
                      disable=not progress):  # fmt: skip
        results += chunk
    images = np.zeros((len(addresses), size, size, 3), np.uint8)
    failed = {}
    for i, result in enumerate(results):
        if isinstance(result, str):
            failed[str(frame["image_id"].iloc[i])] = result
        else:
            images[i] = result
    return images, failed


def _load_chunk(addresses: list[str], size: int, crop: str | None) -> list[np.ndarray | str]:
    results: list[np.ndarray | str] = []
    for address in addresses:
        try:
            results.append(load_image(address, size, crop))
        except TableError as error:
            results.append(str(error))
    return results
