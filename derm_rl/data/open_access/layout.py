"""What the readers share: tables of any separator, images where they are, damage and doubles."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from derm_rl.data.dermoscopy import ENDINGS, Exclusions, find_images, unique
from derm_rl.data.open_access import values
from derm_rl.data.table import COLUMNS, SMALLEST, TableError, few, read_bytes
from derm_rl.io import read_csv

SEPARATORS = (",", ";", "\t")


def read_table(file: Path, needed: Sequence[str | tuple[str, ...]]) -> pd.DataFrame:
    """A published table as clean text, its column names in lower case.

    Args:
        needed: columns that must be there; of a tuple any one, which then has the first name.

    Raises:
        TableError: the file is not a table in UTF-8, or a needed column is missing.
    """
    try:
        with open(file, encoding="utf-8-sig") as opened:
            header = opened.readline()
        separator = max(SEPARATORS, key=header.count)
        frame = read_csv(
            file, dtype="string", keep_default_na=False, sep=separator, encoding="utf-8-sig",
            index_col=False,
        )  # fmt: skip
    except ValueError as error:  # UnicodeDecodeError is one
        raise TableError(f"{file}: {error}; expected a table in UTF-8") from error
    frame.columns = [str(c).strip().lower() for c in frame.columns]
    if (double := frame.columns.duplicated()).any():
        raise TableError(f"{file}: columns twice: {few(list(frame.columns[double]))}")
    names: dict[str, str] = {}
    for column in needed:
        ways = (column,) if isinstance(column, str) else column
        there = next((c for c in ways if c in frame), None)
        if there is None:
            raise TableError(
                f"{file}: column {' or '.join(map(repr, ways))} is missing; "
                f"found {', '.join(frame.columns)}"
            )
        names[there] = ways[0]
    return frame.rename(columns=names).apply(values.clean)


def with_ids(frame: pd.DataFrame, ids: pd.Series, file: Path) -> pd.DataFrame:
    """Column image_id first, from names of files with or without folder and ending.

    Raises:
        TableError: rows without a name.
    """
    if (empty := ids.isna()).any():
        lines = [int(i) + 2 for i in frame.index[empty]]
        raise TableError(f"{file}: column {str(ids.name)!r} is empty in lines {few(lines)}")
    names = ids.str.replace(r"^.*[/\\]", "", regex=True)
    names = names.str.replace(r"(?i)\.(?:jpe?g|png)$", "", regex=True)
    frame = frame.drop(columns="image_id", errors="ignore")
    frame.insert(0, "image_id", names)
    return frame


def one_row_each(frame: pd.DataFrame, file: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Of rows repeated word for word use one; of rows that differ, no one knows the right."""
    again = frame.duplicated()
    # Reported, but no error: nothing is lost.
    reason = f"row repeated in {file.name}; the image is used once"
    exclusions.rows += [
        {"image_id": i, "reason": reason} for i in frame["image_id"][again].drop_duplicates()
    ]
    return unique(frame[~again], file, exclusions)


def column(frame: pd.DataFrame, *names: str) -> pd.Series:
    """The first of ``names`` that the table has; all missing if it has none."""
    found = next((name for name in names if name in frame), None)
    if found is None:
        return pd.Series(pd.NA, index=frame.index, dtype="string")
    return frame[found]


def further(frame: pd.DataFrame, used: Collection[str]) -> pd.DataFrame:
    """What else was published of each image, as text, behind the common columns."""
    names = [c for c in frame if c not in used and c != "image_id" and c not in COLUMNS]
    return frame[names].apply(values.tokens)


