"""A release: one canonical Parquet set of image–text pairs, and everything derived from it.

    folder/
      data/train-00000.parquet …   what `datasets.load_dataset(folder)` opens
      images/3f/name.png           the files that LLaVA JSON and messages name
      llava/train.json             conversations with <image>
      messages/train.jsonl         chat messages
      webdataset/train-00000.tar   a sample a pair: image and JSON
      provenance.csv               pair -> ledger key, teacher, mode
      README.md, croissant.json    dataset card and its machine-readable sister

The same pairs, images and arguments give the same files byte for byte (with the same versions of
the libraries): rows are sorted, splits and samples are dealt by keyed hashes, nothing is dated.
Everything streams: one image is in memory at a time, and one row group of them while writing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from derm_rl.captions import card, card_text, croissant, export_formats
from derm_rl.captions.export_images import Load, loader
from derm_rl.captions.export_parquet import inert_rows, parse_findings, write_splits
from derm_rl.captions.schema import PAIR_COLUMNS
from derm_rl.data import licences, splits
from derm_rl.errors import Mendable
from derm_rl.io import atomic_dir, write_csv, write_json

SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}
_ORDER = ["image_id", "conversation", "turn", "pair_id"]


class ExportError(Mendable, ValueError):
    """A release that cannot be made; the message names the column or the pairs."""


def release(
    pairs: pd.DataFrame,
    images_frame: pd.DataFrame,
    folder: str | Path,
    *,
    redistributable: str | Collection[str] | None = None,
    images: str = "embed",
    load: Load | None = None,
    size: int | None = None,
    quality: int | None = None,
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
    flags: pd.DataFrame | None = None,
    blocking: Collection[str] | None = None,
    facts: Mapping[str, Any] | None = None,
    samples_per_shard: int = 1000,
) -> Path:
    """Write a release; the folder appears whole, or not at all.

    Args:
        pairs: table with ``PAIR_COLUMNS``; a column ``review`` (of ``review.apply``) is kept and
            its rejected pairs stay out, a column ``ledger_key`` replaces ``pair_id`` as the key.
        images_frame: the images' table: ``image_id``, and ``path`` unless ``load`` is given.
        folder: replaced if it exists.
        redistributable: which images may enter: a boolean column of ``images_frame``, or licences
            (in any spelling) as ``licences.filter`` takes them; default: all that allow changed
            copies to be passed on. A missing or unknown licence never does.
        images: "embed" into Parquet as well, or only "reference" the files in ``images/``.
        load: image id -> encoded PNG or JPEG, called once an image, in the order of rows; default:
            the images of ``images_frame``, encoded by ``size`` and ``quality``, see
            :func:`derm_rl.captions.export_images.loader`.
        shares: of each split, in their order.
        flags: ``pair_id, check, reason`` of the checks, run on these very pairs.
        blocking: checks whose flags keep a pair out; default: all.
        facts: what the card cannot know: ``card.FACTS``.

    Raises:
        ExportError: columns are missing, ids are double, or nothing is left to release.
    """
    if images not in ("embed", "reference"):
        raise ExportError(f"images must be 'embed' or 'reference', got {images!r}")
    told = card.complete(facts)
    kept, left_out = choose(pairs, images_frame, redistributable, flags, blocking)
    kept["split"] = split(kept, shares, seed, images_frame) if len(kept) else ""
    kept = kept.sort_values(_ORDER, kind="stable").reset_index(drop=True)
    kept, rewritten = inert_rows(kept)
    load = load or loader(images_frame, size, quality)
    with atomic_dir(folder) as temporary:
        unread = write_splits(kept, temporary, images, load, list(shares))
        left_out = pd.concat([left_out, unread], ignore_index=True)
        kept = kept[~kept["pair_id"].isin(unread["pair_id"])]
        if kept.empty:
            reasons = left_out["reason"].value_counts().to_dict()
            raise ExportError(f"no pair is left to release; left out: {reasons}")
        export_formats.write_llava(temporary)
        export_formats.write_messages(temporary)
        export_formats.write_webdataset(temporary, samples_per_shard)
        write_csv(temporary / "provenance.csv", _provenance(kept))
        described = card.describe(
            kept, left_out, flags, blocking, told, shares, seed, images, rewritten
        )
        write_json(temporary / "croissant.json", croissant.metadata(temporary, images, described))
        (temporary / "README.md").write_text(card_text.render(described), encoding="utf-8")
        # Made private, as temporary folders are, and every file below with the umask.
        for inside in temporary.rglob("*"):
            inside.chmod(0o755 if inside.is_dir() else 0o644)
    return Path(folder)


# -------------------------------------------------------------------------------- what goes in


def choose(
    pairs: pd.DataFrame,
    images_frame: pd.DataFrame,
    redistributable: str | Collection[str] | None = None,
    flags: pd.DataFrame | None = None,
    blocking: Collection[str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs that may enter a release, and ``pair_id, source, reason`` of those that may not.

    The first reason counts, in this order: status, licence, review, checks, text that cannot be
    stored. A turn whose earlier turn stays out stays out as well: it builds on it.
    """
    _validate(pairs)
    table = pairs.copy()
    for name in ("review", "ledger_key"):
        if name not in table:
            table[name] = pd.NA
    reason = pd.Series("", index=table.index, dtype=object)

    def leave_out(which: pd.Series | np.ndarray, why: pd.Series | str) -> None:
        new = np.asarray(which, bool) & (reason == "").to_numpy()
        reason[new] = why if isinstance(why, str) else why[new]

    leave_out(~_same(table["status"], "ok"), "status: " + table["status"].fillna("missing"))
    barred = _barred(table, images_frame, redistributable)
    leave_out(barred != "", barred)
    leave_out(_same(table["review"], "reject"), "rejected in review")
    if flags is not None and len(flags):
        stop = flags if blocking is None else flags[flags["check"].isin(list(blocking))]
        first = stop.drop_duplicates("pair_id").set_index("pair_id")["check"].astype(object)
        check = table["pair_id"].map(first)
        leave_out(check.notna(), "flagged by check: " + check.fillna("").astype(str))
    rows = zip(table["question"], table["answer"], table["findings"], strict=True)
    leave_out(np.array([not _storable(*row) for row in rows], bool), "text cannot be stored")
    turn = table["turn"].where(reason != "")
    broken = turn.groupby(table["conversation"]).transform("min")
    leave_out(table["turn"] > broken.fillna(math.inf), "follows a turn that was left out")
    out = table.loc[reason != "", ["pair_id", "source"]].assign(reason=reason[reason != ""])
    return table[reason == ""].copy(), out.reset_index(drop=True)


