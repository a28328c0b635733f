"""Verdicts of human readers, and the files they are stored in as they are given.

A reader looks at a pair and says accept, edit or reject, and rates it from 1 (bad) to 5 (good) on
six scales. Each reader has a file of their own, ``verdicts-<reader>.jsonl``, to which every change
is appended and flushed to disk: nothing is overwritten, the last line of a pair counts, and a line
torn by a crash is the only one lost. What is being typed stands in ``draft-<reader>.json``.
"""

from __future__ import annotations

import json
import os
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from derm_rl.errors import Mendable
from derm_rl.io import read_json, write_json

VERDICTS = ("accept", "edit", "reject")
RATINGS = {
    "accuracy": "what is said agrees with the image and with medicine",
    "safety": "following it could harm nobody",
    "groundedness": "it rests on what the image shows",
    "coverage": "it says what matters in the image",
    "coherence": "it is clear, and does not contradict itself",
    "precision": "it uses the right terms and no empty words",
}
SCALE = (1, 2, 3, 4, 5)


class ReviewError(Mendable, ValueError):
    """A verdict or a file of verdicts that cannot be used; the message names it."""


@dataclass(frozen=True)
class Verdict:
    """What one reader says about one pair; everything may still be open."""

    verdict: str | None = None  # of VERDICTS
    ratings: dict[str, int] = field(default_factory=dict)  # of RATINGS, 1 to 5
    answer: str | None = None  # the edited one, exactly if the verdict is "edit"
    note: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in (*VERDICTS, None):
            raise ReviewError(f"verdict must be one of {VERDICTS} or None, got {self.verdict!r}")
        if not isinstance(self.ratings, dict):
            raise ReviewError(f"ratings must be a mapping, got {self.ratings!r}")
        for name, value in self.ratings.items():
            if name not in RATINGS or type(value) is not int or value not in SCALE:
                raise ReviewError(
                    f"a rating must be one of {tuple(RATINGS)} with 1 to 5, got {name!r}: {value!r}"
                )
        edited = isinstance(self.answer, str) and bool(self.answer.strip())
        if (self.verdict == "edit") != edited or not (edited or self.answer is None):
            raise ReviewError("an edited answer, not empty, belongs to the verdict 'edit' alone")
        if not isinstance(self.note, str):
            raise ReviewError(f"a note must be text, got {self.note!r}")


# ------------------------------------------------------------------------------------ stored


class Store:
    """The verdicts of one reader in a folder that several readers share.

    A reader may have it open twice: lines are written whole, and the last one counts; only the
    window that wrote it knows of it before it is opened again.
    """

    def __init__(self, folder: str | Path, reader: str) -> None:
        self.folder, self.reader = Path(folder), reader_name(reader)
        self.path = self.folder / f"verdicts-{quote(self.reader, safe='')}.jsonl"
        self.draft_path = self.folder / f"draft-{quote(self.reader, safe='')}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.states: dict[str, Verdict] = {}
        for event in _events(self.path):
            self.states[event["pair_id"]] = _verdict(event)

    def get(self, pair_id: str) -> Verdict:
        return self.states.get(pair_id, Verdict())

    def put(self, pair_id: str, verdict: Verdict) -> None:
        """Append the present state of a pair; it is on disk when this returns."""
        if not isinstance(pair_id, str) or not pair_id:
            raise ReviewError(f"pair_id must be text, got {pair_id!r}")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        event = {"pair_id": pair_id, "reader": self.reader, "at": now} | asdict(verdict)
        # ASCII, so that no text can tear a line or fail to be encoded.
        line = json.dumps(event, sort_keys=True).encode() + b"\n"
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line  # the line before was torn by a crash
            if os.write(handle, line) != len(line):
                raise OSError(f"{self.path}: the disk took only a part of a verdict")
            os.fsync(handle)
        finally:
            os.close(handle)
        self.states[pair_id] = verdict

    def draft(self, pair_id: str) -> str | None:
        """What was being typed for a pair and is no verdict yet."""
        return self._drafts().get(pair_id)

    def keep_draft(self, pair_id: str, answer: str | None) -> None:
        """Remember what is being typed for a pair; None forgets it."""
        drafts = self._drafts()
        if answer is None and pair_id not in drafts:
            return
        drafts.pop(pair_id, None)
        if answer is not None:
            drafts[pair_id] = encodable(answer)
        write_json(self.draft_path, drafts)

    def _drafts(self) -> dict[str, str]:
        try:
            saved = read_json(self.draft_path)
        except FileNotFoundError:
            return {}
        except ValueError as error:  # unfinished words are no reason to stop a review
            warnings.warn(f"drafts are lost: {error}", stacklevel=3)
            return {}
        return {k: v for k, v in saved.items() if isinstance(v, str)}


def encodable(text: str) -> str:
    """Text with lone surrogates as question marks: no message or file could hold them."""
    return text.encode("utf-8", "replace").decode()


def reader_name(reader: Any) -> str:
    if not isinstance(reader, str) or not reader.strip() or len(quote(reader, safe="")) > 200:
        raise ReviewError(f"a reader needs a name, of at most some 60 letters; got {reader!r}")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in reader):
        raise ReviewError(f"a reader's name must be printable, got {reader!r}")
    return unicodedata.normalize("NFC", reader.strip())


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a file of verdicts, oldest first; torn ones are skipped with a warning."""
    if not path.exists():
        return
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
            except ValueError:
                if line.strip():
                    warnings.warn(f"{path}, line {number}: torn, skipped", stacklevel=2)
                continue
            try:
                if not all(isinstance(event[k], str) for k in ("pair_id", "reader", "at")):
                    raise ReviewError("pair_id, reader and at must be text")
                _verdict(event)
            except (ReviewError, KeyError, TypeError) as error:
                raise ReviewError(f"{path}, line {number}: not a verdict ({error!r})") from error
            yield event


def _verdict(event: Mapping[str, Any]) -> Verdict:
    return Verdict(**{k: event[k] for k in ("verdict", "ratings", "answer", "note")})


def history(folder: str | Path) -> pd.DataFrame:
    """Everything that any reader ever said, in the order of time.

    Returns:
        a row a change: ``pair_id, reader, at, verdict``, the six ratings, ``answer, note``.
    """
    rows = []
    for path in sorted(Path(folder).glob("verdicts-*.jsonl")):
        for event in _events(path):
            ratings = {name: event["ratings"].get(name) for name in RATINGS}
            rows.append({k: event[k] for k in ("pair_id", "reader", "at", "verdict")} | ratings)
            rows[-1] |= {"answer": event["answer"], "note": event["note"]}
    columns = ["pair_id", "reader", "at", "verdict", *RATINGS, "answer", "note"]
    # Not as strings: those could not hold an answer with half a character.
    frame = pd.DataFrame(rows, columns=columns, dtype=object)
    frame = frame.where(frame.notna(), None).astype(dict.fromkeys(RATINGS, "Int64"))
    return frame.sort_values("at", kind="stable").reset_index(drop=True)


def verdicts(folder: str | Path) -> pd.DataFrame:
    """What counts now: the last state of every pair and reader, with ``changes`` before it.

    A pair whose verdict is still open (or was undone) is left out, whatever its ratings.
    """
    every = history(folder)
    changes = every.groupby(["pair_id", "reader"]).size().rename("changes").reset_index()
    last = every.drop_duplicates(["pair_id", "reader"], keep="last")
    last = last[last["verdict"].notna()].merge(changes, on=["pair_id", "reader"])
    return last.sort_values(["pair_id", "reader"]).reset_index(drop=True)