def locate(root: Path, *patterns: str) -> dict[str, str]:
    """Address of every image by id, in folders and zip archives that match a pattern.

    Raises:
        TableError: there is no image, or one in two places.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        if not any(map(_holds_images, root.glob(pattern))):
            continue
        for name, address in find_images(root, pattern).items():
            if found.setdefault(name, address) != address:
                raise TableError(
                    f"{root}: image {name} is there twice, {found[name]} and {address}; keep one"
                )
    return found or find_images(root, patterns[0])  # names ISIC_* in root itself, or the error


def _holds_images(place: Path) -> bool:
    if place.is_dir():
        return any(f.suffix.lower() in ENDINGS for f in place.rglob("*"))
    return place.suffix.lower() == ".zip"


def with_paths(
    frame: pd.DataFrame, images: dict[str, str], root: Path, exclusions: Exclusions
) -> pd.DataFrame:
    """Add column path; names of files may differ in case if that is not ambiguous."""
    folded: dict[str, list[str]] = {}
    for name in images:
        folded.setdefault(name.casefold(), []).append(name)

    def address(image_id: str) -> str | None:
        alike = folded.get(image_id.casefold(), [])
        return images.get(image_id) or (images[alike[0]] if len(alike) == 1 else None)

    paths = pd.Series([address(i) for i in frame["image_id"]], index=frame.index, dtype="string")
    frame = exclusions.keep(frame.assign(path=paths), paths.notna(), f"no image file under {root}")
    if (again := frame["path"].duplicated(keep=False)).any():  # a.jpg for rows a and A
        frame = exclusions.keep(frame, ~again, "one image file for several rows")
    return frame


def with_values(frame: pd.DataFrame, file: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Columns age (years or bands, as text) and skin_type as numbers; age_band, age_midpoint."""
    ages, good = values.parsed(frame["age"], values.age)
    frame = exclusions.keep(frame, good, f"unreadable age in {file.name}")
    types, good = values.parsed(frame["skin_type"], values.skin_type)
    frame = exclusions.keep(frame, good, f"unreadable skin type in {file.name}")
    triples = [a or (None, None, None) for a in ages[frame.index]]
    years, bands, midpoints = (
        (list(x) for x in zip(*triples, strict=True)) if triples else ([],) * 3
    )
    frame = frame.assign(age=years, skin_type=list(types[frame.index]))
    if any(bands):
        middle = ["" if m is None else f"{m:g}" for m in midpoints]
        frame = frame.assign(age_band=bands, age_midpoint=middle)
    return frame


# ------------------------------------------------------------------------ the image files


def without_damage(frame: pd.DataFrame, exclusions: Exclusions) -> pd.DataFrame:
    """Leave out images that cannot be decoded to their end, or are too small to show anything."""
    from joblib import Parallel, delayed
    from tqdm import tqdm

    addresses = frame["path"].tolist()
    # Threads suffice: Pillow decodes outside the interpreter lock.
    parallel = Parallel(n_jobs=-1, prefer="threads", return_as="generator")
    done = parallel(delayed(damage)(address) for address in addresses)
    bar = tqdm(
        done, total=len(addresses), desc="checking images", unit="image", mininterval=1,
        disable=None,
    )  # fmt: skip
    found = pd.Series(list(bar), index=frame.index, dtype="string")
    for reason in found.dropna().unique():
        frame = exclusions.keep(frame, found[frame.index].fillna("") != reason, reason)
    return frame


def damage(address: str) -> str | None:
    """Why an image cannot be used; None if it can, decoded to its end."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read_bytes(address))) as opened:
            if min(opened.size) < SMALLEST:
                return f"image of {opened.width} × {opened.height} pixels, {SMALLEST} are needed"
            # A JPEG is read to its end at an eighth of its size, in a fraction of the time.
            opened.draft("RGB", (opened.width // 8, opened.height // 8))
            opened.load()
    except Exception as error:  # decoders raise anything on hostile bytes
        said = re.sub(r" ?<.*?>", "", str(error))  # <_io.BytesIO object at …>
        return f"image cannot be decoded ({said[:200] or type(error).__name__})"
    return None


def with_doubles(frame: pd.DataFrame, exclusions: Exclusions) -> pd.DataFrame:
    """Column same_image_as: id of the first image whose file has the same content, or missing.

    Such images stay, as they are published under several ids; a split must not part them. Where
    their diagnoses differ, none is known to be right, and all are left out.
    """
    group = pd.Series(same_content(frame["path"].tolist()), index=frame.index, dtype="object")
    several = frame[group.duplicated(keep=False)]
    first: dict[str, str] = {}
    for _, rows in several.groupby(group[several.index], sort=False):
        ids = rows["image_id"].tolist()
        first |= dict.fromkeys(ids[1:], ids[0])
        said = rows[["diagnosis", "label"]].astype("string").fillna("")
        if len(said.drop_duplicates()) > 1:
            exclusions.add(ids, f"same image file with different diagnoses ({', '.join(ids)})")
            frame = frame[~frame["image_id"].isin(ids)]
    return frame.assign(same_image_as=frame["image_id"].map(first).astype("string"))


def same_content(addresses: Sequence[str]) -> list[str]:
    """A name of the content of each file: equal exactly if the bytes are.

    Only files of equal size are read; the others have their address for a name.
    """
    sizes = _sizes(addresses)
    counts = Counter(sizes)
    return [
        hashlib.sha256(read_bytes(a)).hexdigest() if size >= 0 and counts[size] > 1 else a
        for a, size in zip(addresses, sizes, strict=True)
    ]


def _sizes(addresses: Sequence[str]) -> list[int]:
    members: dict[str, dict[str, int]] = {}
    sizes = []
    for address in addresses:
        archive, inside, member = address.partition("::")
        if not inside:
            sizes.append(os.stat(address).st_size)
            continue
        if archive not in members:
            with zipfile.ZipFile(archive) as opened:
                members[archive] = {i.filename: i.file_size for i in opened.infolist()}
        sizes.append(members[archive].get(member, -1))
    return sizes
