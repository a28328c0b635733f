"""Review in JupyterLab with ipywidgets alone, and pairs as a page to read.

Keyboard: click into the field *keys* once and type there; it keeps the focus from pair to pair.

    a accept        e save the edited answer      r reject      u undo
    o accept the original, though the edit box holds other words
    n next          p previous                    j jump to the first pair without verdict
    1 to 5 rate the scale that is marked with ▶ and go to the next scale     0 clear its rating
    s next scale    l next language               Tab leads on to the edit box and the note

Words are never lost. Every letter is on disk as it is typed. Words that are not saved yet stay with
their pair and come back with it, whatever is pressed, and in a new window too; they are gone when
the box is emptied. Accept does not pass over them in silence: it asks for e or o. Undo brings back
what was in the box.

What has been typed stays in the field and means nothing more: the kernel never writes to it, so
keys typed while it is busy are neither lost nor done twice. Keys that arrive together with one that
moved to another pair, or that was answered by a question, are dropped, since they were typed before
that could be seen; so is whatever looks like pasted text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from derm_rl.captions.review import SCALE, Queue, Store, Verdict
from derm_rl.captions.review_form import Form
from derm_rl.captions.review_page import Images, flags_of, image_of, page, picture, text_of
from derm_rl.captions.verdicts import encodable

__all__ = ["Reviewer", "page", "review"]
EDITABLE = 20_000  # characters; a longer answer is to be rejected, not mended
UNSAVED = "An edit not saved yet is in the box: e saves it, o accepts the original answer."
EDITED = "Your edit is in the box: e keeps it, o accepts the original answer instead."
CHANGED = (
    "Another window has changed this pair: look again. Nothing was saved here, words are kept."
)


def review(
    pairs: pd.DataFrame,
    images: Images,
    folder: str | Path,
    reader: str,
    sample: Sequence[str] | None = None,
    flags: pd.DataFrame | None = None,
    **dealing: Any,
) -> Reviewer:
    """Open a review; show the result as the last line of a cell. It resumes where it was.

    Args:
        pairs: table with ``PAIR_COLUMNS``.
        images: image id -> an encoded image or pixels (H, W, 3) uint8; a function or by [].
        folder: of the verdicts, shared by all readers.
        reader: name of who reviews.
        sample: ids of the pairs that the plan drew; default: all pairs.
        flags: ``pair_id, check, reason``; shown, and those pairs are dealt as well.
        dealing: ``readers, overlap, order, seed`` of :class:`derm_rl.captions.review.Queue`.
    """
    flagged = set() if flags is None else set(flags["pair_id"]) & set(pairs["pair_id"])
    ids = list(pairs["pair_id"]) if sample is None else list(sample)
    queue = Queue(ids, reader, flagged=flagged, **dealing)
    return Reviewer(pairs, images, Store(folder, reader), queue, flags)


class Reviewer(Form):
    """The review of one queue; every change is on disk before the next can be made."""

    def __init__(
        self,
        pairs: pd.DataFrame,
        images: Images,
        store: Store,
        queue: Queue,
        flags: pd.DataFrame | None = None,
    ) -> None:
        mine = pairs["conversation"].isin(
            pairs.loc[pairs["pair_id"].isin(queue.pairs), "conversation"]
        )
        # Plain rows: text columns of a table need not be able to hold what a teacher sent.
        self.rows = {row["pair_id"]: row for row in pairs[mine].to_dict("records")}
        if absent := [p for p in queue.pairs if p not in self.rows]:
            raise ValueError(
                f"{len(absent)} pairs to review are not in the table, e.g. {absent[0]}"
            )
        self.turns: dict[str, list[dict[str, Any]]] = {}
        for row in sorted(self.rows.values(), key=lambda row: row["turn"]):
            self.turns.setdefault(row["conversation"], []).append(row)
        self.images, self.store, self.flags = images, store, flags_of(flags)
        self.queue = self.whole = queue
        # Changes that can be taken back: pair, state before and after, words in the box.
        self.undone: list[tuple[str, Verdict, Verdict, str | None]] = []
        self.at, self.scale = 0, 0
        self.seen = Verdict()  # the state of the pair in view, as it was shown here
        self._drafts: dict[str, str] = {}  # its drafts in this window
        names = {p: str(self.rows[p].get("language")) for p in queue.pairs}
        self.languages = {
            p: "".join(c if c.isprintable() else "?" for c in names[p]) for p in names
        }
        super().__init__(set(self.languages.values()))
        self._open()
        self.go(queue.position(store))

    # ---------------------------------------------------------------------------- the view

    def _open(self) -> None:
        """Words of the pair in view: they belong to it, however late they come."""
        pair, drafts = self.pair_id, {"answer": "", "note": ""}
        self._drafts = drafts
        self.open_words(lambda kind, text: self._try(self._keep, pair, kind, text, drafts))

    def go(self, position: int, message: str = "") -> None:
        """Show a pair by its place in the queue; behind the last one stands the end."""
        self._leave()
        self.at, self.scale = min(max(position, 0), len(self.queue)), 0
        before, self.pair_id = self.pair_id, [*self.queue.pairs, None][self.at]
        if self.pair_id != before:
            self._open()
        self._show(message)

    def only(self, language: str) -> None:
        """Show the pairs of one language alone; "" shows all."""
        self._leave()
        mine = [p for p, name in self.languages.items() if language in ("", name)]
        self.queue = self.whole.only(mine)
        stay = self.pair_id in self.queue.pairs and self.seen.verdict is None
        self.go(self.queue.pairs.index(self.pair_id) if stay else self.queue.position(self.store))

    def _show(self, message: str) -> None:
        self._loading = True
        try:
            self._fill(message)
        finally:
            self._loading = False

    def _fill(self, message: str) -> None:
        done, pair = self.queue.done(self.store), self.pair_id
        self.progress.max, self.progress.value = max(1, len(self.queue)), done
        self.count.value = f"{min(self.at + 1, len(self.queue))} of {len(self.queue)}, {done} done"
        for control in (self.box, self.note, *self.scales.values()):
            control.disabled = pair is None
        self.seen = Verdict() if pair is None else self.store.get(pair)
        for name, scale in self.scales.items():
            scale.value = self.seen.ratings.get(name)
        self.mark(self.scale)
        if pair is None:
            others = len(self.whole) - self.whole.done(self.store) - len(self.queue) + done
            more = f" {others} in other languages are left (l)." if others else ""
            end = f"<p>End of the queue: {done} of {len(self.queue)} pairs done.{more}</p>"
            self.picture.value, self.view.value = "", end
            return self.say(message)
        state, row = self.seen, self.rows[pair]
        before = [r for r in self.turns[row["conversation"]] if r["turn"] < row["turn"]]
        image = image_of(row, picture(self.images, row["image_id"]))
        self.show_pair(image, text_of(row, self.flags.get(pair, ()), before))
        saved = {"answer": state.answer or self._answer(pair), "note": state.note}
        for kind, text in saved.items():
            draft = self._drafts[kind] or self.store.draft(pair, kind) or ""
            self._drafts[kind] = "" if draft == text else draft
        self.box.disabled = len(self._answer(pair)) > EDITABLE
        self.box.placeholder = "too long to edit here; reject it" if self.box.disabled else ""
        self.box.value = "" if self.box.disabled else self._drafts["answer"] or saved["answer"]
        self.note.value = self._drafts["note"] or saved["note"]
        where = ", given in another window" if pair in self.store.elsewhere else ""
        verdict = f"Your verdict: {state.verdict}{where}." if state.verdict else ""
        unsaved = UNSAVED if self._drafts["answer"] and not self.box.disabled else ""
        other = f"The saved note is: {state.note}" if self._drafts["note"] and state.note else ""
        return self.say(" ".join(m for m in (message, verdict, unsaved, other) if m))

    def _answer(self, pair: str) -> str:
        answer = self.rows[pair]["answer"]
        return encodable(answer) if isinstance(answer, str) else ""

    # ------------------------------------------------------------------------- what is said

    def accept(self) -> None:
        """Accept the answer as it is; asks if the box holds other words."""
        pair, text = self.pair_id, self.box.value
        if pair is not None and text.strip() and text != self._answer(pair):
            self.asked += 1
            return self.say(EDITED if text == self.seen.answer else UNSAVED)
        return self._give("accept")

    def original(self) -> None:
        """Accept the answer as the teacher wrote it; other words in the box are kept."""
        self._give("accept")

    def reject(self) -> None:
        """Reject the pair; other words in the box are kept."""
        self._give("reject")

    def edit(self) -> None:
        """Store the text of the box as the edited answer."""
        pair, text = self.pair_id, self.box.value
        if pair is None or self.box.disabled or not text.strip():
            return self.say("There is no edited answer to save; change the text in the box.")
        if text == self._answer(pair):
            return self.say("The answer is unchanged: change the text in the box, or accept it.")
        return self._give("edit", encodable(text))

    def _give(self, verdict: str, answer: str | None = None) -> None:
        if self.pair_id is None:
            return self.say("This is the end of the queue.")
        if not self._put(self.box.value, verdict=verdict, answer=answer):
            return None
        self._leave()
        kept = " Your words are kept with the pair." if self._drafts["answer"] else ""
        at, given = self.at + 1, self.store
        while at < len(self.queue) and given.judged_elsewhere(self.queue.pairs[at]):
            at += 1
        return self.go(at, f"Saved: {verdict}.{kept}")

    def rate(self, name: str, value: int | None) -> None:
        """Store one rating; None clears it."""
        if not self._loading and self.pair_id is not None:
            ratings = {k: v for k, v in self.seen.ratings.items() if k != name}
            self._put(None, ratings=ratings | ({} if value is None else {name: value}))

    def undo(self) -> None:
        """Take back the last verdict or rating of this window, never words; history keeps both."""
        if not self.undone:
            return self.say("Nothing to undo in this window; go back and judge again.")
        self._leave()
        pair, before, after, words = self.undone.pop()
        now = self.store.get(pair)
        # A note may have come since. What another window has said since is not taken back.
        done = now == replace(after, note=now.note) and self.store.put(
            pair, replace(before, note=now.note), seen=now
        )
        if done and words and words.strip() and words not in (before.answer, self._answer(pair)):
            self.store.keep_draft(pair, words, shown=words)
        if pair not in self.queue.pairs:
            self.language.value = ""
        return self.go(self.queue.pairs.index(pair), "Undone." if done else CHANGED)

    def _put(self, words: str | None, **changes: Any) -> bool:
        """Store a change of the pair in view, unless another window has changed it meanwhile."""
        pair, before = self.pair_id, self.seen
        after = replace(before, note=encodable(self.note.value), **changes)
        if not self.store.put(pair, after, seen=before):
            self.asked += 1
            self._show(CHANGED)
            return False
        self.seen = after
        if replace(after, note=before.note) != before:
            self.undone.append((pair, before, after, words))
        self._keep(pair, "note", after.note, self._drafts)
        return True

    def _leave(self) -> None:
        """See that nothing is lost if another pair is shown now.

        A note is saved here, not as it is typed: each letter would be a change.
        """
        self.store.refresh()
        if (pair := self.pair_id) is not None:
            if not self.box.disabled:
                self._keep(pair, "answer", self.box.value, self._drafts)
            if self.note.value != self.seen.note:
                self._put(None)

    def _keep(self, pair: str | None, kind: str, text: str, drafts: dict[str, str]) -> None:
        """Keep what is being typed as a draft, unless it is saved already, or empty."""
        if self._loading or pair is None:
            return
        state = self.store.get(pair)
        saved = state.note if kind == "note" else state.answer or self._answer(pair)
        draft = "" if text == saved or not text.strip() else encodable(text)
        self.store.keep_draft(pair, draft or None, kind, drafts[kind])
        drafts[kind] = draft
        if pair != self.pair_id:
            self.say("The last letters for another pair came late: they are kept with it.")

    # ----------------------------------------------------------------------------- the keys

    def actions(self) -> dict[str, Callable[[], Any]]:
        """What each key does."""
        rates = {str(v): lambda v=v: self._rate_marked(v) for v in SCALE}
        return {
            "a": self.accept,
            "e": self.edit,
            "r": self.reject,
            "o": self.original,
            "u": self.undo,
            "n": lambda: self.go(self.at + 1),
            "p": lambda: self.go(self.at - 1),
            "j": lambda: self.go(self.queue.position(self.store)),
            "s": self._next_scale,
            "l": self._next_language,
            "0": lambda: self._rate_marked(None),
            **rates,
        }

    def _rate_marked(self, value: int | None) -> None:
        if self.pair_id is not None:
            list(self.scales.values())[self.scale].value = value  # its observer stores it
            if value is not None:
                self._next_scale()

    def _next_scale(self) -> None:
        self.scale = (self.scale + 1) % len(self.scales)
        self.mark(self.scale)

    def _next_language(self) -> None:
        self.language.index = (self.language.index + 1) % len(self.language.options)
