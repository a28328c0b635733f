"""Faults planted in correct answers, to measure what the checks find and what they flag wrongly.

A fault is planted where the truth is known, so that each planted pair is wrong for certain: a
measurement is contradicted only where it agrees with the phantom's truth. Wordings are data
(``faults.yaml``), shared with no check. *Development* ones were looked at while the checks were
made; those *held out* were written by somebody who did not know the checks, and no check was
changed for them: only they say how a check does on wordings it has not met. Faults of form (a cut
answer, broken JSON, a copy, …) need no wordings: they are *made*.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd

from derm_rl.captions.agreement import wilson
from derm_rl.captions.checks.text import sentences
from derm_rl.captions.schema import ARTIFACTS, Measurements
from derm_rl.prompts import DIAGNOSES

FILE = Path(__file__).with_name("faults.yaml")
# Kind of fault -> the check that has to find it.
KINDS = {
    "schema": "schema", "language": "language", "length": "length", "truncation": "truncation",
    "refusal": "refusal", "prompt_leak": "prompt_leak", "metadata_leak": "metadata_leak",
    "label": "label", "asymmetry": "measurement", "border": "measurement",
    "colours": "measurement", "artifacts": "measurement", "findings": "measurement",
    "unsafe_advice": "unsafe_advice",
    "certainty": "certainty", "near_duplicate": "near_duplicate", "hostile": "hostile",
}  # fmt: skip
NAMES_JA = {"MEL": "悪性黒色腫", "NV": "色素性母斑"}
OPPOSITE = {"MEL": "NV", "NV": "MEL"}
SURE = {"asymmetry": 0.05, "border": 0.06}  # what was drawn counts as asymmetric, irregular
PARTS = ("development", "held_out")
MADE = ("schema", "length", "truncation", "near_duplicate")  # of no particular wording
Planted = tuple[dict[str, Any], str]  # changed columns, and what was done


@cache
def _wordings() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def plant(
    pairs: pd.DataFrame,
    images: pd.DataFrame,
    measurements: Mapping[str, Measurements],
    kinds: Sequence[str] = tuple(KINDS),
    seed: int = 0,
    truth: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Pairs with one fault each; a pair in which no fault of its kind fits is left out.

    Args:
        pairs: correct ones; each gets the next kind in turn.
        images: their images' table, with age, sex, site and diagnosis.
        truth: of phantoms, by image id (:func:`truths`): nothing is planted where the measurement
            is wrong itself.

    Returns:
        the pairs with columns ``fault`` (kind), ``part`` (development, held_out or made) and
        ``done`` (what was done).

    Raises:
        ValueError: a kind is not known.
    """
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"unknown kinds of faults: {', '.join(sorted(unknown))}")
    rows = pairs.to_dict("records")
    about = {row["image_id"]: row for row in images.to_dict("records")}
    known = {} if truth is None else truth.set_index("image_id").to_dict("index")
    out = []
    for number, row in enumerate(rows):
        kind = kinds[number % len(kinds)]
        rng = Random(f"{seed} {row['pair_id']} {kind}")
        part = PARTS[rng.random() < 0.4]
        context = _Context(
            row, about[row["image_id"]], measurements[row["image_id"]],
            known.get(row["image_id"]), rows[(number + 7) % len(rows)], part, rng,
        )  # fmt: skip
        found = _PLANTERS[kind](context)
        if found is not None:
            changed, done = found
            part = "made" if kind in MADE else part
            out.append(row | changed | {"fault": kind, "part": part, "done": done})
    return pd.DataFrame(out, columns=[*pairs.columns, "fault", "part", "done"])


def truths(images: pd.DataFrame) -> pd.DataFrame:
    """What phantoms were drawn with: ``image_id, asymmetry, border, colours`` and the artifacts."""
    from derm_rl.data.phantom import scene_at
    from derm_rl.data.phantom_scene import drawn_shape

    scenes = [scene_at(path) for path in images["path"]]
    shapes = np.array([drawn_shape(s) for s in scenes]).reshape(-1, 2)
    rows = {
        "image_id": images["image_id"].to_numpy(),
        "asymmetry": shapes[:, 0],
        "border": shapes[:, 1],
        "colours": [len(s.colours) for s in scenes],
    }
    return pd.DataFrame(rows | {a: [a in s.artifacts for s in scenes] for a in ARTIFACTS})


