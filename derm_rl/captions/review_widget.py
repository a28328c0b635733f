"""Review in JupyterLab with ipywidgets alone, and pairs as a page to read.

Keyboard: click into the field *keys* once and type there; it keeps the focus from pair to pair.

    a accept        e save the edited answer      r reject      u undo
    n next          p previous                    j jump to the first pair without verdict
    1 to 5 rate the scale that is marked with ▶ and go to the next scale     0 clear its rating
    s next scale    Tab leads on to the edit box and the note, Shift+Tab back

What has been typed stays in the field and means nothing more: the kernel never writes to it, so
keys typed while it is busy are neither lost nor done twice. Keys that arrive together with one that
moved to another pair are dropped, since they were typed before that pair could be seen; so is
whatever looks like pasted text.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd

from derm_rl.captions.review import RATINGS, SCALE, Queue, Store, Verdict
from derm_rl.captions.review_page import STYLE, Images, card, flags_of, page, picture, shown
from derm_rl.captions.verdicts import encodable

__all__ = ["Reviewer", "page", "review"]
EDITABLE = 20_000  # characters; a longer answer is to be rejected, not mended
AT_ONCE = 8  # keys that can arrive together from a fast typist


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


class Reviewer(widgets.VBox):
    """The view of one pair of the queue; every change is on disk before the next can be made."""

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
        self.images, self.store, self.queue, self.flags = images, store, queue, flags_of(flags)
        self.undone: list[tuple[int, str, Verdict]] = []  # states to go back to
        self.at, self.scale, self._typed, self._loading = 0, 0, "", True
        self._build()
        super().__init__(self._layout())
        self.go(queue.position(store))

    # ---------------------------------------------------------------------------- the view

    def _build(self) -> None:
        def button(text: str, key: str, style: str, action: Callable[[], Any]) -> widgets.Button:
            made = widgets.Button(
                description=f"{text} ({key})", tooltip=f"{text}: key {key}", button_style=style,
                layout=widgets.Layout(width="auto"),
            )  # fmt: skip
            made.on_click(lambda _: action())
            return made

        self.buttons = {
            "accept": button("Accept", "a", "success", self.accept),
            "edit": button("Save edit", "e", "info", self.edit),
            "reject": button("Reject", "r", "danger", self.reject),
            "undo": button("Undo", "u", "", self.undo),
            "previous": button("Previous", "p", "", lambda: self.go(self.at - 1)),
            "next": button("Next", "n", "", lambda: self.go(self.at + 1)),
        }
        wide = widgets.Layout(width="98%")
        self.commands = widgets.Text(
            description="keys", placeholder="click here, then a e r u n p j 1-5 0 s",
            continuous_update=True,
        )  # fmt: skip
        self.box = widgets.Textarea(
            description="answer", rows=6, layout=wide, continuous_update=True
        )
        self.note = widgets.Text(description="note", layout=wide, continuous_update=False)
        self.progress = widgets.IntProgress(min=0, max=max(1, len(self.queue)))
        self.view, self.message, self.count = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.scales = {
            name: widgets.ToggleButtons(
                options=[("–", None), *((str(v), v) for v in SCALE)],
                tooltips=[meaning] * (len(SCALE) + 1),
                style=widgets.ToggleButtonsStyle(button_width="32px", description_width="130px"),
            )
            for name, meaning in RATINGS.items()
        }
        self.commands.observe(lambda change: self.typed(change["new"]), "value")
        self.box.observe(lambda change: self._edited(change["new"]), "value")
        self.note.observe(lambda change: self._save(note=encodable(change["new"])), "value")
        for name, scale in self.scales.items():
            scale.observe(lambda change, name=name: self.rate(name, change["new"]), "value")

    def _layout(self) -> list[widgets.Widget]:
        head = widgets.HBox([self.progress, self.count])
        actions = widgets.HBox([self.commands, *self.buttons.values()])
        ratings = widgets.VBox(list(self.scales.values()))
        return [head, self.view, actions, self.message, self.box, self.note, ratings]

    @property
    def pair_id(self) -> str | None:
        """The pair in view; None behind the last."""
        return self.queue.pairs[self.at] if self.at < len(self.queue) else None

    def go(self, position: int, message: str = "") -> None:
        """Show a pair by its place in the queue; behind the last one stands the end."""
        self.at, self.scale = min(max(position, 0), len(self.queue)), 0
        self._loading = True
        try:
            self._show(message)
        finally:
            self._loading = False

    def _show(self, message: str) -> None:
        done, pair = self.queue.done(self.store), self.pair_id
        self.progress.value = done
        self.count.value = f"{min(self.at + 1, len(self.queue))} of {len(self.queue)}, {done} done"
        for control in (self.box, self.note, *self.scales.values()):
            control.disabled = pair is None
        if pair is None:
            self.view.value = f"<p>End of the queue: {done} of {len(self.queue)} pairs done.</p>"
            self.box.value, self.note.value = "", ""
            return self.say(message)
        state, row = self.store.get(pair), self.rows[pair]
        content = picture(self.images, row["image_id"])
        before = [r for r in self.turns[row["conversation"]] if r["turn"] < row["turn"]]
        html = card(row, content, self.flags.get(pair, ()), before)
        self.view.value = f"<style>{STYLE}</style>{html}"
        draft = self.store.draft(pair)
        self.box.disabled = len(self._answer(pair)) > EDITABLE
        self.box.placeholder = "too long to edit here; reject it" if self.box.disabled else ""
        self.box.value = "" if self.box.disabled else (draft or state.answer or self._answer(pair))
        self.note.value = state.note
        for name, scale in self.scales.items():
            scale.value = state.ratings.get(name)
        self._mark()
        verdict = f"Your verdict: {state.verdict}." if state.verdict else ""
        unsaved = "An edit that was not saved yet is in the box." if draft else ""
        return self.say(" ".join(m for m in (message, verdict, unsaved) if m))

    def _mark(self) -> None:
        for number, (name, scale) in enumerate(self.scales.items()):
            scale.description = ("▶ " if number == self.scale else "") + name

    def say(self, message: str) -> None:
        """Show a line of plain text."""
        self.message.value = shown(message, 500) if message else ""

    def _answer(self, pair: str) -> str:
        answer = self.rows[pair]["answer"]
        return encodable(answer) if isinstance(answer, str) else ""

    # ------------------------------------------------------------------------- what is said

    def accept(self) -> None:
        self._give("accept")

    def reject(self) -> None:
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
        if (pair := self.pair_id) is None:
            return self.say("This is the end of the queue.")
        state = self.store.get(pair)
        self._put(pair, replace(state, verdict=verdict, answer=answer))
        self.store.keep_draft(pair, None)
        return self.go(self.at + 1, f"Saved: {verdict}.")

    def rate(self, name: str, value: int | None) -> None:
        """Store one rating; None clears it."""
        if self._loading or self.pair_id is None:
            return
        ratings = {k: v for k, v in self.store.get(self.pair_id).ratings.items() if k != name}
        self._save(ratings=ratings | ({} if value is None else {name: value}))

    def undo(self) -> None:
        """Take back the last change made in this window; history keeps both."""
        if not self.undone:
            return self.say("Nothing to undo in this window; go back and judge again.")
        at, pair, before = self.undone.pop()
        self.store.put(pair, before)
        return self.go(at, "Undone.")

    def _save(self, **changes: Any) -> None:
        if not self._loading and self.pair_id is not None:
            self._put(self.pair_id, replace(self.store.get(self.pair_id), **changes))

    def _put(self, pair: str, state: Verdict) -> None:
        before = self.store.get(pair)
        if state != before:
            self.store.put(pair, state)
            self.undone.append((self.at, pair, before))

    def _edited(self, text: str) -> None:
        if not self._loading and self.pair_id is not None:
            same = text == (self.store.get(self.pair_id).answer or self._answer(self.pair_id))
            self.store.keep_draft(self.pair_id, None if same or not text.strip() else text)

    # ---------------------------------------------------------------------------- keyboard

    def typed(self, value: str) -> None:
        """Obey the keys that are new in the field since it was last seen."""
        new = value[len(os.path.commonprefix([self._typed, value])) :]
        self._typed = value
        # A Japanese input method may send full-width letters.
        keys = unicodedata.normalize("NFKC", new).lower().replace(" ", "")
        commands = self._commands()
        if unknown := [k for k in keys if k not in commands]:
            return self.say(f"Unknown key {unknown[0]!r}: type {' '.join(commands)}.")
        if len(keys) > AT_ONCE:
            return self.say("That looks like pasted text: type single keys here.")
        seen = self.at
        for key in keys:
            if self.at == seen:
                commands[key]()
        return None

    def _commands(self) -> dict[str, Callable[[], Any]]:
        rates = {str(v): lambda v=v: self._rate_marked(v) for v in SCALE}
        return {
            "a": self.accept,
            "e": self.edit,
            "r": self.reject,
            "u": self.undo,
            "n": lambda: self.go(self.at + 1),
            "p": lambda: self.go(self.at - 1),
            "j": lambda: self.go(self.queue.position(self.store)),
            "s": self._next_scale,
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
        self._mark()
