"""Readers of the open-access sources, on folders laid out as published, with their defects."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from derm_rl.data import columns, licences, table
from derm_rl.data.open_access import labels, layout, values
from derm_rl.data.open_access import reading as open_access
from derm_rl.data.table import TableError


def picture(seed: int, format: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(out, format)
    return out.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def reasons(excluded: pd.DataFrame) -> dict[str, str]:
    return dict(zip(excluded["image_id"], excluded["reason"], strict=True))


# --- PAD-UFES-20 --------------------------------------------------------------------------------

PAD_COLUMNS = (
    "patient_id,lesion_id,smoke,drink,background_father,background_mother,age,pesticide,gender,"
    "skin_cancer_history,cancer_history,has_piped_water,has_sewage_system,fitspatrick,region,"
    "diameter_1,diameter_2,diagnostic,itch,grew,hurt,changed,bleed,elevation,img_id,biopsed"
)
PAD_ROWS = (
    "PAT_1,11,,,,,8,,,,,,,,ARM,,,NEV,FALSE,FALSE,FALSE,FALSE,FALSE,FALSE,PAT_1_11_1.png,FALSE",
    "PAT_2,11,False,True,POMERANIA,GERMANY,55,False,FEMALE,True,True,True,True,3.0,NECK,6.0,5.5,"
    "BCC,True,True,False,UNK,True,True,PAT_2_11_2.png,True",
    "PAT_2,12,False,True,POMERANIA,GERMANY,55,False,Female ,True,True,True,True,3.0, Neck,6.0,5.0,"
    "bcc,nan,True,False,UNK,True,True,PAT_2_12_3.png,True",
    "PAT_3,13,,,,,77,,male,,,,,II,FACE,,,ACK,True,,,,,,PAT_3_13_4.PNG,False",
    "PAT_4,14,,,,,nan,,MALE,,,,,,NOSE,,,SEK,,,,,,,PAT_4_14_5.png,",
)


@pytest.fixture
def pad(tmp_path: Path) -> Path:
    put(tmp_path / "metadata.csv", "\n".join([PAD_COLUMNS, *PAD_ROWS, ""]))
    for k, row in enumerate(PAD_ROWS):
        name = row.split(",")[-2]
        folder = tmp_path / "images" / f"imgs_part_{k % 3 + 1}"
        put(folder / f"imgs_part_{k % 3 + 1}" / name, picture(k, "PNG"))  # nested, as unpacked
    return tmp_path


def test_pad_ufes_20(pad):
    frame, excluded = open_access.read("PAD-UFES-20", pad)
    assert excluded.empty and list(excluded) == ["image_id", "reason"]
    assert tuple(frame.columns[: len(table.COLUMNS)]) == table.COLUMNS
    first, second, third, fourth, fifth = frame.to_dict("records")
    assert second["image_id"] == "PAT_2_11_2" and second["lesion_id"] == "PAT_2_11"
    assert first["lesion_id"] == "PAT_1_11"  # the same number, another patient's lesion
    assert [r["diagnosis"] for r in (first, second, third, fourth, fifth)] == [
        "NV", "BCC", "BCC", "AK", "BKL",
    ]  # fmt: skip
    assert third["label"] == "basal cell carcinoma" and third["diagnostic"] == "bcc"
    assert (second["age"], second["sex"], second["site"], second["skin_type"]) == (
        55, "female", "neck", 3,
    )  # fmt: skip
    assert third["site"] == "neck" and third["sex"] == "female" and fourth["skin_type"] == 2
    assert (second["diameter_1"], second["diameter_2"], second["itch"]) == ("6", "5.5", "yes")
    assert first["itch"] == "no" and second["background_father"] == "pomerania"
    for missing in (first["sex"], fifth["age"], second["changed"], third["itch"], first["smoke"]):
        assert pd.isna(missing)
    assert set(frame["modality"]) == {"clinical"} and set(frame["licence"]) == {"CC BY 4.0"}
    assert frame["attribution"].str.contains("Pacheco").all()
    assert table.load_images(frame, 8).std() > 3


@pytest.mark.parametrize(("separator", "mark"), [(";", ""), ("\t", "\ufeff"), (",", "\ufeff")])
def test_separators_byte_order_marks_and_other_cases_give_the_same_table(pad, separator, mark):
    expected, _ = open_access.read("pad_ufes_20", pad)
    text = (pad / "metadata.csv").read_text()
    header, _, rows = text.partition("\n")
    put(pad / "metadata.csv", mark + f"{header.upper()}\n{rows}".replace(",", separator))
    for file in list(pad.rglob("*.png")):
        file.rename(file.with_suffix(".PNG"))
    found, _ = open_access.read("pad_ufes_20", pad)
    pd.testing.assert_frame_equal(found.drop(columns="path"), expected.drop(columns="path"))


def test_images_in_zip_archives_and_a_table_that_survives_writing(pad, tmp_path_factory):
    expected, _ = open_access.read("pad_ufes_20", pad)
    root = tmp_path_factory.mktemp("packed")
    put(root / "metadata.csv", (pad / "metadata.csv").read_bytes())
    (root / "images").mkdir()
    with zipfile.ZipFile(root / "images" / "imgs_part_1.zip", "w") as archive:
        for file in pad.rglob("*.[pP][nN][gG]"):
            archive.write(file, f"imgs_part_1/{file.name}")
    found, _ = open_access.read("pad_ufes_20", root)
    pd.testing.assert_frame_equal(found.drop(columns="path"), expected.drop(columns="path"))
    table.write(root / "t.csv", found)
    pd.testing.assert_frame_equal(
        table.read(root / "t.csv").astype(str), found.astype(str)
    )  # further columns are text on both sides
    assert "nan" not in (root / "t.csv").read_text().lower()


def damage_missing(root: Path) -> None:
    next(root.rglob("PAT_2_11_2.png")).unlink()


def damage_cut(root: Path) -> None:
    file = next(root.rglob("PAT_2_11_2.png"))
    file.write_bytes(file.read_bytes()[:200])


def damage_text(root: Path) -> None:
    next(root.rglob("PAT_2_11_2.png")).write_text("<html>not found</html>")


def damage_row_differs(root: Path) -> None:
    with open(root / "metadata.csv", "a") as file:
        file.write(PAD_ROWS[1].replace("BCC", "MEL") + "\n")


def damage_age(root: Path) -> None:
    text = (root / "metadata.csv").read_text()
    put(root / "metadata.csv", text.replace("GERMANY,55", "GERMANY,old", 1))


def damage_negative_age(root: Path) -> None:
    text = (root / "metadata.csv").read_text()
    put(root / "metadata.csv", text.replace("GERMANY,55", "GERMANY,-5", 1))


def damage_skin_type(root: Path) -> None:
    text = (root / "metadata.csv").read_text()
    put(root / "metadata.csv", text.replace("3.0,NECK", "9,NECK", 1))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_missing, "no image file under"),
        (damage_cut, "image cannot be decoded"),
        (damage_text, "image cannot be decoded"),
        (damage_row_differs, "more than one row in metadata.csv"),
        (damage_age, "unreadable age in metadata.csv"),
        (damage_negative_age, "unreadable age in metadata.csv"),
        (damage_skin_type, "unreadable skin type in metadata.csv"),
    ],
)
def test_an_image_with_a_defect_is_an_error_or_a_named_exclusion(pad, damage, reason):
    damage(pad)
    with pytest.raises(TableError, match=reason) as error:
        open_access.read("pad_ufes_20", pad)
    assert "PAT_2_11_2" in str(error.value) and "1 images" in str(error.value)
    frame, excluded = open_access.read("pad_ufes_20", pad, on_error="exclude")
    assert len(frame) == 4 and "PAT_2_11_2" not in set(frame["image_id"])
    assert list(reasons(excluded)) == ["PAT_2_11_2"] and reason in excluded["reason"][0]
    assert "0x" not in excluded["reason"][0]  # the same text in every run


def test_a_repeated_row_is_reported_and_its_image_used(pad):
    with open(pad / "metadata.csv", "a") as file:
        file.write(PAD_ROWS[1] + "\n" + PAD_ROWS[1] + "\n")
    frame, excluded = open_access.read("pad_ufes_20", pad)
    assert len(frame) == 5
    assert reasons(excluded) == {
        "PAT_2_11_2": "row repeated in metadata.csv; the image is used once"
    }


def test_the_same_file_under_two_names(pad):
    files = {f.stem: f for f in pad.rglob("*.[pP][nN][gG]")}
    put(files["PAT_2_12_3"], files["PAT_2_11_2"].read_bytes())
    frame, excluded = open_access.read("pad_ufes_20", pad)  # both are BCC: named, kept
    assert excluded.empty and len(frame) == 5
    same = frame.set_index("image_id")["same_image_as"].dropna()
    assert same.to_dict() == {"PAT_2_12_3": "PAT_2_11_2"}
    put(files["PAT_4_14_5"], files["PAT_2_11_2"].read_bytes())  # this one says SEK
    with pytest.raises(TableError, match="same image file with different diagnoses") as error:
        open_access.read("pad_ufes_20", pad)
    assert "set captions.on_error=exclude" in str(error.value)  # the setting that is read here
    frame, excluded = open_access.read("pad_ufes_20", pad, on_error="exclude")
    assert set(reasons(excluded)) == {"PAT_2_11_2", "PAT_2_12_3", "PAT_4_14_5"}
    assert frame["image_id"].tolist() == ["PAT_1_11_1", "PAT_3_13_4"]
    unverified, _ = open_access.read("pad_ufes_20", pad, verify=False)
    assert len(unverified) == 5 and "same_image_as" not in unverified


def test_an_image_in_two_folders(pad):
    put(pad / "imgs_part_1" / "PAT_2_11_2.png", picture(1, "PNG"))
    with pytest.raises(TableError, match="image PAT_2_11_2 is there twice, .*; keep one"):
        open_access.read("pad_ufes_20", pad, on_error="exclude")


def test_missing_files_columns_and_encodings_are_named(pad, tmp_path_factory):
    text = (pad / "metadata.csv").read_text()
    put(pad / "metadata.csv", text.replace("diagnostic", "diagnosis"))
    with pytest.raises(
        TableError, match=r"metadata.csv: column 'diagnostic' is missing; found pat"
    ):
        open_access.read("pad_ufes_20", pad, on_error="exclude")
    put(pad / "metadata.csv", text.replace(",PAT_2_11_2.png,", ",,"))
    with pytest.raises(TableError, match="column 'img_id' is empty in lines 3"):
        open_access.read("pad_ufes_20", pad, on_error="exclude")
    put(pad / "metadata.csv", text.replace("POMERANIA", "Fürth").encode("latin-1"))
    with pytest.raises(TableError, match="metadata.csv: .*expected a table in UTF-8"):
        open_access.read("pad_ufes_20", pad)
    put(pad / "metadata.csv", "")
    with pytest.raises(TableError, match="metadata.csv"):
        open_access.read("pad_ufes_20", pad)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(TableError, match="expected a file metadata.csv"):
        open_access.read("pad_ufes_20", empty)
    put(empty / "metadata.csv", text)
    with pytest.raises(TableError, match=r"expected images in .* imgs_part_\*"):
        open_access.read("pad_ufes_20", empty)
    with pytest.raises(
        TableError, match="expected a folder with the files of PAD-UFES-20: metadata"
    ):
        open_access.read("pad_ufes_20", empty / "absent")
    with pytest.raises(TableError, match="expected a folder"):
        open_access.read("pad_ufes_20", None)


def test_a_table_without_rows_gives_a_table_without_rows(pad):
    put(pad / "metadata.csv", PAD_COLUMNS + "\n")
    frame, excluded = open_access.read("pad_ufes_20", pad)
    assert frame.empty and excluded.empty and tuple(frame)[: len(table.COLUMNS)] == table.COLUMNS
    total = open_access.counts(frame)
    assert total["images"].tolist() == [0] and total["source"].tolist() == ["total"]


# --- SCIN ---------------------------------------------------------------------------------------

SCIN_CASES = pd.DataFrame(
    {
        "case_id": ["-100", "200", "300", "400", "500"],
        "age_group": ["AGE_40_TO_49", "AGE_UNKNOWN", "AGE_80_OR_ABOVE", "AGE_18_TO_29", ""],
        "sex_at_birth": ["FEMALE", "MALE", "OTHER_OR_UNSPECIFIED", "male", ""],
        "fitzpatrick_skin_type": ["FST3", "NONE_IDENTIFIED", "", "FST6", ""],
        "combined_race": ["WHITE", "", "nan", "ASIAN", ""],
        "textures_raised_or_bumpy": ["YES", "", "", "YES", ""],
        "textures_flat": ["YES", "", "", "NO", ""],
        "body_parts_head_or_neck": ["", "YES", "", "", ""],
        "body_parts_arm": ["YES", "YES", "", "", ""],
        "condition_symptoms_itching": ["YES", "", "", "", ""],
        "other_symptoms_fever": ["", "", "YES", "", ""],
        "condition_duration": ["ONE_TO_FOUR_WEEKS", "UNKNOWN", "", "ONE_DAY", ""],
        "image_1_path": [f"dataset/images/{i}.png" for i in ("-1", "2", "3", "4", "5")],
        "image_2_path": ["dataset/images/11.png", "", "", "", ""],
        "image_3_path": ["dataset/images/12.png", "nan", "", "", ""],
        "image_1_shot_type": ["CLOSE_UP", "", "AT_DISTANCE", "", ""],
        "image_2_shot_type": ["AT_AN_ANGLE", "", "", "", ""],
        "image_3_shot_type": ["", "", "", "", ""],
    }
)
SCIN_LABELS = pd.DataFrame(
    {
        "case_id": ["200", "-100", "300", "400"],
        "weighted_skin_condition_label": [
            "{'Melanocytic Nevus': 0.41, 'melanocytic  nevus': 0.2, 'Eczema': 0.5}",
            "{'Eczema': 0.5, 'Allergic Contact Dermatitis': 0.5}",
            "{}",
            "{'SCC/SCCIS': 1.0, 'Wart': 0.0}",
        ],
        "dermatologist_fitzpatrick_skin_type_label_1": ["FST5", "FST1", "FST2", ""],
        "dermatologist_fitzpatrick_skin_type_label_2": ["FST5", "FST1", "FST3", ""],
        "dermatologist_fitzpatrick_skin_type_label_3": ["FST4", "FST1", "", ""],
    }
)


def write_scin(root: Path, cases=SCIN_CASES, labelled=SCIN_LABELS, base: str = "dataset") -> Path:
    put(root / base / "scin_cases.csv", cases.to_csv(index=False))
    put(root / base / "scin_labels.csv", labelled.to_csv(index=False))
    for k, name in enumerate(("-1", "2", "3", "4", "5", "11", "12")):
        put(root / base / "images" / f"{name}.png", picture(100 + k, "PNG"))
    return root


@pytest.mark.parametrize("base", ["dataset", "."])
def test_scin(tmp_path, base):
    frame, excluded = open_access.read("scin", write_scin(tmp_path, base=base))
    assert excluded.empty
    assert frame["image_id"].tolist() == ["-1", "11", "12", "2", "3", "4", "5"]
    assert frame["lesion_id"].tolist()[:4] == ["SCIN_-100"] * 3 + ["SCIN_200"]
    assert frame["patient_id"].equals(frame["lesion_id"])
    by = frame.set_index("image_id").to_dict("index")
    assert by["-1"]["label"] == by["12"]["label"] == "allergic contact dermatitis or eczema"
    assert pd.isna(by["-1"]["diagnosis"])
    assert json.loads(by["-1"]["label_weights"]) == {
        "allergic contact dermatitis": 0.5, "eczema": 0.5,
    }  # fmt: skip
    assert by["2"]["label"] == "melanocytic nevus" and by["2"]["diagnosis"] == "NV"
    assert json.loads(by["2"]["label_weights"]) == pytest.approx(
        {"melanocytic nevus": 0.61, "eczema": 0.5}
    )
    assert by["4"]["diagnosis"] == "SCC" and json.loads(by["4"]["label_weights"]) == {
        "scc/sccis": 1.0
    }
    for name in ("3", "5"):  # empty weights, and no row of labels
        assert pd.isna(by[name]["label"]) and pd.isna(by[name]["label_weights"])
    assert frame["age"].isna().all()
    assert by["-1"]["age_band"] == "40-49" and by["-1"]["age_midpoint"] == "44.5"
    assert by["3"]["age_band"] == "80+" and pd.isna(by["3"]["age_midpoint"])
    assert pd.isna(by["2"]["age_band"])
    assert by["-1"]["sex"] == "female" and pd.isna(by["3"]["sex"]) and pd.isna(by["5"]["sex"])
    types = frame.set_index("image_id")["skin_type"]
    assert types[["-1", "2", "4"]].tolist() == [3, 5, 6]
    assert types[["3", "5"]].isna().all()  # the dermatologists disagree, or said nothing
    assert by["-1"]["skin_type_from"] == "self-report"
    assert by["2"]["skin_type_from"] == "dermatologists" and pd.isna(by["3"]["skin_type_from"])
    assert by["-1"]["textures"] == "raised or bumpy, flat" and by["4"]["textures"] == (
        "raised or bumpy"
    )
    assert by["2"]["site"] == by["2"]["body_parts"] == "head or neck, arm"
    assert by["-1"]["symptoms"] == "itching" and by["3"]["other_symptoms"] == "fever"
    assert by["-1"]["duration"] == "one to four weeks" and pd.isna(by["2"]["duration"])
    assert by["11"]["shot_type"] == "at an angle" and pd.isna(by["12"]["shot_type"])
    assert pd.isna(by["3"]["combined_race"])
    assert set(frame["licence"]) == {"SCIN Data Use License"}


@pytest.mark.parametrize(
    "text",
    [
        "{'Eczema': 'much'}",
        "{'Eczema': -1}",
        "{'Eczema': True}",
        "{'Eczema': 1e999}",
        "{'Eczema': __import__('os').system('touch hacked')}",
        "['Eczema']",
        "{'Eczema': 0.5",
        "{" * 3000,
        "{'a': " * 200,
        "{'" + "x" * 20_000 + "': 1}",
        "Eczema",
    ],
)
def test_scin_weights_that_are_none(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labelled = SCIN_LABELS.assign(weighted_skin_condition_label=["{'Eczema': 1}", "{}", "{}", text])
    write_scin(tmp_path, labelled=labelled)
    with pytest.raises(TableError, match="400.*unreadable weighted label in scin_labels.csv"):
        open_access.read("scin", tmp_path)
    frame, excluded = open_access.read("scin", tmp_path, on_error="exclude")
    assert list(reasons(excluded)) == ["400"] and "4" not in set(frame["image_id"])
    assert not (tmp_path / "hacked").exists()


def test_scin_double_cases_labels_and_images(tmp_path):
    cases = SCIN_CASES.copy()
    cases.loc[4, "image_1_path"] = ""  # a case without images
    cases.loc[3, "image_1_path"] = "dataset/images/3.png"  # the image of another case
    double = SCIN_LABELS.iloc[[0]].assign(weighted_skin_condition_label="{'Wart': 1}")
    write_scin(tmp_path, cases, pd.concat([SCIN_LABELS, double]))
    frame, excluded = open_access.read("scin", tmp_path, on_error="exclude")
    assert frame["image_id"].tolist() == ["-1", "11", "12"]
    assert reasons(excluded) == {
        "200": "more than one row in scin_labels.csv",
        "500": "case without image path in scin_cases.csv",
        "3": "more than one row in scin_cases.csv",
    }


# --- the ISIC archive: BCN20000, HIBA -----------------------------------------------------------

BCN = pd.DataFrame(
    {
        "bcn_filename": [f"BCN_000000000{i}.jpg" for i in range(5)],
        "age_approx": ["55.0", "", "85", "nan", "30"],
        "anatom_site_general": ["anterior torso", "head/neck", "", "Lower  Extremity", "nan"],
        "diagnosis": ["MEL", "nv", "BKL", "SCC", "OTHER"],
        "lesion_id": ["BCN_1", "BCN_2", "BCN_2", "", "17.0"],
        "capture_date": ["2012-05-16", "", "", "", ""],
        "sex": ["male", "F", "Female", "", "nan"],
        "split": ["train", "train", "test", "Train", "train"],
    }
)


def test_bcn20000(tmp_path):
    put(tmp_path / "bcn_20k_train.csv", BCN.to_csv(index=False))
    for k, name in enumerate(BCN["bcn_filename"]):
        put(tmp_path / "BCN_20k_train" / "bcn_20k_train" / name, picture(k))
    frame, excluded = open_access.read("bcn20000", tmp_path)
    assert excluded.empty and frame["image_id"][0] == "BCN_0000000000"
    assert frame["diagnosis"].tolist()[:4] == ["MEL", "NV", "BKL", "SCC"]
    assert pd.isna(frame["diagnosis"][4]) and frame["label"].tolist() == [
        "melanoma", "melanocytic nevus", "benign keratosis", "squamous cell carcinoma", "other",
    ]  # fmt: skip
    assert frame["age"].isna().tolist() == [False, True, False, True, False]
    assert frame["sex"].tolist()[:3] == ["male", "female", "female"]
    assert frame["site"].tolist()[0:4:3] == ["anterior torso", "lower extremity"]
    assert frame["lesion_id"].tolist()[1:5:3] == ["BCN_2", "BCN20000_17"]
    assert pd.isna(frame["lesion_id"][3]) and frame["patient_id"].isna().all()
    assert frame["split"].tolist() == ["train", "train", "test", "train", "train"]
    assert frame["capture_date"][0] == "2012-05-16" and set(frame["modality"]) == {"dermoscopic"}


def test_bcn20000_under_the_names_of_the_archive(tmp_path):
    names = [f"ISIC_005300{i}" for i in range(5)]
    put(tmp_path / "metadata.csv", BCN.assign(isic_id=names).to_csv(index=False))
    for k, name in enumerate(names):
        put(tmp_path / f"{name}.jpg", picture(k))  # beside the table, as its client leaves them
    frame, _ = open_access.read("bcn20000", tmp_path)
    assert frame["image_id"].tolist() == names


HIBA = pd.DataFrame(
    {
        "isic_id": [f"ISIC_123400{i}" for i in range(6)],
        "attribution": ["Hospital Italiano de Buenos Aires"] * 5 + [""],
        "copyright_license": ["CC-BY", "CC-0", "CC-BY-NC", "", "CC-BY", "CC-BY"],
        "age_approx": ["60", "45", "85+", "", "60.0", "12"],
        "anatom_site_general": ["Posterior Torso", "", "head/neck", "", "", ""],
        "benign_malignant": ["malignant", "benign", "", "", "malignant", "benign"],
        "diagnosis_1": ["Malignant", "Benign", "Indeterminate", "", "Malignant", "Benign"],
        "diagnosis_2": ["Malignant melanocytic proliferations (Melanoma)", "", "", "", "", ""],
        "diagnosis_3": [
            "Melanoma Invasive", "Nevus", "Solar or actinic keratosis", "",
            "Squamous cell carcinoma, NOS", "Lichen planus like keratosis",
        ],
        "diagnosis_4": ["", "Nevus, Atypical, Dysplastic, or Clark", "", "", "", ""],
        "image_type": [
            "dermoscopic", "clinical: close-up", "Clinical: overview", "", "dermoscopic",
            "TBP tile: close-up",
        ],
        "fitzpatrick_skin_type": ["I", "ii", "", "VI", "I", "3"],
        "lesion_id": ["IL_1", "IL_2", "IL_3", "", "IL_1", "IL_2"],
        "patient_id": ["IP_1", "IP_2", "IP_2", "", "IP_1", "IP_2"],
        "sex": ["male", "Female", "", "", "male", "female"],
    }
)  # fmt: skip


def test_hiba(tmp_path):
    put(tmp_path / "metadata.csv", HIBA.to_csv(index=False))
    for k, name in enumerate(HIBA["isic_id"]):
        put(tmp_path / "ISIC-images" / f"{name}.JPG", picture(k))
    frame, excluded = open_access.read("hiba", tmp_path)
    assert excluded.empty
    assert frame["diagnosis"].fillna("-").tolist() == ["MEL", "NV", "AK", "-", "SCC", "BKL"]
    assert frame["label"].fillna("-").tolist()[:4] == [
        "melanoma invasive", "nevus, atypical, dysplastic, or clark", "solar or actinic keratosis",
        "-",
    ]  # fmt: skip
    assert frame["modality"].fillna("-").tolist() == [
        "dermoscopic", "clinical", "clinical", "-", "dermoscopic", "clinical",
    ]  # fmt: skip
    assert frame["licence"].tolist() == ["CC-BY", "CC-0", "CC-BY-NC", "CC BY 4.0"] + ["CC-BY"] * 2
    assert frame["attribution"][0] == "Hospital Italiano de Buenos Aires"
    assert "Ricci Lara" in frame["attribution"][5]
    assert frame["skin_type"].fillna(0).tolist() == [1, 2, 0, 6, 1, 3]
    assert pd.isna(frame["age"][2]) and frame["age_band"][2] == "85+"
    assert frame["diagnosis_1"][0] == "malignant" and frame["benign_malignant"][1] == "benign"
    found = open_access.counts(frame).fillna(-1)
    assert found.to_dict("list") == {
        "source": ["hiba"] * 3 + ["total"],
        "modality": ["clinical", "dermoscopic", -1, -1],
        "images": [3, 2, 1, 6],
        "lesions": [2, 1, -1, 3],
        "patients": [1, 1, -1, 2],
    }


# --- DERM12345 ----------------------------------------------------------------------------------


def derm_rows(ids: list[str], sub: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": ids,
            "patient_id": ["7", "8", "P9"][: len(ids)],
            "super_class": "Melanocytic",
            "malignancy": "Benign",
            "main_class_1": ["Banal", "Vascular", "melanoma"][: len(ids)],
            "main_class_2": "",
            "sub_class": sub,
        }
    )


def test_derm12345(tmp_path):
    train = derm_rows(
        ["DERM_1", "DERM_2", "DERM_3"], ["Compound  Nevus", "Odd Angioma", "LENTIGO MALIGNA"]
    )
    test = derm_rows(["DERM_4"], ["bowen’s disease"])
    put(tmp_path / "derm12345_metadata_train.csv", train.to_csv(index=False))
    put(tmp_path / "derm12345_metadata_test.tab", test.to_csv(index=False, sep="\t"))
    with zipfile.ZipFile(tmp_path / "derm12345_train_part_1.zip", "w") as archive:
        for k in (1, 2):
            archive.writestr(f"x/derm_{k}.jpg", picture(k))  # lower case here
        archive.writestr("x/DERM_3.jpg", picture(3)[:-300])
    put(tmp_path / "derm12345_test" / "DERM_4.jpg", picture(4))
    with pytest.raises(TableError, match=r"\(DERM_3\): image cannot be decoded .*truncated"):
        open_access.read("derm12345", tmp_path)
    frame, excluded = open_access.read("derm12345", tmp_path, on_error="exclude")
    assert list(reasons(excluded)) == ["DERM_3"]
    by = frame.set_index("image_id").to_dict("index")
    assert by["DERM_1"]["label"] == "compound nevus" and by["DERM_1"]["diagnosis"] == "NV"
    assert by["DERM_2"]["label"] == "odd angioma" and by["DERM_2"]["diagnosis"] == "VASC"
    assert by["DERM_4"]["diagnosis"] == "SCC" and by["DERM_4"]["split"] == "test"
    assert by["DERM_1"]["patient_id"] == "DERM12345_7" and by["DERM_1"]["split"] == "train"
    assert by["DERM_1"]["super_class"] == "melanocytic" and by["DERM_1"]["malignancy"] == "benign"
    assert pd.isna(by["DERM_1"]["main_class_2"]) and pd.isna(by["DERM_1"]["lesion_id"])
    double = pd.concat([test, derm_rows(["DERM_1"], ["Melanoma"])])
    put(tmp_path / "derm12345_metadata_test.tab", double.to_csv(index=False, sep="\t"))
    frame, excluded = open_access.read("derm12345", tmp_path, on_error="exclude")
    assert (
        "DERM_1" not in set(frame["image_id"])
        and "more than one row" in reasons(excluded)["DERM_1"]
    )
    for file in tmp_path.glob("*metadata*"):
        file.unlink()
    with pytest.raises(TableError, match=r"expected files \*metadata\*.csv"):
        open_access.read("derm12345", tmp_path)


# --- HAM10000 and the phantom -------------------------------------------------------------------


def test_ham10000_needs_no_annotations(tmp_path):
    codes = ["mel", "NV", "bcc", "akiec", "bkl", "df", " vasc"]
    ids = [f"ISIC_002000{i}" for i in range(7)]
    about = pd.DataFrame({"lesion_id": "HAM_1", "image_id": ids, "dx": codes, "dx_type": "histo"})
    about = about.assign(age="80.0", sex=["male", "unknown", *["female"] * 5], localization="Back")
    put(tmp_path / "HAM10000_metadata.tab", about.to_csv(index=False, sep="\t"))
    for k, name in enumerate(ids):
        put(tmp_path / "HAM10000_images_part_1" / f"{name}.jpg", picture(k))
    frame, excluded = open_access.read("ham10000", tmp_path)
    assert excluded.empty and frame["hair"].isna().all()
    assert frame["diagnosis"].tolist() == ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC"]
    assert frame["label"][6] == "vascular lesion" and pd.isna(frame["sex"][1])
    notes = "image,hair,gel_bubble,ruler,ink,dark_corner\n"
    notes += f"{ids[0]}_downsampled,1,0,0,0,0\n{ids[1]},1,0,0,0,0\n{ids[1]},0,0,0,0,0\n"
    put(tmp_path / "isic2019_artifacts.csv", notes)
    frame, excluded = open_access.read("ham10000", tmp_path)
    assert excluded.empty and frame["hair"][0] and frame["hair"].isna().sum() == 6


def test_the_real_images_are_all_read(ham10000_root):
    frame, excluded = open_access.read("ham10000", ham10000_root)
    assert excluded.empty and len(frame) == 8113 and frame["diagnosis"].notna().all()
    assert frame["diagnosis"].nunique() == 7 and int(frame["hair"].sum()) == 2187
    assert frame["same_image_as"].notna().sum() == 2  # published under two ids each
    kept, left_out = licences.filter(frame)
    assert len(kept) == 8113 and left_out.empty
    some, _ = open_access.read("ham10000", ham10000_root, images=500, seed=3, verify=False)
    assert 490 <= len(some) <= 500
    whole = frame[frame["lesion_id"].isin(some["lesion_id"])]
    assert len(whole) == len(some)  # no lesion is cut in two
    again, _ = open_access.read("ham10000", ham10000_root, images=500, seed=3, verify=False)
    other, _ = open_access.read("ham10000", ham10000_root, images=500, seed=4, verify=False)
    assert again.equals(some) and set(other["image_id"]) != set(some["image_id"])


def test_the_phantom():
    frame, excluded = open_access.read("phantom", None, images=9, seed=4)
    assert excluded.empty and len(frame) == 9 and set(frame["modality"]) == {"dermoscopic"}
    words = {"MEL": "melanoma", "NV": "melanocytic nevus"}
    assert frame["label"].tolist() == [words[d] for d in frame["diagnosis"]]
    assert frame["path"].str.startswith("phantom::4/").all()
    with pytest.raises(ValueError, match="images must say how many to draw"):
        open_access.read("phantom", None)


def test_arguments():
    with pytest.raises(ValueError, match="unknown source 'hib'; did you mean 'hiba'"):
        open_access.read("hib", ".")
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="images must be a whole number of at least 1"):
            open_access.read("phantom", None, images=wrong)
    with pytest.raises(ValueError, match="on_error must be one of"):
        open_access.read("phantom", None, images=1, on_error="ignore")


def test_every_source_says_what_it_is():
    assert len(open_access.SOURCES) == 7
    for name, source in open_access.SOURCES.items():
        assert source.name == name and source.layout and source.attribution
        assert licences.parse(source.licence) is not None
        assert name == "phantom" or callable(source.reader)


# --- cells --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("45", (45, None, None)),
        ("45.0", (45, None, None)),
        ("45,5", (45.5, None, None)),
        ("aged 45 years", (45, None, None)),
        ("0", (0, None, None)),
        ("40-49", (None, "40-49", 44.5)),
        ("40 – 50", (None, "40-50", 45)),
        ("AGE_18_TO_29", (None, "18-29", 23.5)),
        ("AGE_80_OR_ABOVE", (None, "80+", None)),
        ("85+", (None, "85+", None)),
        (">= 85", (None, "85+", None)),
        ("Under 18", (None, "<18", None)),
    ],
)
def test_ages_and_bands(text, expected):
    assert values.age(text) == expected


@pytest.mark.parametrize("text", ["old", "-5", "121", "49-40", "1e2", "4 5", "²", "40-", "inf"])
def test_ages_that_are_none(text):
    with pytest.raises(ValueError, match="age"):
        values.age(text)


def test_text_is_cleaned():
    dirty = ["  Head\u00a0 or\tneck ", "e\u0301te\u0301", "a\x00b\x1b[31m"]
    dirty += ["UNK", "NONE_IDENTIFIED", " NaN", "", None, "\u200b", "皮膚"]
    found = columns.each(pd.Series(dirty, dtype="string"), columns.clean)
    assert found.tolist()[:3] == ["Head or neck", "\u00e9t\u00e9", "a b [31m"]
    assert found.isna().tolist() == [False] * 3 + [True] * 6 + [False]
    assert values.tokens(pd.Series(["TRUE", "6.0", "6.50", "-1.0", "3,0"])).tolist() == [
        "yes", "6", "6.50", "-1", "3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Melanoma, NOS", "MEL"),
        ("melanoma in situ", "MEL"),
        ("Dysplastic Naevi", "NV"),
        ("Nevus (mole)", "NV"),
        ("Actinic keratoses", "AK"),
        ("Seborrhoeic Keratosis", "BKL"),
        ("Bowen's disease", "SCC"),
        ("Haemangioma", "VASC"),
        ("Nevus sebaceus", None),
        ("Becker nevus", None),
        ("Melanoma metastasis", None),
        ("not a melanoma", None),
        ("melanoma or nevus", None),
        ("Merkel cell carcinoma", None),
        ("eczema", None),
        ("", None),
        (None, None),
        (pd.NA, None),
    ],
)
def test_published_diagnoses_and_codes(text, code):
    assert labels.code_of(text) == code


def test_damage_never_raises(tmp_path):
    good = put(tmp_path / "good.jpg", picture(1))
    assert layout.damage(str(good)) is None
    hostile = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, picture(1)[:500], b"GIF89a"]
    for content in hostile:
        assert "cannot be decoded" in layout.damage(str(put(tmp_path / "bad.jpg", content)))
    assert layout.damage(str(tmp_path / "absent.jpg")) == "image not found"


# --- subsets, counts ----------------------------------------------------------------------------


def test_a_subset_holds_whole_patients_and_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 30, 100)
    frame = pd.DataFrame(
        {
            "image_id": [f"i{k}" for k in range(100)],
            "patient_id": [f"p{p}" if p < 20 else None for p in patients],
            "lesion_id": [f"l{p}" if p < 25 else None for p in patients],
        }
    )
    part = open_access.subset(frame, 40, seed=1)
    assert 35 <= len(part) <= 40
    for name in ("patient_id", "lesion_id"):
        known = part[part[name].notna()]
        assert len(frame[frame[name].isin(known[name])]) == len(known)
    shuffled = open_access.subset(frame.sample(frac=1, random_state=5), 40, seed=1)
    assert set(shuffled["image_id"]) == set(part["image_id"])
    assert open_access.subset(frame, None) is frame and open_access.subset(frame, 100) is frame


def test_counts_of_several_sources():
    frame = pd.DataFrame(
        {
            "source": ["a", "a", "b", "b"],
            "modality": ["clinical"] * 2 + ["dermoscopic"] * 2,
            "image_id": list("wxyz"),
            "lesion_id": ["1", "1", "1", None],  # lesion 1 of a is not lesion 1 of b
            "patient_id": [None] * 4,
        }
    )
    found = open_access.counts(frame)
    assert found["images"].tolist() == [2, 2, 4] and found["lesions"].tolist() == [1, 1, 2]
    assert found["patients"].isna().all()
    with pytest.raises(TableError, match="counts: the table has no column modality"):
        open_access.counts(frame.drop(columns="modality"))


# --- licences -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CC0", "CC0-1.0"),
        ("CC-0", "CC0-1.0"),
        ("CC0 1.0 Universal (CC0 1.0) Public Domain Dedication", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("CC BY 4.0", "CC-BY-4.0"),
        ("cc_by_4.0", "CC-BY-4.0"),
        ("ＣＣ　ＢＹ　４．０", "CC-BY-4.0"),
        ("CC-BY", "CC-BY"),
        ("CC BY 4", "CC-BY-4.0"),
        ("Creative Commons Attribution 4.0 International (CC BY 4.0)", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by-nc-sa/4.0/legalcode", "CC-BY-NC-SA-4.0"),
        ("Attribution-NonCommercial-NoDerivatives CC 3.0", "CC-BY-NC-ND-3.0"),
        ("CC BY-NC", "CC-BY-NC"),
        ("CC BY-SA v2.5", "CC-BY-SA-2.5"),
        ("CC BY 4.0 / CC BY-NC 4.0", "CC-BY-NC-4.0"),  # the stricter
        ("SCIN Data Use License", "LicenseRef-SCIN"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("The MIT License", "MIT"),
        ("ODbL 1.0", "ODbL-1.0"),
        ("all rights reserved", None),
        ("not CC BY", None),
        ("CC BY 4.0 for the table, images all rights reserved", None),
        ("CC0 or CC BY", None),
        ("CC BY 3.0 or 4.0", None),
        ("CC BY 9.0", None),
        ("CC NC", None),
        ("CC BY-ND-SA 4.0", None),
        ("public domain", None),
        ("copyright", None),
        ("", None),
        ("nan", None),
        (None, None),
        (4.0, None),
    ],
)
def test_licences_are_recognized_only_in_full(text, name):
    assert licences.normalise(text) == name
    assert name is None or licences.normalise(name) == name


def test_what_a_licence_allows():
    strict = licences.parse("CC BY-NC-ND 4.0")
    assert strict.non_commercial and strict.no_derivatives and not strict.released
    assert licences.parse("CC BY-NC 4.0").released and licences.parse("CC BY-SA 4.0").share_alike
    assert not licences.parse("CC0").attribution and licences.parse("CC BY").attribution
    assert licences.parse("scin data use licence").redistribution is None


def licensed() -> pd.DataFrame:
    texts = ["CC BY 4.0", "CC-BY", "CC BY-NC 4.0", "CC0", "CC BY-ND 4.0", "SCIN Data Use License"]
    texts += [None, "", "mine", "mine"]
    sources = ["a"] * (len(texts) - 1) + [None]
    about = {"image_id": range(len(texts)), "source": sources, "licence": texts}
    return pd.DataFrame(about, index=[0] * len(texts))


def test_the_filter_tells_what_it_left_out():
    kept, left_out = licences.filter(licensed())
    assert kept["image_id"].tolist() == [0, 1, 2, 3] and kept.index.tolist() == [0, 1, 2, 3]
    assert left_out["images"].sum() == 6 and list(left_out) == [
        "source", "licence", "reason", "images",
    ]  # fmt: skip
    told = {(r.licence, r.reason): r.images for r in left_out.fillna("-").itertuples()}
    assert told["mine", "licence not recognized"] == 1 and len(left_out) == 6
    assert told["CC BY-ND 4.0", "allows unchanged copies only"] == 1
    assert told["-", "no licence given"] == told["", "no licence given"] == 1
    assert any("allow LicenseRef-SCIN" in reason for _, reason in told)


def test_the_filter_with_a_list_of_ones_own():
    kept, left_out = licences.filter(licensed(), allow=["CC0", "SCIN data use license"])
    assert kept["image_id"].tolist() == [3, 5]
    assert "not among the licences allowed" in set(left_out["reason"])
    nothing, _ = licences.filter(licensed(), allow=[])
    assert nothing.empty
    with pytest.raises(ValueError, match="'CC BY X', which is no known licence"):
        licences.filter(licensed(), allow=["CC BY X"])
    with pytest.raises(ValueError, match="allow must be a list"):
        licences.filter(licensed(), allow="CC0")
    with pytest.raises(ValueError, match="no column licence"):
        licences.filter(licensed().drop(columns="licence"))


def test_the_filter_of_an_empty_table():
    kept, left_out = licences.filter(licensed().iloc[:0])
    assert kept.empty and left_out.empty and "images" in left_out


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 15)])
def test_an_image_too_small_to_show_anything_is_a_defect(tmp_path, size):
    from derm_rl.captions import store

    file = tmp_path / "tiny.png"
    Image.new("RGB", size).save(file)
    said = f"image cannot be used ({size[0]} × {size[1]} pixels, expected 16 or more a side)"
    assert layout.damage(str(file)) == said
    frame = pd.DataFrame({"image_id": ["a"], "path": [str(file)]})
    with pytest.raises(TableError, match=r"tiny\.png: .* pixels"):
        store.prepare(frame, tmp_path / "parts", 256, 256, progress=False)
