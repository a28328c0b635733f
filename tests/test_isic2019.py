"""ISIC 2019 in the challenge's layout: one-hot diagnoses, _downsampled names, shared checks."""

import io
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from derm_rl.data import isic2019, table
from derm_rl.data.table import TableError
from derm_rl.prompts import DIAGNOSES

# Two of the six names end as MSK's do; BCC and UNK are not asked for.
NAMES = ["ISIC_0000000", "ISIC_0000001_downsampled", "ISIC_0000002", "ISIC_0000003_downsampled",
         "ISIC_0000004", "ISIC_0000005"]  # fmt: skip
IDS = [n.removesuffix("_downsampled") for n in NAMES]
CODES = ["NV", "MEL", "NV", "MEL", "BCC", "UNK"]
TRUTH, ABOUT = "ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"
ARTIFACTS = "isic2019_artifacts.csv"


def jpeg(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 100, 100)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def download(tmp_path: Path) -> Path:
    folder = tmp_path / "ISIC_2019_Training_Input"
    folder.mkdir()
    for k, name in enumerate(NAMES):
        (folder / f"{name}.jpg").write_bytes(jpeg(40 * k))
    truth = pd.DataFrame({"image": NAMES})
    for code in [*DIAGNOSES, "UNK"]:
        truth[code] = [f"{float(code == c)}" for c in CODES]
    truth.to_csv(tmp_path / TRUTH, index=False)
    pd.DataFrame(
        {
            "image": NAMES,
            "age_approx": ["55.0", "30.0", "", "70.0", "85.0", "60.0"],
            "anatom_site_general": ["anterior torso", "", *["head/neck"] * 4],
            "lesion_id": ["MSK4_1", "", "BCN_1", "BCN_1", "HAM_1", ""],
            "sex": ["female", "", "male", "male", "male", "female"],
        }
    ).to_csv(tmp_path / ABOUT, index=False)
    pd.DataFrame(
        {
            # As in the published files: here some names have the ending, there they have not.
            "image": [NAMES[0], IDS[1], NAMES[2], NAMES[3]],
            "MEL": [0, 1, 0, 1],
            "NV": [1, 0, 1, 0],
            "dark_corner": [0, 0, 1, 1],
            "hair": [1, 0, 0, 1],
            "gel_bubble": 0,
            "ruler": [0, 1, 0, 0],
            "ink": 0,
            "official_split": ["train", "val", "train", "test"],
        }
    ).to_csv(tmp_path / ARTIFACTS, index=False)
    return tmp_path


def change(root: Path, file: str, row: int, column: str, value: str) -> None:
    frame = pd.read_csv(root / file, dtype="string", keep_default_na=False)
    frame.loc[row, column] = value
    frame.to_csv(root / file, index=False)


def test_an_official_download(download):
    frame, excluded = isic2019.read(download)
    assert excluded.empty
    assert frame["image_id"].tolist() == IDS[:4]
    assert frame["diagnosis"].tolist() == CODES[:4]
    assert frame["hair"].tolist() == [True, False, False, True]
    assert frame["dark_corner"].tolist() == [False, False, True, True]
    assert frame["age"].isna().tolist() == [False, False, True, False]
    assert frame["site"].isna().tolist() == [False, True, False, False]
    assert frame["lesion_id"].isna().tolist() == [False, True, False, False]
    assert frame["official_split"].tolist() == ["train", "val", "train", "test"]
    assert set(frame["licence"]) == {"CC BY-NC 4.0"} and set(frame["source"]) == {"isic2019"}
    for origin in ("HAM10000", "BCN20000", "MSK"):
        assert frame["attribution"].str.contains(origin).all()
    assert frame["path"][1].endswith("ISIC_0000001_downsampled.jpg")
    red = [table.Images(frame, 8)[i][..., 0].mean() for i in IDS[:4]]
    assert red == pytest.approx([0, 40, 80, 120], abs=3)


