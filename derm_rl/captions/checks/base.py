"""What every check gets and gives: settings, one pair with all that is known of it, scores.

A check is one function from a :class:`Pair` to ``(score, reason)`` or ``None``, registered by

    @check("politeness")
    def politeness(pair: Pair, settings: Settings) -> Hit | None: ...

A score from 0 to 1 says how strong the evidence is. It becomes a flag from the check's threshold
on, which :func:`derm_rl.captions.checks.learn` can choose from reviewers' verdicts.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from derm_rl.captions.schema import Finding, Measurements

Hit = tuple[float, str]  # score, reason
FINDINGS = TypeAdapter(list[Finding])


class Settings(BaseModel):
    """Everything that tunes the checks. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")

    threshold: float = Field(0.5, ge=0, le=1, description="score from which on a check flags")
    thresholds: dict[str, float] = Field(
        default_factory=dict, description="the same for single checks, by name; above 1 = never"
    )
    learned: dict[str, str] = Field(
        default_factory=dict, description="by check, what its threshold was learned from"
    )
    max_characters: int = Field(
        20_000, gt=0, description="longer answers are hostile; other checks read no further"
    )
    foreign_share: float = Field(
        0.15, gt=0, le=1, description="share of another language that scores 0.5"
    )
    words: dict[str, tuple[int, int]] = Field(
        default_factory=lambda: {"en": (6, 350), "ja": (15, 900)},
        description="fewest and most words (en) or characters (ja) of an answer, by language, or "
        "by 'language/question type'",
    )
    words_abstained: dict[str, int] = Field(
        default_factory=lambda: {"en": 3, "ja": 6}, description="fewest where it abstained"
    )
    axes_tolerance: int = Field(
        0, ge=0, description="difference in asymmetric axes that scores only 0.4"
    )
    colours_tolerance: int = Field(
        1, ge=0, description="the same for the number of colours (measured to within one)"
    )
    skin_tone_tolerance: int = Field(1, ge=0, description="the same for classes of skin tone")
    sure_confidence: float = Field(
        0.99, gt=0, description="stated confidence in a diagnosis that is unsupported"
    )
    rouge_l: float = Field(
        0.9, gt=0, le=1, description="ROUGE-L F1 to an earlier answer from which on it scores 0.5"
    )
    minhash_jaccard: float = Field(
        0.6, gt=0, lt=1, description="Jaccard similarity at which MinHash finds candidates"
    )
    minhash_permutations: int = Field(64, ge=16, description="hashes of a MinHash signature")
    max_candidates: int = Field(
        20, gt=0, description="candidates of one pair that ROUGE-L is computed for, likest first"
    )
    judge_confidence: float = Field(
        0.5, ge=0, le=1, description="stated confidence of a judge's reject that scores 0.5"
    )

    def threshold_of(self, check: str) -> float:
        return self.thresholds.get(check, self.threshold)


def normalize(text: str) -> str:
    """Compatibility forms, case and kinds of quotation mark made one; lengths may change."""
    text = unicodedata.normalize("NFKC", text).lower()
    return text.translate({0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"', 0x2010: "-"})


@dataclass
class Pair:
    """One row of a table of pairs, and what is known of its image."""

    row: Mapping[str, Any]  # of schema.PAIR_COLUMNS; missing values are absent
    about: Mapping[str, Any]  # the image's row of its table; missing values are absent
    measured: Measurements | None
    limit: int  # characters that checks read

    def text(self, column: str) -> str:
        """A column as text; empty if missing or no text."""
        value = self.row.get(column, "")
        return value if isinstance(value, str) else ""

    @cached_property
    def answer(self) -> str:
        """The answer, normalized, cut to the limit, with no run of white space."""
        text = normalize(self.text("answer")[: self.limit])
        return re.sub(r"\n\s*\n", "\n\n", re.sub(r"[^\S\n]+", " ", text))

    @cached_property
    def language(self) -> str:
        return "ja" if self.text("language") == "ja" else "en"

    @cached_property
    def abstained(self) -> bool:
        return str(self.row.get("abstained", False)).lower() in ("true", "1")

    @cached_property
    def confidence(self) -> float | None:
        try:
            return float(self.row["confidence"])
        except (KeyError, TypeError, ValueError):
            return None

    @cached_property
    def findings(self) -> list[Finding] | str:
        """The parsed findings, or why they cannot be parsed."""
        value = self.row.get("findings")
        if not isinstance(value, str):
            return "findings are missing"
        if len(value) > 20 * self.limit:
            return f"findings are {len(value):,} characters long"
        try:
            return FINDINGS.validate_python(json.loads(value))
        except (ValueError, RecursionError) as error:
            if not isinstance(error, ValidationError):
                return "findings are not JSON"
            first = error.errors(include_url=False, include_input=False)[0]
            return f"findings {'.'.join(map(str, first['loc']))}: {first['msg']}"

    def known(self, column: str) -> Any:
        """A value of the image's row, or of the pair's own columns; None if missing."""
        return self.about.get(column, self.row.get(column))


@dataclass(frozen=True)
class Check:
    """A registered check. Exactly one of ``single`` and ``whole`` is set."""

    name: str
    text: str  # first line of its docstring
    single: Callable[[Pair, Settings], Hit | None] | None = None
    whole: Callable[[pd.DataFrame, Settings], Iterable[tuple[str, float, str]]] | None = None


CHECKS: dict[str, Check] = {}


def check(name: str, whole: bool = False) -> Callable[[Callable], Callable]:
    """Register a check of single pairs, or of the ``whole`` table (pair_id, score, reason).

    The whole table comes without its column ``findings``, which is large.

    Raises:
        ValueError: the name is taken, or the function has no docstring to say what it does.
    """

    def register(function: Callable) -> Callable:
        if name in CHECKS:
            raise ValueError(f"check {name!r} is registered twice")
        if not function.__doc__:
            raise ValueError(f"check {name!r} needs a docstring: its first line is what users see")
        text = function.__doc__.strip().splitlines()[0]
        CHECKS[name] = Check(name, text, **{"whole" if whole else "single": function})
        return function

    return register


def present(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without its missing values; lists and the like are none that a cell may hold."""
    return {k: v for k, v in row.items() if pd.api.types.is_scalar(v) and not pd.isna(v)}


def pairs_of(
    pairs: pd.DataFrame,
    images: pd.DataFrame | None,
    measurements: Mapping[str, Measurements] | None,
    settings: Settings,
) -> Iterator[Pair]:
    """The rows of a table one by one, with what is known of their images."""
    images = images if images is not None else pd.DataFrame({"image_id": []})
    position = {name: i for i, name in enumerate(images["image_id"])}
    rows = images.to_dict("records") if len(images) else []
    measurements = measurements or {}
    for row in pairs.to_dict("records"):
        row = present(row)
        image = row.get("image_id")
        about = present(rows[position[image]]) if image in position else {}
        yield Pair(row, about, measurements.get(image), settings.max_characters)


def quote(text: str, start: int = 0, end: int | None = None, most: int = 60) -> str:
    """A passage for a reason: one line, short, control characters made visible."""
    passage = text[start:end]
    passage = passage if len(passage) <= most else passage[: most - 1] + "…"
    safe = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in passage)
    return f"“{safe}”"


def noisy_or(weights: Iterable[float]) -> float:
    """Independent hints together: 1 - Π(1 - w)."""
    product = 1.0
    for weight in weights:
        product *= 1 - weight
    return 1 - product
