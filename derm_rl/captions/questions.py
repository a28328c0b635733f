"""Which questions are asked about which image.

The pools are our own (``pools/*.yaml``): six general types after DermaSynth (arXiv 2502.00196),
templates per data set that use its metadata, and conversations of two or three turns. A plan is a
pure function of seed and image id: the order of the table, and which other images there are, change
nothing.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any

from derm_rl.captions.prompting import SLOTS, load_pool, present, value
from derm_rl.captions.schema import GENERAL_TYPES, SPECIFIC_TYPE, Language, Question

if TYPE_CHECKING:
    import pandas as pd

LANGUAGES: tuple[Language, ...] = ("en", "ja")
SOURCES = ("derm12345", "bcn20000", "pad_ufes_20", "scin", "hiba", "ham10000", "phantom")
FALLBACK = "ham10000"  # for other sources: its slots are columns that every table has
MODES = {"grounded": 0.5, "blind": 0.5}
# Share of conversations that end after two turns. A conversation takes the place of an image's
# first general question, so it adds one or two pairs: 2 x 45,205 + 0.02 x 45,205 x (2 - 2/9) =
# 92,017 pairs are expected with the defaults; DermaSynth has 92,020.
SHORT = 2 / 9


class QuestionError(ValueError):
    """A plan that cannot be made; the message names the argument or the column."""


@dataclass(frozen=True)
class Proposal:
    """A phrasing that passed :class:`derm_rl.captions.selfinstruct.Pool`; asked of any image."""

    text: str
    type: str  # of GENERAL_TYPES
    language: Language


@cache
def general(language: Language) -> dict[str, tuple[str, ...]]:
    """Phrasings by general type."""
    return {kind: tuple(load_pool("general")[language][kind]) for kind in GENERAL_TYPES}


@cache
def specific(source: str, language: Language) -> tuple[str, ...]:
    """Templates of a source's pool; of the fallback for a source without one."""
    return tuple(load_pool(source if source in SOURCES else FALLBACK)[language])


