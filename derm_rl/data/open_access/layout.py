"""What the readers share: rows and their values, images where they are, damage and doubles."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from derm_rl.data.columns import Columns
from derm_rl.data.dermoscopy import Exclusions, find_images, found, note_unlisted, unique
from derm_rl.data.images import ENDINGS, read_bytes
from derm_rl.data.open_access import values
from derm_rl.data.table import COLUMNS, TableError, read_image


def one_row_each(frame: pd.DataFrame, file: Path, exclusions: Exclusions) -> pd.DataFrame:
    """Of rows repeated word for word use one; of rows that differ, no one knows the right."""
    again = frame.duplicated()
    # Reported, but no error: nothing is lost.
    reason = f"row repeated in {file.name}; the image is used once"
    exclusions.rows += [
        {"image_id": i, "reason": reason} for i in frame["image_id"][again].drop_duplicates()
    ]
    return unique(frame[~again], file, exclusions)


def about(frame: pd.DataFrame, wanted: Columns, **otherwise: str) -> dict[str, pd.Series]:
    """What a source says of person, site and rights, as far as its columns are known.

    Keys age, sex, site, skin_type, licence, attribution; ``otherwise`` holds what is true of an
    image of which the table says nothing (``licence="CC-BY-4.0"``).
    """
    kinds = {"sex": values.sexes, "site": values.lower}
    told = ("age", "sex", "site", "skin_type", "licence", "attribution")
    out = {name: wanted.get(frame, name) for name in told if name in wanted.all}
    out |= {name: kinds[name](out[name]) for name in kinds if name in out}
    return out | {name: out[name].fillna(text) for name, text in otherwise.items()}


def further(frame: pd.DataFrame, wanted: Columns) -> pd.DataFrame:
    """What else was published of each image, as text, behind the common columns.

    Levels of a hierarchy (``anatom_site_1``) are there too, though one of them is the site; a
    column that has the name of a common one and is not known to be it gets ``published_`` before.
    """
    owner = {c: name for name in wanted.all for c in wanted.there(frame, name)}
    out: dict[str, pd.Series] = {}
    for column in frame.columns.drop("image_id"):
        name = owner.get(column)
        if name is not None and name not in COLUMNS:
            out[name] = values.tokens(wanted.get(frame, name))
        if name is None or re.search(r"_[1-5]$", column):
            known = f"published_{column}" if column in COLUMNS else column
            out.setdefault(known, values.tokens(frame[column]))
    return pd.DataFrame(out, index=frame.index)


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
    note_unlisted(images, root, exclusions)
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
    reason = f"unreadable age in {file.name}: {found(frame['age'][~good])}; expected years from 0 "
    frame = exclusions.keep(frame, good, reason + "to 120 or a band such as 40-49")
    types, good = values.parsed(frame["skin_type"], values.skin_type)
    said = found(frame["skin_type"][~good])
    reason = f"unreadable skin type in {file.name}: {said}; expected 1 to 6 or I to VI"
    frame = exclusions.keep(frame, good, reason)
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
    """Leave out images that cannot be decoded to their end, or are too large or too small."""
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
    """Why an image cannot be used; None if it can: then whatever reads it later can, too."""
    try:
        read_image(address, draft=8)
    except TableError as error:
        return str(error).replace(f"image {address}: ", "image ", 1)
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
