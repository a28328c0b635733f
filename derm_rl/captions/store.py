"""Images as a teacher is shown them, with their measurements: encoded once, kept in small files.

Drawing, decoding and measuring are most of the work of a run, so they happen once, in parallel,
in parts of ``PART`` images. A part is a Parquet file that is there whole or not at all, named by a
hash of all it depends on: an interrupted run goes on where it was, and a change in the code that
draws, encodes or measures, a size or a file remakes what it touches.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from derm_rl import dependencies
from derm_rl.captions.schema import Measurements
from derm_rl.data import table
from derm_rl.data.images import MIN_SIDE
from derm_rl.io import atomic_path, cannot_read, passing, set_aside

if TYPE_CHECKING:
    from PIL.Image import Image

PART = 128  # images of a file


@dataclass(frozen=True)
class Stored:
    """One image: its encoded bytes, and what was measured in it."""

    image_id: str
    image: bytes
    measurements: Measurements | None


class StoreError(table.TableError):
    """A part is torn or gone; the message names it, and the stage that makes it again."""


class Store:
    """The parts of :func:`prepare`, read as they are needed; the last few stay in memory.

    Where a part is None, ``blank`` stands for each of its images.
    """

    def __init__(
        self, parts: Sequence[Path | None], image_ids: Sequence[str], blank: bytes = b""
    ) -> None:
        self.parts, self.blank = list(parts), blank
        self._part_of = {name: i // PART for i, name in enumerate(image_ids)}
        self._read = lru_cache(maxsize=4)(_read_part)

    def __len__(self) -> int:
        return len(self._part_of)

    def __iter__(self) -> Iterator[Stored]:
        for part in self.parts:
            yield from self._read(part).values()

    def __getitem__(self, image_id: str) -> Stored:
        if image_id not in self._part_of:
            raise KeyError(f"no image {image_id!r} among the {len(self)} that were prepared")
        part = self.parts[self._part_of[image_id]]
        return self._read(part)[image_id] if part else Stored(image_id, self.blank, None)

    def image(self, image_id: str) -> bytes:
        """The encoded image: for a release and for readers."""
        return self[image_id].image

    def measurements(self) -> dict[str, Measurements]:
        """By image id, without loading the images."""
        found = {}
        for part in self.parts:
            rows = _rows(part, ["image_id", "measurements"])
            texts = zip(rows["image_id"], rows["measurements"], strict=True)
            found |= {name: loads(text) for name, text in texts}
        return found


def prepare(
    frame: pd.DataFrame,
    folder: str | Path,
    image_size: int,
    measured_size: int,
    workers: int | None = None,
    progress: bool = True,
    others: Iterable[Path] = (),
) -> Store:
    """Encode and measure every image of a table, in its order, in parallel.

    Args:
        frame: with ``image_id`` and ``path``.
        folder: of the parts; what is there and still right is not made again.
        image_size: longest side in pixels at most. A plain smaller file is kept byte for byte
            (:func:`derm_rl.captions.export_images.clean`); a larger one is shrunk. Phantoms are
            drawn at this size.
        measured_size: longest side at which an image is measured.
        others: folders of other stores, whose parts are taken where they are the same.

    Raises:
        TableError: an image is missing or damaged, and is named.
        OSError: a file cannot be read just now; no part that is there is touched.
    """
    from joblib import Parallel, delayed, effective_n_jobs
    from tqdm import tqdm

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    blocks, names = _named(frame, image_size, measured_size)
    parts, others = [folder / name for name in names], list(others)
    todo = [(b, p) for b, p in zip(blocks, parts, strict=True) if not _there(p, others)]
    jobs = effective_n_jobs(workers or -1) if len(todo) > 2 else 1
    parallel = Parallel(n_jobs=jobs, return_as="generator_unordered")
    done = parallel(
        delayed(_write_part)(b["image_id"].tolist(), b["path"].tolist(), p, image_size,
                             measured_size)
        for b, p in todo
    )  # fmt: skip
    bar = tqdm(
        total=len(frame), desc="encode, measure", unit="image", mininterval=1, disable=not progress
    )
    bar.update(len(frame) - sum(len(b) for b, _ in todo))
    for count in done:
        bar.update(count)
    bar.close()
    for old in set(folder.glob("*.parquet")) - set(parts):  # now that nobody needs them
        old.unlink(missing_ok=True)
    return Store(parts, frame["image_id"].tolist())


def prepared(
    frame: pd.DataFrame, folders: Sequence[Path], image_size: int, measured_size: int
) -> Store:
    """The parts that :func:`prepare` has left in any of ``folders``; nothing is made.

    An image that is in none is a blank square, for what only counts requests and tokens.
    """
    from PIL import Image

    from derm_rl.captions.export_images import encoded

    _, names = _named(frame, image_size, measured_size)
    places = [[folder / name for folder in folders] for name in names]
    parts = [next((p for p in found if p.is_file()), None) for found in places]
    blank = encoded(Image.new("RGB", (image_size, image_size)), "PNG")
    return Store(parts, frame["image_id"].tolist(), blank)


def _named(
    frame: pd.DataFrame, image_size: int, measured_size: int
) -> tuple[list[pd.DataFrame], list[str]]:
    """Blocks of rows, and the names of their parts."""
    blocks = [frame.iloc[i : i + PART] for i in range(0, len(frame), PART)]
    facts = {"image_size": image_size, "measured_size": measured_size}
    facts |= {"code": dependencies.code("derm_rl.captions.store")}
    return blocks, [f"{i:05d}-{_identity(b, facts)}.parquet" for i, b in enumerate(blocks)]


def _identity(block: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    images = list(zip(block["image_id"], block["path"], map(_changed, block["path"]), strict=True))
    text = json.dumps([images, facts], sort_keys=True)
    return sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _changed(address: str) -> list[int]:
    """Size and time of the file behind an address; nothing for what is drawn."""
    scheme = address.partition("::")[0]
    if scheme in table.OPENERS:
        return []
    try:
        found = Path(scheme).stat()
    except OSError as error:
        if passing(error):
            raise cannot_read(scheme, error) from error
        return []  # reading it will say so
    return [found.st_size, found.st_mtime_ns]


def _there(part: Path, others: Sequence[Path]) -> bool:
    """Whether a part is there whole, here or in another store: then it is linked from there."""
    for path in (part, *(folder / part.name for folder in others)):
        try:
            with open(path, "rb") as file:
                begin = file.read(4)
                file.seek(-4, os.SEEK_END)
                whole = begin == file.read(4) == b"PAR1"
        except FileNotFoundError:
            continue
        except OSError as error:
            if passing(error):
                raise cannot_read(path, error) from error
            whole = False  # shorter than that
        if not whole:
            set_aside(path, "torn", "not a whole Parquet file")
            continue
        if path != part:
            try:
                os.link(path, part)
            except OSError:  # another disk, or one without links
                with atomic_path(part) as temporary:
                    shutil.copyfile(path, temporary)
        return True
    return False


def _write_part(
    image_ids: Sequence[str], addresses: Sequence[str], path: Path, image_size: int, size: int
) -> int:
    """Make one part; returns how many images it holds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from derm_rl.captions.measure import measure

    images, measured = [], []
    for address in addresses:
        content, image = encode(address, image_size)
        images.append(content)
        measured.append(dumps(measure(np.asarray(_shrunk(image, size)))))
    columns = {"image_id": list(image_ids), "image": images, "measurements": measured}
    kinds = pa.schema({"image_id": pa.string(), "image": pa.binary(), "measurements": pa.string()})
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=kinds), temporary, compression="zstd")
    return len(images)


