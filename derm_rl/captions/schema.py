"""What the captioning modules hand to one another: measurements, questions, prompts, answers.

Nothing here computes anything; every other module of :mod:`derm_rl.captions` imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

Language = Literal["en", "ja"]
Mode = Literal["grounded", "blind"]  # metadata in the prompt, or the image alone
Style = Literal["single", "multi", "self_instruct"]
Status = Literal["ok", "blocked", "invalid", "truncated", "failed"]

# The six general types of the paper, then questions about what a data set knows of its images.
GENERAL_TYPES = (
    "overview", "diagnosis", "differential", "explanation", "next_steps", "creativity",
)  # fmt: skip
SPECIFIC_TYPE = "dataset_specific"
QUESTION_TYPES = (*GENERAL_TYPES, SPECIFIC_TYPE)

COLOURS = ("light brown", "dark brown", "black", "red", "white", "blue-gray")  # of the ABCD rule
ARTIFACTS = ("hair", "gel_bubble", "ruler", "ink", "dark_corner")
FINDINGS = ("asymmetry", "border", "colours", "diameter", "skin_tone", *ARTIFACTS, "other")


@dataclass(frozen=True)
class Measurements:
    """What can be measured in one image; lengths in image sides, angles in degrees."""

    segmented: bool  # whether a lesion was found; else everything of the lesion is None or empty
    box: tuple[float, float, float, float] | None  # x0, y0, x1, y1 of the lesion
    diameter: float | None  # largest extent of the lesion
    area: float | None  # share of the image
    asymmetry: float | None  # share of the shape that folds leave uncovered, 0 if symmetric
    asymmetric_axes: int | None  # 0, 1 or 2, by shape or colour: the A of the ABCD rule
    border: float | None  # irregularity, continuous, 0 for a circle or an ellipse
    irregular_border: bool | None
    colours: tuple[str, ...]  # of COLOURS, in their order
    ita: float  # individual typology angle of the skin around the lesion
    skin_tone: str  # very light, light, intermediate, tan, brown, dark (Chardon et al. 1991)
    artifacts: dict[str, bool]  # every one of ARTIFACTS
    scores: dict[str, float]  # what each artifact was decided by, threshold at 0


class Finding(BaseModel):
    """One thing said to be seen, and where."""

    model_config = ConfigDict(extra="forbid")

    name: Literal[FINDINGS] = Field(description="what was looked at")
    value: str = Field(max_length=200, description="what was found, e.g. 'asymmetric in two axes'")
    evidence: str = Field(max_length=500, description="what in the image shows it")
    box: tuple[float, float, float, float] | None = Field(
        None, description="where: x0, y0, x1, y1 as fractions of width and height; null = all over"
    )


class Answer(BaseModel):
    """Structured output of every teacher."""

    model_config = ConfigDict(extra="forbid")

    answer: str = Field(min_length=1, description="the answer, in the language of the question")
    findings: list[Finding] = Field(description="what the answer rests on", max_length=20)
    confidence: float = Field(ge=0, le=1, description="how sure the answer is")
    abstained: bool = Field(description="true if the image does not allow an answer")


@dataclass(frozen=True)
class Question:
    """One question about one image, and how it came about."""

    image_id: str
    type: str  # of QUESTION_TYPES
    text: str
    language: Language
    mode: Mode
    style: Style
    conversation: str  # the same for the turns of one conversation, unique otherwise
    turn: int  # 0, 1, 2


@dataclass(frozen=True)
class Prompt:
    """What a teacher is given beside the image."""

    system: str
    user: str
    history: tuple[tuple[str, str], ...] = ()  # (question, answer) of the turns before


@dataclass(frozen=True)
class Reply:
    """What came back from a teacher, whatever it was."""

    status: Status
    answer: Answer | None  # set exactly if status is "ok"
    raw: str  # as received
    reason: str = ""  # why it is not ok
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0  # US dollars
    latency: float = 0.0  # seconds, of the attempt that decided
    attempts: tuple[float, ...] = ()  # when each attempt began, seconds since the epoch


@dataclass(frozen=True)
class Request:
    """Everything a teacher may look at for one answer. What it looks at is its own affair:
    language models get prompt and image, the rule-based teacher question, row and measurements."""

    question: Question
    prompt: Prompt
    image: bytes  # an encoded image: PNG or JPEG
    row: Mapping[str, Any]  # of the table (derm_rl.data.table); missing values are absent
    measurements: Measurements | None = None


class Teacher(Protocol):
    """Whoever answers. ``name`` and ``settings`` are part of the ledger's key."""

    name: str
    settings: Mapping[str, Any]  # everything beside the request that changes an answer

    async def ask(self, request: Request) -> Reply: ...


# Columns of a table of pairs, one row an answered (or failed) question. ``pair_id`` is the key of
# the ledger row; findings is a JSON list of Finding; the last ones come from the image's row.
PAIR_COLUMNS = (
    "pair_id", "image_id", "question_type", "style", "conversation", "turn", "language", "mode",
    "question", "answer", "findings", "confidence", "abstained", "teacher", "status", "reason",
    "source", "modality", "patient_id", "lesion_id", "diagnosis", "label", "skin_type",
    "licence", "attribution",
)  # fmt: skip
