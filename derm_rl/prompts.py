"""The caption grammar: findings to text and back (arXiv 2503.15784, section 2).

    a dermoscopic image with {diagnosis} {with no visible artifacts | showing artifact, artifact, …}

Artifacts always stand in the order of ``ARTIFACTS``. :func:`parse` is the inverse of
:func:`render`: the paper's 32 prompts are every subset of four artifacts for two diagnoses.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# The eight diagnoses of ISIC 2019, by its codes; the paper uses the first two.
DIAGNOSES = {
    "MEL": "melanoma",
    "NV": "melanocytic nevus",
    "BCC": "basal cell carcinoma",
    "AK": "actinic keratosis",
    "BKL": "benign keratosis",
    "DF": "dermatofibroma",
    "VASC": "vascular lesion",
    "SCC": "squamous cell carcinoma",
}
ARTIFACTS = {
    "hair": "hair",
    "gel_bubble": "gel bubble",
    "ruler": "ruler",
    "ink": "ink",
    "dark_corner": "dark corner",
}
_START = "a dermoscopic image with "
_NONE, _SHOWING = " with no visible artifacts", " showing "


class PromptError(ValueError):
    """A finding or text outside the grammar."""


@dataclass(frozen=True)
class Finding:
    """A diagnosis code and the artifacts present, in the order of ``ARTIFACTS``."""

    diagnosis: str
    artifacts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.diagnosis not in DIAGNOSES:
            hint = near(self.diagnosis, DIAGNOSES)
            raise PromptError(f"unknown diagnosis {self.diagnosis!r}{hint}")
        for artifact in self.artifacts:
            if artifact not in ARTIFACTS:
                raise PromptError(f"unknown artifact {artifact!r}{near(artifact, ARTIFACTS)}")
        if len(set(self.artifacts)) != len(self.artifacts):
            raise PromptError(f"an artifact is named twice: {', '.join(self.artifacts)}")
        ordered = tuple(a for a in ARTIFACTS if a in self.artifacts)
        object.__setattr__(self, "artifacts", ordered)


def render(finding: Finding) -> str:
    """The prompt that asks for a finding."""
    diagnosis = f"{DIAGNOSES[finding.diagnosis]} ({finding.diagnosis})"
    if not finding.artifacts:
        return _START + diagnosis + _NONE
    return _START + diagnosis + _SHOWING + ", ".join(ARTIFACTS[a] for a in finding.artifacts)


def parse(text: str) -> Finding:
    """The finding a prompt asks for.

    Raises:
        PromptError: the text is outside the grammar; says at what and what was expected.
    """
    if not text.startswith(_START):
        raise PromptError(f"prompt {text!r}: expected it to start with {_START!r}")
    rest = text.removeprefix(_START)
    by_name = {f"{name} ({code})": code for code, name in DIAGNOSES.items()}
    head = next((name for name in by_name if rest.startswith(name)), None)
    if head is None:
        raise PromptError(f"prompt {text!r}: expected one of {', '.join(by_name)} after 'with'")
    tail = rest.removeprefix(head)
    if tail == _NONE:
        return Finding(by_name[head])
    if not tail.startswith(_SHOWING):
        raise PromptError(f"prompt {text!r}: expected {_NONE!r} or {_SHOWING!r} after {head!r}")
    codes = {name: code for code, name in ARTIFACTS.items()}
    names = tail.removeprefix(_SHOWING).split(", ")
    for name in names:
        if name not in codes:
            raise PromptError(
                f"prompt {text!r}: unknown artifact {name!r}; expected one or more of "
                f"{', '.join(codes)}, separated by a comma and a space"
            )
    finding = Finding(by_name[head], tuple(dict.fromkeys(codes[name] for name in names)))
    if render(finding) != text:
        raise PromptError(
            f"prompt {text!r}: artifacts are out of order or twice; expected {render(finding)!r}"
        )
    return finding


def all_prompts(
    diagnoses: Sequence[str] = ("MEL", "NV"),
    artifacts: Sequence[str] = ("hair", "gel_bubble", "ruler", "ink"),
) -> list[Finding]:
    """Every diagnosis with every subset of ``artifacts``, in a fixed order (32 by default).

    Diagnoses are the outer loop; subset number b holds artifact i if bit i of b is set.
    """
    subsets = range(2 ** len(artifacts))
    return [
        Finding(diagnosis, tuple(a for i, a in enumerate(artifacts) if bits >> i & 1))
        for diagnosis in diagnoses
        for bits in subsets
    ]


def label_names(diagnoses: Sequence[str], artifacts: Sequence[str]) -> list[str]:
    """Names of the L labels: the artifacts, then the first of two diagnoses, or all of more."""
    return [*artifacts, *(diagnoses[:1] if len(diagnoses) == 2 else diagnoses)]


def labels(finding: Finding, names: Sequence[str]) -> list[float]:
    """0/1 for each of ``names`` (artifacts and diagnosis codes).

    Raises:
        PromptError: a name is neither; as a label it would be 0 for every image.
    """
    for name in names:
        if name not in ARTIFACTS and name not in DIAGNOSES:
            raise PromptError(f"unknown label {name!r}{near(name, [*ARTIFACTS, *DIAGNOSES])}")
    return [float(name == finding.diagnosis or name in finding.artifacts) for name in names]


def near(name: str, known: Iterable[str] | None) -> str:
    """End of an error about an unknown name: the nearest known one, or all."""
    names = [str(k) for k in known or ()]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"
