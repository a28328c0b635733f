"""Encoded images for a release: re-encoded from a table, or given and freed of hidden metadata."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable

import pandas as pd

Load = Callable[[str], bytes]  # image id -> an encoded image
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# Chunks of PNG and segments of JPEG that decoding needs; all others can hold where and when a
# picture was taken, by whom, and of whom.
_PNG_KEPT = {
    b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT",
    b"pHYs",
}  # fmt: skip
_JPEG_DROPPED = {0xE1, *range(0xE3, 0xEE), 0xEF, 0xFE}  # not APP0 (JFIF), APP2 (ICC), APP14 (Adobe)


def loader(frame: pd.DataFrame, size: int | None = None, quality: int | None = None) -> Load:
    """Encode images of a table (``image_id``, ``path``) when asked for.

    Args:
        size: longest side in pixels at most; None keeps the stored size. Phantom images are drawn
            at this size, and it is needed for them.
        quality: of JPEG, 1 to 95; None for PNG, which loses nothing.

    The same image always gives the same bytes (with the same Pillow).
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if quality is not None and not 1 <= quality <= 95:
        raise ValueError(f"quality must be 1 to 95, or None for PNG, got {quality}")
    paths = dict(zip(frame["image_id"].astype(str), frame["path"].astype(str), strict=True))

    def load(image_id: str) -> bytes:
        from PIL import Image

        image = Image.fromarray(_pixels(paths[image_id], size))
        if size is not None:
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        if quality is None:
            image.save(out, "PNG", compress_level=6)
        else:
            image.save(out, "JPEG", quality=quality)
        return out.getvalue()

    return load


def _pixels(path: str, size: int | None):
    import numpy as np
    from PIL import Image

    from derm_rl.data import table

    if path.partition("::")[0] in table.OPENERS:
        if size is None:
            raise ValueError(f"image {path} is drawn on demand: give the size to draw it at")
        return table.load_image(path, size)
    # The stored shape, as it was measured and asked about: no crop, no rotation.
    with Image.open(io.BytesIO(table.read_bytes(path))) as opened:
        return np.asarray(opened.convert("RGB"))


def kind(content: bytes) -> str:
    """File suffix of an encoded image: "png" or "jpg".

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(content, bytes | bytearray):
        raise ValueError(f"expected the bytes of an encoded image, got {type(content).__name__}")
    if content.startswith(PNG):
        return "png"
    if content.startswith(JPEG):
        return "jpg"
    raise ValueError(f"expected a PNG or JPEG image, got bytes that start with {content[:8]!r}")


def strip_metadata(content: bytes) -> bytes:
    """The same image without EXIF, GPS, XMP, comments and what follows its end; pixels untouched.

    An orientation noted in EXIF is dropped too: boxes of findings refer to pixels as stored.

    Raises:
        ValueError: it is no whole PNG or JPEG image.
    """
    return _strip_png(content) if kind(content) == "png" else _strip_jpeg(content)


def _strip_png(content: bytes) -> bytes:
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        name = content[at + 4 : at + 8]
        if end > len(content):
            break
        if name in _PNG_KEPT:
            kept.append(content[at:end])
        if name == b"IEND":
            return b"".join(kept)
        at = end
    raise ValueError("PNG image is cut off: no end chunk")


def _strip_jpeg(content: bytes) -> bytes:
    kept, at = [content[:2]], 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker not in _JPEG_DROPPED:
            kept.append(content[at:end])
        at = end
        if marker == 0xDA:  # the scan follows, up to the end of the image
            stop = content.rfind(b"\xff\xd9", at)
            if stop < 0:
                break
            return b"".join([*kept, content[at : stop + 2]])
    raise ValueError("JPEG image is cut off: no end marker")


def image_path(image_id: str, suffix: str) -> str:
    """Where an image stands in a release: ``images/3f/name.png``, safe on every file system.

    Folders by two digits of a hash keep each below ten thousand files. An id with other characters
    than letters, digits, ``_`` and ``-`` is told from its neighbours by more of the hash.
    """
    digest = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()
    name = re.sub(r"[^A-Za-z0-9_-]", "_", image_id)[:100]
    if name != image_id:
        name = f"{name}-{digest[:12]}"
    return f"images/{digest[:2]}/{name}.{suffix}"
