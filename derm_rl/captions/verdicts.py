"""Verdicts of human readers, and the files they are stored in as they are given.

A reader looks at a pair and says accept, edit or reject, and rates it from 1 (bad) to 5 (good) on
six scales. Each reader has a file of their own, ``verdicts-<reader>.jsonl``, to which every change
is appended and flushed to disk: nothing is overwritten, the last line of a pair counts, and a line
torn by a crash is the only one lost. What is being typed stands in ``draft-<reader>.json`` until it
is saved or emptied. A reader may have several windows open: a lock makes them take turns.
"""

from __future__ import annotations

import json
import os
import time
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from filelock import FileLock, Timeout

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
WAIT = 10  # seconds for another window to finish a line
Drafts = dict[str, dict[str, list[str]]]  # pair -> "answer" or "note" -> texts, latest last


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

    A reader may have it open in several windows. ``refresh`` takes in what the others wrote, and
    ``elsewhere`` holds the pairs whose last line is one of theirs.
    """

    def __init__(self, folder: str | Path, reader: str) -> None:
        self.folder, self.reader = Path(folder), reader_name(reader)
        name = quote(self.reader, safe="")
        self.path = self.folder / f"verdicts-{name}.jsonl"
        self.draft_path = self.folder / f"draft-{name}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / f".{name}.lock", timeout=WAIT)
        self.states: dict[str, Verdict] = {}
        self.elsewhere: set[str] = set()
        self._size = 0
        self.refresh()
        self.elsewhere.clear()

    def get(self, pair_id: str) -> Verdict:
        return self.states.get(pair_id, Verdict())

    def judged_elsewhere(self, pair_id: str) -> bool:
        return pair_id in self.elsewhere and self.get(pair_id).verdict is not None

    def refresh(self) -> None:
        """Take in what other windows have written."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size == self._size:
            return
        found = {event["pair_id"]: _verdict(event) for event in _events(self.path)}
        self.elsewhere |= {p for p, state in found.items() if state != self.get(p)}
        self.states, self._size = found, size

    def put(self, pair_id: str, verdict: Verdict, seen: Verdict | None = None) -> bool:
        """Append the present state of a pair; it is on disk when this returns.

        Args:
            seen: the state that the change was made from. If another window has changed the pair
                since, nothing is written. Default: write in any case.

        Returns:
            whether ``verdict`` is now the state of the pair.
        """
        if not isinstance(pair_id, str) or not pair_id:
            raise ReviewError(f"pair_id must be text, got {pair_id!r}")
        with self._locked():
            self.refresh()
            if seen is not None and (self.get(pair_id) != seen or verdict == seen):
                return self.get(pair_id) == verdict
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            event = {"pair_id": pair_id, "reader": self.reader, "at": now} | asdict(verdict)
            self._append(json.dumps(event, sort_keys=True).encode() + b"\n")
            self.states[pair_id] = verdict
            self.elsewhere.discard(pair_id)
        return True

    def _append(self, line: bytes) -> None:
        # The line is ASCII, so that no text can tear it or fail to be encoded.
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line  # the line before was torn by a crash
            if os.write(handle, line) != len(line):
                raise OSError(f"{self.path}: the disk took only a part of a verdict")
            os.fsync(handle)
            self._size = size + len(line)
        finally:
            os.close(handle)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except Timeout as error:
            raise ReviewError(
                f"{self._lock.lock_file}: another window of {self.reader} has held this lock for "
                f"{WAIT} s; close it, or restart its kernel, and try again"
            ) from error

    def draft(self, pair_id: str, kind: str = "answer") -> str | None:
        """What was typed last for a pair and is not saved yet; ``kind`` may be "note"."""
        texts = self._drafts().get(pair_id, {}).get(kind)
        return texts[-1] if texts else None

    def keep_draft(
        self, pair_id: str, text: str | None, kind: str = "answer", shown: str | None = None
    ) -> None:
        """Remember what is being typed for a pair; None forgets it.

        Args:
            shown: the draft that this one goes on from, "" for none. Others, which another window
                wrote, are kept, and come when this one is forgotten. Default: it replaces all.
        """
        with self._locked():
            drafts = self._drafts()
            before = drafts.get(pair_id, {}).get(kind, [])
            others = [t for t in before if shown is not None and t not in (shown, text)]
            texts = others + ([] if text is None else [encodable(text)])
            if texts != before:
                drafts[pair_id] = drafts.get(pair_id, {}) | {kind: texts}
                write_json(self.draft_path, {p: v for p, v in drafts.items() if any(v.values())})

    def _drafts(self) -> Drafts:
        try:
            return _drafts(read_json(self.draft_path))
        except FileNotFoundError:
            return {}
        except ValueError as error:  # unfinished words are no reason to stop a review
            aside = self.draft_path.with_name(f"{self.draft_path.name}.{time.time_ns()}.damaged")
            with suppress(FileNotFoundError):  # another window was first
                os.replace(self.draft_path, aside)
            warnings.warn(f"drafts are lost: {error}; set aside as {aside.name}", stacklevel=3)
            return {}


def _drafts(saved: Any) -> Drafts:
    """Drafts as they are read from a file; a text alone is that of an answer."""
    try:
        drafts = {p: {"answer": [v]} if isinstance(v, str) else dict(v) for p, v in saved.items()}
        texts = [t for kinds in drafts.values() for listed in kinds.values() for t in listed]
    except (AttributeError, TypeError, ValueError) as error:
        raise ReviewError(f"not drafts by pair ({error})") from error
    if not all(isinstance(t, str) for t in texts):
        raise ReviewError("a draft must be text")
    return drafts


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
