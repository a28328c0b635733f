"""The dataset card of a release: every number in it is counted from the pairs, none is typed."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from derm_rl.data import licences
from derm_rl.prompts import near

# What only the caller can know, and what stands there if it is not told.
FACTS: dict[str, Any] = {
    "title": "Dermatology image-text pairs",
    "description": "Questions and answers about dermatological images.",
    "version": "0.1.0",  # major.minor.patch, as Croissant expects
    "date_published": None,  # ISO date; not the clock's, or two runs would differ
    "url": None,
    "cite_as": None,
    "creators": (),  # names
    "commit": None,  # of the code that made the pairs
    "settings": {},  # further facts about how the pairs were made: name -> value
    "review": None,  # review.summary(...)
    "limits": (),  # further sentences
}
RULE_BASED = "measured"  # name of the rule-based teacher
PHANTOM = "phantom"  # source of drawn images
# SPDX ids, in lower case, that dataset hubs know as they are, and those they know by another name.
_HUB_LICENCES = {
    "apache-2.0", "mit", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
}  # fmt: skip
_HUB_NAMES = {"pddl-1.0": "pddl", "odc-by-1.0": "odc-by", "odbl-1.0": "odbl"}
_SIZES = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
    (math.inf, "n>1M"),
)  # fmt: skip


def complete(facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """Facts with the defaults of ``FACTS``.

    Raises:
        ValueError: a fact is unknown.
    """
    for name in facts or {}:
        if name not in FACTS:
            raise ValueError(f"unknown fact {name!r}{near(name, FACTS)}")
    return FACTS | dict(facts or {})


def describe(
    kept: pd.DataFrame,
    left_out: pd.DataFrame,
    flags: pd.DataFrame | None,
    blocking: Collection[str] | None,
    facts: Mapping[str, Any],
    shares: Mapping[str, float],
    seed: int,
    images: str,
) -> dict[str, Any]:
    """Everything that card and Croissant say: facts, and tables counted from the pairs."""
    text = kept.assign(source=kept["source"].astype("string").fillna("unknown"))
    by = {"split": "Split", "source": "Source", "question_type": "Question type"}
    by |= {"language": "Language", "mode": "Mode", "style": "Style", "teacher": "Teacher"}
    sources = text[["source", "licence", "attribution"]].astype("string").fillna("")
    sources = sources.assign(image_id=text["image_id"]).drop_duplicates("image_id")
    sources = sources.groupby(["source", "licence", "attribution"]).size()
    reasons = left_out.assign(source=left_out["source"].astype("string").fillna("unknown"))
    return dict(facts) | {
        "pairs": len(kept),
        "images": int(kept["image_id"].nunique()),
        "conversations": int(kept["conversation"].nunique()),
        "patients": _known(kept, "patient_id"),
        "lesions": _known(kept, "lesion_id"),
        "counts": {title: _counts(text, column) for column, title in by.items()},
        "languages": sorted(set(kept["language"].dropna().astype(str))),
        "splits": [s for s in shares if (kept["split"] == s).any()],
        "shares": dict(shares),
        "seed": seed,
        "layout": images,
        "licence_ids": sorted(set(kept["licence"].dropna().astype(str))),
        "licences": sources.rename("images").reset_index().values.tolist(),
        "left_out": reasons.groupby(["reason", "source"]).size().reset_index().values.tolist(),
        "checks": _checks(flags, blocking, left_out),
        "phantom_images": int(kept.loc[kept["source"] == PHANTOM, "image_id"].nunique()),
        "rule_based": int(kept["teacher"].astype(str).str.startswith(RULE_BASED).sum()),
        "edited": int((kept["review"].astype(object) == "edit").fillna(False).sum()),
    }


def _known(kept: pd.DataFrame, column: str) -> int:
    return int(kept[["source", column]].dropna(subset=[column]).drop_duplicates().shape[0])


def _counts(kept: pd.DataFrame, column: str) -> list[list]:
    found = kept.groupby(kept[column].astype("string").fillna("unknown"))
    table = found.agg(pairs=("pair_id", "size"), images=("image_id", "nunique"))
    return table.sort_index().reset_index().values.tolist()


def _checks(
    flags: pd.DataFrame | None, blocking: Collection[str] | None, left_out: pd.DataFrame
) -> list[list]:
    """Rows ``check, blocks, pairs flagged, pairs left out by it``."""
    if flags is None:
        return []
    flagged = flags.groupby("check")["pair_id"].nunique()
    out = left_out["reason"].value_counts()
    return [
        [check, "yes" if blocking is None or check in blocking else "no", int(n)]
        + [int(out.get(f"flagged by check: {check}", 0))]
        for check, n in flagged.sort_index().items()
    ]


def hub_licence(names: Sequence[str]) -> list[str]:
    """Identifiers of licences as dataset hubs know them; "other" for what they do not."""
    ids = {(licences.normalise(name) or "").lower() for name in names}
    found = {_HUB_NAMES.get(i, i if i in _HUB_LICENCES else "other") for i in ids}
    return sorted(found) or ["other"]


# -------------------------------------------------------------------------------------- text


def render(d: Mapping[str, Any]) -> str:
    """README.md: YAML header for hubs, then the card."""
    parts = [
        _header(d),
        f"# {plain(d['title'])}",
        plain(d["description"]),
        _warning(d),
        f"{d['pairs']:,} pairs about {d['images']:,} images in {d['conversations']:,} "
        f"conversations; {d['patients']:,} known patients, {d['lesions']:,} known lesions.",
        "## Use\n\n" + _use(d),
        "## Contents",
        *(f"{_table([title, 'pairs', 'images'], rows)}" for title, rows in d["counts"].items()),
        "## Licences and attributions\n\nEvery image keeps the licence of its source (columns "
        "`licence` and `attribution` of every row); the whole may be used only as all of them "
        "allow.\n\n" + _table(["source", "licence", "attribution", "images"], d["licences"]),
        "## How it was made\n\n" + _made(d),
        "## Checks\n\n" + _check_text(d),
        "## Review\n\n" + _review_text(d["review"], d["edited"]),
        "## Left out\n\n"
        + (
            _table(["reason", "source", "pairs"], d["left_out"])
            if d["left_out"]
            else "Nothing was left out."
        ),
        "## Limits\n\n" + _limits(d),
    ]
    if d["cite_as"]:
        parts.append("## Citation\n\n" + plain(d["cite_as"]))
    return "\n\n".join(p for p in parts if p) + "\n"


def _header(d: Mapping[str, Any]) -> str:
    import yaml

    known = hub_licence(d["licence_ids"])
    size = next(name for limit, name in _SIZES if d["pairs"] < limit)
    header: dict[str, Any] = {
        "pretty_name": clean(d["title"]),
        "license": known[0] if len(known) == 1 else known,
        "language": d["languages"],
        "task_categories": ["visual-question-answering", "image-text-to-text"],
        "size_categories": [size],
        "tags": ["dermatology", "medical", "research-only"]
        + (["synthetic", "phantom"] if d["phantom_images"] else []),
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": s, "path": f"data/{s}-*.parquet"} for s in d["splits"]],
            }
        ],
    }
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def _warning(d: Mapping[str, Any]) -> str:
    said = [
        "**For research only.** No answer here is medical advice, and none may guide the "
        "diagnosis or treatment of a person."
    ]
    if n := d["phantom_images"]:
        said.append(
            f"**{n:,} of {d['images']:,} images are phantoms**: drawn by a program as a test "
            "instrument with known truth. They are no photographs and no evidence about patients."
        )
    if n := d["rule_based"]:
        said.append(
            f"**{n:,} of {d['pairs']:,} answers are rule-based**: written by rules from "
            "measurements of the image, not by a person or a language model."
        )
    return "\n>\n".join("> " + s for s in said)


def _use(d: Mapping[str, Any]) -> str:
    code = [
        "from datasets import load_dataset",
        "",
        f'pairs = load_dataset("path/to/this/folder", split="{d["splits"][0]}")',
    ]
    text = "```python\n" + "\n".join(code) + "\n```\n\n"
    text += (
        "`llava/*.json` holds the same as LLaVA conversations, `messages/*.jsonl` as chat "
        "messages, `webdataset/*.tar` as WebDataset shards; `provenance.csv` leads every pair "
        "back to the request that made it. A literal `<image>` in a text is `[image]` in the "
        "LLaVA files, where it would stand for pixels."
    )
    if d["layout"] == "embed":
        text += (
            " Images are embedded in the Parquet files; `unpack_images(folder)` of "
            "`derm_rl.captions.export_formats` writes them as the files that the LLaVA and chat "
            "formats name."
        )
    return text


def _made(d: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{name} {share:g}" for name, share in d["shares"].items())
    lines = [
        f"Splits ({shares}) by patient, or else lesion, or else image: what shares any of them "
        f"is in one split, and conversations are whole. Seed {d['seed']}.",
        "Modes: in *grounded* pairs the teacher was given the image's metadata, in *blind* ones "
        "the image alone.",
    ]
    if d["commit"]:
        lines.append(f"Code: commit {plain(d['commit'])}.")
    lines += [f"{plain(k)}: {plain(v)}." for k, v in sorted(d["settings"].items())]
    return "\n".join(f"- {line}" for line in lines)


def _check_text(d: Mapping[str, Any]) -> str:
    if not d["checks"]:
        return "No flags of automatic checks were handed to this release."
    text = _table(["check", "blocks", "pairs flagged", "left out by it"], d["checks"])
    return text + "\n\nA pair with several reasons is counted under its first."


def _review_text(review: Mapping[str, Any] | None, edited: int) -> str:
    if not review or not review.get("pairs"):
        return "No pair of this release has been reviewed by a person."
    r = review
    rows = [[name, r["verdicts"].get(name, 0)] for name in ("accept", "edit", "reject")]
    text = f"{r['pairs']:,} pairs were reviewed by {r['readers']} reader(s); {edited:,} answers "
    text += "of this release were edited by them.\n\n" + _table(["verdict", "pairs"], rows)
    for name, rate in r["rates"].items():
        text += (
            f"\n\n{plain(name).capitalize()}: {rate['value']:.1%} of {rate['n']:,} "
            f"(95 % Wilson interval {rate['low']:.1%} to {rate['high']:.1%})."
        )
    if r["ratings"]:
        rows = [[k, _number(v["mean"]), v["n"]] for k, v in r["ratings"].items()]
        text += "\n\n" + _table(["rating (1 to 5)", "mean", "n"], rows)
    if rows := [
        [
            a["what"],
            a["measure"],
            a["n"],
            _number(a["kappa"]),
            _number(a["low"]),
            _number(a["high"]),
        ]
        for a in r["agreement"]
        if a["n"]
    ]:
        text += "\n\n" + _table(["agreement on", "measure", "n", "kappa", "low", "high"], rows)
    return text


def _limits(d: Mapping[str, Any]) -> str:
    lines = [
        "Answers describe single images; nothing can be palpated, and history is mostly missing.",
        "Automatic checks miss faults and reject correct answers; see their measured rates where "
        "they are published.",
        "Skin tones, body sites, ages and diagnoses are as unevenly spread as in the sources.",
        "A teacher that was given the recorded diagnosis may have argued towards it.",
        *map(str, d["limits"]),
    ]
    return "\n".join(f"- {plain(line)}" for line in lines)


def _number(value: float | None) -> str:
    return "—" if value is None or math.isnan(value) else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    lines = ["| " + " | ".join(map(plain, head)) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{v:,}" if isinstance(v, int) else plain(v) for v in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def clean(value: Any) -> str:
    """One line of printable text."""
    text = re.sub(r"\s+", " ", str(value))
    return "".join(c for c in text if c.isprintable()).strip()


def plain(value: Any) -> str:
    """Text that Markdown shows as it is: no HTML, links, tables or emphasis can come from it."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(clean(value), quote=False))
