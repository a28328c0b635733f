"""What is derived from a release's Parquet files: LLaVA JSON, chat messages, WebDataset, images."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from derm_rl.data.images import MAX_BYTES
from derm_rl.io import write_atomic

_BATCH = 500
MAX_GROUP = 2**32  # bytes of a group of rows, unpacked: it is in memory at once
# In LLaVA's format this stands for the pixels: in a text it would ask for an image too many.
_TOKEN = re.compile(r"<\s*(image|video)\s*>", re.IGNORECASE)


def files(folder: str | Path) -> dict[str, list[Path]]:
    """Parquet files of each split of a release, in their order."""
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(folder, "data").glob("*.parquet")):
        found.setdefault(path.stem.rpartition("-")[0], []).append(path)
    return found


def rows(
    paths: list[Path], folder: str | Path = "", pixels: bool = False
) -> Iterator[dict[str, Any]]:
    """Rows of Parquet files with ``image_path`` always, and with ``image`` bytes if asked for."""
    import pyarrow.parquet as pq

    for path in paths:
        with pq.ParquetFile(path) as opened:
            if pixels:
                _check_size(path, opened.metadata)
            names = opened.schema_arrow.names
            embedded = "image" in names
            columns = [n for n in names if n != "image"]
            columns += [] if not embedded else ["image"] if pixels else ["image.path"]
            for batch in opened.iter_batches(_BATCH, columns=columns):
                for row in batch.to_pylist():
                    if embedded:
                        image = row.pop("image")
                        row["image_path"] = image["path"]
                        row["image"] = image.get("bytes")
                    if not embedded and pixels:
                        row["image"] = Path(folder, row["image_path"]).read_bytes()
                    yield row


def _check_size(path: Path, metadata: Any) -> None:
    """Refuse a file that would unpack to more than images take, before anything is read.

    Raises:
        ValueError: it names the file, the group of rows and the limit.
    """
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        limit = min(MAX_GROUP, MAX_BYTES * group.num_rows)
        if group.total_byte_size > limit:
            raise ValueError(
                f"{path}: group {number} of {group.num_rows} rows would be "
                f"{group.total_byte_size:,} bytes unpacked, more than the limit of {limit:,}; use "
                "the release as it was published, or make it anew with smaller images"
            )


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
                out.write(json.dumps(_llava(turns), ensure_ascii=False))
            out.write("\n]\n")


def _llava(turns: list[dict[str, Any]]) -> dict[str, Any]:
    said = []
    for number, turn in enumerate(turns):
        question = _TOKEN.sub(r"[\1]", turn["question"])
        said.append({"from": "human", "value": ("" if number else "<image>\n") + question})
        said.append({"from": "gpt", "value": _TOKEN.sub(r"[\1]", turn["answer"])})
    first = turns[0]
    return {"id": first["pair_id"], "image": first["image_path"], "conversations": said}


def write_messages(folder: Path) -> None:
    """``messages/{split}.jsonl``: chat messages with an image part, one line a conversation."""
    (folder / "messages").mkdir()
    for split, paths in files(folder).items():
        with open(folder / "messages" / f"{split}.jsonl", "w", encoding="utf-8") as out:
            for turns in conversations(paths):
                out.write(json.dumps(_messages(turns), ensure_ascii=False) + "\n")


def _messages(turns: list[dict[str, Any]]) -> dict[str, Any]:
    said = []
    for number, turn in enumerate(turns):
        question = {"type": "text", "text": turn["question"]}
        content = [question] if number else [{"type": "image"}, question]
        said.append({"role": "user", "content": content})
        answer = [{"type": "text", "text": turn["answer"]}]
        said.append({"role": "assistant", "content": answer})
    first = turns[0]
    return {"id": first["pair_id"], "images": [first["image_path"]], "messages": said}


def write_webdataset(folder: Path, samples_per_shard: int = 1000) -> None:
    """``webdataset/{split}-00000.tar`` …: ``<pair_id>.png`` (or jpg) and ``<pair_id>.json``."""
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    (folder / "webdataset").mkdir()
    for split, paths in files(folder).items():
        shard = None
        try:
            for number, row in enumerate(rows(paths, folder, pixels=True)):
                if number % samples_per_shard == 0:
                    if shard is not None:
                        shard.close()
                    name = f"{split}-{number // samples_per_shard:05d}.tar"
                    shard = tarfile.open(  # noqa: SIM115
                        folder / "webdataset" / name, "w", format=tarfile.USTAR_FORMAT
                    )
                suffix = row["image_path"].rpartition(".")[2]
                about = {k: v for k, v in row.items() if k not in ("image", "image_path")}
                text = json.dumps(about, ensure_ascii=False, sort_keys=True)
                _add(shard, f"{row['pair_id']}.{suffix}", row["image"])
                _add(shard, f"{row['pair_id']}.json", text.encode())
        finally:
            if shard is not None:
                shard.close()


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    # TarInfo's defaults are the epoch, user 0 and mode 644: the same bytes at any time.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def unpack_images(folder: str | Path, to: str | Path | None = None) -> int:
    """Write the images embedded in a release as files that LLaVA JSON and messages name.

    Args:
        to: where ``images/`` goes; default: the release itself. Files already there are kept.

    Returns:
        how many images there are.
    """
    target, done = Path(to or folder), set()
    for paths in files(folder).values():
        for row in rows(paths, folder, pixels=True):
            name = row["image_path"]
            # A release of unknown origin might name files outside.
            if not re.fullmatch(r"images/[0-9a-f]{2}/[A-Za-z0-9_-]+\.(png|jpg)", name):
                raise ValueError(f"{folder}: unexpected image path {name!r}")
            if name not in done and not (target / name).exists():
                write_atomic(target / name, row["image"])
            done.add(name)
    return len(done)
