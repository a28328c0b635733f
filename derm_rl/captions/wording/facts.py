"""Facts: what was measured in one image, ready to be said in one language and to be a finding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from derm_rl.captions.prompting import join
from derm_rl.captions.schema import ARTIFACTS, Finding, Language, Measurements

CRITERIA = ("symmetry", "border", "colours")  # each raises suspicion or does not
LESION = ("symmetry", "border", "colours", "size", "place", "edge")  # what needs a lesion
RAISED_COLOURS = 3  # as many and more raise suspicion; the ABCD rule weighs each colour by 0.5
EDGE = 0.01  # a box this near to the image's edge touches it, in image sides


@dataclass(frozen=True)
class Fact:
    """One measured fact: sentences that say it, the values of their slots, and its findings."""

    pool: Sequence[str]
    values: Mapping[str, str]
    findings: Callable[[], list[Finding]]  # made only when the fact is said
    name: str = ""  # noun phrase for lists
    plain: Sequence[str] = ()  # sentences without jargon
    raised: bool | None = None  # raises suspicion; None if it is no criterion


def facts(m: Measurements, language: Language, wording: SimpleNamespace) -> dict[str, Fact]:
    """All facts of an image by name; those that were not measured are absent."""
    found = {
        "symmetry": _symmetry(m, wording),
        "border": _border(m, wording),
        "colours": _colours(m, language, wording),
        "size": _size(m, wording),
        "place": _place(m, wording),
        "edge": _edge(m, wording),
        "skin": _skin(m, wording),
        "artifacts": _artifacts(m, language, wording),
    }
    return {name: fact for name, fact in found.items() if fact}


def _finding(
    w: SimpleNamespace, m: Measurements, name: str, value: str, kind: str = "", **values: Any
) -> Finding:
    box = m.box if name in ("asymmetry", "border", "colours", "diameter", "other") else None
    evidence = w.EVIDENCE[kind or name].format(**values)
    return Finding(name=name, value=value, evidence=evidence, box=box)


def _symmetry(m: Measurements, w: SimpleNamespace) -> Fact | None:
    if not m.segmented or m.asymmetric_axes not in w.SYMMETRY or m.asymmetry is None:
        return None
    axes, score = m.asymmetric_axes, f"{100 * m.asymmetry:.0f}"
    value = w.VALUE["asymmetry"][axes]
    return Fact(
        w.SYMMETRY[axes],
        {"score": score},
        lambda: [_finding(w, m, "asymmetry", value, score=score)],
        w.SYMMETRY_NAME[axes],
        w.PLAIN_SYMMETRY[axes],
        axes > 0,
    )


def _border(m: Measurements, w: SimpleNamespace) -> Fact | None:
    if not m.segmented or m.irregular_border is None or m.border is None:
        return None
    irregular, score = bool(m.irregular_border), f"{m.border:.3f}"
    value = w.VALUE["border"][irregular]
    return Fact(
        w.BORDER[irregular],
        {"score": score},
        lambda: [_finding(w, m, "border", value, score=score)],
        w.BORDER_NAME[irregular],
        w.PLAIN_BORDER[irregular],
        irregular,
    )


def _colours(m: Measurements, language: Language, w: SimpleNamespace) -> Fact | None:
    if not m.segmented or not m.colours:
        return None
    number = len(m.colours)
    values = {
        "colours": join([w.COLOUR[c] for c in m.colours], language),
        "count": w.NUMBER[number],
    }
    value = w.VALUE["colours"][number > 1].format(**values)
    return Fact(
        w.COLOURS[number > 1],
        values,
        lambda: [_finding(w, m, "colours", value, number=number)],
        w.COLOURS_NAME[number > 1].format(**values),
        w.PLAIN_COLOURS[number > 1],
        number >= RAISED_COLOURS,
    )


def _size(m: Measurements, w: SimpleNamespace) -> Fact | None:
    if not m.segmented or m.diameter is None or m.area is None:
        return None
    values = {
        "percent": str(max(1, round(100 * m.diameter))),
        "area": str(max(1, round(100 * m.area))),
    }
    value = w.VALUE["diameter"].format(**values)
    numbers = {"diameter": f"{m.diameter:.2f}", "share": f"{m.area:.3f}"}
    return Fact(w.SIZE, values, lambda: [_finding(w, m, "diameter", value, **numbers)])


def _box_values(m: Measurements) -> dict[str, str]:
    return {name: f"{x:.2f}" for name, x in zip(("x0", "y0", "x1", "y1"), m.box, strict=True)}


def _place(m: Measurements, w: SimpleNamespace) -> Fact | None:
    if not m.segmented or m.box is None:
        return None
    x, y = (m.box[0] + m.box[2]) / 2, (m.box[1] + m.box[3]) / 2
    # The middle fifth is the centre; thirds would call almost every lesion central.
    place = w.PLACE_NAME[(y > 0.4) + (y > 0.6)][(x > 0.4) + (x > 0.6)]
    return Fact(
        w.PLACE,
        {"place": place},
        lambda: [_finding(w, m, "other", place, **_box_values(m))],
    )


def _edge(m: Measurements, w: SimpleNamespace) -> Fact | None:
    if not m.segmented or m.box is None:
        return None
    touches = min(m.box[0], m.box[1], 1 - m.box[2], 1 - m.box[3]) < EDGE
    value = w.EDGE_VALUE[touches]
    return Fact(w.EDGE[touches], {}, lambda: [_finding(w, m, "other", value, **_box_values(m))])


def _skin(m: Measurements, w: SimpleNamespace) -> Fact | None:
    # Without skin in the image there is no angle.
    if m.ita is None or m.ita != m.ita or m.skin_tone not in w.TONE:
        return None
    tone, ita = w.TONE[m.skin_tone], f"{m.ita:.0f}".replace("-0", "0")
    return Fact(
        w.SKIN if m.segmented else w.SKIN_ALONE,
        {"tone": tone, "ita": ita},
        lambda: [_finding(w, m, "skin_tone", tone, ita=f"{m.ita:.1f}")],
    )


def _artifacts(m: Measurements, language: Language, w: SimpleNamespace) -> Fact | None:
    known = [a for a in ARTIFACTS if a in m.artifacts]
    there = [a for a in known if m.artifacts[a]]
    if not there and len(known) < len(ARTIFACTS):
        return None  # "none of the five" was not measured

    def findings() -> list[Finding]:
        return [
            _finding(
                w, m, a, w.VALUE["artifact"][bool(there)], "artifact",
                score=f"{m.scores.get(a, 0.0):+.2f}",
            )
            for a in there or known
        ]  # fmt: skip

    if not there:
        return Fact(w.NO_ARTIFACTS, {}, findings)
    plural = len(there) > 1 or there[0] in ("gel_bubble", "dark_corner")
    values = {
        "names": join([w.ARTIFACT[a] for a in there], language),
        "was": "were" if plural else "was",
        "does": "do" if plural else "does",
    }
    pool = [s for s in w.ARTIFACTS if m.segmented or w.LESION_WORD not in s]
    return Fact(pool, values, findings)
