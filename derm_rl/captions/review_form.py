"""What a review looks like in JupyterLab: its controls, their places, and the keys for them.

What is done when one of them is used is :mod:`derm_rl.captions.review_widget`.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection
from typing import Any

import ipywidgets as widgets

from derm_rl.captions.review_page import STYLE, shown
from derm_rl.captions.verdicts import RATINGS, SCALE, ReviewError

BUTTONS = {  # key: its name, text, colour, what it does
    "a": ("accept", "Accept", "success", "accept the answer as it is"),
    "e": ("edit", "Save edit", "info", "save the text of the box as the edited answer"),
    "r": ("reject", "Reject", "danger", "reject the pair"),
    "o": ("original", "Original", "", "accept the original answer, not the words in the box"),
    "u": ("undo", "Undo", "", "take back the last verdict or rating"),
    "p": ("previous", "Previous", "", "back to the pair before"),
    "n": ("next", "Next", "", "on to the next pair"),
}
AT_ONCE = 8  # keys that can arrive together from a fast typist
KEPT = 4  # boxes of pairs seen before that still listen for letters on their way


class Form(widgets.VBox):
    """The controls of a review; ``box`` and ``note`` are new for each pair.

    A subclass says what is done: ``actions``, ``rate`` and ``only``.
    """

    def __init__(self, languages: Collection[str]) -> None:
        self.buttons = {
            name: widgets.Button(
                description=f"{text} ({key})", tooltip=f"{hint}: key {key}", button_style=style,
                layout=widgets.Layout(width="auto", flex="0 0 auto"),
            )
            for key, (name, text, style, hint) in BUTTONS.items()
        }  # fmt: skip
        self.commands = widgets.Text(
            description="keys", placeholder="click here, then a e r o u p n j 1-5 0 s l",
            layout=widgets.Layout(width="98%"), style={"description_width": "52px"},
        )  # fmt: skip
        self.scales = {
            name: widgets.ToggleButtons(
                options=[("–", None), *((str(v), v) for v in SCALE)],
                tooltips=[meaning] * (len(SCALE) + 1),
                layout=widgets.Layout(display="flex", width="336px"),  # else below its label
                style=widgets.ToggleButtonsStyle(button_width="32px", description_width="108px"),
            )
            for name, meaning in RATINGS.items()
        }  # fmt: skip
        self.language = widgets.Dropdown(
            options=[("all languages", ""), *((name[:40], name) for name in sorted(languages))],
            layout=widgets.Layout(width="150px"),
        )  # fmt: skip
        self.progress = widgets.IntProgress(min=0, layout=widgets.Layout(width="160px"))
        self.view, self.picture = widgets.HTML(), widgets.HTML()
        self.message, self.count = widgets.HTML(), widgets.HTML()
        self.message.layout.min_height = "36px"  # else the keys jump as it comes and goes
        self.message.add_class("derm-message")
        self.words = widgets.VBox()
        self.pair_id: str | None = None  # the pair in view; None behind the last
        self.asked, self._typed, self._loading = 0, "", False
        self._opened: list[tuple[widgets.Widget, ...]] = []
        super().__init__(self._places())
        self._listen()

    def _places(self) -> list[widgets.Widget]:
        # In this order Tab leads from the keys to the box, the note and then the buttons.
        head = [self.progress, self.count]
        head += [self.language] if len(self.language.options) > 2 else []
        left = widgets.VBox([self.picture, *self.scales.values()])
        left.layout = widgets.Layout(width="340px", flex="0 0 auto")
        right = widgets.VBox([self.view, self.message, self.commands, self.words])
        right.layout = widgets.Layout(flex="1 1 380px", min_width="0")
        wrap = widgets.Layout(flex_flow="row wrap")
        buttons = widgets.HBox(list(self.buttons.values()), layout=wrap)
        return [widgets.HBox(head), widgets.HBox([left, right], layout=wrap), buttons]

    def open_words(self, typed: Callable[[str, str], None]) -> None:
        """A new box and note; ``typed("answer" or "note", text)`` is called at every letter.

        Letters can still be on their way when the next pair is shown: they reach the box of the
        pair that they were typed for, and not the next one's.
        """
        wide = {"layout": self.commands.layout, "style": self.commands.style}
        self.box = widgets.Textarea(description="answer", rows=5, **wide)
        self.note = widgets.Text(description="note", **wide)
        for kind, field in (("answer", self.box), ("note", self.note)):
            field.observe(lambda change, kind=kind: typed(kind, change["new"]), "value")
        self.words.children = (self.box, self.note)
        self._opened.append(self.words.children)
        while len(self._opened) > KEPT:
            for field in self._opened.pop(0):
                field.close()

    def show_pair(self, picture: str, text: str) -> None:
        """Show the two halves of a pair, as HTML."""
        part = '<div class="derm-pair derm-part">{}</div>'.format
        self.picture.value = part(picture)
        self.view.value = f"<style>{STYLE}</style>{part(text)}"

    def mark(self, scale: int) -> None:
        """Mark the scale that the next figure rates."""
        for number, (name, control) in enumerate(self.scales.items()):
            control.description = ("▶ " if number == scale else "") + name

    def say(self, message: str) -> None:
        """Show a line of plain text."""
        self.message.value = shown(message, 500) if message else ""

    # ------------------------------------------------------------------------ what is used

    def _listen(self) -> None:
        for key, (name, *_) in BUTTONS.items():
            self.buttons[name].on_click(lambda _, key=key: self._by_hand(self.actions()[key]))
        self.commands.observe(lambda change: self._try(self.typed, change["new"]), "value")
        self.language.observe(lambda change: self._by_hand(self.only, change["new"]), "value")
        for name, scale in self.scales.items():
            scale.observe(lambda c, name=name: self._by_hand(self.rate, name, c["new"]), "value")

    def _try(self, action: Callable[..., Any], *given: Any) -> None:
        """Do it; what the disk refuses is said where the reader looks, not in a log."""
        try:
            action(*given)
        except (OSError, ReviewError) as error:
            self.say(f"NOT SAVED: {error}")

    def _by_hand(self, action: Callable[..., Any], *given: Any) -> None:
        """Do what was clicked; then the keys have the focus: JupyterLab would obey them itself."""
        if not self._loading:
            self._try(action, *given)
            self.commands.focus()

    def typed(self, value: str) -> None:
        """Obey the keys that are new in the field since it was last seen."""
        new = value[len(os.path.commonprefix([self._typed, value])) :]
        self._typed = value
        # A Japanese input method may send full-width letters.
        keys = unicodedata.normalize("NFKC", new).lower().replace(" ", "")
        commands = self.actions()
        if unknown := [k for k in keys if k not in commands]:
            return self.say(f"Unknown key {unknown[0]!r}: type {' '.join(commands)}.")
        if len(keys) > AT_ONCE:
            return self.say("That looks like pasted text: type single keys here.")
        seen = self.pair_id, self.asked
        for key in keys:
            if (self.pair_id, self.asked) == seen:
                commands[key]()
        return None
