"""Any file to the one picture: what is trained on, measured, shown, sent to teachers and released.

- Of several frames or pages the first counts.
- Grey of 16 bits is scaled to 8 by its bit depth. Grey of 32 bits or floating point does not say
  what white is: the smallest of 1 (floating point alone), 255 and 65,535 that holds all values.
- An ICC profile is converted to sRGB. A damaged one, or one for other channels than the image has,
  is passed over, as viewers do; so are gamma and chromaticities of a PNG. CMYK without a profile is
  converted plainly (Adobe's inverted JPEGs, too).
- What is transparent shows ``GROUND``.
- The orientation in EXIF (or XMP) is applied.

Nothing else of the file is left: no profile, no text, no EXIF.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
import zipfile
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from derm_rl.io import passing

GROUND = (255, 255, 255)  # behind what is transparent: white, as on paper and in notebooks
# MPO, of phones, is a JPEG with further ones behind it, and is opened as JPEG. No others: some
# decoders of Pillow start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ENDING = r"(?i)\.(?:jpe?g|png|webp|bmp|gif|tiff?)$"
MAX_PIXELS = 89_478_485  # Pillow's own limit: 256 MiB as RGB
MAX_SCANS = 100  # of a JPEG: each passes over all pixels; ten are many
MAX_BYTES = 2**28  # of a file, or of a member of an archive when unpacked
MAX_RATIO, FREE_BYTES = 100, 2**24  # unpacked to packed, of members larger than FREE_BYTES
MIN_SIDE = 16  # pixels: below, nothing can be measured
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# Tags of EXIF and TIFF.
_ORIENTATION, _BITS, _PHOTOMETRIC, _TILE_WIDTH, _TILE_HEIGHT = 274, 258, 262, 322, 323
_REMEDY = "shrink it, or leave it out"
# opened() refuses what this warns of.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(ValueError):
    """A file that gives no picture; the message reads on from the name of the image."""


# ------------------------------------------------------------------------------------ reading


@lru_cache(maxsize=8)
def _archive(path: str, changed: int, process: int) -> zipfile.ZipFile:
    # Not shared with forked processes: they would move each other's position in the file.
    return zipfile.ZipFile(path)


def read_bytes(address: str) -> bytes:
    """Content of a file or of a member of a zip archive (whose checksum is verified).

    Raises:
        FileNotFoundError, KeyError: there is no such file or member.
        ImageError: it is too large, which is known before it is read; or is no regular file.
        Exception: it is damaged.
    """
    archive, inside, member = address.partition("::")
    if not inside:
        about = os.stat(address)
        if not stat.S_ISREG(about.st_mode):  # a pipe would wait for ever
            raise ImageError(f"cannot be read: {address} is no regular file")
        _check_size(address, about.st_size)
        with open(address, "rb") as file:
            return file.read()
    opened = _archive(archive, os.stat(archive).st_mtime_ns, os.getpid())
    about = opened.getinfo(member)
    where = f"{archive}, member {member}"
    _check_size(f"{where}, unpacked", about.file_size)
    if about.file_size > max(FREE_BYTES, MAX_RATIO * about.compress_size):
        raise ImageError(
            f"cannot be read: {where} would be {about.file_size:,} bytes of {about.compress_size:,}"
            f" packed ones, more than {MAX_RATIO} times as many: no image is. Download it again, "
            "or leave it out"
        )
    if about.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ImageError(  # the other methods inflate all they are fed at once
            f"cannot be read: {where} is packed by method {about.compress_type}, expected deflate "
            "(8) or none (0); unpack the archive into a folder of its name"
        )
    # Not at once: there may be more to inflate than the archive's directory says. This gives no
    # more than that, and then finds the checksum wrong.
    with opened.open(about) as file:
        return b"".join(iter(lambda: file.read(2**20), b""))


def _check_size(where: str, size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(
            f"cannot be read: {where} is {size:,} bytes, more than the limit of {MAX_BYTES:,}; "
            f"{_REMEDY}"
        )


def opened(content: bytes) -> Image.Image:
    """An image with its header read and nothing decoded; to be closed.

    Raises:
        ImageError: it is of no known format, or has more than ``MAX_PIXELS``.
    """
    if not isinstance(content, bytes | bytearray):
        raise ImageError(f"cannot be decoded (expected bytes, got {type(content).__name__})")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        count = int(re.search(r"\d+", str(error))[0])
        raise ImageError(f"cannot be decoded ({_too_many(f'{count:,}')})") from error
    except Image.UnidentifiedImageError as error:
        begins = bytes(content[:8])
        raise ImageError(
            f"cannot be decoded (cannot identify it: expected {', '.join(FORMATS)}, found bytes "
            f"that begin with {begins!r})"
        ) from error
    except Exception as error:  # decoders raise anything on hostile bytes
        if passing(error):  # of memory, say
            raise
        raise ImageError(f"cannot be decoded ({_said(error)})") from error
    tags = getattr(image, "tag_v2", {})  # of a TIFF: its tiles can be larger than itself
    for width, height in (image.size, (tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0))):
        if width * height > MAX_PIXELS:
            image.close()
            raise ImageError(f"cannot be decoded ({_too_many(f'{width} × {height}')})")
    if image.format in ("JPEG", "MPO") and content.count(b"\xff\xda") > MAX_SCANS:
        image.close()
        raise ImageError(f"cannot be decoded (more than {MAX_SCANS} scans; save it anew)")
    return image


def _too_many(size: str) -> str:
    return f"{size} pixels, more than the limit of {MAX_PIXELS:,}; {_REMEDY}"


def _said(error: Exception) -> str:
    text = re.sub(r" ?<.*?>", "", str(error))  # <_io.BytesIO object at …>
    return text[:200] or type(error).__name__


# ------------------------------------------------------------------------------------ picture


def picture(content: bytes, draft: int = 1) -> Image.Image:
    """The one picture of a file: RGB, 8 bits, upright, without anything beside its pixels.

    Args:
        draft: a JPEG is decoded to its end, but at an integer fraction of its size, down to an
            eighth, in a part of the time: enough to know whether it can be.

    Raises:
        ImageError: it cannot be decoded to its end, or has too many pixels.
    """
    try:
        with opened(content) as image:
            if draft > 1 and image.format in ("JPEG", "MPO"):
                image.draft(None, (image.width // draft, image.height // draft))
            if image.format == "PNG":  # Pillow decodes pixels without comparing checksums
                with opened(content) as whole:
                    whole.verify()
            image.load()
            turn = _orientation(image)
            out = _composed(image)
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes
        if passing(error):  # of memory, say
            raise
        raise ImageError(f"cannot be decoded ({_said(error)})") from error
    if turn in _TURNS:
        out = out.transpose(_TURNS[turn])
    out.info.clear()  # else it would be saved along
    return out


def _orientation(image: Image.Image) -> int:
    try:  # Pillow has turned a TIFF itself, and removed the tag
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF that cannot be read says nothing
        return 1


def _composed(image: Image.Image) -> Image.Image:
    """RGB of 8 bits in sRGB, over ``GROUND``."""
    profile, grey = image.info.get("icc_profile"), image.mode in ("1", "L", "LA", "La")
    if image.mode == "F" or image.mode.startswith("I"):
        image, grey = _eight_bits(image), True
    alpha = None
    if image.has_transparency_data:
        if image.mode == "La":  # premultiplied; Pillow knows no shorter way
            image = image.convert("LA")
        transparent = image.info.get("transparency")
        if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
            # Named in 16 bits, of which Pillow has read the upper ones.
            image.info["transparency"] = tuple(v >> 8 for v in transparent)
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    out = _in_srgb(image, profile, grey)
    if alpha is not None:
        out = Image.composite(out, Image.new("RGB", out.size, GROUND), alpha)
    return out


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 8 bits, with alpha where one value is transparent."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        top = 2 ** min(int(np.max(tags.get(_BITS, 16))), 16) - 1
    else:
        least, most = values.min(), values.max()
        tops = [top for top in (1, 255, 65535) if most <= top]
        if image.mode == "I" and 1 in tops:
            tops.remove(1)
        if not (least >= 0 and tops):  # NaN is neither
            raise ImageError(
                f"cannot be decoded (grey values from {least} to {most}, and nothing says which is "
                "white; save it with 8 bits)"
            )
        top = tops[0]
    grey = np.rint(values.astype(np.float32) * (255 / top)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow minds it up to 8 bits
        grey = 255 - grey
    out = Image.fromarray(grey)
    if isinstance(transparent := image.info.get("transparency"), int):
        out.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return out


def _in_srgb(image: Image.Image, profile: bytes | None, grey: bool) -> Image.Image:
    mode, transform = _to_srgb(profile) if profile else ("", None)
    fits = mode == "RGB" or (mode == "L" and grey)
    if transform is None or not ((mode == "CMYK") if image.mode == "CMYK" else fits):
        return image.convert("RGB")
    return ImageCms.applyTransform(image.convert(mode), transform)


@lru_cache(maxsize=8)
def _to_srgb(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Mode of the images that a profile describes, and its conversion; None if there is none.

    A profile that changes no colour by more than 2 of 255 is sRGB itself, and nothing is converted.
    """
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space, "")
        if not mode:
            return "", None
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.getDefaultIntent(source)
        )
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return "", None
    if mode != "CMYK":
        sample = Image.fromarray(_sample())
        out = ImageCms.applyTransform(sample.convert(mode), transform)
        plain = sample.convert(mode).convert("RGB")
        if np.abs(np.asarray(out, int) - np.asarray(plain, int)).max() <= 2:
            return mode, None
    return mode, transform


def _sample() -> np.ndarray:
    """Colours (17, 289, 3) uint8 of a lattice."""
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(17, 289, 3)
