"""The rule-based teacher: offline, deterministic answers from measurements and metadata.

It can only say what was measured: every sentence about the image is one of the facts of
:mod:`derm_rl.captions.wording.facts`, and each fact that is said is also a finding. Metadata is
used in grounded mode alone, and is always said to be recorded, not seen. Every answer says in its
first or last sentence that it is rule-based. What is said, and in which words, is drawn by a hash
of image and question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from derm_rl import dependencies
from derm_rl.captions.schema import (
    QUESTION_TYPES,
    Answer,
    Measurements,
    Question,
    Reply,
    Request,
)
from derm_rl.captions.wording import WORDING
from derm_rl.captions.wording.compose import COMPOSERS, abstain, by_topic, proposals
from derm_rl.captions.wording.draft import VERSION, Draft
from derm_rl.captions.wording.topics import topics

# How sure an answer of a type is at best. What measurements alone say of a diagnosis is little.
CONFIDENCE = {
    "overview": 0.75, "diagnosis": 0.35, "differential": 0.35, "explanation": 0.6,
    "next_steps": 0.6, "creativity": 0.65, "dataset_specific": 0.55,
}  # fmt: skip


class MeasuredTeacher:
    """Answers by rules (:class:`derm_rl.captions.schema.Teacher`)."""

    name = "measured"
    settings: Mapping[str, Any] = {"version": VERSION}

    @property
    def code(self) -> str:
        """What an answer depends on beside the request: other code is another teacher."""
        return dependencies.code("derm_rl.captions.measured")

    def looks_at(self, request: Request) -> list[Any]:
        """What an answer depends on beside image and prompt: part of the ledger's key."""
        q, m = request.question, request.measurements
        asked = [q.image_id, q.text, q.type, q.style, q.mode, q.language, q.turn]
        return [*asked, None if m is None else asdict(m)]

    async def ask(self, request: Request) -> Reply:
        """Answer a request; measures the image if that has not been done."""
        measurements = request.measurements
        if measurements is None:
            try:
                measurements = _measure(request.image)
            except (OSError, ValueError, SyntaxError) as error:
                return Reply("failed", None, "", f"image cannot be measured: {error}")
        answer = self.answer(request.question, request.row, measurements)
        return Reply("ok", answer, answer.model_dump_json())

    def answer(
        self, question: Question, row: Mapping[str, Any], measurements: Measurements
    ) -> Answer:
        """The answer to a question about the image of ``row``.

        Raises:
            ValueError: a question type or language that is not known.
        """
        if question.type not in QUESTION_TYPES or question.language not in WORDING:
            raise ValueError(
                f"question {question.conversation}: no answers for type {question.type!r} in "
                f"{question.language!r}"
            )
        draft = Draft(question, row if question.mode == "grounded" else {}, measurements)
        if question.type == "creativity" and question.style == "self_instruct":
            return proposals(draft)
        if not measurements.segmented:
            return abstain(draft)
        focus = topics(question.text, question.language, draft.quoted)
        if question.type != "dataset_specific":
            focus = tuple(topic for topic in focus if topic in draft.facts)
        if question.turn:
            draft.maybe(0.6, draft.words.TURN)
        if question.type == "dataset_specific" or (
            question.style != "single" and question.type == "overview" and focus
        ):
            by_topic(draft, focus)
        else:
            COMPOSERS[question.type](draft)
        return draft.finish(CONFIDENCE[question.type])


def _measure(image: bytes) -> Measurements:
    import numpy as np

    from derm_rl.captions.measure import measure
    from derm_rl.data.images import picture

    return measure(np.asarray(picture(image)))
