"""Any file to the one picture, what is released of it, and limits of size."""

import io
import struct
import tracemalloc
import zipfile
import zlib

import image_files
import numpy as np
import pandas as pd
import pytest
from image_files import MARK, RGB, every_byte
from PIL import Image

from derm_rl.captions import (
    conversations,
    export_images,
    export_parquet,
    measured,
    store,
)
from derm_rl.data import columns, dermoscopy, images, table
from derm_rl.data.open_access import layout
from derm_rl.data.table import TableError

FILES = image_files.files()
PLANTED = image_files.planted()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def off(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape and found.dtype == np.uint8
    return float(np.abs(found.astype(int) - expected).mean())


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_one_picture_to_trainer_meter_teacher_and_reader(name, tmp_path):
    content, expected, tolerance = FILES[name]
    file = tmp_path / "a.jpg"  # whatever it is: endings say little
    file.write_bytes(content)
    assert layout.damage(str(file)) is None
    picture = np.asarray(images.picture(content))
    assert off(picture, expected) <= tolerance
    sent, measured_in = store.encode(str(file), 64)
    assert np.array_equal(np.asarray(measured_in), picture)
    assert np.array_equal(pixels(sent), picture)  # as any other program reads it
    every_byte(sent)
    assert export_images.clean(sent) == sent  # and so it is released
    trained_on = table.load_image(str(file), 24)
    square = Image.fromarray(picture[:, 4:28] if picture.shape[1] == 32 else picture)
    assert np.array_equal(trained_on, np.asarray(square))
    loaded = export_images.loader(pd.DataFrame({"image_id": ["a"], "path": [str(file)]}))("a")
    assert np.array_equal(pixels(loaded), picture)
    width, height = conversations.tile_tokens(content), conversations.tile_tokens(sent)
    assert width == height == 255


@pytest.mark.parametrize("name", PLANTED)
def test_nothing_but_the_picture_is_released(name, tmp_path):
    """Every byte is read, not a list of tags."""
    content = PLANTED[name]
    assert MARK in content
    file = tmp_path / name
    file.write_bytes(content)
    picture = np.asarray(images.picture(content))
    for size in (64, 20):  # as it is, and shrunk
        sent, _ = store.encode(str(file), size)
        every_byte(sent)
        assert MARK not in sent
        if size == 64:
            assert np.array_equal(pixels(sent), picture)
    released = export_images.clean(content)
    every_byte(released)
    assert MARK not in released and np.array_equal(pixels(released), picture)


@pytest.mark.parametrize("mark", [MARK, b"5N", bytes(2), b"\xff\0\xff\0", b"x" * 70_000])
def test_nothing_stays_between_the_pixels_of_a_jpeg_and_a_marker(mark):
    for name, content in image_files.planted_in_scans(mark).items():
        picture = images.picture(content)
        for released in (export_images.clean(content), export_images.clean(content, picture)):
            assert export_images.kind(released) == "png", name
            assert np.array_equal(pixels(released), picture)


def test_a_release_holds_what_is_clean_in_both_ways(tmp_path):
    names = list(PLANTED)
    rows = pd.DataFrame({"image_id": names, "pair_id": names, "split": "train"})
    columns = {**dict.fromkeys(export_parquet.TEXTS, "x"), "source": "s", "findings": "[]"}
    rows = rows.assign(turn=0, confidence=0.5, abstained=False, skin_type=1)
    rows = rows.assign(**{k: v for k, v in columns.items() if k not in rows})
    import pyarrow.parquet as pq

    for way in ("embed", "reference"):
        folder = tmp_path / way
        folder.mkdir()
        unread = export_parquet.write_splits(rows, folder, way, PLANTED.__getitem__, ["train"])
        assert unread.empty
        if way == "embed":
            found = pq.read_table(folder / "data" / "train-00000.parquet")["image"].to_pylist()
            found = [cell["bytes"] for cell in found]
        else:
            found = [f.read_bytes() for f in folder.rglob("*.*") if f.suffix in (".png", ".jpg")]
        assert len(found) == len(names)
        for content in found:
            every_byte(content)
        assert not any(MARK in f.read_bytes() for f in folder.rglob("*") if f.is_file())


def test_the_reader_of_every_byte_finds_what_is_planted():
    for name, content in PLANTED.items():
        with pytest.raises((AssertionError, struct.error, zlib.error, IndexError)):
            every_byte(content)
            raise NotImplementedError(name)


def test_plain_files_stay_and_a_jpeg_keeps_its_scan():
    for name in ("rgb.jpg", "grey.jpg", "progressive.jpg", "rgb.png", "grey.png"):
        assert export_images.clean(FILES[name][0]) == FILES[name][0]
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    for end in (noise[-20:], 0, 255):  # black corners of dermoscopes, white paper
        noise[-20:] = end
        for options in ({}, {"optimize": True}, {"restart_marker_rows": 1}, {"subsampling": 0}):
            content = image_files.saved(noise, "JPEG", **options)
            assert export_images.clean(content) == content
    plain = image_files.saved(RGB, "JPEG", quality=95)
    for name in ("iptc.jpg", "thumbnail.jpg", "extension.jpg", "any.jpg", "behind.jpg"):
        assert export_images.clean(PLANTED[name]) == plain
    assert export_images.clean(PLANTED["second.jpg"]) == plain
    srgb = image_files.ImageCms.ImageCmsProfile(image_files.ImageCms.createProfile("sRGB"))
    told = image_files.saved(RGB, "JPEG", quality=95, icc_profile=srgb.tobytes())
    assert export_images.clean(told) == plain  # says what is so without it


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_refused_or_shows_the_whole_picture(name):
    content = FILES[name][0]
    whole = np.asarray(images.picture(content))
    for end in [*range(0, len(content), 1 + len(content) // 9), len(content) - 1]:
        try:
            found = np.asarray(images.picture(content[:end]))
        except images.ImageError as error:
            assert str(error).startswith("cannot be decoded (")
        else:
            assert np.array_equal(found, whole), end


def test_a_flipped_byte_in_a_png_is_found():
    content = bytearray(FILES["rgb.png"][0])
    for at in range(len(content)):
        flipped = bytes(content[:at]) + bytes([content[at] ^ 0x10]) + bytes(content[at + 1 :])
        if len(content) - at > 12:
            with pytest.raises(images.ImageError, match=r"cannot be decoded \("):
                images.picture(flipped)


@pytest.mark.parametrize(
    "values",
    [np.full((20, 20), np.nan), np.full((20, 20), -1.0), np.full((20, 20), 70000.0)],
    ids=["nan", "negative", "large"],
)
def test_grey_of_no_known_scale_is_refused(values):
    content = image_files.saved(values.astype(np.float32), "TIFF")
    with pytest.raises(images.ImageError, match="nothing says which is white; save it with 8 bits"):
        images.picture(content)


def test_formats_that_start_programs_or_are_unknown_are_refused(tmp_path):
    for content in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"P6 20 20 255 ",
        b"",
        b"x",
    ):
        (tmp_path / "a.png").write_bytes(content)
        reason = layout.damage(str(tmp_path / "a.png"))
        assert reason.startswith("image cannot be decoded (cannot identify it: expected JPEG, PNG")
        with pytest.raises(TableError, match="a.png: cannot be decoded"):
            table.load_image(str(tmp_path / "a.png"), 8)
    with pytest.raises(images.ImageError, match="expected bytes, got NoneType"):
        export_images.clean(None)


@pytest.mark.parametrize("shape", [(1, 1), (15, 40), (400, 9)])
def test_what_is_too_small_to_measure_is_refused_before_anything_is_asked(shape, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(image_files.saved(np.zeros((*shape, 3), np.uint8), "PNG"))
    words = f"cannot be used ({shape[1]} × {shape[0]} pixels, expected 16 or more a side)"
    assert layout.damage(str(file)) == f"image {words}"
    for use in (lambda: store.encode(str(file), 64), lambda: table.load_image(str(file), 8)):
        with pytest.raises(TableError) as error:
            use()
        assert str(error.value) == f"image {file}: {words}"


def test_a_strip_is_measured(tmp_path):
    file = tmp_path / "a.png"
    strip = np.random.default_rng(0).integers(0, 255, (20, 600, 3), np.uint8)
    file.write_bytes(image_files.saved(strip, "PNG"))
    frame = pd.DataFrame({"image_id": ["a"], "path": [str(file)]})
    assert len(list(store.prepare(frame, tmp_path / "parts", 96, 32, progress=False))) == 1


def test_the_teacher_by_rules_reads_any_file():
    for name in ("palette.gif", "turned.tif", "grey16.png"):
        content = image_files.saved(images.picture(FILES[name][0]).resize((96, 72)), "TIFF")
        assert measured._measure(content) is not None
    with pytest.raises(ValueError, match="cannot be decoded"):
        measured._measure(b"none")


def test_files_of_every_ending_are_found_and_used_by_both_kinds_of_readers(tmp_path):
    names = [n for n in FILES if not n.endswith(".mpo")]
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(f"{number}.{name.rpartition('.')[2].upper()}", FILES[name][0])
        archive.writestr("bad.jpg", FILES["rgb.tif"][0][:200])
    found = dermoscopy.find_images(tmp_path, "images*")
    assert set(found) == {*map(str, range(len(names))), "bad"}
    frame = pd.DataFrame({"image_id": list(found), "path": list(found.values())})
    exclusions = dermoscopy.Exclusions("exclude")
    kept = layout.without_damage(frame, exclusions)
    failed = table.decode_into(np.empty((len(frame), 8, 8, 3), np.uint8), frame)
    assert [row["image_id"] for row in exclusions.rows] == ["bad"] == list(failed)
    assert len(kept) == len(names)
    with pytest.raises(TableError, match=r"1 images \(bad\): image cannot be decoded"):
        layout.without_damage(frame, dermoscopy.Exclusions("raise"))
    texts = pd.Series(["x/1.WebP", "b.TIFF", "c.v2"], dtype="string")
    assert columns.stems(texts).tolist() == ["1", "b", "c.v2"]


# -------------------------------------------------------------------------------------- limits


def limited(use) -> str:
    """The message of a refusal, which must come with little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(TableError) as error:
            use()
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    return str(error.value)


def bomb(file, size: int, method: int = zipfile.ZIP_DEFLATED) -> str:
    """An archive with a member of zeros; its address."""
    with zipfile.ZipFile(file, "w", method) as archive, archive.open("a.png", "w") as member:
        for _ in range(size // 2**20):
            member.write(bytes(2**20))
    return f"{file}::a.png"


def test_a_member_that_is_said_to_be_large_is_not_unpacked(tmp_path, monkeypatch):
    address = bomb(tmp_path / "images.zip", 2**25)
    said = limited(lambda: table.load_image(address, 8))
    assert f"{tmp_path / 'images.zip'}, member a.png would be 33,554,432 bytes" in said
    assert "more than 100 times" in said and "leave it out" in said
    monkeypatch.setattr(images, "MAX_BYTES", 2**24)
    said = limited(lambda: store.encode(address, 64))
    assert "member a.png, unpacked is 33,554,432 bytes, more than the limit of 16,777,216" in said
    assert "images.zip, member a.png" in layout.damage(address)
    large = tmp_path / "large.png"
    with open(large, "wb") as file:
        file.truncate(2**24 + 1)
    said = limited(lambda: table.load_image(str(large), 8))
    assert f"{large} is 16,777,217 bytes, more than the limit" in said


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (zipfile.ZIP_DEFLATED, "Bad CRC-32"),
        (zipfile.ZIP_STORED, "Bad CRC-32"),
        (zipfile.ZIP_BZIP2, "packed by method 12, expected deflate"),
        (zipfile.ZIP_LZMA, "packed by method 14, expected deflate"),
    ],
)
def test_a_member_that_is_larger_than_it_says_is_not_unpacked(tmp_path, method, words):
    file = tmp_path / "images.zip"
    address = bomb(file, 2**26 if method == zipfile.ZIP_DEFLATED else 2**21, method)
    content = bytearray(file.read_bytes())
    at = content.rindex(b"PK\1\2")
    content[at + 24 : at + 28] = struct.pack("<I", 1000)
    file.write_bytes(content)
    said = limited(lambda: table.load_image(address, 8))
    assert "images.zip::a.png" in said and words in said


def test_pixels_are_counted_before_they_are_decoded(tmp_path):
    width, height = 20_000, 10_000
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10**6))
    png = b"\x89PNG\r\n\x1a\n" + image_files.chunk(b"IHDR", header)
    png += image_files.chunk(b"IDAT", rows) + image_files.chunk(b"IEND", b"")
    jpeg = bytearray(FILES["rgb.jpg"][0])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    bmp = bytearray(FILES["rgb.bmp"][0])
    bmp[18:26] = struct.pack("<ii", width, height)
    gif = bytearray(FILES["palette.gif"][0])
    gif[6:10] = struct.pack("<HH", width, height)
    tiff = bytearray(FILES["packed.tif"][0])  # its one strip becomes a tile
    (first,) = struct.unpack("<I", tiff[4:8])
    (count,) = struct.unpack("<H", tiff[first : first + 2])
    new = {273: 324, 279: 325, 278: (322, width), 284: (323, height)}
    for at in range(first + 2, first + 2 + 12 * count, 12):
        (tag,) = struct.unpack("<H", tiff[at : at + 2])
        if isinstance(found := new.get(tag), int):
            tiff[at : at + 2] = struct.pack("<H", found)
        elif found:
            tiff[at : at + 12] = struct.pack("<HHII", found[0], 4, 1, found[1])
    for content in (png, jpeg, bmp, gif, tiff):
        file = tmp_path / "a.jpg"
        file.write_bytes(content)
        said = limited(lambda file=file: table.load_image(str(file), 8))
        assert f"{file}: cannot be decoded (" in said
        assert "pixels, more than the limit of 89,478,485; shrink it, or leave it out" in said
        assert "more than the limit" in layout.damage(str(file))


def test_a_jpeg_of_endless_scans_is_refused():
    content = FILES["progressive.jpg"][0]
    start, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    many = content[:end] + content[start:end] * 200 + content[end:]
    with pytest.raises(images.ImageError, match="more than 100 scans"):
        images.picture(many)


def test_a_pipe_is_no_image(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(TableError, match="is no regular file"):
        table.load_image(str(tmp_path / "a.png"), 8)
