"""The canonical rows of a release: their types and texts, and Parquet files written as they stream.

Every other format is made from these rows. So what no format may hold is taken out here, once:
:func:`inert`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from derm_rl.captions.export_images import Load, clean, image_path, kind
from derm_rl.captions.store import StoreError
from derm_rl.io import cannot_read, passing

if TYPE_CHECKING:
    from datasets import Features

ROW_GROUP = 500  # rows written, and read, at once
SHARD_BYTES = 256 * 2**20  # images and text of one Parquet file, before compression
TEXTS = (
    "pair_id", "image_id", "question_type", "style", "conversation", "language", "mode",
    "question", "answer", "teacher", "source", "modality", "patient_id", "lesion_id",
    "diagnosis", "label", "licence", "attribution", "review",
)  # fmt: skip
_IDS = {"pair_id", "image_id"}  # other files and tables know rows by them
# What vision-language models and chat templates read as more than text, by form and not by a list,
# as each model has its own: <image>, <start_of_turn>, </s>, <<SYS>>; <|im_start|>; [INST], [IMG];
# and the turns of the Vicuna template, at which LLaVA cuts a conversation. Every repeat is bounded.
_OPEN, _CLOSE, _BAR, _GAP = "[<\uff1c]", "[>\uff1e]", "[|\uff5c]", r"\s{0,4}"
_WORD = r"(?=[\w.:-]{0,63}[a-z])[a-z0-9_][\w.:-]{0,63}/?"
_MEDIUM = r"(?:image|img|video|audio)\b[^<>\uff1c\uff1e\n]{0,80}?"
_SQUARE = r"[A-Z]{2}[A-Z0-9_]{0,40}|[gs]MASK|img|inst|(?:unused|control_)\d{1,5}"
_TOKENS = (
    (
        rf"{_OPEN}{{1,2}}{_GAP}((?:/{_GAP})?(?:{_MEDIUM}|{_WORD})){_GAP}{_CLOSE}{{1,2}}",
        re.IGNORECASE | re.ASCII,
        r"[\1]",
    ),
    (rf"{_OPEN}{_GAP}{_BAR}([^<>\uff1c\uff1e\n]{{1,64}}){_BAR}{_GAP}{_CLOSE}", 0, r"[\1]"),
    (rf"\[{_GAP}(/?{_GAP}(?:{_SQUARE})){_GAP}\]", 0, r"(\1)"),
    (r"\b(USER|ASSISTANT|SYSTEM)(?=:)", 0, lambda found: found[0].capitalize()),
)
_COMPILED = [(re.compile(pattern, flags), other) for pattern, flags, other in _TOKENS]


def inert(text: str) -> str:
    """The text with the tokens of language models in other brackets: ``<image>`` is ``[image]``.

    ``<|im_start|>`` becomes ``[im_start]``, ``</s>`` ``[/s]``, ``[INST]`` ``(INST)``. In a text
    they would ask for an image too many, or end a turn that its author did not end.
    """
    for pattern, other in _COMPILED:
        text = pattern.sub(other, text)
    return text


def inert_rows(kept: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Pairs with every text :func:`inert`, and how many of them that changed."""
    out, changed = kept.copy(), pd.Series(False, index=kept.index)
    for name in [*(n for n in TEXTS if n not in _IDS), "findings"]:
        make = _inert_findings if name == "findings" else inert
        told = [v for v in kept[name].dropna().unique() if isinstance(v, str)]
        if other := {old: new for old in told if (new := make(old)) != old}:
            out[name] = kept[name].astype(object).map(lambda v, other=other: other.get(v, v))
            changed |= kept[name].isin(list(other))
    return out, int(changed.sum())


def _inert_findings(text: str) -> str:
    # JSON may spell a token with escapes: only texts without any are known by their looks.
    if "\\" not in text and inert(text) == text:
        return text
    found = parse_findings(text)
    safe = [{k: inert(v) if isinstance(v, str) else v for k, v in f.items()} for f in found]
    return text if safe == found else json.dumps(safe, ensure_ascii=False)


def features(images: str = "embed") -> Features:
    """Columns and types of a release's rows; ``image`` is encoded, or ``image_path`` names it."""
    from datasets import Features, Image, List, Value

    image = {"image": Image()} if images == "embed" else {"image_path": Value("string")}
    finding = {
        "name": Value("string"),
        "value": Value("string"),
        "evidence": Value("string"),
        "box": List(Value("float64")),  # x0, y0, x1, y1 as shares of width and height, or missing
    }
    texts = {name: Value("string") for name in TEXTS}
    numbers = {"turn": Value("int32"), "confidence": Value("float64"), "abstained": Value("bool")}
    return Features(
        image | texts | numbers | {"skin_type": Value("int32"), "findings": List(finding)}
    )