def test_images_in_the_official_zip(download):
    expected, _ = isic2019.read(download)
    folder = download / "ISIC_2019_Training_Input"
    with zipfile.ZipFile(download / "ISIC_2019_Training_Input.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"{folder.name}/{file.name}")
            file.unlink()
    folder.rmdir()
    frame, _ = isic2019.read(download)
    assert frame["path"].str.contains(".zip::ISIC_2019_Training_Input/").all()
    pd.testing.assert_frame_equal(frame.drop(columns="path"), expected.drop(columns="path"))
    assert table.load_images(frame, 8).shape == (4, 8, 8, 3)


def break_image(root: Path) -> None:
    (root / "ISIC_2019_Training_Input" / f"{NAMES[1]}.jpg").unlink()


def break_metadata(root: Path) -> None:
    frame = pd.read_csv(root / ABOUT)
    frame.drop(index=1).to_csv(root / ABOUT, index=False)


def break_double(root: Path) -> None:
    frame = pd.read_csv(root / TRUTH)
    pd.concat([frame, frame[1:2]]).to_csv(root / TRUTH, index=False)


def break_double_metadata(root: Path) -> None:
    frame = pd.read_csv(root / ABOUT)
    pd.concat([frame, frame[1:2]]).to_csv(root / ABOUT, index=False)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (break_image, "no image file under"),
        (break_metadata, f"no row in {ABOUT}"),
        (break_double, f"more than one row in {TRUTH}"),
        (break_double_metadata, f"more than one row in {ABOUT}"),
        (lambda r: change(r, TRUTH, 1, "NV", "1.0"), f"not exactly one diagnosis in {TRUTH}"),
        (lambda r: change(r, TRUTH, 1, "MEL", "0.0"), f"not exactly one diagnosis in {TRUTH}"),
        (lambda r: change(r, ARTIFACTS, 1, "MEL", "0"), f"another diagnosis in {ARTIFACTS}"),
        (lambda r: change(r, ARTIFACTS, 1, "image", "ISIC_9"), f"no annotation in {ARTIFACTS}"),
    ],
)
def test_an_image_that_cannot_be_used(download, damage, reason):
    damage(download)
    with pytest.raises(TableError) as error:
        isic2019.read(download)
    assert f"1 images ({IDS[1]}): " in str(error.value) and reason in str(error.value)
    frame, excluded = isic2019.read(download, on_error="exclude")
    assert frame["image_id"].tolist() == [IDS[0], IDS[2], IDS[3]]
    assert excluded["image_id"].tolist() == [IDS[1]] and reason in excluded["reason"][0]


@pytest.mark.parametrize("on_error", ["raise", "exclude"])
@pytest.mark.parametrize(
    ("file", "column"), [(TRUTH, "VASC"), (ABOUT, "lesion_id"), (ARTIFACTS, "ink")]
)
def test_a_missing_column_or_file_is_always_an_error(download, on_error, file, column):
    pd.read_csv(download / file).drop(columns=column).to_csv(download / file, index=False)
    missing = f"{file}: column '{column.lower()}' is missing; found image"
    with pytest.raises(TableError, match=missing):
        isic2019.read(download, on_error=on_error)
    (download / file).unlink()
    with pytest.raises(TableError, match=f"expected .*{file}"):
        isic2019.read(download, on_error=on_error)


def test_diagnosis_columns_hold_zero_or_one(download):
    change(download, TRUTH, 2, "MEL", "maybe")
    with pytest.raises(TableError, match=f"{TRUTH}: columns MEL, .* hold 0 or 1; .* {IDS[2]}"):
        isic2019.read(download, on_error="exclude")


def test_what_is_not_asked_for_is_neither_error_nor_exclusion(download):
    change(download, ABOUT, 4, "image", "ISIC_7")  # the BCC has no metadata: nobody asked
    frame, excluded = isic2019.read(download)
    assert len(frame) == 4 and excluded.empty
    frame, excluded = isic2019.read(download, ["MEL", "NV", "BCC"], on_error="exclude")
    assert excluded["image_id"].tolist() == [IDS[4]]
