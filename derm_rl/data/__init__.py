"""Stage 01: from a source of images to one table, a vocabulary, splits and an array of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from derm_rl import paths, prompts, provenance
from derm_rl.data import splits, table
from derm_rl.io import atomic_path, read_json, reserve, write_atomic, write_csv, write_json

if TYPE_CHECKING:
    from derm_rl.config import Config

STAGE = "01_data"
SAME_IMAGES = "data_same_images.csv"
EXCLUSION_COLUMNS = ["image_id", "reason"]
NOTES = "table_notes.txt"  # what the published tables lack, a line each; empty if nothing


@dataclass(frozen=True)
class Vocabulary:
    """What prompts of a data set can name; ``left_out``: rarer artifacts and their counts."""

    diagnoses: tuple[str, ...]
    artifacts: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def label_names(self) -> list[str]:
        return prompts.label_names(self.diagnoses, self.artifacts)


@dataclass(frozen=True)
class Dataset:
    """Rows of a table with their images (N, S, S, 3) uint8, memory-mapped or copied."""

    frame: pd.DataFrame
    images: np.ndarray
    diagnoses: tuple[str, ...]
    artifacts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def label_names(self) -> list[str]:
        return prompts.label_names(self.diagnoses, self.artifacts)

    @property
    def findings(self) -> list[prompts.Finding]:
        """What each image's prompt says; an artifact outside the vocabulary goes unnamed."""
        return findings_of(self.frame, self.artifacts)

    @property
    def labels(self) -> np.ndarray:
        """(N, L) float32, columns as in ``label_names``."""
        names = self.label_names
        return np.array([prompts.labels(f, names) for f in self.findings], np.float32)

    @property
    def lesion_ids(self) -> np.ndarray:
        return splits.groups(self.frame).to_numpy(str)


def findings_of(frame: pd.DataFrame, artifacts: Sequence[str]) -> list[prompts.Finding]:
    """Diagnosis and those of ``artifacts`` that are present, of each row of a table."""
    present = frame[list(artifacts)].to_numpy(bool)
    return [
        prompts.Finding(d, tuple(a for a, p in zip(artifacts, row, strict=True) if p))
        for d, row in zip(frame["diagnosis"], present, strict=True)
    ]


def prepare(config: Config, progress: bool = True) -> Path:
    """Stage 01 of a preset; prints what is in the data, what was left out and why.

    Writes ``table.csv`` (column split; rows in order of the splits, so that a split is one slice),
    ``images.npy`` aligned with it, ``masks.npy`` (the phantom's lesions), ``vocabulary.json``,
    ``exclusions.csv``, ``table_notes.txt`` (columns that were expected and are absent or empty,
    image files without a row); of real data ``published_splits.csv`` (lesions that the splits
    published with the data share) and, also beside the figures, ``data_same_images.csv`` (pairs of
    images that show the same, see :func:`derm_rl.data.splits.with_ties`); and ``stage.json``.

    Raises:
        TableError: the source cannot be read; see the readers, and ``data.on_error``.
        ValueError: the settings do not fit the data.
    """
    folder = config.stage_dir(STAGE)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").unlink(missing_ok=True)  # unfinished from here on
    frame, excluded = read_source(config)
    notes = excluded.attrs.get("notes", [])
    shares = config.data.split.model_dump()
    if config.data.source != "phantom" and (config.data.images or len(frame)) < len(frame):
        frame = _subset(frame, config.data.images, config.seed)
    if config.data.source != "phantom":
        cache = paths.RUNS / "same_images" / f"{config.data.source}.npz"
        frame, ties = splits.with_ties(frame, [config.data_root], cache, progress)
        for place in (folder, config.figures_dir):
            write_csv(place / SAME_IMAGES, ties)
    strata = ["diagnosis", *choose_vocabulary(frame, config).artifacts]
    frame["split"] = splits.assign(frame, shares, config.seed, strata)
    rank = frame["split"].map({name: i for i, name in enumerate(shares)})
    frame = frame.iloc[np.argsort(rank.to_numpy(int), kind="stable")].reset_index(drop=True)

    failed = _write_images(folder, frame, config, progress)
    frame = frame[~frame["image_id"].isin(failed.keys())].reset_index(drop=True)
    rows = pd.DataFrame(list(failed.items()), columns=EXCLUSION_COLUMNS)
    excluded = pd.concat([excluded, rows], ignore_index=True)
    vocabulary = choose_vocabulary(frame, config)  # again: of the images that can be decoded
    table.write(folder / "table.csv", frame)
    write_csv(folder / "exclusions.csv", excluded)
    write_atomic(folder / NOTES, "".join(f"{note}\n" for note in notes))
    write_json(
        folder / "vocabulary.json",
        {
            "diagnoses": list(vocabulary.diagnoses),
            "artifacts": list(vocabulary.artifacts),
            "left_out": dict(vocabulary.left_out),
        },
    )
    if "official_split" in frame:
        write_csv(folder / "published_splits.csv", splits.shared_lesions(frame))
    provenance.stamp(config, STAGE, images=len(frame), excluded=len(excluded))
    _report(config, folder, vocabulary, excluded, notes)
    return folder


