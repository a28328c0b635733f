"""Published tables: what may differ in them, what is refused, and what is said to be missing."""

import codecs
import io
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from derm_rl import config, data
from derm_rl.captions import sources
from derm_rl.data import columns, ham10000, isic2019
from derm_rl.data.open_access import reading as open_access
from derm_rl.data.table import TableError

IDS = [f"ISIC_002000{i}" for i in range(4)]
HAM = (
    "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
    "HAM_1,ISIC_0020000,mel,histo,80.0,male,scalp\n"
    'HAM_1,ISIC_0020001,mel,histo,80.0,male,"scalp, neck"\n'
    "HAM_2,ISIC_0020002,nv,follow_up,45.0,female,back\n"
    "HAM_3,ISIC_0020003,nv,consensus,,unknown,Fuß\n"
)
NOTES = "image,MEL,NV,hair,gel_bubble,ruler,ink,dark_corner\n" + "".join(
    f"{name},{int(k < 2)},{int(k > 1)},{k % 2},0,0,0,0\n" for k, name in enumerate(IDS)
)
ARCHIVE = pd.DataFrame(
    {
        "isic_id": IDS,
        "attribution": ["ViDIR Group", "ViDIR Group", "Hospital", ""],
        "copyright_license": ["CC-BY-NC", "CC-0", "CC-BY", ""],
        "age_approx": ["80", "80", "45", ""],
        "anatom_site_1": ["Head and neck", "Trunk", "Upper extremity", ""],
        "anatom_site_2": ["Head", "Posterior trunk", "", ""],
        "anatom_site_3": ["Scalp", "", "", ""],
        "diagnosis_1": ["Malignant", "Malignant", "Benign", "Benign"],
        "diagnosis_2": ["Malignant melanocytic proliferations (Melanoma)"] * 2 + ["", ""],
        "diagnosis_3": ["Melanoma Invasive", "Melanoma in situ", "Nevus", "Nevus"],
        "diagnosis_4": ["", "", "Nevus, Atypical, Dysplastic, or Clark", ""],
        "image_type": "dermoscopic",
        "lesion_id": ["IL_1", "IL_1", "IL_2", "IL_3"],
        "sex": ["male", "male", "female", ""],
    }
)
SITES = ["scalp", "posterior trunk", "upper extremity", None]
CODES = ["MEL", "MEL", "NV", "NV"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """HAM10000 in miniature, with annotations; each reader finds its images."""
    for folder in ("HAM10000_images_part_1", "ISIC_2019_Training_Input", "images"):
        (tmp_path / folder).mkdir()
        for k, name in enumerate(IDS):
            Image.new("RGB", (40, 30), (60 * k, 100, 90)).save(tmp_path / folder / f"{name}.jpg")
    (tmp_path / "HAM10000_metadata.csv").write_text(HAM, encoding="utf-8")
    (tmp_path / "isic2019_artifacts.csv").write_text(NOTES)
    return tmp_path


def texts(column: pd.Series) -> list[str | None]:
    return [v if isinstance(v, str) else None for v in column]


def both(root: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """What the two readers of HAM10000 read, and the notes of the first."""
    one, excluded = ham10000.read(root)
    two, _ = open_access.read("ham10000", root, verify=False)
    return one, two, excluded.attrs["notes"]


# ------------------------------------------------------------------------ names that changed


def test_ham10000_with_the_columns_of_the_archive(root):
    (root / "HAM10000_metadata.csv").write_text(ARCHIVE.to_csv(index=False))
    for frame in both(root)[:2]:
        assert frame["diagnosis"].tolist() == CODES and texts(frame["site"]) == SITES
        assert frame["age"].tolist()[:3] == [80, 80, 45] and pd.isna(frame["age"][3])
        assert frame["licence"].tolist() == ["CC-BY-NC", "CC-0", "CC-BY", "CC BY-NC 4.0"]
        assert frame["attribution"][2] == "Hospital" and "Tschandl" in frame["attribution"][3]


def test_isic_2019_with_the_columns_of_the_archive(root):
    truth = pd.DataFrame({"isic_id": IDS})
    for code in isic2019.DIAGNOSES:
        truth["AKIEC" if code == "AK" else code] = [float(code == c) for c in CODES]
    truth.to_csv(root / "ISIC_2019_Training_GroundTruth.csv", index=False)
    ARCHIVE.to_csv(root / "ISIC_2019_Training_Metadata.csv", index=False, sep=";")
    frame, excluded = isic2019.read(root)
    assert frame["diagnosis"].tolist() == CODES and texts(frame["site"]) == SITES
    assert frame["licence"][1] == "CC-0" and "BCN20000" in frame["attribution"][3]
    assert excluded.empty and excluded.attrs["notes"] == []


@pytest.mark.parametrize("source", ["bcn20000", "hiba", "derm12345"])
def test_the_other_sources_with_the_columns_of_the_archive(root, source):
    for name in ("HAM10000_images_part_1", "ISIC_2019_Training_Input"):
        shutil.rmtree(root / name)
    ARCHIVE.to_csv(root / "metadata.csv", index=False)
    (root / "HAM10000_metadata.csv").unlink()
    frame, excluded = open_access.read(source, root, verify=False)
    assert frame["image_id"].tolist() == IDS and frame["diagnosis"].tolist() == CODES
    assert texts(frame["site"]) == SITES and frame["licence"][1] == "CC-0"
    assert frame["label"][2] == "nevus, atypical, dysplastic, or clark"
    assert frame["anatom_site_1"][1] == "trunk"  # the other levels stay
    notes = " ".join(excluded.attrs["notes"])
    for word in {"hiba": ["skin_type", "patient_id"], "derm12345": ["super_class"]}.get(source, []):
        assert word in notes
    general = ARCHIVE.assign(anatom_site_general=["head/neck", "", "", ""])
    general.to_csv(root / "metadata.csv", index=False)
    frame, _ = open_access.read(source, root, verify=False)
    assert texts(frame["site"]) == ["head/neck", *SITES[1:]]


# ---------------------------------------------------------------- what is missing is said


def test_an_absent_column_is_reported_with_what_was_found_instead(root):
    file = root / "HAM10000_metadata.csv"
    file.write_text(HAM.replace("localization", "localisation_of_lesion"), encoding="utf-8")
    one, two, notes = both(root)
    assert one["site"].isna().all() and two["site"].isna().all()
    assert two["localisation_of_lesion"][0] == "scalp"  # kept under its own name
    assert len(notes) == 1
    for words in ("HAM10000_metadata.csv: no column for site", "'localization'", "found lesion_id",
                  "is 'localisation_of_lesion' what was 'localization'?"):  # fmt: skip
        assert words in notes[0]
    emptied = pd.read_csv(io.StringIO(HAM), dtype="string", keep_default_na=False)
    emptied.assign(localization=["", "unknown", "NaN", " "]).to_csv(file, index=False)
    assert "site: column localization is empty in all 4 rows" in both(root)[2][0]


def test_images_that_no_row_names_are_counted(root):
    text = "\n".join(HAM.splitlines()[:-1]) + "\n"  # a table cut at the end of a row
    (root / "HAM10000_metadata.csv").write_text(text, encoding="utf-8")
    assert "1 image files are in no row of the tables" in both(root)[2][0]


def test_what_is_missing_reaches_whoever_runs_the_stages(root, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("derm_rl.paths.RUNS", tmp_path / "runs")
    text = HAM.replace("localization", "where")
    (root / "HAM10000_metadata.csv").write_text(text, encoding="utf-8")
    changes = ("image_size=16", "data.min_positives=1", "captions.sources=[ham10000]")
    settings = config.load("ham10000", changes, root)
    monkeypatch.setattr(data.splits, "assign", lambda frame, *_: pd.Series("test", frame.index))
    folder = data.prepare(settings, progress=False)
    assert (
        "note on the tables: HAM10000_metadata.csv: no column for site" in capsys.readouterr().out
    )
    assert "no column for site" in (folder / data.NOTES).read_text()
    sources.prepare(settings, progress=False)
    assert "ham10000: HAM10000_metadata.csv: no column for site" in capsys.readouterr().out
    written = settings.stage_dir(sources.STAGE) / data.NOTES
    assert "no column for site" in written.read_text()


# ----------------------------------------------------------------------- the two readers agree

SAME = {
    "semicolons": lambda t: t.replace(",", ";").replace("; neck", ", neck"),
    "tabs": lambda t: t.replace(",", "\t").replace("\t neck", ", neck"),
    "sep= of Excel": lambda t: "sep=,\n" + t,
    "CRLF": lambda t: t.replace("\n", "\r\n"),
    "CR": lambda t: t.replace("\n", "\r"),
    "blank lines": lambda t: "\n" + t.replace("\n", "\n\n"),
    "case and blanks": lambda t: t.replace("image_id", " IMAGE ID").replace("age,", "Age ,"),
    "a counter": lambda t: "".join(f"{k - 1 if k else ''},{x}\n" for k, x in
                                   enumerate(t.splitlines())),
    "a column twice": lambda t: "".join(f"{x},{x.split(',')[0]}\n" for x in t.splitlines()),
    "separators at the end": lambda t: t.replace("\n", ",\n"),
}  # fmt: skip
ENCODED = {
    "UTF-8 with mark": lambda t: codecs.BOM_UTF8 + t.encode(),
    "UTF-16": lambda t: t.encode("utf-16"),
    "UTF-16 BE": lambda t: codecs.BOM_UTF16_BE + t.encode("utf-16-be"),
    "UTF-32": lambda t: t.encode("utf-32"),
}


@pytest.mark.parametrize("way", [*SAME, *ENCODED])
def test_both_readers_read_the_same(root, way):
    expected = both(root)
    content = SAME[way](HAM).encode() if way in SAME else ENCODED[way](HAM)
    (root / "HAM10000_metadata.csv").write_bytes(content)
    found = both(root)
    pd.testing.assert_frame_equal(found[0], expected[0])
    pd.testing.assert_frame_equal(found[1], expected[1])
    assert found[0]["site"].tolist()[1:4:2] == ["scalp, neck", "fuß"] and found[2] == []


REFUSED = {
    "NUL": (lambda b: b.replace(b"male", b"ma\0le", 1), "NUL byte in line 2"),
    "UTF-16 without mark": (lambda b: b.decode().encode("utf-16-le"), "NUL byte|not UTF-8"),
    "cp1252": (lambda b: b.decode().encode("cp1252"), "line 5 is not UTF-8"),
    "a row cut off": (lambda b: b[:-12], "line 5 has 6 cells, the header 7"),
    "a cell too many": (lambda b: b.replace(b"back", b"back,x"), "line 4 has 8 cells"),
    "an open quote": (lambda b: b.replace(b'neck"', b"neck"), "line 3: "),
    "a stray quote": (lambda b: b.replace(b"nv,f", b'"nv,f'), "line 4: "),
    "two that differ": (
        lambda b: b"".join(x + b"," + (b"x", b"age")[not k] + b"\n"
                           for k, x in enumerate(b.splitlines())),
        "two columns 'age', and they differ",
    ),
    "a workbook": (lambda b: b"PK\x03\x04" + b, "this is an Excel workbook"),
    "a web page": (lambda b: b"\n<!DOCTYPE html><p>log in", "this is a web page"),
    "a pointer": (lambda b: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "nothing": (lambda b: b" \n\n", "the file is empty"),
}  # fmt: skip


@pytest.mark.parametrize("way", REFUSED)
def test_both_readers_refuse_the_same(root, way):
    change, words = REFUSED[way]
    (root / "HAM10000_metadata.csv").write_bytes(change(HAM.encode()))
    for read in (ham10000.read, lambda root: open_access.read("ham10000", root)):
        with pytest.raises(TableError, match=rf"HAM10000_metadata.csv: .*(?:{words})"):
            read(root)


def test_every_source_and_table_is_listed():
    for source in open_access.SOURCES.keys() - {"phantom", "scin"}:
        assert columns.known(source).needed["image_id"]
    assert columns.known("scin", "labels").needed and columns.known("isic2019", "truth").needed