def _rows(part: Path, columns: Sequence[str] | None = None) -> dict[str, list]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = part.read_bytes()  # by Python: an error of pyarrow below is one of the content
    try:
        return pq.read_table(pa.BufferReader(content), columns=columns).to_pydict()
    except (pa.ArrowException, OSError) as error:
        aside = set_aside(part, "torn", f"damaged ({error})")
        raise StoreError(
            f"{part}: damaged images or measurements, kept as {aside.name}; run the stage again"
        ) from error


def _read_part(path: Path) -> dict[str, Stored]:
    rows = _rows(path)
    columns = (rows["image_id"], rows["image"], rows["measurements"])
    return {n: Stored(n, image, loads(text)) for n, image, text in zip(*columns, strict=True)}


def encode(address: str, size: int) -> tuple[bytes, Image]:
    """An image as PNG or JPEG, its longest side at most ``size``; and the same decoded, RGB.

    Raises:
        TableError: it is missing or damaged.
    """
    from PIL import Image

    from derm_rl.captions.export_images import JPEG, clean, encoded

    if address.partition("::")[0] in table.OPENERS:
        image = Image.fromarray(table.load_image(address, size))
        return encoded(image, "PNG"), image
    content, image = table.read_image(address)
    if max(image.size) <= size:
        return clean(content, image), image
    image = _shrunk(image, size)
    return encoded(image, "JPEG" if content.startswith(JPEG) else "PNG"), image


def _shrunk(image: Image, size: int) -> Image:
    from PIL import Image as pillow

    # The shorter side of a strip keeps the pixels that measuring needs.
    size = max(size, -(-MIN_SIDE * max(image.size) // min(image.size)))
    if max(image.size) <= size:
        return image
    image = image.copy()
    image.thumbnail((size, size), pillow.Resampling.LANCZOS)
    return image


def dumps(measurements: Measurements) -> str:
    """Measurements as JSON."""
    return json.dumps(asdict(measurements), default=float, sort_keys=True)


def loads(text: str) -> Measurements:
    """Inverse of :func:`dumps`."""
    values = json.loads(text)
    values["box"] = None if values["box"] is None else tuple(values["box"])
    return Measurements(**values | {"colours": tuple(values["colours"])})
