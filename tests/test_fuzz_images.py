"""A thousand image files, mutated as disks, networks and people do it: none crashes a run, and
none is silently wrong.
"""

import io
import zipfile
from unittest import mock

import image_files
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import RGB, every_byte
from PIL import Image

from derm_rl.captions import store
from derm_rl.captions.export_images import clean
from derm_rl.captions.measure import measure
from derm_rl.data import images, table
from derm_rl.data.open_access import layout

FILES = image_files.files()
CHECKED = ("rgb.png", "alpha.png", "grey16.png", "rgb16.png")  # every chunk has a checksum
TINY = {
    f"{form}_{side}": image_files.saved(RGB[:side, :side], form)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
    for side in (1, 2, 15)
}
NAMES = sorted(FILES)


@st.composite
def mutated(draw) -> tuple[str, bytes, str]:
    """Name of the original, the bytes, and what was done to them."""
    name = draw(st.sampled_from(NAMES))
    content = FILES[name][0]
    how = draw(
        st.sampled_from(("flip", "cut", "behind", "joined", "torn", "zeros", "tiny", "same"))
    )
    at = draw(st.integers(0, len(content) - 1))
    if how == "flip":
        out = bytearray(content)
        for place in draw(st.lists(st.integers(0, len(out) - 1), min_size=1, max_size=8)):
            out[place] ^= draw(st.integers(1, 255))
        return name, bytes(out), how
    if how == "cut":
        return name, content[:at], how
    if how == "behind":
        return name, content + draw(st.binary(min_size=1, max_size=64)), how
    if how == "joined":
        return name, content + FILES[draw(st.sampled_from(NAMES))][0], how
    if how == "torn":  # a piece is missing, or is there again
        other = draw(st.integers(0, len(content) - 1))
        return name, content[:at] + content[other:], how
    if how == "zeros":  # a block that was never written
        return name, content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :], how
    if how == "tiny":
        return name, TINY[draw(st.sampled_from(sorted(TINY)))], how
    return name, content, how


def member(content: bytes) -> object:
    """Reads an address as this file, without a disk."""
    return mock.patch.object(images, "read_bytes", lambda address: content)


def refused(use) -> bool:
    """Whether an image is refused as the readers expect it; anything else would end a run."""
    try:
        use()
    except table.TableError as error:
        assert str(error).startswith("image a.jpg: c")
        return True
    return False


# The same files every time: what fails here can be looked at.
@settings(max_examples=1000, deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(mutated())
def test_no_image_crashes_a_run_or_is_silently_wrong(case):
    name, content, how = case
    with member(content):
        reason = layout.damage("a.jpg")
        assert reason is None or reason.startswith("image cannot be ")
        # What the check accepts, every later reader accepts, and the reverse.
        assert refused(lambda: table.load_image("a.jpg", 16)) == (reason is not None)
        if reason is not None:
            assert refused(lambda: store.encode("a.jpg", 64))
            assert how not in ("same", "behind", "joined"), reason
            return
        sent, picture = store.encode("a.jpg", 64)
    pixels = np.asarray(picture)
    every_byte(sent)
    shown = Image.open(io.BytesIO(sent)).convert("RGB")
    if max(picture.size) <= 64:
        assert np.array_equal(np.asarray(shown), pixels)
        assert clean(sent) == sent
    assert how != "tiny"
    original, tolerance = FILES[name][1:]
    if how in ("same", "behind", "joined", "cut") or name in CHECKED:
        off = np.abs(pixels.astype(int) - original).mean() if pixels.shape == original.shape else 99
        assert off <= tolerance
    if how == "zeros":  # the oddest pictures of all
        measure(pixels)


@settings(max_examples=25, deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=6))
def test_no_archive_crashes_a_reader(tmp_path_factory, flips):
    """Bytes of an archive are changed: its images are right, or are refused by name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", FILES["rgb.png"][0])
        archive.writestr("b.bmp", FILES["rgb.bmp"][0])
    content = bytearray(out.getvalue())
    for share, change in flips:
        content[int(share * (len(content) - 1))] ^= change
    file = tmp_path_factory.mktemp("fuzz") / "images.zip"
    file.write_bytes(content)
    for inside in ("a.png", "b.bmp"):
        try:
            found = table.read_image(f"{file}::{inside}")[1]
        except table.TableError as error:
            assert f"{file}::{inside}: " in str(error)
        else:
            assert np.array_equal(np.asarray(found), RGB)
