"""What is derived from a release's Parquet files: LLaVA JSON, chat messages, WebDataset.

Every row says licence, attribution and source, and names an image file of the release. All values
of a key have one type, for loaders that infer types from the first rows: a missing text is "".
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from derm_rl.captions.export_parquet import TEXTS

_BATCH = 500
_ORIGIN = ("source", "licence", "attribution")
# JSON may hold them as they are, but much that reads line by line ends a line there.
_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


def files(folder: str | Path) -> dict[str, list[Path]]:
    """Parquet files of each split of a release, in their order."""
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(folder, "data").glob("*.parquet")):
        found.setdefault(path.stem.rpartition("-")[0], []).append(path)
    return found


def rows(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """Rows of Parquet files, with ``image_path`` always and without pixels."""
    import pyarrow.parquet as pq

    for path in paths:
        with pq.ParquetFile(path) as opened:
            names = opened.schema_arrow.names
            columns = [n if n != "image" else "image.path" for n in names]
            for batch in opened.iter_batches(_BATCH, columns=columns):
                for row in batch.to_pylist():
                    if "image" in row:
                        row["image_path"] = row.pop("image")["path"]
                    yield row


def conversations(paths: list[Path]) -> Iterator[list[dict[str, Any]]]:
    """Rows of one conversation after another: a release keeps them together, in their order."""
    for _, turns in groupby(rows(paths), key=lambda r: (r["image_id"], r["conversation"])):
        yield list(turns)


def write_llava(folder: Path) -> None:
    """``llava/{split}.json``: the format of LLaVA's training data, one entry a conversation."""
    (folder / "llava").mkdir()
    for split, paths in files(folder).items():
        with open(folder / "llava" / f"{split}.json", "w", encoding="utf-8") as out:
            for number, turns in enumerate(conversations(paths)):
                out.write("[\n" if number == 0 else ",\n")
                out.write(_json(_llava(turns)))
            out.write("\n]\n")


def _llava(turns: list[dict[str, Any]]) -> dict[str, Any]:
    said = []
    for number, turn in enumerate(turns):
        question = ("" if number else "<image>\n") + turn["question"]
        said.append({"from": "human", "value": question})
        said.append({"from": "gpt", "value": turn["answer"]})
    first = turns[0]
    about = {"id": first["pair_id"], "image": first["image_path"], "conversations": said}
    return about | _origin(first)


def write_messages(folder: Path) -> None:
    """``messages/{split}.jsonl``: chat messages with an image part, one line a conversation."""
    (folder / "messages").mkdir()
    for split, paths in files(folder).items():
        with open(folder / "messages" / f"{split}.jsonl", "w", encoding="utf-8") as out:
            for turns in conversations(paths):
                out.write(_json(_messages(turns)) + "\n")


def _messages(turns: list[dict[str, Any]]) -> dict[str, Any]:
    said = []
    for number, turn in enumerate(turns):
        question = {"type": "text", "text": turn["question"]}
        content = [question] if number else [{"type": "image"}, question]
        said.append({"role": "user", "content": content})
        answer = [{"type": "text", "text": turn["answer"]}]
        said.append({"role": "assistant", "content": answer})
    first = turns[0]
    about = {"id": first["pair_id"], "images": [first["image_path"]], "messages": said}
    return about | _origin(first)


def _origin(row: dict[str, Any]) -> dict[str, str]:
    return {name: row[name] or "" for name in _ORIGIN}


def write_webdataset(folder: Path, samples_per_shard: int = 1000) -> None:
    """``webdataset/{split}-00000.tar`` …: ``<pair_id>.png`` (or jpg) and ``<pair_id>.json``.

    All samples have the same members. Where some images are PNG and some JPEG, all are PNG.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    (folder / "webdataset").mkdir()
    suffixes = {path.suffix for path in (folder / "images").glob("*/*")}
    suffix = suffixes.pop() if len(suffixes) == 1 else ".png"
    for split, paths in files(folder).items():
        shard = None
        try:
            for number, row in enumerate(rows(paths)):
                if number % samples_per_shard == 0:
                    if shard is not None:
                        shard.close()
                    name = f"{split}-{number // samples_per_shard:05d}.tar"
                    shard = tarfile.open(  # noqa: SIM115
                        folder / "webdataset" / name, "w", format=tarfile.USTAR_FORMAT
                    )
                image = _as(suffix, folder / row.pop("image_path"))
                _add(shard, f"{row['pair_id']}{suffix}", image)
                _add(shard, f"{row['pair_id']}.json", _json(_typed(row)).encode())
        finally:
            if shard is not None:
                shard.close()


def _as(suffix: str, path: Path) -> bytes:
    if path.suffix == suffix:
        return path.read_bytes()
    from PIL import Image

    out = io.BytesIO()
    with Image.open(path) as image:
        image.save(out, "PNG")
    return out.getvalue()


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """A row in which every value has the type of its key, whatever is missing."""
    texts = {name: row[name] or "" for name in TEXTS}
    skin = "" if row["skin_type"] is None else str(row["skin_type"])
    # With or without box, and none at all: as JSON their types would differ from row to row.
    return row | texts | {"skin_type": skin, "findings": _json(row["findings"])}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS)


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    # TarInfo's defaults are the epoch, user 0 and mode 644: the same bytes at any time.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))
