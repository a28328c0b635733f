"""Image files of every kind with the picture they hold, and a reader of every byte of PNG and JPEG.

Written from the formats' specifications, not with the code under test.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

MARK = b"Jane Doe 1969-04-01"
TEXT = MARK.decode()
HEIGHT, WIDTH = 24, 32


def colours() -> np.ndarray:
    """The picture of all files (24, 32, 3) uint8: smooth, no two corners alike."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([40 + 6 * x, 230 - 8 * y, 60 + 2 * x + 4 * y], -1).clip(0, 255).astype(np.uint8)


RGB = colours()
GREY = np.repeat(RGB[..., :1], 3, 2)
ALPHA = np.where(np.mgrid[0:HEIGHT, 0:WIDTH][1] < 8, 0, 255).astype(np.uint8)  # left: transparent
ON_WHITE = np.where(ALPHA[..., None] == 0, 255, RGB).astype(np.uint8)
GREY_ON_WHITE = np.where(ALPHA[..., None] == 0, 255, GREY).astype(np.uint8)


def saved(pixels, form: str, mode: str | None = None, **options) -> bytes:
    """A file of an array or image, converted to ``mode`` before."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    # Copies: an image remembers how it was last saved.
    if more := options.get("append_images"):
        options["append_images"] = [other.copy() for other in more]
    (image.convert(mode) if mode else image.copy()).save(out, form, **options)
    return out.getvalue()


def with_alpha(mode: str = "RGBA") -> Image.Image:
    """The picture, black where it is transparent: nobody may see that."""
    image = Image.fromarray(np.where(ALPHA[..., None] == 0, 0, RGB).astype(np.uint8))
    if mode == "LA":
        image = image.getchannel(0)
    image.putalpha(Image.fromarray(ALPHA))
    return image


def red_for_blue() -> bytes:
    """An ICC profile whose red is sRGB's blue, and the reverse."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = profile[:512]  # the table of tags stands in front of what they name
    tags = tags.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
    return tags + profile[512:]


def exif(orientation: int = 1) -> Image.Exif:
    """EXIF with an orientation, a name and a position."""
    found = Image.Exif()
    found[274] = orientation
    for tag in (0x010E, 0x013B, 0x9286):
        found[tag] = TEXT
    found.get_ifd(0x8825)[1] = TEXT
    return found


TURNED = {  # what a file of this orientation stores, so that it shows the picture
    1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB, -1),
}  # fmt: skip


def turned(orientation: int, form: str, **options) -> bytes:
    stored = np.ascontiguousarray(TURNED[orientation])
    return saved(stored, form, exif=exif(orientation), **options)


