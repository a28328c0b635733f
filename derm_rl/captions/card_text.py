"""The dataset card of a release as Markdown: each sentence follows from what was counted."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from derm_rl.captions.card import clean, hub_licence

_SIZES = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
    (math.inf, "n>1M"),
)  # fmt: skip
_MODES = {
    "grounded": "In *grounded* pairs the teacher was given the image's metadata.",
    "blind": "In *blind* pairs the teacher was given the image alone.",
}


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
        "## Review\n\n" + _review_text(d),
        "## Left out\n\n"
        + (
            _table(["reason", "source", "pairs"], d["left_out"])
            if d["left_out"]
            else "No pair was left out."
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
    split = d["splits"][0]
    code = [
        "from pathlib import Path",
        "",
        "import mlcroissant",
        "from datasets import Image, List, load_dataset",
        "",
        'folder = Path(".").resolve()  # where this file is',
        f'pairs = load_dataset(str(folder), split="{split}")',
    ]
    if d["layout"] == "reference":
        code += [
            'pairs = pairs.map(lambda row: {"image": f"{folder}/{row[\'image_path\']}"})',
            'pairs = pairs.cast_column("image", Image())',
        ]
    code += [
        "",
        f'chats = load_dataset("json", data_files=f"{{folder}}/messages/{split}.jsonl", '
        'split="train")',
        'chats = chats.map(lambda row: {"images": [f"{folder}/{name}" for name in row["images"]]})',
        'chats = chats.cast_column("images", List(Image()))',
        "",
        f'shards = f"{{folder}}/webdataset/{split}-*.tar"',
        'samples = load_dataset("webdataset", data_files=shards, split="train")',
        "",
        'records = mlcroissant.Dataset(f"{folder}/croissant.json").records("pairs")',
    ]
    return (
        "```python\n" + "\n".join(code) + "\n```\n\n"
        "The files hold the same pairs: `data/` a row a pair, `messages/` and `llava/` a row a "
        "conversation, `webdataset/` a sample a pair, with its findings as JSON text. Every row "
        f"says source, licence and attribution. `llava/{split}.json` is the `--data_path` of "
        "LLaVA's training, and this folder its `--image_folder`: names of images count from it. "
        "`provenance.csv` leads every pair back to the request that made it."
    )


def _made(d: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{name} {share:g}" for name, share in d["shares"].items())
    lines = [
        f"Splits (shares asked for: {shares}) by patient, or else lesion, or else image: what "
        f"shares any of them is in one split, and conversations are whole. Seed {d['seed']}."
    ]
    if empty := [name for name in d["shares"] if name not in d["splits"]]:
        lines.append(f"No pair fell to {plain(', '.join(empty))}.")
    modes = {name for name, *_ in d["counts"]["Mode"]}
    lines += [text for name, text in _MODES.items() if name in modes]
    if n := d["rewritten"]:
        lines.append(
            f"In {n:,} pairs a text held what language models read as a token of their own. It "
            "stands in other brackets, in every file: `<image>` is `[image]`, `[INST]` is `(INST)`."
        )
    if d["commit"]:
        lines.append(f"Code: commit {plain(d['commit'])}.")
    lines += [f"{plain(k)}: {plain(v)}." for k, v in sorted(d["settings"].items())]
    return "\n".join(f"- {line}" for line in lines)


def _check_text(d: Mapping[str, Any]) -> str:
    if not d["checked"]:
        return "No flags of automatic checks were handed to this release."
    if not d["checks"]:
        return f"Automatic checks were run and flagged none of the {d['handed_in']:,} pairs."
    text = _table(["check", "blocks", "pairs flagged", "left out by it"], d["checks"])
    return text + "\n\nA pair with several reasons is counted under its first."


def _review_text(d: Mapping[str, Any]) -> str:
    verdicts, r = d["verdicts"], d["review"]
    if not (reviewed := sum(verdicts.values())):
        text = "No pair of this release has been reviewed by a person."
    else:
        text = (
            f"{reviewed:,} of the {d['pairs']:,} pairs of this release have been reviewed by a "
            f"person: {verdicts['accept']:,} accepted, {verdicts['edit']:,} with an edited answer."
        )
    if not r or not r.get("pairs"):
        return text
    rows = [[name, r["verdicts"].get(name, 0)] for name in ("accept", "edit", "reject")]
    text += f" In all, with pairs that stayed out, {r['readers']:,} reader(s) reviewed "
    text += f"{r['pairs']:,} pairs.\n\n" + _table(["verdict", "pairs"], rows)
    for name, rate in r["rates"].items():
        text += (
            f"\n\n{plain(name).capitalize()}: {rate['value']:.1%} of {rate['n']:,} "
            f"(95 % Wilson interval {rate['low']:.1%} to {rate['high']:.1%})."
        )
    if r["ratings"]:
        rows = [[k, _number(v["mean"]), v["n"]] for k, v in r["ratings"].items()]
        text += "\n\n" + _table(["rating (1 to 5)", "mean", "n"], rows)
    numbers = ("kappa", "low", "high")
    if rows := [
        [a["what"], a["measure"], a["n"], *(_number(a[k]) for k in numbers)]
        for a in r["agreement"]
        if a["n"]
    ]:
        text += "\n\n" + _table(["agreement on", "measure", "n", *numbers], rows)
    return text


def _limits(d: Mapping[str, Any]) -> str:
    lines = [
        "An answer is about one image: nothing could be palpated, and nobody could be asked.",
        "Nothing was balanced for this release: skin tones, body sites, ages and diagnoses are "
        "spread as in the pairs that were handed to it. The skin type is known of "
        f"{d['skin_types']:,} of {d['images']:,} images.",
    ]
    if d["checked"]:
        lines.append(
            "Automatic checks miss faults and reject correct answers; see their measured rates "
            "where they are published."
        )
    if n := d["told"]:
        lines.append(
            f"In {n:,} grounded pairs a diagnosis is recorded: a teacher that was told it may have "
            "argued towards it."
        )
    if d["phantom_images"]:
        lines.append("The phantom is a test instrument: its pairs say nothing about patients.")
    if n := d["rule_based_photographs"]:
        lines.append(
            f"What rules say of hair, bubbles, rulers, ink and dark corners in {n:,} pairs was "
            "tuned on phantoms and often fails on photographs; skin tone is measured without "
            "calibrated light (benchmarks/results/measurements_ham10000.csv)."
        )
    return "\n".join(f"- {plain(line)}" for line in [*lines, *map(str, d["limits"])])


def _number(value: float | None) -> str:
    return "—" if value is None or math.isnan(value) else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    lines = ["| " + " | ".join(map(plain, head)) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{v:,}" if isinstance(v, int) else plain(v) for v in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plain(value: Any) -> str:
    """Text that Markdown shows as it is: no HTML, links, tables or emphasis can come from it."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(clean(value), quote=False))