@cache
def conversations(language: Language) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Conversations of three turns: (type, text)."""
    pool = load_pool("conversations")[language]
    return tuple(tuple((turn["type"], turn["text"]) for turn in turns) for turns in pool)


@cache
def slots(template: str) -> tuple[str, ...]:
    """Names of a template's slots.

    Raises:
        QuestionError: a slot is unknown.
    """
    names = tuple(dict.fromkeys(n for _, n, _, _ in string.Formatter().parse(template) if n))
    for name in names:
        if name not in SLOTS:
            raise QuestionError(f"template {template!r}: unknown slot {{{name}}}")
    return names


def fill(template: str, row: Mapping[str, Any], language: Language) -> str | None:
    """The template with its slots filled, or None if the row lacks one of them."""
    names = slots(template)
    values = {name: value(row, name, language) for name in names}
    return template.format(**values) if all(values.values()) else None


def plan(
    frame: pd.DataFrame,
    seed: int,
    *,
    languages: Sequence[Language] = ("en",),
    general: int = 1,
    specific: int = 1,
    multi: float = 0.02,
    modes: Mapping[str, float] = MODES,
    proposals: Sequence[Proposal] = (),
    proposed: float = 0.1,
) -> Iterator[Question]:
    """Questions for every image of a table, one image after the other, turns in order.

    Args:
        frame: with ``image_id``, and ``source`` and metadata where there are any.
        languages: drawn with equal chances for every question.
        general: general questions an image, of different types as long as there are any left.
        specific: questions of the source's own pool an image. Blind ones use templates without
            slots only, for a filled slot is metadata.
        multi: share of images whose first general question is replaced by a conversation.
        modes: weights of "grounded" and "blind".
        proposals: accepted self-instruct questions; ``proposed`` is the share of general questions
            that they take the place of (where there is one in the language).

    Raises:
        QuestionError: at once, not when the first question is drawn.
    """
    settings = _Settings(
        seed, tuple(languages), general, specific, multi, dict(modes), tuple(proposals), proposed
    )
    if "image_id" not in frame:
        raise QuestionError(f"column 'image_id' is missing; found {list(frame.columns)}")
    if frame["image_id"].isna().any() or frame["image_id"].duplicated().any():
        raise QuestionError("column 'image_id' must be there and different in every row")
    return _questions(frame, settings)


def planned(frame: pd.DataFrame, seed: int, **options: Any) -> int:
    """How many questions :func:`plan` asks with the same arguments, exactly."""
    return sum(1 for _ in plan(frame, seed, **options))


@dataclass(frozen=True)
class _Settings:
    seed: int
    languages: tuple[Language, ...]
    general: int
    specific: int
    multi: float
    modes: dict[str, float]
    proposals: tuple[Proposal, ...]
    proposed: float

    def __post_init__(self) -> None:
        if not self.languages or (unknown := set(self.languages) - set(LANGUAGES)):
            raise QuestionError(f"languages: expected some of {LANGUAGES}, got {self.languages}")
        for name in ("general", "specific"):
            count = getattr(self, name)
            if not isinstance(count, int) or count < 0:
                raise QuestionError(f"{name}: expected a whole number from 0 on, got {count!r}")
        for name in ("multi", "proposed"):
            if not 0 <= getattr(self, name) <= 1:
                raise QuestionError(f"{name}: expected 0 to 1, got {getattr(self, name)!r}")
        unknown = set(self.modes) - set(MODES)
        weights = list(self.modes.values())
        if unknown or min(weights, default=0) < 0 or sum(weights) <= 0:
            raise QuestionError(
                f"modes: expected weights from 0 on of 'grounded' and 'blind', got {self.modes}"
            )
        for proposal in self.proposals:
            if proposal.type not in GENERAL_TYPES:
                raise QuestionError(f"proposals: {proposal.text!r} has no general type")


def _questions(frame: pd.DataFrame, settings: _Settings) -> Iterator[Question]:
    columns = list(frame.columns)
    for values in frame.itertuples(index=False, name=None):
        row = dict(zip(columns, values, strict=True))
        yield from _image(row, settings)


def _random(settings: _Settings, image_id: str, purpose: str) -> Random:
    """A stream for every purpose: more questions of one kind leave the other kinds as they are."""
    key = f"{settings.seed}\0{image_id}\0{purpose}".encode(errors="surrogatepass")
    return Random(int.from_bytes(blake2b(key, digest_size=8).digest(), "big"))


def _image(row: Mapping[str, Any], settings: _Settings) -> Iterator[Question]:
    name = str(row["image_id"])
    talk = _random(settings, name, "conversation").random() < settings.multi
    if talk:
        yield from _conversation(name, settings)
    kinds: list[str] = []
    for number in range(settings.general):
        rng = _random(settings, name, f"general-{number}")
        kinds = kinds or list(GENERAL_TYPES)
        kind = kinds.pop(rng.randrange(len(kinds)))
        if not (talk and number == 0):
            yield _general(name, kind, number, rng, settings)
    asked: set[str] = set()
    for number in range(settings.specific):
        rng = _random(settings, name, f"specific-{number}")
        language, mode = _how(rng, settings)
        if chosen := _specific(row, language, mode, rng, asked):
            yield Question(
                name,
                SPECIFIC_TYPE,
                chosen,
                language,
                mode,
                "single",
                f"{name}/specific-{number}",
                0,
            )


def _how(rng: Random, settings: _Settings) -> tuple[Language, str]:
    language = rng.choice(settings.languages)
    return language, rng.choices(list(settings.modes), list(settings.modes.values()))[0]


def _general(name: str, kind: str, number: int, rng: Random, settings: _Settings) -> Question:
    language, mode = _how(rng, settings)
    text, style = rng.choice(general(language)[kind]), "single"
    fitting = [p for p in settings.proposals if p.language == language]
    if rng.random() < settings.proposed and fitting:
        proposal = rng.choice(fitting)
        kind, text, style = proposal.type, proposal.text, "self_instruct"
    return Question(name, kind, text, language, mode, style, f"{name}/general-{number}", 0)


def _conversation(name: str, settings: _Settings) -> Iterator[Question]:
    rng = _random(settings, name, "turns")
    language, mode = _how(rng, settings)
    turns = rng.choice(conversations(language))
    for number, (kind, text) in enumerate(turns[: 2 if rng.random() < SHORT else 3]):
        yield Question(name, kind, text, language, mode, "multi", f"{name}/conversation", number)


def _specific(
    row: Mapping[str, Any], language: Language, mode: str, rng: Random, asked: set[str]
) -> str | None:
    """A template of the source's pool that can be filled and has not been used for this image."""
    pool = list(specific(str(present(row, "source")), language))
    rng.shuffle(pool)
    for template in pool:
        if template in asked or (mode == "blind" and slots(template)):
            continue
        if text := fill(template, row, language):
            asked.add(template)
            return text
    return None
