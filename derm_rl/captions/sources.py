"""The images of a preset's sources: one table, and every image encoded and measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from derm_rl import paths
from derm_rl.captions import store
from derm_rl.captions.store import Store
from derm_rl.data import NOTES, splits, table
from derm_rl.data.open_access import reading
from derm_rl.io import write_atomic, write_csv

if TYPE_CHECKING:
    from derm_rl.config import Config

STAGE = "09_image_text_pairs"
SAME_IMAGES = "captions_same_images.csv"


def folder_of(config: Config, name: str) -> Path | None:
    """Folder of a source: ``data_root/name``, or where ``derm-rl fetch`` puts it.

    The folder of an only source may be ``data_root`` itself. None for the phantom.
    """
    if name == "phantom":
        return None
    root, fetched = config.data_root, paths.RUNS / "sources" / name
    places = [fetched] if root is None else [root / name, fetched]
    if root is not None and len(config.captions.sources) == 1:
        places.append(root)
    return next((p for p in places if p.is_dir()), places[0])


def read(config: Config, verify: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table of the images of all sources, by id, and what was left out (image_id, reason).

    ``verify`` decodes every image; without it a damaged one is not found. ``attrs["notes"]`` of the
    latter says what the published tables lack.

    Raises:
        TableError: a source cannot be read, or two sources share an image id.
    """
    settings, frames, left_out, notes = config.captions, [], [], []
    for name in settings.sources:
        seed = settings.phantom_seed if name == "phantom" else config.seed
        frame, excluded = reading.read(
            name,
            folder_of(config, name),
            on_error=settings.on_error,
            images=settings.images,
            seed=seed,
            verify=verify,
        )
        frames.append(frame)
        left_out.append(excluded)
        notes += [f"{name}: {note}" for note in excluded.attrs.get("notes", [])]
    frame = pd.concat(frames, ignore_index=True)
    if (double := frame["image_id"].duplicated()).any():
        raise table.TableError(
            f"captions.sources: image ids occur in more than one source, or twice: "
            f"{table.few(frame['image_id'][double].tolist())}. Leave one of the sources out of "
            "captions.sources, or one of the copies out of its folder and table"
        )
    frame = frame.sort_values("image_id", kind="stable").reset_index(drop=True)
    excluded = pd.concat(left_out, ignore_index=True)
    excluded.attrs["notes"] = notes
    return frame, excluded


def prepare(config: Config, progress: bool = True) -> tuple[pd.DataFrame, Store]:
    """The table of images, and the images encoded and measured; prints what the tables lack."""
    folder, settings = config.stage_dir(STAGE), config.captions
    frame, excluded = read(config)
    notes = excluded.attrs["notes"]
    for note in notes:
        print(f"note on the tables: {note}")
    write_atomic(folder / NOTES, "".join(f"{note}\n" for note in notes))
    if set(settings.sources) != {"phantom"}:  # drawn ones are not compared
        roots = {folder_of(config, name) for name in settings.sources} | {config.data_root}
        cache = paths.RUNS / "same_images" / f"{'+'.join(sorted(settings.sources))}.npz"
        frame, ties = splits.with_ties(frame, sorted(roots - {None}), cache, progress)
        for place in (folder, config.figures_dir):
            write_csv(place / SAME_IMAGES, ties)
        print(splits.described(ties, SAME_IMAGES))
    table.write(folder / "images.csv", frame)
    write_csv(folder / "exclusions.csv", excluded)
    # What a run with other settings has measured of the same images need not be measured again.
    others = [p for p in sorted(folder.parent.glob(f"{STAGE}*/parts")) if p.parent != folder]
    images = store.prepare(
        frame, folder / "parts", settings.image_size, settings.measured_size,
        progress=progress, others=others,
    )  # fmt: skip
    return frame, images


def kept(config: Config, frame: pd.DataFrame) -> pd.DataFrame:
    """A table without the images that the stage, once run, left out.

    Finding damaged ones takes decoding every image, and they are in none of the parts. An image
    of which a row was left out may still be used: then it is in the stage's own table.
    """
    folder = config.stage_dir(STAGE)
    try:
        out, used = (
            pd.read_csv(folder / name, dtype="string", usecols=["image_id"])["image_id"]
            for name in ("exclusions.csv", "images.csv")
        )
    except FileNotFoundError:
        return frame
    return frame[~frame["image_id"].isin(set(out) - set(used))].reset_index(drop=True)


def prepared(config: Config, frame: pd.DataFrame) -> Store:
    """What earlier runs of a preset have encoded and measured, under any overrides; no more."""
    settings = config.captions
    folders = (paths.RUNS / config.name).glob(f"{STAGE}*/parts")
    return store.prepared(frame, sorted(folders), settings.image_size, settings.measured_size)


def load(config: Config) -> tuple[pd.DataFrame, Store]:
    """What :func:`prepare` made, of a finished stage."""
    folder = config.require(STAGE)
    frame = table.read(folder / "images.csv")
    parts = sorted((folder / "parts").glob("*.parquet"))
    if len(parts) != -(-len(frame) // store.PART):
        raise store.StoreError(
            f"{folder / 'parts'}: {len(parts)} files for {len(frame)} images, which are "
            f"{-(-len(frame) // store.PART)}; run {config.command('--from', STAGE[:2])}"
        )
    return frame, Store(parts, frame["image_id"].tolist())
