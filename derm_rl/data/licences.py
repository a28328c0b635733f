"""Licences of images: one id for many spellings, what each allows, and what may be released.

Nothing here is legal advice. Only spellings that are understood in full count: what is unknown or
missing never passes :func:`filter`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from derm_rl.prompts import near


@dataclass(frozen=True)
class Licence:
    """What a licence says. ``redistribution`` is None where its own text must be read first."""

    id: str  # SPDX, or LicenseRef-… where SPDX has none; without version where none was given
    redistribution: bool | None  # copies may be passed on
    attribution: bool = True  # the author must be named
    non_commercial: bool = False  # only for non-commercial use
    no_derivatives: bool = False  # only unchanged: no resizing, no text added
    share_alike: bool = False  # derivatives under the same licence

    @property
    def released(self) -> bool:
        """Whether images and derivatives may be passed on, at most under the name of the author."""
        return self.redistribution is True and not self.no_derivatives


SCIN = "LicenseRef-SCIN"
_NAMED = {
    "apache 2.0": Licence("Apache-2.0", True),
    "mit": Licence("MIT", True),
    "pddl 1.0": Licence("PDDL-1.0", True, attribution=False),
    "odc by 1.0": Licence("ODC-By-1.0", True),
    "odbl 1.0": Licence("ODbL-1.0", True, share_alike=True),
    # It has conditions of its own (on identification, and on passing the data on).
    "scin data use": Licence(SCIN, None),
    "licenseref scin": Licence(SCIN, None),
}
_CC_VERSIONS = {"1.0", "2.0", "2.5", "3.0", "4.0"}
_CC_ORDER = ("by", "nc", "nd", "sa")
# Words that change nothing about which licence is meant.
_FILLERS = {
    "license", "licence", "licensed", "under", "the", "international", "unported", "universal",
    "public", "domain", "dedication", "deed", "legalcode", "en", "version", "http", "https", "www",
}  # fmt: skip
_SPELLINGS = (
    (r"creativecommons\.org/publicdomain/zero", " cc0 "),
    (r"creativecommons\.org/licen[sc]es", " cc "),
    (r"creative\s*commons", " cc "),
    (r"\bccby", " cc by "),
    (r"\bcc[\s_-]*(?:0(?![.\d])|zero\b)", " cc0 "),
    (r"non[\s_-]*commercial", " nc "),
    (r"no[\s_-]*deriv(?:ative)?s?\b", " nd "),
    (r"share[\s_-]*alike", " sa "),
    (r"\battribution\b", " by "),
    (r"\bv(?=\d)", " "),
)


def parse(text: str | None) -> Licence | None:
    """The licence that ``text`` names, or None if it is missing or not understood in full."""
    if not isinstance(text, str):
        return None
    words = unicodedata.normalize("NFKC", text).lower()
    for pattern, word in _SPELLINGS:
        words = re.sub(pattern, word, words)
    found = [w.strip(".") for w in re.split(r"[^\w.]+|_", words)]
    tokens = [w for w in found if w and w not in _FILLERS]
    named = " ".join(f"{t}.0" if t.isdigit() else t for t in tokens)
    return _NAMED.get(named) or _creative_commons(tokens)


def _creative_commons(tokens: list[str]) -> Licence | None:
    """Words are taken together: 'CC BY 4.0 (CC BY-NC)' is the stricter of the two."""
    words = {t if not t.isdigit() else f"{t}.0" for t in tokens}
    versions = words & _CC_VERSIONS
    parts = words - versions
    if len(versions) > 1:
        return None
    if parts == {"cc0"} and versions <= {"1.0"}:
        return Licence("CC0-1.0", True, attribution=False)
    known = parts <= {"cc", *_CC_ORDER}
    if not known or not {"cc", "by"} <= parts or {"nd", "sa"} <= parts:
        return None
    name = "-".join(["CC", *(p.upper() for p in _CC_ORDER if p in parts), *versions])
    return Licence(name, True, True, "nc" in parts, "nd" in parts, "sa" in parts)


def normalise(text: str | None) -> str | None:
    """The id of the licence that ``text`` names, or None as :func:`parse`."""
    licence = parse(text)
    return licence.id if licence else None


def filter(
    frame: pd.DataFrame, allow: Iterable[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What may enter a release, and a count of what may not.

    Args:
        frame: a table with columns source and licence (missing allowed).
        allow: licences to let through, in any spelling. By default those that allow changed copies
            to be passed on, if need be with attribution, under the same licence, or for
            non-commercial use only (then so is the release).

    Returns:
        the rows kept, in their order; and source, licence, reason, images of those left out.

    Raises:
        ValueError: a column is missing, or ``allow`` names something that is no known licence.
    """
    if missing := [c for c in ("source", "licence") if c not in frame]:
        raise ValueError(f"licences.filter: the table has no column {', '.join(missing)}")
    allowed = None if allow is None else _ids(allow)
    texts = [None if pd.isna(t) else str(t) for t in frame["licence"]]
    reasons = {text: _reason(text, allowed) for text in set(texts)}
    why = [reasons[text] for text in texts]
    out = np.array([reason is not None for reason in why], bool)
    columns = {name: frame[name].astype("string").array for name in ("source", "licence")}
    told = pd.DataFrame({**columns, "reason": pd.array(why, "string")})[out]
    if told.empty:
        left_out = told.assign(images=pd.array([], "int64"))
    else:
        left_out = told.groupby(list(told), dropna=False).size().reset_index(name="images")
    return frame[~out].reset_index(drop=True), left_out


def _ids(allow: Iterable[str]) -> set[str]:
    if isinstance(allow, str):
        raise ValueError(f"licences.filter: allow must be a list of licences, got {allow!r}")
    ids = {text: normalise(text) for text in allow}
    if unknown := [text for text, name in ids.items() if name is None]:
        known = [*(x.id for x in _NAMED.values()), "CC0-1.0", "CC-BY-4.0", "CC-BY-NC-4.0"]
        raise ValueError(
            f"licences.filter: allow has {unknown[0]!r}, which is no known licence"
            f"{near(str(unknown[0]), dict.fromkeys(known))}"
        )
    return {str(name) for name in ids.values()}


def _reason(text: str | None, allowed: set[str] | None) -> str | None:
    """Why images with this licence stay out; None if they need not."""
    if text is None or not text.strip():
        return "no licence given"
    licence = parse(text)
    if licence is None:
        return "licence not recognized"
    if allowed is not None:
        return None if licence.id in allowed else "not among the licences allowed"
    if licence.redistribution is None:
        return f"has terms of its own: read them, then allow {licence.id}"
    if licence.no_derivatives:
        return "allows unchanged copies only"
    return None if licence.released else "allows no copies to be passed on"