def read_source(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table of a preset's images and the exclusions, before any image is decoded."""
    settings = config.data
    if settings.source == "phantom":
        from derm_rl.data import phantom

        if not settings.images:
            raise ValueError("preset with the phantom: data.images must say how many to draw")
        frame = table.validate(phantom.table(settings.images, settings.phantom_seed), "phantom")
        return frame, pd.DataFrame(columns=EXCLUSION_COLUMNS)
    from derm_rl.config import check_data_root
    from derm_rl.data import ham10000, isic2019

    check_data_root(config)
    reader = {"ham10000": ham10000, "isic2019": isic2019}[settings.source]
    return reader.read(config.data_root, settings.diagnoses, on_error=settings.on_error)


def _subset(frame: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Whole lesions, stratified by diagnosis and artifacts, until about ``n`` images."""
    parts = splits.assign(frame, {"kept": n / len(frame), "rest": 1 - n / len(frame)}, seed)
    return frame[(parts == "kept").to_numpy(bool)].reset_index(drop=True)


def _write_images(
    folder: Path, frame: pd.DataFrame, config: Config, progress: bool
) -> dict[str, str]:
    """Write images.npy (and masks.npy) without the images that fail; return these, with reasons."""
    size = config.image_size
    if config.data.source == "phantom":
        from derm_rl.data import phantom

        images, masks = phantom.render_paths(frame["path"].tolist(), size, progress=progress)
        _save(folder / "images.npy", images)
        _save(folder / "masks.npy", masks)
        return {}
    (folder / "masks.npy").unlink(missing_ok=True)
    with atomic_path(folder / "decoded.npy") as scratch:
        # On disk, not in memory: ISIC 2019 at 512 px is 13 GB.
        images = _create(scratch, (len(frame), size, size, 3))
        failed = table.decode_into(images, frame, config.data.crop, progress)
        if failed and config.data.on_error == "raise":
            raise table.TableError(
                f"{len(failed)} images cannot be read: {'; '.join(list(failed.values())[:3])}. "
                "Correct the files, or set data.on_error=exclude to leave such images out"
            )
        images.flush()
    good = np.flatnonzero(~frame["image_id"].isin(failed.keys()).to_numpy(bool))
    if len(good) == 0:
        raise table.TableError(f"no image can be read: {next(iter(failed.values()))}")
    if failed:
        with atomic_path(folder / "images.npy") as temporary:
            kept = _create(temporary, (len(good), size, size, 3))
            for i in range(0, len(good), 256):
                kept[i : i + 256] = images[good[i : i + 256]]
            kept.flush()
        (folder / "decoded.npy").unlink()
    else:
        (folder / "decoded.npy").replace(folder / "images.npy")
    return failed


def _create(path: Path, shape: tuple[int, ...]) -> np.memmap:
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    reserve(path)
    return array


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        np.save(temporary, array)


def choose_vocabulary(frame: pd.DataFrame, config: Config) -> Vocabulary:
    """Artifacts in at least ``data.min_positives`` images, and the others with their counts."""
    if absent := set(config.data.diagnoses) - set(frame["diagnosis"]):
        raise ValueError(f"data.diagnoses: no image shows {', '.join(sorted(absent))}")
    counts = {a: int(frame[a].sum()) for a in config.data.artifacts}
    least = config.data.min_positives
    kept = tuple(a for a, count in counts.items() if count >= least)
    if not kept:
        raise ValueError(f"no artifact is in {least} images or more (data.min_positives): {counts}")
    left_out = {a: count for a, count in counts.items() if a not in kept}
    return Vocabulary(tuple(config.data.diagnoses), kept, left_out)


def vocabulary(config: Config) -> Vocabulary:
    """What stage 01 found the data can teach."""
    words = read_json(config.require(STAGE) / "vocabulary.json")
    return Vocabulary(tuple(words["diagnoses"]), tuple(words["artifacts"]), words["left_out"])


def load(config: Config, split: str | None = None, ids: Sequence[str] | None = None) -> Dataset:
    """The data set of stage 01, or one split of it, or the images with these ids, in their order.

    All, or a split, stays on disk until it is looked at; writing to the images changes no file.
    """
    folder = config.require(STAGE)
    words = vocabulary(config)
    frame = table.read(folder / "table.csv")
    images = np.load(folder / "images.npy", mmap_mode="c")
    if len(images) != len(frame):
        raise table.TableError(
            f"{folder}: {len(frame)} rows but {len(images)} images; run stage {STAGE} again"
        )
    if split is not None:
        rows = np.flatnonzero((frame["split"] == split).to_numpy(bool))
        if len(rows) == 0:
            known = ", ".join(frame["split"].unique())
            raise ValueError(f"no images in split {split!r}; splits are {known}")
        start, stop = int(rows[0]), int(rows[-1]) + 1  # prepare() sorted them
        frame, images = frame.iloc[start:stop].reset_index(drop=True), images[start:stop]
    if ids is not None:
        rows = pd.Index(frame["image_id"]).get_indexer(pd.Index(list(ids), dtype="string"))
        if (rows < 0).any():
            unknown = [i for i, row in zip(ids, rows, strict=True) if row < 0]
            raise KeyError(f"unknown image ids: {table.few(unknown)}")
        frame, images = frame.iloc[rows].reset_index(drop=True), images[rows]
    return Dataset(frame, images, words.diagnoses, words.artifacts)


def summary(dataset: Dataset) -> pd.DataFrame:
    """Images, lesions and how many images show each finding, by split and in all."""
    frame = dataset.frame
    parts = {name: frame[frame["split"] == name] for name in frame["split"].unique()}
    rows = {
        name: {
            "images": len(part),
            "lesions": splits.groups(part).nunique(),
            **{d: int((part["diagnosis"] == d).sum()) for d in dataset.diagnoses},
            **{a: int(part[a].sum()) for a in dataset.artifacts},
        }
        for name, part in (parts | {"all": frame}).items()
    }
    return pd.DataFrame(rows).T.rename_axis("split")


def _report(
    config: Config, folder: Path, words: Vocabulary, excluded: pd.DataFrame, notes: Sequence[str]
) -> None:
    dataset = load(config)
    print(f"{config.data.source}: {len(dataset):,} images, {config.image_size} px")
    print(summary(dataset).to_string())
    for name, count in words.left_out.items():
        least = config.data.min_positives
        print(f"{name} left out: {count} images, fewer than data.min_positives={least}")
    for note in notes:
        print(f"note on the tables: {note}")
    if len(excluded):
        print(f"{len(excluded):,} images excluded, each named in exclusions.csv:")
        reasons = excluded["reason"]
        damaged = reasons.str.startswith("image ")  # these go on with the name of the file
        for reason, count in reasons.mask(damaged, "damaged file").value_counts().items():
            print(f"  {count:,}: {reason}")
    if (file := folder / SAME_IMAGES).is_file():
        print(splits.described(pd.read_csv(file), file.name))
    if (file := folder / "published_splits.csv").is_file():
        shared = pd.read_csv(file).iloc[-1]
        print(
            f"published splits: {shared['lesions']:,} lesions ({shared['images']:,} images) are in "
            "more than one; here none is"
        )