# ------------------------------------------------------------------------------ PNG by hand


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    values: np.ndarray, depth: int, colour: int, before: bytes = b"", after: bytes = b"",
    data_end: bytes = b"",
) -> bytes:  # fmt: skip
    """A PNG of bytes or 16-bit numbers, with chunks before and after, and more behind the rows."""
    raw = values.reshape(HEIGHT, -1).astype(">u2" if depth == 16 else "u1")
    rows = b"".join(b"\0" + row.tobytes() for row in raw)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, 0)
    middle = before + chunk(b"IDAT", zlib.compress(rows + data_end) + data_end) + after
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + chunk(b"IEND", b"")


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def inserted(content: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments behind its first one."""
    at = 4 + struct.unpack(">H", content[4:6])[0]
    return content[:at] + b"".join(segments) + content[at:]


# -------------------------------------------------------------------------------- the files


def files() -> dict[str, tuple[bytes, np.ndarray, int]]:
    """By name: the file, the picture it holds, and how far a lossy one may be off on average."""
    wide, lossy = 257 * RGB.astype(np.uint16), 4
    grey = RGB[..., 0]
    palette = Image.fromarray(RGB).quantize(32, dither=Image.Dither.NONE)
    of_palette = np.asarray(palette.convert("RGB"))
    first, second = Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())
    hidden = palette.copy()
    hidden.info["transparency"] = 0
    no_first = np.where((np.asarray(palette) == 0)[..., None], 255, of_palette).astype(np.uint8)
    ink = np.dstack([255 - RGB, np.zeros_like(grey)])
    named = struct.pack(">H", int(wide[0, 0, 0]))
    where_named = np.where((grey == grey[0, 0])[..., None], 255, GREY).astype(np.uint8)
    cmyk = Image.fromarray(ink, "CMYK")
    swapped, bits = np.ascontiguousarray(RGB[..., ::-1]), np.where(GREY > 128, 255, 0)
    profile = red_for_blue()
    out = {
        "rgb.png": (saved(RGB, "PNG"), RGB, 0),
        "grey.png": (saved(grey, "PNG"), GREY, 0),
        "bits.png": (saved(bits[..., 0] > 0, "PNG"), bits, 0),
        "palette.png": (saved(palette, "PNG"), of_palette, 0),
        "palette_hidden.png": (saved(hidden, "PNG", transparency=0), no_first, 0),
        "alpha.png": (saved(with_alpha(), "PNG"), ON_WHITE, 0),
        "grey_alpha.png": (saved(with_alpha("LA"), "PNG"), GREY_ON_WHITE, 0),
        "grey16.png": (png(wide[..., 0], 16, 0), GREY, 0),
        "rgb16.png": (png(wide, 16, 2), RGB, 0),
        "grey16_hidden.png": (png(wide[..., 0], 16, 0, chunk(b"tRNS", named)), where_named, 0),
        "profile.png": (saved(swapped, "PNG", icc_profile=profile), RGB, 2),
        "turned.png": (turned(6, "PNG"), RGB, 0),
        "rgb.jpg": (saved(RGB, "JPEG", quality=95), RGB, lossy),
        "grey.jpg": (saved(grey, "JPEG", quality=95), GREY, lossy),
        "progressive.jpg": (saved(RGB, "JPEG", quality=95, progressive=True), RGB, lossy),
        "cmyk.jpg": (saved(cmyk, "JPEG", quality=95), RGB, lossy),
        "profile.jpg": (saved(swapped, "JPEG", quality=95, icc_profile=profile), RGB, lossy),
        "phone.mpo": (
            saved(first, "MPO", quality=95, save_all=True, append_images=[second]), RGB, lossy,
        ),
        "lossless.webp": (saved(RGB, "WEBP", lossless=True), RGB, 0),
        "lossy.webp": (saved(RGB, "WEBP", quality=95), RGB, 8),
        "alpha.webp": (saved(with_alpha(), "WEBP", lossless=True, exact=True), ON_WHITE, 0),
        "moving.webp": (
            saved(first, "WEBP", lossless=True, save_all=True, append_images=[second]), RGB, 0,
        ),
        "turned.webp": (turned(8, "WEBP", lossless=True), RGB, 0),
        "palette.gif": (saved(palette, "GIF"), of_palette, 0),
        "hidden.gif": (saved(hidden, "GIF", transparency=0), no_first, 0),
        "moving.gif": (saved(first, "GIF", save_all=True, append_images=[second]), RGB, 8),
        "rgb.bmp": (saved(RGB, "BMP"), RGB, 0),
        "palette.bmp": (saved(palette, "BMP"), of_palette, 0),
        "rgb.tif": (saved(RGB, "TIFF"), RGB, 0),
        "packed.tif": (saved(RGB, "TIFF", compression="tiff_lzw"), RGB, 0),
        "alpha.tif": (saved(with_alpha(), "TIFF"), ON_WHITE, 0),
        "grey16.tif": (saved(wide[..., 0], "TIFF"), GREY, 0),
        "grey16_big_endian.tif": (saved(wide[..., 0].astype(">u2"), "TIFF"), GREY, 0),
        "grey16_white_is_zero.tif": (
            saved(65535 - wide[..., 0], "TIFF", tiffinfo={262: 0}), GREY, 0,
        ),
        "int32.tif": (saved(wide[..., 0].astype(np.int32), "TIFF"), GREY, 0),
        "share.tif": (saved((grey / 255).astype(np.float32), "TIFF"), GREY, 0),
        "float.tif": (saved(grey.astype(np.float32), "TIFF"), GREY, 0),
        "cmyk.tif": (saved(cmyk, "TIFF"), RGB, 0),
        "pages.tif": (saved(first, "TIFF", save_all=True, append_images=[second]), RGB, 0),
        "turned.tif": (turned(3, "TIFF"), RGB, 0),
    }  # fmt: skip
    for orientation in range(2, 9):
        stored = turned(orientation, "JPEG", quality=95)
        out[f"turned_{orientation}.jpg"] = (stored, RGB, lossy)
    return out


def planted() -> dict[str, bytes]:
    """Files with ``MARK`` in every place where something beside the picture can stand."""
    jpeg, picture = saved(RGB, "JPEG", quality=95), Image.fromarray(RGB)
    marked = saved(RGB, "JPEG", quality=95, exif=exif(), comment=MARK)
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", TEXT)
    info.add_text("Patient", TEXT, zip=True)
    info.add_itxt("XML:com.adobe.xmp", TEXT)
    tiff = TiffImagePlugin.ImageFileDirectory_v2()
    tiff[270] = tiff[315] = tiff[65000] = TEXT
    icc = red_for_blue() + MARK
    thumbnail = b"JFIF\0\1\1\0\0\1\0\1\7\1" + MARK + b"\0\0"
    again = jpeg[: jpeg.index(b"\xff\xda")] + MARK + jpeg[jpeg.index(b"\xff\xda") :]
    plain = png(RGB, 8, 2)
    return {
        "exif.jpg": saved(RGB, "JPEG", exif=exif()),
        "turned.jpg": turned(6, "JPEG"),
        "comment.jpg": saved(RGB, "JPEG", comment=MARK),
        "xmp.jpg": saved(RGB, "JPEG", xmp=MARK),
        "iptc.jpg": inserted(jpeg, segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04" + MARK)),
        "profile.jpg": saved(RGB, "JPEG", icc_profile=icc),
        "thumbnail.jpg": jpeg[:2] + segment(0xE0, thumbnail) + jpeg[20:],
        "extension.jpg": inserted(jpeg, segment(0xE0, b"JFXX\0\x10" + MARK)),
        "adobe.jpg": inserted(jpeg, segment(0xEE, b"Adobe\0d\0\0\0\0\1" + MARK)),
        "any.jpg": inserted(jpeg, *(segment(0xE0 + i, MARK) for i in range(16))),
        "between.jpg": again,
        "behind.jpg": jpeg + MARK,
        "second.jpg": jpeg + marked,
        "frames.mpo": saved(
            picture, "MPO", save_all=True, append_images=[Image.open(io.BytesIO(marked))],
            exif=exif(), comment=MARK,
        ) + marked,
        "cmyk.jpg": saved(picture, "JPEG", "CMYK", exif=exif(), comment=MARK),
        "texts.png": saved(RGB, "PNG", pnginfo=info, exif=exif(), icc_profile=icc),
        "private.png": png(RGB, 8, 2, chunk(b"prVt", MARK), chunk(b"prVt", MARK)),
        "frames.png": saved(picture, "PNG", save_all=True, append_images=[picture.rotate(90)])
        + MARK,
        "chunks.png": png(
            RGB, 8, 2, chunk(b"sPLT", b"x\0\x08" + MARK) + chunk(b"pHYs", b"\0" * 9)
        ) + MARK,
        "palette.png": png(
            np.zeros((HEIGHT, WIDTH)), 8, 3, chunk(b"PLTE", (MARK * 3)[:57])
        ),
        "in_the_pixels_chunk.png": png(RGB, 8, 2, data_end=MARK),
        "end.png": plain[:-12] + chunk(b"IEND", MARK),
        "behind.png": plain + MARK,
        "all.webp": saved(RGB, "WEBP", exif=exif(), xmp=MARK, icc_profile=icc) + MARK,
        "moving.webp": saved(
            picture, "WEBP", save_all=True, append_images=[picture.rotate(90)], exif=exif(),
        ),
        "tags.tif": saved(RGB, "TIFF", tiffinfo=tiff, icc_profile=icc, exif=exif()) + MARK,
        "pages.tif": saved(
            picture, "TIFF", save_all=True, append_images=[picture], tiffinfo=tiff,
        ),
        "comment.gif": saved(picture, "GIF", comment=MARK) + MARK,
        "behind.bmp": saved(RGB, "BMP") + MARK,
    }  # fmt: skip


def planted_in_scans(mark: bytes = MARK) -> dict[str, bytes]:
    """JPEGs with ``mark`` between pixels and a marker: only a decoder could tell it from pixels."""
    plain = saved(RGB, "JPEG", quality=95)
    scans = saved(RGB, "JPEG", quality=95, progressive=True)
    restarts = saved(RGB, "JPEG", quality=95, restart_marker_rows=1)

    def before(content: bytes, marker: bytes, after: bytes = b"\xff\xda") -> bytes:
        at = content.index(marker, content.index(after))
        return content[:at] + mark + content[at:]

    return {
        "behind_pixels.jpg": before(plain, b"\xff\xd9"),
        "behind_grey.jpg": before(saved(RGB[..., 0], "JPEG"), b"\xff\xd9"),
        "behind_first_scan.jpg": before(scans, b"\xff\xc4"),
        "behind_last_scan.jpg": before(scans, b"\xff\xd9"),
        "before_restart.jpg": before(restarts, b"\xff\xd0"),
        "behind_restarts.jpg": before(restarts, b"\xff\xd9"),
        "stray_restart.jpg": before(plain[:-2] + b"\xff\xd0\xff\xd9", b"\xff\xd9"),
    }


# ------------------------------------------------------------------------------- every byte


def every_byte(content: bytes) -> None:
    """Read a file from its first byte to its last; nothing in it may be but the picture.

    Raises:
        AssertionError: it is neither PNG nor JPEG, or holds anything else.
    """
    (_every_png if content[:4] == b"\x89PNG" else _every_jpeg)(content)


def _every_png(content: bytes) -> None:
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    at, names, packed = 8, [], b""
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        name, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        assert content[at : at + 12 + size] == chunk(name, body)
        names.append(name)
        if name == b"IHDR":
            assert size == 13
            width, height, depth, colour, *others = struct.unpack(">IIBBBBB", body)
        packed += body if name == b"IDAT" else b""
        at += 12 + size
    assert at == len(content) and names[0] == b"IHDR" and names[-1] == b"IEND"
    assert set(names[1:-1]) == {b"IDAT"} and size == 0, names
    assert (depth, others) == (8, [0, 0, 0]) and colour in (0, 2)
    inflating = zlib.decompressobj()
    assert len(inflating.decompress(packed)) == height * (1 + width * (1 + colour))
    assert inflating.eof and not inflating.unused_data


def _every_jpeg(content: bytes) -> None:
    assert content[:2] == b"\xff\xd8"
    at, scans, frames = 2, 0, 0
    while content[at : at + 2] != b"\xff\xd9":
        start, marker = content[at], content[at + 1]
        (size,) = struct.unpack(">H", content[at + 2 : at + 4])
        body = content[at + 4 : at + 2 + size]
        assert start == 0xFF and len(body) == size - 2
        at += 2 + size
        if marker == 0xE0:
            assert body[:5] == b"JFIF\0" and len(body) == 14 and body[12:] == b"\0\0"
        elif marker == 0xEE:
            assert body[:5] == b"Adobe" and len(body) == 12
        elif marker in (0xC0, 0xC1, 0xC2):
            frames += 1
            assert body[0] == 8 and body[5] in (1, 3) and len(body) == 6 + 3 * body[5]
        elif marker == 0xDD:
            assert len(body) == 2
        elif marker == 0xDB:
            while body:
                assert body[0] & 15 < 4 and len(body) > 64
                body = body[129 if body[0] >> 4 else 65 :]
        elif marker == 0xC4:
            while body:
                size = 17 + sum(body[1:17])
                assert len(body) >= size
                body = body[size:]
        else:
            assert marker == 0xDA and len(body) == 4 + 2 * body[0], hex(marker)
            scans += 1
            while not (content[at] == 0xFF and content[at + 1] not in (0, *range(0xD0, 0xD8))):
                at += 1
    assert frames == 1 and scans and at + 2 == len(content)
