"""Answers to each type of question, composed from facts and the sentences around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from derm_rl.captions.schema import Answer
from derm_rl.captions.wording import say
from derm_rl.captions.wording.draft import Draft
from derm_rl.captions.wording.facts import CRITERIA, LESION
from derm_rl.captions.wording.recombine import recombine
from derm_rl.captions.wording.topics import RECORD_SLOTS


def _overview(draft: Draft) -> None:
    shape = draft.pick(("symmetry", "border", "colours", "size", "place"), 4)
    draft.tell(shape)
    draft.tell(draft.pick(("edge", "skin"), 1))
    draft.tell(["artifacts"])
    slots = [s for s in ("age", "sex", "site", "age_group", "skin_type", "duration", "symptoms")]
    draft.rng.shuffle(slots)
    if draft.recorded(slots, draft.rng.randrange(3)):
        draft.maybe(0.5, draft.words.NOT_SEEN)


def _concern(draft: Draft) -> None:
    """Weigh the criteria; all of them are said."""
    weighed = draft.weigh()
    if weighed is None:
        draft.tell(CRITERIA)
        return
    raised, calm = weighed
    draft.rng.shuffle(raised)
    draft.rng.shuffle(calm)
    pool = draft.words.CONCERN[3 if not calm else len(raised)]
    draft.add(pool, raised=draft.listed(raised), calm=draft.listed(calm))


def _recorded_label(draft: Draft, chance: float) -> None:
    if "diagnosis" in draft.record and draft.rng.random() < chance:
        draft.add(draft.words.RECORDED_LABEL, diagnosis=draft.record["diagnosis"])


def _diagnosis(draft: Draft) -> None:
    if draft.rng.random() < 0.5:
        draft.tell(draft.pick(("size", "place", "skin"), 1))
        _concern(draft)
    else:
        _concern(draft)
        draft.tell(draft.pick(("size", "place", "skin", "artifacts"), 2))
    draft.add(draft.words.OPEN_BOTH)
    _recorded_label(draft, 0.7)
    draft.add(draft.words.DIAGNOSIS_LIMIT)


def _candidates(draft: Draft) -> list[tuple[str, str]]:
    """Entities that fit, each with a reason from the findings (or none)."""
    raised, calm = draft.weigh() or ([], [])
    colours = draft.facts["colours"].values["colours"] if "colours" in draft.facts else ""
    named = {c: w for c, w in draft.words.COLOUR.items() if w in colours}
    by_colour = [
        (entity, draft.words.COLOUR_REASON.format(colour=named[colour]))
        for colour, entities in COLOUR_ENTITIES.items()
        if colour in named
        for entity in entities
    ]
    if 1 <= len(raised) <= 2:
        by_colour.append(("dysplastic", draft.listed(raised[:1])))
    chosen = draft.rng.sample(by_colour, min(len(by_colour), 1 + draft.rng.randrange(2)))
    if any(entity != "dysplastic" for entity, _ in chosen):
        draft.cite(["colours"])
    melanocytic = [("nevus", draft.listed(calm)), ("melanoma", draft.listed(raised))]
    return draft.rng.sample(melanocytic + chosen, len(chosen) + 2)


# Lookalikes that a colour brings to mind.
COLOUR_ENTITIES = {
    "light brown": ("lentigo", "keratosis"),
    "dark brown": ("keratosis",),
    "black": ("keratosis",),
    "red": ("vascular", "bcc"),
    "white": ("dermatofibroma",),
    "blue-gray": ("bcc", "blue"),
}


def _differential(draft: Draft) -> None:
    draft.maybe(0.8, draft.words.DIFFERENTIAL_INTRO)
    for entity, reason in _candidates(draft):
        name = draft.words.ENTITY[entity]
        if reason:
            draft.add(draft.words.ENTRY, entity=name, reason=reason)
        else:
            draft.add(draft.words.ENTRY_WITHOUT, entity=name)
    draft.tell(draft.pick(("size", "place", "artifacts", "skin"), 1))
    _recorded_label(draft, 0.5)
    draft.add(draft.words.DIFFERENTIAL_LIMIT)


def _explanation(draft: Draft) -> None:
    draft.maybe(0.7, draft.words.PLAIN_INTRO)
    draft.tell(draft.pick(CRITERIA, 3), plain=True)
    draft.tell(draft.pick(("size", "place", "artifacts"), 1))
    draft.add(draft.words.PLAIN_MEANING[draft.level()])
    draft.add(draft.words.PLAIN_CLOSE)


def _next_steps(draft: Draft) -> None:
    facts = draft.pick((*CRITERIA, "size"), 2)
    if draft.rng.random() < 0.5:
        draft.tell(facts)
    draft.add(draft.words.STEP_REASON[draft.level()])
    draft.tell(facts)  # if they have not been told
    steps = draft.rng.sample(draft.words.STEPS, 2 + draft.rng.randrange(2))
    for step in steps:
        draft.add([step])
    if draft.recorded(("symptoms", "duration"), 1):
        draft.add(draft.words.RELATION["history"])
    draft.maybe(0.6, draft.words.STEP_LIMIT)


def _creativity(draft: Draft) -> None:
    """A question of its own about a fact, the answer, and what it teaches."""
    asked, *others = draft.pick((*CRITERIA, "size", "place", "skin", "artifacts"), 3) or [""]
    if not asked:
        draft.add(draft.words.LESSON)
        return
    question = say(draft.words.QUIZ[asked], draft.rng)
    answer = draft.sentence(draft.facts[asked])
    draft.cite([asked])
    draft.add(draft.words.FRAME, question=question, answer=answer)
    draft.tell(others)
    draft.add(draft.words.LESSON)


COMPOSERS: dict[str, Callable[[Draft], None]] = {
    "overview": _overview, "diagnosis": _diagnosis, "differential": _differential,
    "explanation": _explanation, "next_steps": _next_steps, "creativity": _creativity,
}  # fmt: skip


def by_topic(draft: Draft, focus: Sequence[str]) -> None:
    """What the question asks about, first; then further facts until it is an answer."""
    focus = focus[:4]
    weighs = draft.weigh() is not None and bool({"concern", "label"} & set(focus))
    for topic in focus:
        if topic in draft.facts and not (weighs and topic in CRITERIA):
            draft.tell([topic])
        _from_record(draft, topic)
        if topic in ("concern", "label") and "weighed" not in draft.said:
            draft.said.add("weighed")
            _concern(draft)
        if topic == "label":
            draft.maybe(0.5, draft.words.OPEN_BOTH)
        if topic in draft.words.RELATION:
            draft.maybe(0.8, draft.words.RELATION[topic])
        if topic in ("artifacts", "quality"):
            draft.tell(["artifacts"])
            _effects(draft)
    # Long enough to be read, and never without anything seen: two facts at least.
    told = len(draft.said & set(LESION))
    missing = max(5 + draft.labelled - len(draft.sentences), 2 - told)
    if missing > 0:
        draft.tell(draft.pick((*CRITERIA, "size", "place"), missing))
    draft.tell(draft.pick(("skin", "artifacts", "edge"), draft.rng.randrange(2)))


def _from_record(draft: Draft, topic: str) -> None:
    """What the record says of a topic, and that this is not seen; or that nothing is known."""
    slots = RECORD_SLOTS.get(topic, ())
    if draft.recorded(slots, 2):
        if "not seen" not in draft.said:
            draft.said.add("not seen")
            draft.add(draft.words.NOT_SEEN)
    elif topic in draft.words.UNKNOWN and not any(slot in draft.record for slot in slots):
        draft.add(draft.words.UNKNOWN[topic])


def _effects(draft: Draft) -> None:
    """What an artifact that is there does to the reading."""
    present = [f.name for f in draft.findings if f.name in draft.words.EFFECT]
    present = [p for p in present if draft.facts["artifacts"].values]  # empty: none is there
    if present and "effect" not in draft.said:
        draft.said.add("effect")
        draft.add(draft.words.EFFECT[draft.rng.choice(present)])


def abstain(draft: Draft) -> Answer:
    draft.add(draft.words.ABSTAIN)
    draft.maybe(0.8, draft.words.ABSTAIN_WHY)
    draft.tell(draft.pick(("skin", "artifacts"), 2))
    draft.add(draft.words.ABSTAIN_NEXT)
    return draft.finish(0.1, abstained=True)


def proposals(draft: Draft) -> Answer:
    """Questions, one a line, from the facts of the image."""
    lines = recombine(tuple(draft.facts), draft.language, draft.rng)
    draft.cite(list(draft.facts))
    return Answer(answer="\n".join(lines), findings=draft.findings, confidence=0.5, abstained=False)