def parse_findings(text: Any) -> list[dict[str, Any]]:
    """Findings of a pair from their JSON; none if missing.

    Raises:
        ValueError: it is not a list of findings.
    """
    if text is None or text is pd.NA or (isinstance(text, float) and math.isnan(text)):
        return []
    try:
        return [_finding(item) for item in json.loads(text)]
    except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a JSON list of findings ({error!r})") from error


def _finding(item: dict[str, Any]) -> dict[str, Any]:
    box = item.get("box")
    if box is not None:
        box = [float(v) for v in box]
        if len(box) != 4 or not all(math.isfinite(v) for v in box):
            raise ValueError(f"box {box} is not four finite numbers")
    return {k: str(item[k]) for k in ("name", "value", "evidence")} | {"box": box}


def write_splits(
    kept: pd.DataFrame, folder: Path, images: str, load: Load, splits: list[str]
) -> pd.DataFrame:
    """Write all Parquet files, and each image as the file that the other formats name.

    Returns:
        ``pair_id, source, reason`` of the pairs whose image cannot be read.
    """
    (folder / "data").mkdir()
    schema, unread = features(images).arrow_schema, []
    for name in splits:
        rows = kept[kept["split"] == name]
        blocks = _blocks(rows, images, load, folder, unread)
        _write_files(blocks, schema, folder / "data", name)
    return pd.DataFrame(unread, columns=["pair_id", "source", "reason"])


def _blocks(
    rows: pd.DataFrame, images: str, load: Load, folder: Path, unread: list[tuple]
) -> Iterator[tuple[dict[str, list], int]]:
    """Columns of up to ``ROW_GROUP`` rows with their images, and about how many bytes they are."""
    last, content, path = None, b"", ""
    for start in range(0, len(rows), ROW_GROUP):
        block = rows.iloc[start : start + ROW_GROUP]
        cells, good = [], []
        for pair, image_id, source in zip(
            block["pair_id"], block["image_id"], block["source"], strict=True
        ):
            if image_id != last:
                last, content = image_id, b""
                try:
                    content = clean(load(str(image_id)))
                    path = image_path(str(image_id), kind(content))
                except StoreError:
                    raise  # costs no image: the stage that made it runs again
                except (OSError, ValueError, LookupError) as error:
                    if passing(error):  # a release without it would say that it is damaged
                        raise cannot_read(str(image_id), error) from error
                    content = b""
                if content:
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    (folder / path).write_bytes(content)
            good.append(bool(content))
            if content:
                cells.append({"bytes": content, "path": path} if images == "embed" else path)
            else:
                unread.append((pair, source, "image cannot be read"))
        block = block[good]
        if len(block):
            yield _columns(block, cells, images), _bytes(block, cells, images)


def _columns(block: pd.DataFrame, cells: list, images: str) -> dict[str, list]:
    def plain(name: str, kind: type) -> list:
        return [None if pd.isna(v) else kind(v) for v in block[name].astype(object)]

    out: dict[str, list] = {"image" if images == "embed" else "image_path": cells}
    out |= {name: plain(name, str) for name in TEXTS}
    confidence = [None if v is None or math.isinf(v) else v for v in plain("confidence", float)]
    out |= {"turn": plain("turn", int), "confidence": confidence}
    out |= {"abstained": plain("abstained", bool), "skin_type": plain("skin_type", int)}
    return out | {"findings": [parse_findings(text) for text in block["findings"]]}


def _bytes(block: pd.DataFrame, cells: list, images: str) -> int:
    text = (
        block["answer"].str.len().sum()
        + block["findings"].astype(object).astype(str).str.len().sum()
    )
    return int(text) + (sum(len(c["bytes"]) for c in cells) if images == "embed" else 0)


def _write_files(
    blocks: Iterator[tuple[dict[str, list], int]], schema: Any, folder: Path, name: str
) -> None:
    """Files ``name-00000.parquet`` … of whole row groups, each up to ``SHARD_BYTES``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Neighbouring rows share an image: zstd finds it again within a page; a dictionary of images
    # and statistics of them would only cost memory.
    light = [n for n in schema.names if n not in ("image", "findings")]
    options = {
        "compression": "zstd", "compression_level": 3, "use_dictionary": light,
        "write_statistics": light, "version": "2.6", "data_page_size": 2**20,
    }  # fmt: skip
    writer, number, written = None, 0, 0
    try:
        for columns, size in blocks:
            if writer is not None and written + size > SHARD_BYTES:
                writer.close()
                writer, number, written = None, number + 1, 0
            if writer is None:
                path = folder / f"{name}-{number:05d}.parquet"
                writer = pq.ParquetWriter(path, schema, **options)
            table = pa.table({n: pa.array(columns[n], schema.field(n).type) for n in schema.names})
            writer.write_table(table.cast(schema), row_group_size=ROW_GROUP)
            written += size
    finally:
        if writer is not None:
            writer.close()
