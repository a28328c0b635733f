"""Stage 01: from a source of images to one table, a vocabulary, splits and an array of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from derm_rl import prompts, provenance
from derm_rl.data import splits, table
from derm_rl.io import atomic_path, read_json, write_csv, write_json

if TYPE_CHECKING:
    from derm_rl.config import Config

STAGE = "01_data"


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
        present = self.frame[list(self.artifacts)].to_numpy(bool)
        names = np.array(self.artifacts)
        return [
            prompts.Finding(diagnosis, tuple(names[row].tolist()))
            for diagnosis, row in zip(self.frame["diagnosis"], present, strict=True)
        ]

    @property
    def labels(self) -> np.ndarray:
        """(N, L) float32, columns as in ``label_names``."""
        names = self.label_names
        return np.array([prompts.labels(f, names) for f in self.findings], np.float32)

    @property
    def lesion_ids(self) -> np.ndarray:
        return splits.groups(self.frame).to_numpy(str)


def prepare(config: Config, progress: bool = True) -> Path:
    """Stage 01 of a preset.

    Writes ``table.csv`` (with column split), ``images.npy`` aligned with it, ``masks.npy`` (the
    phantom's lesions), ``vocabulary.json``, ``exclusions.csv`` and ``stage.json``.
    """
    folder = config.stage_dir(STAGE)
    folder.mkdir(parents=True, exist_ok=True)
    frame, excluded = read_source(config)
    if config.data.source != "phantom" and config.data.images and config.data.images < len(frame):
        frame = _subset(frame, config.data.images, config.seed)
    if config.data.source == "phantom":
        from derm_rl.data import phantom

        addresses = frame["path"].tolist()
        images, masks = phantom.render_paths(addresses, config.image_size, progress=progress)
        with atomic_path(folder / "masks.npy") as temporary:
            np.save(temporary, masks)
    else:
        images, failed = table.load_images(frame, config.image_size, progress=progress)
        if failed and config.data.on_error == "raise":
            raise table.TableError(
                f"{len(failed)} images cannot be read, the first: {next(iter(failed.values()))}. "
                "Correct the files, or set data.on_error=exclude to leave such images out"
            )
        rows = [{"image_id": k, "reason": v} for k, v in failed.items()]
        excluded = pd.concat([excluded, pd.DataFrame(rows, columns=excluded.columns)])
        good = ~frame["image_id"].isin(failed.keys()).to_numpy(bool)
        frame, images = frame[good].reset_index(drop=True), images[good]
    vocabulary = choose_vocabulary(frame, config)
    strata = ["diagnosis", *vocabulary["artifacts"]]
    frame["split"] = splits.assign(frame, config.data.split.model_dump(), config.seed, strata)

    with atomic_path(folder / "images.npy") as temporary:
        np.save(temporary, images)
    table.write(folder / "table.csv", frame)
    write_csv(folder / "exclusions.csv", excluded)
    write_json(folder / "vocabulary.json", vocabulary)
    provenance.stamp(config, STAGE, images=len(frame), excluded=len(excluded))
    for name, count in vocabulary["left_out"].items():
        least = config.data.min_positives
        print(f"{name} left out of the vocabulary: in {count} images, fewer than {least}")
    if len(excluded):
        print(f"{len(excluded)} images left out: see {folder / 'exclusions.csv'}")
        print(excluded["reason"].value_counts().head(5).to_string())
    return folder


def read_source(config: Config) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table of a preset's images and the exclusions, before any image is decoded."""
    settings = config.data
    if settings.source == "phantom":
        from derm_rl.data import phantom

        if not settings.images:
            raise ValueError("preset with the phantom: data.images must say how many to draw")
        frame = table.validate(phantom.table(settings.images, settings.phantom_seed), "phantom")
        return frame, pd.DataFrame(columns=["image_id", "reason"])
    from derm_rl.config import check_data_root
    from derm_rl.data import ham10000, isic2019

    check_data_root(config)
    reader = {"ham10000": ham10000, "isic2019": isic2019}[settings.source]
    return reader.read(config.data_root, settings.diagnoses, settings.on_error)


def _subset(frame: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Whole lesions, stratified by diagnosis, until about ``n`` images."""
    parts = splits.assign(frame, {"kept": n / len(frame), "rest": 1 - n / len(frame)}, seed)
    return frame[(parts == "kept").to_numpy(bool)].reset_index(drop=True)


def choose_vocabulary(frame: pd.DataFrame, config: Config) -> dict:
    """Artifacts frequent enough to learn, and the others with their counts."""
    counts = {a: int(frame[a].sum()) for a in config.data.artifacts}
    least = config.data.min_positives
    kept = [a for a, count in counts.items() if count >= least]
    if not kept:
        raise ValueError(f"no artifact is in {least} images or more (data.min_positives): {counts}")
    return {
        "diagnoses": list(config.data.diagnoses),
        "artifacts": kept,
        "left_out": {a: count for a, count in counts.items() if a not in kept},
    }


def load(config: Config, split: str | None = None, ids: Sequence[str] | None = None) -> Dataset:
    """The data set of stage 01, or one split of it, or the images with these ids."""
    folder = config.require(STAGE)
    words = read_json(folder / "vocabulary.json")
    frame = table.read(folder / "table.csv")
    images = np.load(folder / "images.npy", mmap_mode="r")
    if split is not None:
        rows = (frame["split"] == split).to_numpy(bool)
        if not rows.any():
            raise ValueError(
                f"no images in split {split!r}; splits are {sorted(frame['split'].unique())}"
            )
        frame, images = frame[rows].reset_index(drop=True), images[rows]
    if ids is not None:
        rows = pd.Index(frame["image_id"]).get_indexer(list(ids))
        if (rows < 0).any():
            raise KeyError(f"unknown image ids: {[i for i, r in zip(ids, rows) if r < 0][:5]}")
        frame, images = frame.iloc[rows].reset_index(drop=True), images[rows]
    return Dataset(frame, images, tuple(words["diagnoses"]), tuple(words["artifacts"]))


def summary(dataset: Dataset) -> pd.DataFrame:
    """Images, lesions and how many show each finding, by split and in all."""
    frame = dataset.frame
    rows = {}
    for name, part in [*frame.groupby("split"), ("all", frame)]:
        rows[name] = {
            "images": len(part),
            "lesions": splits.groups(part).nunique(),
            **{d: int((part["diagnosis"] == d).sum()) for d in dataset.diagnoses},
            **{a: int(part[a].sum()) for a in dataset.artifacts},
        }
    return pd.DataFrame(rows).T.rename_axis("split")
