"""Encoded images for teachers and a release: the one picture of a file, and nothing else."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zlib
from collections.abc import Callable

import pandas as pd
from PIL import Image, ImageChops

from derm_rl.data import images, table

Load = Callable[[str], bytes]  # image id -> an encoded image
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_FRAMES = (b"\xc0", b"\xc1", b"\xc2")  # of a JPEG: baseline, extended, progressive
_SEGMENT = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7]")
# The last two bytes in front of a restart marker or the end of a scan; FF is written as FF 00.
_TAIL = re.compile(rb"(?:\xff[\x00\xd0-\xd7]|[^\xff]){2}(?=\xff[\xd0-\xd7]|\Z)", re.DOTALL)
# In place of a tail: noise, as pixels that are black or white show few other codes. FF is a marker.
_OTHERS = [hashlib.sha256(bytes([i])).digest().replace(b"\xff", b"")[:16] for i in range(8)]
_MOST_TAILS = 64  # to look at, in a picture each: progressive files have about ten


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
        image = _picture(paths[image_id], size)
        if size is not None:
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        if quality is None:
            image.save(out, "PNG", compress_level=6)
        else:
            image.save(out, "JPEG", quality=quality)
        return out.getvalue()

    return load


def _picture(path: str, size: int | None) -> Image.Image:
    if path.partition("::")[0] not in table.OPENERS:
        return table.read_image(path)[1]
    if size is None:
        raise ValueError(f"image {path} is drawn on demand: give the size to draw it at")
    return Image.fromarray(table.load_image(path, size))


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


def clean(content: bytes, picture: Image.Image | None = None) -> bytes:
    """PNG or JPEG that shows the one picture of a file and holds nothing else.

    No EXIF, GPS, XMP, profile, text, thumbnail or further frame, and nothing behind its end. A
    plain file stays as it is, and a JPEG keeps its compressed pixels where they alone give that
    picture. Whatever else (turned by EXIF, transparent, CMYK, with a profile, of another format,
    with bytes between pixels and marker) becomes PNG.

    Beside what decodes to pixels, a JPEG keeps its tables, also unused ones, the resolution of
    JFIF, the transform of Adobe, and in front of each marker in or behind a scan at most one byte.

    Args:
        picture: of the file, if it is known.

    Raises:
        ImageError: it is no whole image.
    """
    images.opened(content).close()
    content = bytes(content)
    if _is_plain_png(content):
        return content
    if picture is None:
        picture = images.picture(content)
    bare, tails = _bare_jpeg(content) or (b"", [])
    if bare and (bare == content or _shows(bare, picture)) and _all_drawn(bare, tails, picture):
        return bare
    return encoded(picture, "PNG")


def encoded(image: Image.Image, form: str, quality: int = 92) -> bytes:
    """An image as the bytes of a PNG, or of a JPEG of this quality."""
    out = io.BytesIO()
    image.save(out, form, **({"quality": quality} if form == "JPEG" else {"compress_level": 4}))
    return out.getvalue()


def _shows(content: bytes, picture: Image.Image) -> bool:
    found = images.picture(content)
    return found.size == picture.size and ImageChops.difference(found, picture).getbbox() is None


def _all_drawn(jpeg: bytes, tails: list[tuple[int, int]], picture: Image.Image) -> bool:
    """Whether the picture is another one with other bytes in place of any tail.

    A decoder skips what lies between the last pixel and a marker, and does not say so. Real pixels
    that none of ``_OTHERS`` changes to the eye (the lowest bits of a progressive file that ends in
    black) make a file PNG, too.
    """
    return len(tails) <= _MOST_TAILS and all(
        any(not _shows(jpeg[:start] + other + jpeg[end:], picture) for other in _OTHERS)
        for start, end in tails
    )


def _is_plain_png(content: bytes) -> bool:
    """Grey or RGB of 8 bits, in chunks that hold the pixels and no more."""
    names, bodies, at = [], [], len(PNG)
    while content.startswith(PNG) and at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        body = content[at + 4 : end - 4]
        if zlib.crc32(body).to_bytes(4, "big") != content[end - 4 : end]:
            return False
        names.append(body[:4])
        bodies.append(body[4:])
        at = end
    plain = [b"IHDR", *[b"IDAT"] * (len(names) - 2), b"IEND"]
    if names != plain or len(bodies[0]) != 13 or bodies[-1]:
        return False
    width, height, depth, colour, others = struct.unpack(">IIBB3s", bodies[0])
    if depth != 8 or colour not in (0, 2) or any(others):  # palette, alpha, interlaced
        return False
    size = height * (1 + width * (3 if colour else 1))
    unpacking = zlib.decompressobj()
    try:
        pixels = unpacking.decompress(b"".join(bodies[1:-1]), size + 1)
    except zlib.error:
        return False
    return len(pixels) == size and unpacking.eof and not unpacking.unused_data


def _bare_jpeg(content: bytes) -> tuple[bytes, list[tuple[int, int]]] | None:
    """Frame, tables and scans of the first image of a file, up to its end; nothing else.

    Also where the tails of its scans begin and end (``_TAIL``). None if this is no grey or colour
    JPEG of 8 bits, or has anything unusual.
    """
    kept, tails, seen, at = [b"\xff\xd8"], [], set(), 2
    while content.startswith(JPEG) and (found := _SEGMENT.match(content, at)):
        marker, start = found[1], found.end()
        if marker == b"\xd9":
            return (b"".join([*kept, b"\xff\xd9"]), tails) if b"\xda" in seen else None
        at = start + int.from_bytes(content[start : start + 2], "big")
        body = content[start + 2 : at]
        if marker == b"\xe0" and body.startswith(b"JFIF\0") and len(body) >= 14:
            body = body[:12] + b"\0\0"  # without its thumbnail
        elif marker == b"\xee" and body.startswith(b"Adobe") and len(body) >= 12:
            body = body[:12]  # tells RGB from YCbCr
        elif b"\xe0" <= marker <= b"\xef" or marker == b"\xfe":
            continue
        elif not _needed(marker, body):
            return None
        kind_of = b"\xc0" if marker in _FRAMES else marker
        if kind_of in seen and kind_of in (b"\xc0", b"\xe0", b"\xee"):
            return None
        seen.add(kind_of)
        kept += [b"\xff", marker, (len(body) + 2).to_bytes(2, "big"), body]
        if marker == b"\xda":
            end, begins = _SCAN_END.search(content, at), sum(map(len, kept))
            scan = content[at : end.start() if end else None]
            tails += [(begins + t.start(), begins + t.end()) for t in _TAIL.finditer(scan)]
            kept.append(scan)
            at += len(scan)
    return None


def _needed(marker: bytes, body: bytes) -> bool:
    """Whether a segment is one that decoding needs, and as long as its content says."""
    at = 0
    if marker in _FRAMES:
        return len(body) > 5 and body[0] == 8 and body[5] in (1, 3) and len(body) == 6 + 3 * body[5]
    if marker == b"\xda":
        return len(body) > 0 and len(body) == 4 + 2 * body[0]
    if marker == b"\xdb":  # quantization: a byte, and 64 numbers of one byte or two
        while at < len(body):
            at += 129 if body[at] >> 4 else 65
        return at == len(body)
    if marker == b"\xc4":  # Huffman codes: a byte, 16 counts, and as many symbols
        while at < len(body):
            at += 17 + sum(body[at + 1 : at + 17])
        return at == len(body)
    return marker == b"\xdd" and len(body) == 2  # interval of restarts


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