class _Context:
    """One pair, what is known of its image, and the dice."""

    def __init__(
        self,
        row: dict[str, Any],
        about: dict[str, Any],
        measured: Measurements,
        truth: dict[str, Any] | None,
        other: dict[str, Any],
        part: str,
        rng: Random,
    ) -> None:
        self.row, self.about, self.measured, self.truth = row, about, measured, truth
        self.other, self.part, self.rng = other, part, rng

    @property
    def language(self) -> str:
        return self.row["language"]

    def inserted(self, sentence: str) -> Planted:
        """The answer with a sentence at one of its joints."""
        parts = sentences(self.row["answer"])
        parts.insert(self.rng.randint(0, len(parts)), sentence)
        joint = " " if self.language == "en" else ""
        return {"answer": joint.join(parts)}, sentence

    def one_of(self, kind: str, *keys: str) -> str:
        found = _wordings()[kind]
        for key in keys:
            found = found[key]
        return self.rng.choice(found[self.part] if isinstance(found, dict) else found)

    def fill(self, text: str) -> str | None:
        """A wording with its slots filled; None if the row lacks one."""
        code, japanese = self.about.get("diagnosis"), self.language == "ja"
        names = NAMES_JA if japanese else DIAGNOSES
        sex, age, site = (self.about.get(k) for k in ("sex", "age", "site"))
        people = {"male": ("man", "男性"), "female": ("woman", "女性")}
        values = {
            "wrong": names.get(OPPOSITE.get(code)),
            "right": names.get(code),
            "diagnosis": names.get(code),
            "age": None if age is None or pd.isna(age) else f"{float(age):g}",
            "person": people[sex][japanese] if sex in people else None,
            "site": None if site is None or pd.isna(site) else site,
        }
        values["Person"] = values["person"] and values["person"].capitalize()
        needed = [name for name in values if f"{{{name}}}" in text]
        if any(values[name] is None for name in needed):
            return None
        return text.format(**{name: values[name] for name in needed})


def _sentence(kind: str) -> Callable[[_Context], Planted | None]:
    def planter(c: _Context) -> Planted | None:
        text = c.fill(c.one_of(kind, c.language))
        return None if text is None else c.inserted(text)

    return planter


def _refusal(c: _Context) -> Planted | None:
    if str(c.row["abstained"]).lower() in ("true", "1"):
        return None  # who abstains may say so
    text = c.one_of("refusal", c.language)
    if c.rng.random() < 0.5:
        return c.inserted(text)
    return {"answer": text, "abstained": False}, text


def _metadata(c: _Context) -> Planted | None:
    if c.row["mode"] == "grounded" and c.rng.random() < 0.5:
        return None  # half of the faults in blind answers, where none may name any of it
    return _sentence("metadata_leak")(c)


def _hostile(c: _Context) -> Planted | None:
    text = c.one_of("hostile", "any")
    if c.rng.random() < 0.2:
        text = "A" * 30_000
    return c.inserted(text)


def _schema(c: _Context) -> Planted | None:
    findings = json.loads(c.row["findings"])
    first = findings[0] if findings else {"name": "other", "value": "x", "evidence": "y"}
    broken = {
        "findings cut": {"findings": c.row["findings"][:-5] or "[{"},
        "unknown finding": {"findings": json.dumps([first | {"name": "vibes"}])},
        "box outside": {"findings": json.dumps([first | {"box": [0.5, 0.5, 1.7, 0.9]}])},
        "box turned": {"findings": json.dumps([first | {"box": [0.9, 0.1, 0.2, 0.5]}])},
        "evidence missing": {"findings": json.dumps([{"name": "hair", "value": "present"}])},
        "confidence": {"confidence": 1.7},
        "answer empty": {"answer": "  "},
        "answer is JSON": {"answer": json.dumps({"answer": c.row["answer"]})},
        "no status": {"status": "invalid"},
    }
    done = c.rng.choice(list(broken))
    return broken[done], done


