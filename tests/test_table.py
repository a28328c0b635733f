"""The table: types, missing values, errors that name file, column and id; lazy images."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from derm_rl.data import table
from derm_rl.data.table import TableError


def raw(**columns: list) -> pd.DataFrame:
    n = len(next(iter(columns.values()))) if columns else 2
    base = {"image_id": [f"i{k}" for k in range(n)], "path": [f"i{k}.jpg" for k in range(n)]}
    return pd.DataFrame(base | columns)


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 5, width // 5, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "JPEG") -> bytes:
    out = io.BytesIO()
    image.save(out, format)
    return out.getvalue()


# --- the table ----------------------------------------------------------------------------------


def test_every_table_has_the_same_columns_and_types():
    found = table.validate(raw())
    assert tuple(found.columns) == table.COLUMNS
    assert {c: str(t) for c, t in found.dtypes.items()} == table.TYPES
    assert found["hair"].isna().all() and found["age"].isna().all()


def test_missing_is_missing_and_never_text():
    words = ["nan", "None", "", " ", "NA", "unknown", None, np.nan, "male"]
    found = table.validate(raw(sex=words, lesion_id=words, note=words))
    for column in ("sex", "lesion_id", "note"):
        assert found[column].isna().tolist() == [True] * 8 + [False]


@pytest.mark.parametrize(
    "values",
    [
        [True, False, None],
        [1, 0, None],
        ["1", "0", ""],
        ["True", "false", "nan"],
        [1.0, 0.0, np.nan],
    ],
)
def test_truth_values_in_all_spellings(values):
    found = table.validate(raw(hair=values))["hair"]
    assert found.dtype == "boolean"
    assert found.isna().tolist() == [False, False, True]
    assert found[:2].tolist() == [True, False]


def test_a_table_survives_writing_and_reading(tmp_path):
    frame = table.validate(
        raw(
            diagnosis=["MEL", "NV", None],
            label=["melanoma in situ", None, '痒疹, "prurigo"'],
            modality=["dermoscopic", "clinical", None],
            hair=[True, None, False],
            age=[41.5, None, 70],
            skin_type=[1, 6, None],
            site=["back", 'a "quoted", text', None],
            official_split=["train", None, "test"],
        )
    )
    table.write(tmp_path / "t.csv", frame)
    again = table.read(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(again, frame)
    assert "nan" not in (tmp_path / "t.csv").read_text().lower()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_id": ["a", "a"]}, "here.csv: image_id occurs twice: a"),
        ({"image_id": ["a", "nan"]}, "here.csv: column 'image_id' is empty in rows 1"),
        ({"path": ["a", None]}, "here.csv: column 'path' is empty in rows 1"),
        ({"hair": ["1", "2"]}, "'hair' must hold true/false or 1/0; got 2 for i1"),
        ({"age": ["12", "old"]}, "'age' must hold numbers; got old for i1"),
        ({"age": ["12", "inf"]}, "'age' must hold numbers; got inf for i1"),
        ({"age": [1, -3]}, "'age' must be 0 to 120 years; got -3.0 for i1"),
        ({"skin_type": [1, 2.5]}, "'skin_type' must hold whole numbers; got 2.5 for i1"),
        ({"skin_type": [1, 7]}, r"'skin_type' must be 1 to 6 \(Fitzpatrick\); got 7 for i1"),
        ({"diagnosis": ["MEL", "mole"]}, "'diagnosis' must be one of MEL, .*; got mole for i1"),
        (
            {"modality": ["clinical", "MRI"]},
            "here.csv: column 'modality' must be one of clinical, dermoscopic; got MRI for i1",
        ),
    ],
)
def test_errors_name_file_column_value_and_id(columns, message):
    with pytest.raises(TableError, match=message):
        table.validate(raw(**columns), "here.csv")


def test_a_missing_needed_column_and_a_missing_file(tmp_path):
    with pytest.raises(TableError, match="column 'path' is missing; found .*'image_id'"):
        table.validate(pd.DataFrame({"image_id": ["a"]}), "here.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="empty.csv"):
        table.read(tmp_path / "empty.csv")


# --- images -------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> pd.DataFrame:
    """Three pictures: a file, a member of an archive, a phantom."""
    picture().save(tmp_path / "plain.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("inner/member.png", encoded(picture(seed=1), "PNG"))
    addresses = [
        str(tmp_path / "plain.png"),
        f"{tmp_path / 'images.zip'}::inner/member.png",
        "phantom::3/14/MEL/hair+ink",
    ]
    return table.validate(
        pd.DataFrame({"image_id": ["plain", "member", "phantom"], "path": addresses})
    )


def test_images_by_position_and_by_id_from_any_place(stored):
    images = table.Images(stored, 16)
    assert len(images) == 3
    for name, image in zip(stored["image_id"], images, strict=True):
        assert image.shape == (16, 16, 3) and image.dtype == np.uint8 and image.std() > 3
        assert np.array_equal(images[name], image)
    assert np.array_equal(table.load_images(stored, 16), np.stack(list(images)))
    with pytest.raises(KeyError, match="no image 'other' in this table of 3"):
        images["other"]


def test_images_are_opened_only_when_asked_for(stored):
    stored.loc[1, "path"] = "gone.jpg"
    images = table.Images(stored, 16)
    assert images["plain"].shape == (16, 16, 3)
    with pytest.raises(TableError, match="gone.jpg: not found"):
        images["member"]


def test_crop_keeps_shapes_and_no_crop_keeps_the_field(tmp_path):
    pixels = np.full((30, 40, 3), 200, np.uint8)
    pixels[:, :4] = 0  # a ruler at the left edge, inside the eighth that the crop loses
    pixels[10:20, 15:25] = 0  # a square lesion in the middle
    Image.fromarray(pixels).save(tmp_path / "x.png")
    cropped = table.load_image(str(tmp_path / "x.png"), 30)
    assert np.array_equal(cropped, pixels[:, 5:35])
    squeezed = table.load_image(str(tmp_path / "x.png"), 30, crop=None)
    assert squeezed[:, 0].max() < 50
    assert (squeezed[15, 5:] < 100).sum() < (squeezed[5:, 15] < 100).sum()
    with pytest.raises(ValueError, match="crop must be 'center' or None, got 'left'"):
        table.load_image(str(tmp_path / "x.png"), 30, crop="left")


def test_shrinking_averages_instead_of_skipping_pixels(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 200
    Image.fromarray(stripes).save(tmp_path / "x.png")
    assert np.allclose(table.load_image(str(tmp_path / "x.png"), 8)[1:-1], 100, atol=3)


def test_gray_and_transparent_pictures_become_rgb(tmp_path):
    for mode in ("L", "RGBA", "P"):
        picture().convert(mode).save(tmp_path / f"{mode}.png")
        assert table.load_image(str(tmp_path / f"{mode}.png"), 8).shape == (8, 8, 3)


def test_damaged_images_are_named_and_the_others_are_read(tmp_path):
    whole = encoded(picture(120, 90))
    contents = {
        "whole": whole,
        "half": whole[: len(whole) // 2],
        "no_image": b"<html>not found</html>",
        "empty": b"",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
    names = [*contents, "gone"]
    frame = pd.DataFrame({"image_id": names, "path": [str(tmp_path / f"{n}.jpg") for n in names]})
    out = np.full((5, 16, 16, 3), 7, np.uint8)
    failed = table.decode_into(out, frame)
    assert list(failed) == ["half", "no_image", "empty", "gone"]
    assert "half.jpg: cannot be decoded" in failed["half"] and "truncated" in failed["half"]
    assert "gone.jpg: not found" in failed["gone"]
    assert out[0].std() > 3 and not out[1:].any()
    with pytest.raises(TableError, match="4 images cannot be read: .*half.jpg"):
        table.load_images(frame, 16)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_byte_in_an_archive_is_found_by_its_checksum(tmp_path, kind):
    file = tmp_path / "images.zip"
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr("x.png", encoded(picture(), "PNG"))
        archive.writestr("y.png", encoded(picture(), "PNG"))
    content = bytearray(file.read_bytes())
    content[60:70] = bytes(255 - b for b in content[60:70])
    file.write_bytes(content)
    with pytest.raises(TableError, match=r"images.zip::x.png: cannot be decoded"):
        table.load_image(f"{file}::x.png", 8)
    assert table.load_image(f"{file}::y.png", 8).shape == (8, 8, 3)
    with pytest.raises(TableError, match=r"images.zip::z.png: not found"):
        table.load_image(f"{file}::z.png", 8)


def test_an_archive_that_was_replaced_is_read_anew(tmp_path):
    file = tmp_path / "images.zip"
    found = []
    for shade in (10, 240):
        file.unlink(missing_ok=True)
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x.png", encoded(Image.new("RGB", (16, 16), (shade,) * 3), "PNG"))
        found.append(table.load_image(f"{file}::x.png", 8).mean())
    assert found == [10, 240]
