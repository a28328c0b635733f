"""An answer in the making: its sentences, and the findings that they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from random import Random
from typing import Any

from derm_rl.captions.prompting import join, record
from derm_rl.captions.schema import Answer, Finding, Measurements, Question
from derm_rl.captions.wording import WORDING, expand, say
from derm_rl.captions.wording.facts import CRITERIA, LESION, Fact, facts
from derm_rl.captions.wording.topics import quoted

VERSION = 1  # drawn into every choice: another version, other words


class Draft:
    """Collects sentences in one language; a fact is said once, and is a finding when it is."""

    def __init__(self, question: Question, row: Mapping[str, Any], m: Measurements) -> None:
        self.question, self.language = question, question.language
        self.words = WORDING[question.language]
        self.rng = _random(question)
        self.facts = facts(m, question.language, self.words)
        self.artifacts = sum(map(bool, m.artifacts.values()))
        self.record = record(row, question.language) if row else {}
        self.sentences: list[str] = []
        self.findings: list[Finding] = []
        self.said: set[str] = set()
        # Slots of the record that the question names.
        self.quoted = quoted(question.text, self.record)
        self.joint = ""  # the last word that joined two sentences
        # The first sentence says it is rule-based, or the last one will.
        self.labelled = self.rng.random() < 0.4
        if self.labelled:
            self.add(self.words.OPEN_LABEL)

    def add(self, pool: Sequence[str], **values: str) -> None:
        self.sentences.append(self._ended(say(pool, self.rng, **values)))

    def maybe(self, chance: float, pool: Sequence[str], **values: str) -> None:
        if self.rng.random() < chance:
            self.add(pool, **values)

    def pick(self, names: Sequence[str], count: int) -> list[str]:
        """``count`` of the facts ``names`` that there are and have not been said, shuffled."""
        there = [n for n in names if n in self.facts and n not in self.said]
        return self.rng.sample(there, min(count, len(there)))

    def tell(self, names: Sequence[str], plain: bool = False) -> None:
        """Say facts, each once."""
        for name in names:
            if name in self.facts and name not in self.said:
                joined = bool(self.said) and name in LESION and not plain
                self.sentences.append(self.sentence(self.facts[name], plain, joined))
                self.cite([name])

    def sentence(self, fact: Fact, plain: bool = False, joined: bool = False) -> str:
        pool = fact.plain if plain and fact.plain else fact.pool
        text = pool[int(self.rng.random() * len(pool))]
        text = expand(text, self.rng, fact.values)
        if joined:
            joint = expand(self.rng.choice(self.words.JOIN), self.rng, {})
            if joint != self.joint:  # twice the same would stumble
                text, self.joint = joint + text, joint
        text = text[:1].upper() + text[1:]
        if not self.said:
            for pronoun, noun in self.words.FIRST:
                text = noun + text.removeprefix(pronoun) if text.startswith(pronoun) else text
        return self._ended(text)

    def cite(self, names: Sequence[str]) -> None:
        """Facts that the text rests on become findings."""
        for name in names:
            if name not in self.said:
                self.said.add(name)
                self.findings += self.facts[name].findings()

    def weigh(self) -> tuple[list[str], list[str]] | None:
        """Criteria that raise suspicion, and those that do not; None unless all were measured."""
        if any(name not in self.facts for name in CRITERIA):
            return None
        raised = [name for name in CRITERIA if self.facts[name].raised]
        return raised, [name for name in CRITERIA if name not in raised]

    def listed(self, names: Sequence[str]) -> str:
        self.cite(names)
        return join([self.facts[name].name for name in names], self.language)

    def level(self) -> int:
        """Criteria raised, 0 to 2 (or more)."""
        weighed = self.weigh()
        return min(2, len(weighed[0])) if weighed else 1

    def recorded(self, slots: Sequence[str], count: int) -> bool:
        """Say up to ``count`` entries of the record; whether there were any."""
        there = [s for s in slots if s in self.record and f"record {s}" not in self.said]
        there.sort(key=lambda slot: slot not in self.quoted)  # what was named comes first
        for slot in there[:count]:
            templates = self.words.RECORDED[slot]
            text = templates[int(self.rng.random() * len(templates))].format(self.record[slot])
            self.sentences.append(self._ended(text[:1].upper() + text[1:]))
            self.said.add(f"record {slot}")
        return bool(there[:count])

    def _ended(self, text: str) -> str:
        return text if text.endswith((".", "?", "。")) else text + self.words.END

    def finish(self, confidence: float, abstained: bool = False) -> Answer:
        if not self.labelled:
            self.add(self.words.LABEL)
        return Answer(
            answer=self.words.SPACE.join(self.sentences),
            findings=self.findings,
            confidence=round(max(0.1, confidence - 0.05 * self.artifacts), 2),
            abstained=abstained,
        )


def _random(question: Question) -> Random:
    parts = (VERSION, question.image_id, question.text, question.mode, question.turn)
    key = "\0".join(map(str, parts)).encode(errors="surrogatepass")
    return Random(int.from_bytes(blake2b(key, digest_size=8).digest(), "big"))
