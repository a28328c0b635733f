"""Cards of pairs as HTML in which nothing from a teacher or a table can act.

Every text passes :func:`shown`, which escapes it and makes control, bidirectional and other unseen
characters visible; attributes hold numbers and our own words alone, with one exception, image
bytes as base64. There are no links, no scripts and no styles from data.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from derm_rl.captions.card import PHANTOM, RULE_BASED
from derm_rl.captions.export_images import kind
from derm_rl.captions.export_parquet import parse_findings
from derm_rl.io import atomic_path

LIMIT = 6000  # characters of a text that are shown
# An image id -> an encoded image or pixels (H, W, 3) uint8, as a function or by [].
Images = Callable[[str], Any] | Mapping[str, Any] | Any

# JupyterLab breaks the text of an output within words: word-break is set back at a rank above its
# own rule. A derm-part is one half of a pair, as the review shows it: the text scrolls by itself
# where it is longer than the window, so that the controls under it stay in view.
STYLE = """
.derm-pair{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;border:1px solid #ccc;
border-radius:6px;padding:12px;margin:12px 0;display:flex;flex-wrap:wrap;gap:16px;max-width:1100px}
.derm-pair .derm-picture{position:relative;width:320px;flex:none;align-self:flex-start}
.derm-pair img{width:100%;display:block;image-rendering:auto}
.derm-pair svg{position:absolute;left:0;top:0;width:100%;height:100%}
.derm-pair rect{fill:none;stroke:#ffd400;stroke-width:2px;vector-effect:non-scaling-stroke}
.derm-pair .derm-text{flex:1;min-width:280px}
.derm-pair pre{font:inherit;white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 10px}
.derm-pair .derm-question{font-weight:600}
.derm-pair .derm-badge{display:inline-block;background:#eee;border-radius:4px;padding:0 6px;
margin:0 4px 4px 0;font-size:13px}
.derm-pair .derm-warn{background:#ffe2b8}
.derm-pair .derm-flag{background:#ffd0d0}
.derm-pair .derm-small{font-size:13px;color:#555;overflow-wrap:anywhere}
.derm-pair li{overflow-wrap:anywhere}
.derm-pair.derm-pair *{word-break:normal}
.derm-pair.derm-part{border:0;padding:0;margin:0;max-width:none;font-size:14px;line-height:1.4}
.derm-part .derm-text{min-width:0;max-height:max(240px,calc(100vh - 425px));overflow-y:auto}
.derm-part ul{margin:0 0 8px;padding-left:20px}
.derm-part .derm-small{line-height:1.3}
.derm-message.derm-message *{line-height:1.3}
"""


def shown(text: Any, limit: int = LIMIT) -> str:
    """Text as harmless HTML: escaped, unseen characters written out, cut with a note.

    Line breaks and tabs stay. A missing value is an em dash.
    """
    if text is None or text is pd.NA or (isinstance(text, float) and math.isnan(text)):
        return "—"
    text = str(text).replace("\r\n", "\n")
    rest = len(text) - limit
    safe = "".join(c if _visible(c) else f"⟨U+{ord(c):04X}⟩" for c in text[:limit])
    note = f" … ({rest:,} more characters are stored but not shown)" if rest > 0 else ""
    return html.escape(safe, quote=True) + note


def _visible(character: str) -> bool:
    # Cf holds bidirectional controls, zero-width characters and tags; Cs are lone surrogates.
    return character in "\n\t" or (
        unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    )


def picture(images: Images, image_id: str) -> bytes | None:
    """Encoded image of an id, or None if there is none: a review goes on without it."""
    import numpy as np

    try:
        found = images(image_id) if callable(images) else images[image_id]
        if isinstance(found, np.ndarray):
            from PIL import Image

            out = io.BytesIO()
            Image.fromarray(found).save(out, "PNG")
            found = out.getvalue()
        kind(found)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return bytes(found)


def findings_of(pair: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Findings of a pair, or None if they cannot be read."""
    try:
        return parse_findings(pair.get("findings"))
    except ValueError:
        return None


def _boxes(found: Iterable[Mapping[str, Any]]) -> str:
    drawn = []
    for finding in found:
        if finding["box"] is None:
            continue
        x0, y0, x1, y1 = (min(max(v, 0.0), 1.0) for v in finding["box"])
        if x0 < x1 and y0 < y1:
            place = f'x="{x0:.4f}" y="{y0:.4f}" width="{x1 - x0:.4f}" height="{y1 - y0:.4f}"'
            title = f"{shown(finding['name'], 100)}: {shown(finding['value'], 200)}"
            drawn.append(f"<rect {place}><title>{title}</title></rect>")
    return f'<svg viewBox="0 0 1 1" preserveAspectRatio="none">{"".join(drawn)}</svg>'


def card(
    pair: Mapping[str, Any],
    content: bytes | None,
    flags: Iterable[tuple[str, str]] = (),
    before: Iterable[Mapping[str, Any]] = (),
) -> str:
    """One pair as HTML: its image and, beside it, its text.

    Args:
        pair: a row of the table of pairs.
        content: the encoded image; None says that it is not there.
        flags: check and reason of each flag.
        before: the rows of the turns before, for a conversation.
    """
    return f'<div class="derm-pair">{image_of(pair, content)}{text_of(pair, flags, before)}</div>'


def image_of(pair: Mapping[str, Any], content: bytes | None) -> str:
    """The image of a pair with the boxes of its findings; see :func:`card`."""
    media = {"png": "image/png", "jpg": "image/jpeg"}
    image = '<p class="derm-small">The image cannot be read.</p>'
    if content is not None:
        data = base64.b64encode(content).decode()
        image = f'<img alt="image of this pair" src="data:{media[kind(content)]};base64,{data}">'
        image += _boxes(findings_of(pair) or [])
    return f'<div class="derm-picture">{image}</div>'


def text_of(
    pair: Mapping[str, Any],
    flags: Iterable[tuple[str, str]] = (),
    before: Iterable[Mapping[str, Any]] = (),
) -> str:
    """What a pair says, and what is said about it; see :func:`card`."""
    turns = "".join(
        f'<pre class="derm-small">{shown(t.get("question"), 1000)}\n→ '
        f"{shown(t.get('answer'), 1000)}</pre>"
        for t in before
    )
    marks = "".join(
        f'<span class="derm-badge derm-flag">{shown(check, 100)}: {shown(reason, 300)}</span>'
        for check, reason in flags
    )
    return (
        f'<div class="derm-text"><div>{_badges(pair)}{marks}</div>{turns}'
        f'<pre class="derm-question">{shown(pair.get("question"))}</pre>'
        f"<pre>{shown(pair.get('answer'))}</pre>{_finding_list(findings_of(pair))}"
        f'<p class="derm-small">{shown(pair.get("licence"), 200)} · '
        f"{shown(pair.get('attribution'), 500)}<br>pair {shown(pair.get('pair_id'), 100)} · "
        f"image {shown(pair.get('image_id'), 200)}</p></div>"
    )


def _badges(pair: Mapping[str, Any]) -> str:
    badges = []
    if str(pair.get("source")) == PHANTOM:
        badges.append(("derm-badge derm-warn", "phantom: drawn, no patient"))
    if str(pair.get("teacher")).startswith(RULE_BASED):
        badges.append(("derm-badge derm-warn", "rule-based"))
    for name in ("source", "question_type", "mode", "language", "teacher"):
        badges.append(("derm-badge", shown(pair.get(name), 100)))
    return "".join(f'<span class="{style}">{text}</span>' for style, text in badges)


def _finding_list(found: list[dict[str, Any]] | None) -> str:
    if found is None:
        return '<p class="derm-small">The findings cannot be read.</p>'
    items = "".join(
        f"<li><b>{shown(f['name'], 100)}</b>: {shown(f['value'], 300)} "
        f'<span class="derm-small">({shown(f["evidence"], 600)})</span></li>'
        for f in found[:20]
    )
    return f"<ul>{items}</ul>" if items else ""


def page(
    pairs: pd.DataFrame,
    images: Images,
    path: str | Path,
    title: str = "Image-text pairs",
    flags: pd.DataFrame | None = None,
) -> Path:
    """Write pairs as one HTML page that needs nothing else, and that no browser runs code in.

    A Content-Security-Policy admits our own style and embedded images, nothing more.

    Args:
        pairs: rows with ``PAIR_COLUMNS``; one card each, in their order.
        images: image id -> an encoded image or pixels (H, W, 3) uint8; a function or by [].
        flags: ``pair_id, check, reason``.
    """
    allowed = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{allowed}'; base-uri 'none'"
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as out:
        out.write(
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{shown(title, 200)}</title><style>{STYLE}</style></head><body>\n"
            f"<h1>{shown(title, 200)}</h1>\n<p>For research only; no medical advice.</p>\n"
        )
        marks = flags_of(flags)
        for pair in pairs.to_dict("records"):
            content = picture(images, pair["image_id"])
            out.write(card(pair, content, marks.get(pair["pair_id"], ())) + "\n")
        out.write("</body></html>\n")
    return Path(path)


def flags_of(flags: pd.DataFrame | None) -> dict[str, list[tuple[str, str]]]:
    """Checks and reasons by pair."""
    found: dict[str, list[tuple[str, str]]] = {}
    if flags is not None:
        for pair, check, reason in zip(
            flags["pair_id"], flags["check"], flags["reason"], strict=True
        ):
            found.setdefault(pair, []).append((check, reason))
    return found