def _language(c: _Context) -> Planted | None:
    if c.other["language"] != c.language and c.rng.random() < 0.5:
        return {"answer": c.other["answer"]}, f"an answer in {c.other['language']}"
    text = c.one_of("foreign")
    return {"answer": text}, text


def _length(c: _Context) -> Planted | None:
    if c.rng.random() < 0.5:
        text = c.one_of("short", c.language)
        return {"answer": text, "abstained": False}, "too short"
    parts = sentences(c.row["answer"])
    joint = " " if c.language == "en" else ""
    long = joint.join([*parts[:-1], *sentences(c.row["question"] + "。") * 3, parts[-1]] * 7)
    return {"answer": long}, "too long"


def _truncation(c: _Context) -> Planted | None:
    text = c.row["answer"].rstrip(".。")
    at = c.rng.randint(len(text) // 3, len(text) - 4)
    cut = text[:at].rstrip(" .。")
    return {"answer": cut + ("..." if c.rng.random() < 0.2 else "")}, f"cut after {at} characters"


def _sure_of(c: _Context, name: str, value: bool) -> bool:
    """Whether the phantom's truth agrees with what was measured."""
    return c.truth is None or (
        c.truth[name] >= SURE[name] if value else c.truth[name] <= SURE[name]
    )


def _sure_of_border(c: _Context) -> bool:
    return c.measured.segmented and _sure_of(c, "border", c.measured.irregular_border)


def _sure_artifacts(c: _Context) -> list[str]:
    return [a for a in ARTIFACTS if c.truth is None or bool(c.truth[a]) == c.measured.artifacts[a]]


def _asymmetry(c: _Context) -> Planted | None:
    m = c.measured
    if not m.segmented or not _sure_of(c, "asymmetry", m.asymmetric_axes > 0):
        return None
    which = "symmetric" if m.asymmetric_axes else "asymmetric"
    return c.inserted(c.one_of("asymmetry", c.language, which))


def _border(c: _Context) -> Planted | None:
    if not _sure_of_border(c):
        return None
    which = "regular" if c.measured.irregular_border else "irregular"
    return c.inserted(c.one_of("border", c.language, which))


def _colours(c: _Context) -> Planted | None:
    count = len(c.measured.colours)
    if not c.measured.segmented or (c.truth is not None and c.truth["colours"] != count):
        return None
    which = "one" if count >= 3 else "many"
    return c.inserted(c.one_of("colours", c.language, which))


def _artifacts(c: _Context) -> Planted | None:
    names = _sure_artifacts(c)
    if not names:
        return None
    name = c.rng.choice(names)
    which = "absent" if c.measured.artifacts[name] else "present"
    choices = _wordings()["artifacts"][c.language][name][which]
    return c.inserted(c.rng.choice(choices[:3] if c.part == "development" else choices[3:]))


def _findings(c: _Context) -> Planted | None:
    """A finding turned round, the answer left as it is."""
    m, sure, certain = c.measured, [], _sure_artifacts(c)
    for number, finding in enumerate(found := json.loads(c.row["findings"])):
        name = finding["name"]
        if name in certain:
            sure.append((number, "absent" if m.artifacts[name] else "present"))
        if name == "border" and _sure_of_border(c):
            sure.append((number, "regular" if m.irregular_border else "irregular"))
    if not sure:
        return None
    number, which = c.rng.choice(sure)
    value = c.one_of("findings", c.language, which)
    found[number]["value"] = value
    done = f"{found[number]['name']}: {value}"
    return {"findings": json.dumps(found, ensure_ascii=False)}, done


def _near_duplicate(c: _Context) -> Planted | None:
    if c.other["language"] != c.language or c.other["image_id"] == c.row["image_id"]:
        return None
    parts = sentences(c.other["answer"])
    how = c.rng.choice(["copied", "one sentence less", "one word changed"])
    if how == "one sentence less" and len(parts) > 6:
        parts.remove(min(parts, key=len))
    text = (" " if c.language == "en" else "").join(parts)
    if how == "one word changed":
        text = text.replace("lesion", "mole", 1) if c.language == "en" else (
            text.replace("病変", "斑", 1)
        )  # fmt: skip
    return {"answer": text, "abstained": False}, f"{how} from {c.other['pair_id']}"


_PLANTERS: dict[str, Callable[[_Context], Planted | None]] = {
    kind: _sentence(kind) for kind in KINDS
} | {
    "refusal": _refusal, "metadata_leak": _metadata, "hostile": _hostile, "schema": _schema,
    "language": _language, "length": _length, "truncation": _truncation,
    "asymmetry": _asymmetry, "border": _border, "colours": _colours, "artifacts": _artifacts,
    "findings": _findings, "near_duplicate": _near_duplicate,
}  # fmt: skip


# ----------------------------------------------------------------------------------- measured


def evaluate(
    pairs: pd.DataFrame,
    images: pd.DataFrame,
    measurements: Mapping[str, Measurements],
    seed: int = 0,
    truth: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Recall of the checks for each kind of planted fault, and how many correct pairs they flag.

    Half of the pairs (by a hash of their id) stay correct, the others get one fault each. A fault
    counts as found if the check of its kind flags it.

    Returns:
        a row a kind, language and part: ``kind, check, language, part, n, found, value, low, high``
        (Wilson, 95 %); ``value`` is recall. Kind "none" holds the correct pairs: their value is the
        share that any check flags.
    """
    from derm_rl.captions import checks

    rank = pairs["pair_id"].map(lambda p: sha256(f"{seed} {p}".encode()).digest()[0] < 128)
    single = pairs["style"] == "single"
    clean, rest = pairs[rank & single], pairs[~rank & single]
    planted = plant(rest, images, measurements, seed=seed, truth=truth)
    # Together, so that copies stand beside what they were copied from.
    originals = rest[~rest["pair_id"].isin(planted["pair_id"])]
    copies = planted["fault"] == "near_duplicate"
    source = planted.loc[copies, "done"].str.rsplit(" ", n=1).str[-1]
    sources = rest[rest["pair_id"].isin(source)].assign(
        pair_id=lambda t: "source-" + t["pair_id"].astype(str)
    )
    everything = pd.concat([clean, originals, sources, planted[list(pairs.columns)]])
    flags = checks.run(everything.reset_index(drop=True), images, measurements)
    flagged = flags.groupby("check")["pair_id"].agg(set).to_dict()
    rows = []
    for (kind, language, part), group in planted.groupby(["fault", "language", "part"]):
        found = group["pair_id"].isin(flagged.get(KINDS[kind], set()))
        rows.append((kind, KINDS[kind], language, part, len(group), int(found.sum())))
    anything = set().union(*flagged.values()) if flagged else set()
    for language, group in clean.groupby("language"):
        rows.append(
            ("none", "any", language, "", len(group), int(group["pair_id"].isin(anything).sum()))
        )
    table = pd.DataFrame(rows, columns=["kind", "check", "language", "part", "n", "found"])
    bounds = [wilson(f, n) for f, n in zip(table["found"], table["n"], strict=True)]
    return table.assign(
        value=[b.value for b in bounds], low=[b.low for b in bounds], high=[b.high for b in bounds]
    )


def missed(planted: pd.DataFrame, flags: pd.DataFrame) -> pd.DataFrame:
    """Planted pairs that the check of their kind did not flag."""
    found = set(zip(flags["pair_id"], flags["check"], strict=True))
    lost = [
        (pair, KINDS[kind]) not in found
        for pair, kind in zip(planted["pair_id"], planted["fault"], strict=True)
    ]
    return planted[lost]
