"""HAM10000: every layout it is downloaded in, and every way such a download can be broken."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from derm_rl.data import ham10000, table
from derm_rl.data.table import TableError

IDS = [f"ISIC_{24300 + k:07d}" for k in range(8)]


def jpeg(seed: int = 0) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((40, 30)).save(out, "JPEG")
    return out.getvalue()


def metadata() -> pd.DataFrame:
    """Eight images of six lesions: MEL, NV and one BCC."""
    return pd.DataFrame(
        {
            "lesion_id": [f"HAM_{k}" for k in (0, 0, 1, 2, 3, 3, 4, 5)],
            "image_id": IDS,
            "dx": ["mel", "mel", "nv", "nv", "nv", "nv", "mel", "bcc"],
            "dx_type": "histo",
            "age": ["80.0", "80.0", "", "45.0", "50.0", "50.0", "0.0", "60.0"],
            "sex": ["male", "male", "unknown", *["female"] * 5],
            "localization": ["scalp", "scalp", "unknown", *["back"] * 5],
        }
    )


def annotations() -> pd.DataFrame:
    mel = metadata()["dx"].eq("mel").astype(int)[:7]
    return pd.DataFrame(
        {
            "image": IDS[:7],
            "MEL": mel,
            "NV": 1 - mel,
            "dark_corner": [0, 0, 0, 1, 0, 0, 0],
            "hair": [1, 0, 1, 0, 1, 0, 1],
            "gel_border": 0,
            "gel_bubble": [0, 0, 0, 0, 1, 1, 0],
            "ruler": [0, 1, 0, 0, 0, 0, 0],
            "ink": 0,
            "official_split": ["train", "test", "train", "train", "val", "val", "train"],
        }
    )


def write_zip(path: Path, ids: list[str], folder: str = "") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for k, name in enumerate(ids):
            archive.writestr(f"{folder}{name}.jpg", jpeg(k))
        archive.writestr(f"__MACOSX/{folder}._{ids[0]}.jpg", b"resource fork")


def write_folder(path: Path, ids: list[str]) -> None:
    path.mkdir(parents=True)
    for k, name in enumerate(ids):
        (path / f"{name}.jpg").write_bytes(jpeg(k))
    (path / "ATTRIBUTION.txt").write_text("not an image")


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """An original download: two folders of images, the metadata; and the annotations."""
    write_folder(tmp_path / "HAM10000_images_part_1", IDS[:4])
    write_folder(tmp_path / "HAM10000_images_part_2", IDS[4:])
    metadata().to_csv(tmp_path / "HAM10000_metadata.csv", index=False)
    annotations().to_csv(tmp_path / "isic2019_artifacts.csv", index=False)
    return tmp_path


def change(root: Path, file: str, **columns: object) -> None:
    frame = pd.read_csv(root / file, dtype="string", keep_default_na=False)
    frame.assign(**columns).to_csv(root / file, index=False)


def test_an_original_download(download):
    frame, excluded = ham10000.read(download)
    assert excluded.empty and list(excluded.columns) == ["image_id", "reason"]
    assert frame["image_id"].tolist() == IDS[:7]  # not the BCC
    assert frame["diagnosis"].tolist() == ["MEL", "MEL", "NV", "NV", "NV", "NV", "MEL"]
    assert frame["lesion_id"].tolist()[:3] == ["HAM_0", "HAM_0", "HAM_1"]
    assert frame["hair"].tolist() == [True, False, True, False, True, False, True]
    assert frame["age"].isna().tolist() == [False, False, True, False, False, False, False]
    assert frame["sex"].isna().sum() == frame["site"].isna().sum() == 1
    assert frame["official_split"].tolist() == annotations()["official_split"].tolist()
    assert set(frame["licence"]) == {"CC BY-NC 4.0"}
    assert "Tschandl" in frame["attribution"][0] and "2018" in frame["attribution"][0]
    assert set(frame["source"]) == {"ham10000"}
    images = table.Images(frame, 16)
    assert images[IDS[0]].shape == (16, 16, 3)
    assert not np.array_equal(images[0], images[1])


def test_all_layouts_give_the_same_table(download, tmp_path_factory):
    expected, _ = ham10000.read(download)
    layouts = {}
    for name in ("two_zips", "zips_with_folders", "one_zip", "nested", "flat", "both"):
        root = layouts[name] = tmp_path_factory.mktemp(name)
        metadata().to_csv(root / "HAM10000_metadata.csv", index=False)
        annotations().to_csv(root / "isic2019_artifacts.csv", index=False)
    for k, ids in (("1", IDS[:4]), ("2", IDS[4:])):
        part = f"HAM10000_images_part_{k}"
        write_zip(layouts["two_zips"] / f"{part}.zip", ids)
        write_zip(layouts["zips_with_folders"] / f"{part}.zip", ids, f"{part}/")
        write_folder(layouts["nested"] / part / part, ids)
        write_zip(layouts["both"] / f"{part}.zip", ids)  # beside what was unpacked from it
        write_folder(layouts["both"] / part, ids)
    write_zip(layouts["one_zip"] / "HAM10000_images_200x150.zip", IDS)
    for k, name in enumerate(IDS):
        (layouts["flat"] / f"{name}.jpg").write_bytes(jpeg(k))
    for root in layouts.values():
        frame, excluded = ham10000.read(root)
        assert excluded.empty
        pd.testing.assert_frame_equal(frame.drop(columns="path"), expected.drop(columns="path"))
        assert table.load_images(frame, 8).std() > 3


@pytest.mark.parametrize(
    ("name", "separator"),
    [("HAM10000_metadata", ","), ("HAM10000_metadata.tab", "\t"), ("HAM10000_metadata", "\t")],
)
def test_metadata_as_the_dataverse_names_it(download, name, separator):
    expected, _ = ham10000.read(download)
    (download / "HAM10000_metadata.csv").unlink()
    content = metadata().assign(dataset="vidir_modern")  # a column newer downloads have
    content.to_csv(download / name, sep=separator, index=False, encoding="utf-8-sig")
    assert ham10000.read(download)[0].equals(expected)


# --- broken input: an error, or a counted exclusion ----------------------------------------------


def break_image_missing(root: Path) -> None:
    (root / "HAM10000_images_part_1" / f"{IDS[2]}.jpg").unlink()


def break_unannotated(root: Path) -> None:
    annotations().drop(index=2).to_csv(root / "isic2019_artifacts.csv", index=False)


def break_double_metadata(root: Path) -> None:
    double = pd.concat([metadata(), metadata()[2:3].assign(dx="mel")])
    double.to_csv(root / "HAM10000_metadata.csv", index=False)


def break_double_annotation(root: Path) -> None:
    double = pd.concat([annotations(), annotations()[2:3].assign(hair=0)])
    double.to_csv(root / "isic2019_artifacts.csv", index=False)


def break_diagnosis(root: Path) -> None:
    named = metadata()["image_id"] == IDS[2]
    change(root, "HAM10000_metadata.csv", dx=metadata()["dx"].mask(named, "wart"))


def break_contradiction(root: Path) -> None:
    change(root, "isic2019_artifacts.csv", MEL=["1", "1", "1", "0", "0", "0", "1"])


def break_empty_cell(root: Path) -> None:
    change(root, "isic2019_artifacts.csv", hair=["1", "0", "", "0", "1", "0", "1"])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (break_image_missing, "no image file under"),
        (break_unannotated, "no annotation in isic2019_artifacts.csv"),
        (break_double_metadata, "more than one row in HAM10000_metadata.csv"),
        (break_double_annotation, "more than one row in isic2019_artifacts.csv"),
        (break_diagnosis, "unknown diagnosis in 'dx' of HAM10000_metadata.csv"),
        (break_contradiction, "another diagnosis in isic2019_artifacts.csv"),
        (break_empty_cell, "no hair in isic2019_artifacts.csv"),
    ],
)
def test_an_image_that_cannot_be_used(download, damage, reason):
    damage(download)
    with pytest.raises(TableError) as error:
        ham10000.read(download)
    message = str(error.value)
    assert IDS[2] in message and reason in message
    assert "1 images" in message and "data.on_error=exclude" in message
    frame, excluded = ham10000.read(download, on_error="exclude")
    assert IDS[2] not in set(frame["image_id"]) and len(frame) == 6
    assert excluded["image_id"].tolist() == [IDS[2]]
    assert reason in excluded["reason"][0]


@pytest.mark.parametrize("on_error", ["raise", "exclude"])
@pytest.mark.parametrize(
    ("file", "column"),
    [
        ("HAM10000_metadata.csv", "lesion_id"),
        ("HAM10000_metadata.csv", "dx"),
        ("isic2019_artifacts.csv", "image"),
        ("isic2019_artifacts.csv", "gel_bubble"),
    ],
)
def test_a_missing_column_is_always_an_error(download, on_error, file, column):
    pd.read_csv(download / file).drop(columns=column).to_csv(download / file, index=False)
    with pytest.raises(TableError, match=f"{file}: column '{column}'.* is missing; found "):
        ham10000.read(download, on_error=on_error)


@pytest.mark.parametrize("on_error", ["raise", "exclude"])
def test_missing_files_are_named(download, on_error):
    (download / "isic2019_artifacts.csv").rename(download / "elsewhere.csv")
    with pytest.raises(TableError, match="isic2019_artifacts.csv with columns image, hair, gel_bu"):
        ham10000.read(download, on_error=on_error)
    (download / "HAM10000_metadata.csv").unlink()
    with pytest.raises(TableError, match="expected a file HAM10000_metadata.csv or HAM10000_meta"):
        ham10000.read(download, on_error=on_error)


def test_no_images_an_image_twice_and_a_cut_archive(tmp_path):
    metadata().to_csv(tmp_path / "HAM10000_metadata.csv", index=False)
    annotations().to_csv(tmp_path / "isic2019_artifacts.csv", index=False)
    with pytest.raises(TableError, match=r"expected images in .* HAM10000_images\*"):
        ham10000.read(tmp_path)
    write_zip(tmp_path / "HAM10000_images_200x150.zip", IDS)
    write_zip(tmp_path / "HAM10000_images_part_1.zip", IDS[:4])
    with pytest.raises(TableError, match=f"image {IDS[0]} is there twice, .*200x150.*part_1"):
        ham10000.read(tmp_path)
    cut = tmp_path / "HAM10000_images_part_1.zip"
    cut.write_bytes(cut.read_bytes()[:300])
    with pytest.raises(TableError, match="part_1.zip: not a whole zip archive .* download it"):
        ham10000.read(tmp_path)


def test_values_of_the_wrong_kind_name_their_file_column_and_id(download):
    change(download, "isic2019_artifacts.csv", ruler=["0", "1", "yes?", "0", "0", "0", "0"])
    with pytest.raises(TableError, match=f"column 'ruler' must .* got yes.* for {IDS[2]}"):
        ham10000.read(download, on_error="exclude")
    annotations().to_csv(download / "isic2019_artifacts.csv", index=False)
    change(download, "HAM10000_metadata.csv", age=["80", "80", "old", *["50"] * 5])
    with pytest.raises(TableError, match=rf"{IDS[2]}\): unreadable age in .*metadata.csv: old; "):
        ham10000.read(download)
    _, excluded = ham10000.read(download, on_error="exclude")
    assert excluded["image_id"].tolist() == [IDS[2]]  # as in every other reader
    change(download, "HAM10000_metadata.csv", age="50", image_id=["", *IDS[1:]])
    with pytest.raises(TableError, match="metadata.csv: column 'image_id' is empty in lines 2"):
        ham10000.read(download, on_error="exclude")


def test_arguments(download):
    with pytest.raises(ValueError, match="on_error must be one of .* got 'ignore'"):
        ham10000.read(download, on_error="ignore")
    with pytest.raises(TableError, match="unknown WART; known: MEL"):
        ham10000.read(download, ["MEL", "WART"])
    with pytest.raises(TableError, match="no image with a diagnosis among DF"):
        ham10000.read(download, ["DF"])
    frame, _ = ham10000.read(download, ["MEL"])
    assert set(frame["diagnosis"]) == {"MEL"} and len(frame) == 3
    frame, excluded = ham10000.read(download, ["MEL", "BCC"], on_error="exclude")
    assert excluded["image_id"].tolist() == IDS[7:]  # only MEL and NV have annotations


# --- the real data ------------------------------------------------------------------------------


def test_the_real_table_has_the_counts_its_source_states(ham10000_root):
    frame, excluded = ham10000.read(ham10000_root, on_error="exclude")
    assert frame["diagnosis"].value_counts().to_dict() == {"NV": 5410, "MEL": 715}
    counts = {a: int(frame[a].sum()) for a in ("hair", "gel_bubble", "ruler", "dark_corner", "ink")}
    assert counts == {"hair": 2187, "gel_bubble": 409, "ruler": 161, "dark_corner": 273, "ink": 8}
    assert frame["lesion_id"].nunique() == 4786 and frame["lesion_id"].notna().all()
    assert excluded["reason"].value_counts().to_dict() == {
        "no annotation in isic2019_artifacts.csv": 177
    }
    assert not set(excluded["image_id"]) & set(frame["image_id"])
    assert frame["age"].isna().sum() == 37 and set(frame["sex"].dropna()) == {"male", "female"}
    with pytest.raises(TableError, match="177 images .* no annotation"):
        ham10000.read(ham10000_root)


def test_real_images_are_decoded_by_id(ham10000_root):
    frame, _ = ham10000.read(ham10000_root, on_error="exclude")
    some = frame.iloc[::600].reset_index(drop=True)
    images = table.load_images(some, 64)
    assert images.shape == (11, 64, 64, 3)
    assert (images.reshape(11, -1).std(1) > 5).all()
    lazy = table.Images(frame, 64)
    assert np.array_equal(lazy[some["image_id"][3]], images[3])