def _validate(pairs: pd.DataFrame) -> None:
    if missing := [c for c in PAIR_COLUMNS if c not in pairs]:
        raise ExportError(f"table of pairs: column {missing[0]!r} is missing")
    for column in ("pair_id", "image_id", "conversation", "turn"):
        if (bad := pairs[column].isna()).any():
            raise ExportError(f"table of pairs: column {column!r} is empty in {bad.sum()} rows")
    ids = pairs["pair_id"].astype(str)
    if (double := ids.duplicated()).any():
        raise ExportError(f"table of pairs: pair_id occurs twice: {ids[double].iloc[0]!r}")
    # They become names of files, and WebDataset cuts names at the first dot.
    if (odd := ~ids.str.fullmatch(r"[A-Za-z0-9_-]{1,90}")).any():
        raise ExportError(
            f"table of pairs: pair_id {ids[odd].iloc[0]!r} must be letters, digits, '_' and '-', "
            "90 at most: the ledger's keys are"
        )
    if (mixed := pairs.groupby("conversation")["image_id"].nunique() > 1).any():
        raise ExportError(f"conversation {mixed.index[mixed][0]!r} is about more than one image")


def _same(column: pd.Series, value: str) -> np.ndarray:
    return (column.astype(object) == value).fillna(False).to_numpy(bool)


def _barred(
    table: pd.DataFrame,
    images_frame: pd.DataFrame,
    redistributable: str | Collection[str] | None,
) -> pd.Series:
    """Why the image of each pair may not be passed on; "" where it may."""
    reason = pd.Series("", index=table.index, dtype=object)
    if isinstance(redistributable, str):
        if redistributable not in images_frame:
            raise ExportError(
                f"table of images: column {redistributable!r} is missing; it must say for every "
                "image whether its licence allows redistribution"
            )
        may = images_frame[redistributable].astype("boolean").fillna(False).astype(bool)
        ids = set(images_frame.loc[may, "image_id"])
        reason[~table["image_id"].isin(ids)] = f"not marked in column {redistributable!r}"
        reason[table["licence"].isna()] = "no licence given"
    else:
        _, out = licences.filter(table[["source", "licence"]], redistributable)
        _, unfree = licences.filter(table[["source", "licence"]])
        names = table["licence"].astype("string").fillna("").astype(object)
        chosen_not = "licence is not among those chosen for this release"
        why = dict.fromkeys(out["licence"].fillna(""), chosen_not)
        # What no default would pass is said of the licence: that weighs more than a choice.
        told = zip(unfree["licence"].fillna(""), unfree["reason"], strict=True)
        why |= {name: _of_licence(text) for name, text in told if name in why}
        why = {name: f"{text} ({name})" if name.strip() else text for name, text in why.items()}
        reason = names.map(why).fillna("").astype(object)
    reason[~table["image_id"].isin(images_frame["image_id"])] = "not in the table of images"
    return reason


def _of_licence(reason: str) -> str:
    return reason if "licence" in reason else f"licence {reason}"


def _storable(question: Any, answer: Any, found: Any) -> bool:
    """Whether texts are there, are valid Unicode, and findings can be read."""
    if not (isinstance(question, str) and isinstance(answer, str) and answer.strip()):
        return False
    try:
        (question + answer).encode()
        json.dumps(parse_findings(found), ensure_ascii=False).encode()
    except ValueError:  # so is UnicodeEncodeError
        return False
    return True


def split(
    pairs: pd.DataFrame,
    shares: Mapping[str, float],
    seed: int,
    images_frame: pd.DataFrame | None = None,
) -> pd.Series:
    """Split of every pair: all pairs of a patient, or else of a lesion, or else of an image.

    Pairs that share any of the three (a patient and a lesion within one source), or whose images
    are tied by ``same_image_as`` (a column of the images' table, or of the pairs), are one group:
    see :func:`derm_rl.data.splits.components`.
    Groups stand in the order of a keyed hash, and the line is cut at the shares of pairs; so the
    result is that of the groups and the seed, in any order of rows, and pairs added later move
    only groups near a cut. Each split gets a group as long as there are enough.
    """
    values = np.array(list(shares.values()), float)
    if not len(values) or (values <= 0).any() or not np.isfinite(values).all():
        raise ExportError(f"shares of the splits must be positive, got {dict(shares)}")
    levels = ["patient_id", "lesion_id", "image_id"]
    tables = [pairs] if images_frame is None else [pairs, images_frame]
    known = ["source", *levels, "same_image_as"]
    both = pd.concat([t[[c for c in known if c in t]] for t in tables], ignore_index=True)
    part = splits.components(both)[: len(pairs)]
    # A group is known by the first of its patients, or else lesions, or else images.
    group = pd.Series(pd.NA, index=pairs.index, dtype="string")
    source = pairs["source"].astype("string").fillna("") + "\0"
    for level in levels:
        name = (
            f"{level}\0" + ("" if level == "image_id" else source) + pairs[level].astype("string")
        )
        group = group.fillna(name.groupby(part).transform("min"))
    sizes = group.value_counts()
    order = sorted(sizes.index, key=lambda g: hashlib.sha256(f"{seed}\0{g}".encode()).digest())
    return group.map(_cut(order, sizes.to_dict(), list(shares), values / values.sum()))


def _cut(
    order: list[str], sizes: Mapping[str, int], names: list[str], shares: np.ndarray
) -> dict[str, str]:
    total, edges = sum(sizes.values()), np.cumsum(shares)
    chosen, before, at = {}, 0, 0
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        middle = (before + sizes[group] / 2) / total
        empty = at not in chosen.values()
        if (
            not empty
            and at < len(names) - 1
            and (middle > edges[at] or left <= len(names) - 1 - at)
        ):
            at += 1
        chosen[group] = at
        before += sizes[group]
    return {group: names[number] for group, number in chosen.items()}


def _provenance(kept: pd.DataFrame) -> pd.DataFrame:
    key = kept["ledger_key"].astype("string").fillna(kept["pair_id"].astype("string"))
    columns = ["pair_id", "ledger_key", "image_id", "teacher", "mode", "review", "split"]
    return kept.assign(ledger_key=key)[columns].sort_values("pair_id")
