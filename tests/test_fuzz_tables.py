"""Published tables as people have them: changed in every way, read right or refused in words.

A table of each source is mutated, and what comes of it must be one of two: an error of the package
that names the file; or a table in which every cell that was not touched is what it was, and
whatever is missing (an image, a column) is said to be.
"""

import csv
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from derm_rl.data import ham10000, isic2019
from derm_rl.data.columns import Columns, known, stems
from derm_rl.data.open_access import reading as open_access
from derm_rl.data.table import TableError

EXAMPLES = 100 if "DERM_RL_TEST_ALL" in os.environ else 40  # of each of the eleven tables
Reader = Callable[[Path], tuple]
AGE = {"age", "age_band", "age_midpoint"}


@dataclass(frozen=True)
class Source:
    """A source in miniature: its reader, the text of its tables, its images."""

    reader: Reader
    files: dict[str, str]
    images: tuple[str, ...]
    tables: dict[str, Columns]  # what is looked for in the files that are changed
    cases: dict[str, str] = field(default_factory=dict)  # image: case, where rows are cases


def _read(name: str) -> Reader:
    return lambda root: open_access.read(name, root, on_error="exclude", verify=False)


def both_readers(root: Path) -> tuple:
    """HAM10000 for captions; and that for training says the same, or refuses the same."""
    try:
        frame, excluded = open_access.read("ham10000", root, on_error="exclude", verify=False)
    except TableError:
        with pytest.raises(TableError):
            ham10000.read(root, on_error="exclude")
        raise
    try:
        other, _ = ham10000.read(root, on_error="exclude")
    except TableError as error:
        assert "no image with a diagnosis among" in str(error) and len(frame) < 4
        return frame, excluded
    same = ["image_id", "lesion_id", "diagnosis", "age", "sex", "site", "path"]
    here = frame[frame["image_id"].isin(other["image_id"])][same].reset_index(drop=True)
    pd.testing.assert_frame_equal(here, other[same])
    return frame, excluded


# What a published column turns into, where it is not a column of the same name alone.
LEVELS = {f"diagnosis_{i}": {f"diagnosis_{i}", "diagnosis", "label"} for i in range(1, 6)}
SITES = {f"anatom_site_{i}": {f"anatom_site_{i}", "site"} for i in range(1, 6)}
BECOMES = LEVELS | SITES | {
    "age": AGE, "age_approx": AGE, "age_group": AGE, "gender": {"sex"}, "region": {"site"},
    "localization": {"site"}, "anatom_site_general": {"site"}, "fitspatrick": {"skin_type"},
    "fitzpatrick_skin_type": {"skin_type", "skin_type_from"}, "copyright_license": {"licence"},
    "dx": {"dx", "diagnosis", "label"}, "diagnostic": {"diagnostic", "diagnosis", "label"},
    "diagnosis": {"diagnosis", "label"}, "sub_class": {"sub_class", "diagnosis", "label"},
    "main_class_1": {"main_class_1", "diagnosis"}, "image_type": {"image_type", "modality"},
    "main_class_2": {"main_class_2", "diagnosis"}, "patient_id": {"patient_id", "lesion_id"},
    "sex_at_birth": {"sex"}, "textures_flat": {"textures"},
    "body_parts_arm": {"body_parts", "site"},
    "condition_symptoms_itching": {"symptoms"}, "condition_duration": {"duration"},
    "weighted_skin_condition_label": {"label", "diagnosis", "label_weights"},
    **{
        f"dermatologist_fitzpatrick_skin_type_label_{i}": {"skin_type", "skin_type_from"}
        for i in (1, 2, 3)
    },
    "image_1_shot_type": {"shot_type"}, "MEL": {"diagnosis"}, "NV": {"diagnosis"},
}  # fmt: skip

IDS = tuple(f"ISIC_002000{i}" for i in range(4))
SOURCES = {
    "ham10000": Source(
        both_readers,
        {
            "isic2019_artifacts.csv": (
                "image,MEL,NV,hair,gel_bubble,ruler,ink,dark_corner\n"
                "ISIC_0020000,1,0,1,0,0,0,0\nISIC_0020001,1,0,0,1,0,0,0\n"
                "ISIC_0020002,0,1,0,0,1,0,0\nISIC_0020003,0,1,0,0,0,1,0\n"
            ),
            "HAM10000_metadata.csv": (
                "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
                "HAM_1,ISIC_0020000,mel,histo,80.0,male,scalp\n"
                "HAM_1,ISIC_0020001,mel,histo,80.0,male,scalp\n"
                "HAM_2,ISIC_0020002,nv,follow_up,45.0,female,back\n"
                "HAM_3,ISIC_0020003,nv,consensus,,unknown,lower extremity\n"
            ),
        },
        tuple(f"HAM10000_images_part_1/{i}.jpg" for i in IDS),
        {"HAM10000_metadata.csv": known("ham10000")},
    ),
    "isic2019": Source(
        lambda root: isic2019.read(root, on_error="exclude"),
        {
            "ISIC_2019_Training_GroundTruth.csv": (
                "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
                "ISIC_0020000,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
                "ISIC_0020001,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
                "ISIC_0020002,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
                "ISIC_0020003_downsampled,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
            ),
            "ISIC_2019_Training_Metadata.csv": (
                "image,age_approx,anatom_site_general,lesion_id,sex\n"
                "ISIC_0020000,55.0,anterior torso,MSK4_1,female\n"
                "ISIC_0020001,30.0,,BCN_2,male\n"
                "ISIC_0020002,,head/neck,BCN_3,\n"
                "ISIC_0020003_downsampled,70.0,palms/soles,MSK4_4,male\n"
            ),
            "isic2019_artifacts.csv": (
                "image,MEL,NV,dark_corner,hair,gel_border,gel_bubble,ruler,ink,official_split\n"
                "ISIC_0020000,1,0,0,1,0,0,1,0,train\n"
                "ISIC_0020001,0,1,1,0,0,1,0,0,val\n"
                "ISIC_0020002,0,1,0,0,1,0,0,1,train\n"
                "ISIC_0020003,1,0,0,1,0,0,0,0,test\n"
            ),
        },
        tuple(f"ISIC_2019_Training_Input/{i}.jpg" for i in IDS),
        {
            "ISIC_2019_Training_GroundTruth.csv": known("isic2019", "truth"),
            "ISIC_2019_Training_Metadata.csv": known("isic2019"),
            "isic2019_artifacts.csv": known("isic2019", "artifacts"),
        },
    ),
    "derm12345": Source(
        _read("derm12345"),
        {
            "derm12345_metadata_train.csv": (
                "image_id,patient_id,super_class,malignancy,main_class_1,main_class_2,sub_class\n"
                "DERM_0,P7,Melanocytic,Benign,Banal,Compound,Compound Nevus\n"
                "DERM_1,P8,Nonmelanocytic,Benign,Vascular,Angioma,Cherry Angioma\n"
                "DERM_2,P9,Melanocytic,Malignant,Melanoma,Melanoma,Lentigo Maligna\n"
            ),
            "derm12345_metadata_test.csv": (
                "image_id,patient_id,super_class,malignancy,main_class_1,main_class_2,sub_class\n"
                "DERM_3,P10,Nonmelanocytic,Malignant,Keratinocytic,Bowen,Bowen’s disease\n"
            ),
        },
        tuple(f"derm12345_train/DERM_{i}.jpg" for i in range(4)),
        {f"derm12345_metadata_{s}.csv": known("derm12345") for s in ("train", "test")},
    ),
    "bcn20000": Source(
        _read("bcn20000"),
        {
            "bcn_20k_train.csv": (
                "bcn_filename,age_approx,anatom_site_general,diagnosis,lesion_id,capture_date,sex,"
                "split\n"
                "BCN_0.jpg,55.0,anterior torso,MEL,BCN_1,2012-05-16,male,train\n"
                "BCN_1.jpg,,head/neck,NV,BCN_2,2013-05-16,female,train\n"
                "BCN_2.jpg,85,,SCC,,,female,test\n"
            )
        },
        tuple(f"BCN_20k_train/BCN_{i}.jpg" for i in range(3)),
        {"bcn_20k_train.csv": known("bcn20000")},
    ),
    "pad_ufes_20": Source(
        _read("pad_ufes_20"),
        {
            "metadata.csv": (
                "patient_id,lesion_id,smoke,background_father,age,gender,fitspatrick,region,"
                "diameter_1,diagnostic,itch,img_id,biopsed\n"
                "PAT_1,11,,,8,,,ARM,,NEV,False,PAT_1_11_1.png,False\n"
                "PAT_2,11,False,POMERANIA,55,FEMALE,3.0,NECK,6.0,BCC,True,PAT_2_11_2.png,True\n"
                'PAT_3,12,True,"GERMANY, NORTH",77,MALE,2.0,FACE,5.5,ACK,UNK,PAT_3_12_3.png,True\n'
            )
        },
        tuple(f"imgs_part_1/{i}.png" for i in ("PAT_1_11_1", "PAT_2_11_2", "PAT_3_12_3")),
        {"metadata.csv": known("pad_ufes_20")},
    ),
    "scin": Source(
        _read("scin"),
        {
            "scin_cases.csv": (
                "case_id,age_group,sex_at_birth,fitzpatrick_skin_type,textures_flat,body_parts_arm,"
                "condition_symptoms_itching,condition_duration,image_1_path,image_2_path,"
                "image_3_path,image_1_shot_type\n"
                "-100,AGE_40_TO_49,FEMALE,FST3,YES,YES,YES,ONE_DAY,images/-1.png,images/11.png,,"
                "CLOSE_UP\n"
                "200,AGE_80_OR_ABOVE,MALE,,YES,,,UNKNOWN,images/2.png,,,AT_DISTANCE\n"
                "300,,,FST6,,YES,,,images/3.png,,,\n"
            ),
            "scin_labels.csv": (
                "case_id,weighted_skin_condition_label,dermatologist_fitzpatrick_skin_type_label_1,"
                "dermatologist_fitzpatrick_skin_type_label_2\n"
                "-100,\"{'Eczema': 0.7, 'Wart': 0.3}\",FST1,FST1\n"
                "200,{'Melanocytic Nevus': 1.0},FST5,FST5\n"
                "300,{},FST2,FST3\n"
            ),
        },
        ("images/-1.png", "images/11.png", "images/2.png", "images/3.png"),
        {"scin_cases.csv": known("scin", "cases"), "scin_labels.csv": known("scin", "labels")},
        cases={"-1": "-100", "11": "-100", "2": "200", "3": "300"},
    ),
    "hiba": Source(
        _read("hiba"),
        {
            "metadata.csv": (
                "isic_id,attribution,copyright_license,age_approx,anatom_site_1,anatom_site_2,"
                "diagnosis_1,diagnosis_2,diagnosis_3,image_type,fitzpatrick_skin_type,lesion_id,"
                "patient_id,sex\n"
                "ISIC_0020000,HIBA,CC-BY,60,Trunk,Posterior trunk,Malignant,Malignant melanocytic,"
                "Melanoma Invasive,dermoscopic,II,IL_1,IP_1,male\n"
                "ISIC_0020001,HIBA,CC-0,45,Head and neck,,Benign,Benign melanocytic,Nevus,"
                "clinical: close-up,I,IL_2,IP_2,female\n"
                "ISIC_0020002,HIBA,CC-BY-NC,85+,,,Malignant,Malignant epidermal,"
                '"Squamous cell carcinoma, NOS",dermoscopic,,IL_3,IP_2,female\n'
            )
        },
        tuple(f"ISIC-images/{i}.jpg" for i in IDS[:3]),
        {"metadata.csv": known("hiba")},
    ),
}
TABLES = [(name, file) for name, source in SOURCES.items() for file in source.tables]
KEYS = {"image_id", "image", "bcn_filename", "isic_id", "img_id", "case_id"}


# ------------------------------------------------------------------------------- mutations


@dataclass
class Row:
    origin: int
    cells: list[str]
    touched: set[str] = field(default_factory=set)  # published columns


class Mutant:
    """A table with what was done to it."""

    def __init__(self, text: str) -> None:
        self.header, *rows = list(csv.reader(io.StringIO(text)))
        self.columns = list(self.header)  # what each was published as
        self.rows = [Row(i, cells) for i, cells in enumerate(rows)]
        self.originals = [dict(zip(self.header, cells, strict=True)) for cells in rows]
        self.lost: dict[str, str | None] = {}  # and the new name
        self.conflicts: set[int] = set()
        self.harmless = True

    def touch(self, row: Row, at: int, text: str) -> None:
        if row.cells[at] != text:
            row.cells[at], self.harmless = text, False
            row.touched.add(self.columns[at])


def drop_column(m: Mutant, a: int, b: int) -> None:
    if len(m.header) > 2:
        at = a % len(m.header)
        name = m.columns.pop(at)
        del m.header[at]
        for row in m.rows:
            del row.cells[at]
        if name not in m.columns:
            m.lost[name] = None
            m.harmless = False


def rename_column(m: Mutant, a: int, b: int) -> None:
    at = a % len(m.header)
    m.header[at] += ("_x", "s", "_2024")[b % 3]
    if m.columns.count(m.columns[at]) == 1:
        m.lost[m.columns[at]] = "_".join(m.header[at].lower().split())
        m.harmless = False


def rotate_columns(m: Mutant, a: int, b: int) -> None:
    at = a % len(m.header)
    for cells in (m.header, m.columns, *(row.cells for row in m.rows)):
        cells[:] = cells[at:] + cells[:at]


def double_column(m: Mutant, a: int, b: int) -> None:
    at = a % len(m.header)
    for cells in (m.header, m.columns, *(row.cells for row in m.rows)):
        cells.append(cells[at])


def other_case(m: Mutant, a: int, b: int) -> None:
    change = (str.upper, str.title, lambda t: f"  {t} ", lambda t: t.replace("_", " "))[b % 4]
    m.header[:] = [change(h) for h in m.header]


def cut_row(m: Mutant, a: int, b: int) -> None:
    if m.rows:
        del m.rows[a % len(m.rows)]
        m.harmless = False


def double_row(m: Mutant, a: int, b: int) -> None:
    if m.rows:
        row = m.rows[a % len(m.rows)]
        m.rows.append(Row(row.origin, list(row.cells), set(row.touched)))
        m.harmless = False  # reported, and an image in two rows of ISIC 2019 is left out


def contradict_row(m: Mutant, a: int, b: int) -> None:
    if m.rows:
        double_row(m, a, b)
        at = b % len(m.header)
        m.touch(m.rows[-1], at, "other")
        if not {c for c in m.rows[-1].touched if c in KEYS}:
            m.conflicts.add(m.rows[-1].origin)


WORDS = ("", "NaN", "n/a", "UNKNOWN", " null ", "None", "-")
JUNK = (
    "???",
    'a "b", c; d',
    "Fürth",
    "-7",
    "1e9",
    "x" * 300,
    "2,5,5",
    "\u202e\u200b",
    "[1]",
    "=1+1",
)


def blank_cell(m: Mutant, a: int, b: int) -> None:
    if m.rows:
        m.touch(m.rows[a % len(m.rows)], b % len(m.header), WORDS[(a // 7) % len(WORDS)])


def junk_cell(m: Mutant, a: int, b: int) -> None:
    if m.rows:
        m.touch(m.rows[a % len(m.rows)], b % len(m.header), JUNK[(a // 7) % len(JUNK)])


def long_cell(m: Mutant, a: int, b: int) -> None:
    if m.rows:
        length = (20_000, 140_000)[a % 2]
        m.touch(m.rows[a % len(m.rows)], b % len(m.header), "z" * length)


def decimal_commas(m: Mutant, a: int, b: int) -> None:
    """80.0 and 80,0 are the same, wherever they stand."""
    for row in m.rows:
        row.cells[:] = [c[:-2] + ",0" if c.endswith(".0") else c for c in row.cells]


def padded_cells(m: Mutant, a: int, b: int) -> None:
    for row in m.rows:
        row.cells[:] = [f" {c}\u00a0" if c else c for c in row.cells]


TABLE_CHANGES = (
    drop_column, rename_column, rotate_columns, double_column, other_case, cut_row, double_row,
    contradict_row, blank_cell, blank_cell, junk_cell, junk_cell, long_cell, decimal_commas,
    padded_cells,
)  # fmt: skip


def cut_text(content: bytes, a: int) -> bytes:
    return content[: len(content) - 1 - a % max(len(content) // 2, 1)]  # mostly rows are lost


def nul_byte(content: bytes, a: int) -> bytes:
    at = a % len(content)
    return content[:at] + b"\0" + content[at:]


def one_more(content: bytes, a: int) -> bytes:
    at, mark = a % len(content), (b'"', b",", b"\n", b";", b"\t", b"'", b"\xff")[a % 7]
    return content[:at] + mark + content[at:]


def one_less(content: bytes, a: int) -> bytes:
    at = a % len(content)
    return content[:at] + content[at + 1 :]


TEXT_CHANGES = (cut_text, nul_byte, one_more, one_less)


def written(m: Mutant, separator: str, end: str, quoting: int, encoding: str, blank: int) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, lineterminator=end, quoting=quoting)
    for number, cells in enumerate([m.header, *(row.cells for row in m.rows)]):
        writer.writerow(cells)
        out.write(end * (blank and number % blank == 0))
    return out.getvalue().encode(encoding, "replace")


FORMATS = st.tuples(
    st.sampled_from([",", ",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\n", "\r\n", "\r"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    st.integers(0, 2),
)
NUMBERS = st.integers(0, 10**6)
CHANGES = st.lists(st.tuples(st.sampled_from(TABLE_CHANGES), NUMBERS, NUMBERS), max_size=3)
# One in four is damaged as text, which tells less of the rest.
DAMAGE = st.tuples(st.sampled_from([None] * 9 + list(TEXT_CHANGES)), NUMBERS)


# -------------------------------------------------------------------------------- the check


class Place(tuple):
    def __repr__(self) -> str:  # in the report of a failure
        return f"<{self[2]}>"


@pytest.fixture(scope="module", params=TABLES, ids=lambda p: p[1])
def place(request, tmp_path_factory):
    """A source in a folder, the file to change, and what is read before it is changed."""
    name, file = request.param
    source, root = SOURCES[name], tmp_path_factory.mktemp(name)
    for address in source.images:
        (root / address).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3)).save(root / address)
    for other, text in source.files.items():
        (root / other).write_text(text, encoding="utf-8")
    frame, excluded = source.reader(root)
    assert len(frame) == len(source.images) and excluded.empty
    return Place((source, root, file, cells_of(frame), excluded.attrs["notes"]))


def cells_of(frame: pd.DataFrame) -> dict[str, dict[str, str]]:
    """The cells of each image that are not missing, as text."""
    text = frame.astype("string").set_index("image_id")
    rows = zip(text.index, text.to_dict("records"), strict=True)
    return {image: {c: v for c, v in row.items() if isinstance(v, str)} for image, row in rows}


def heads(notes: list[str]) -> list[str]:
    """Notes without the list of the columns that were found, whose order may differ."""
    return [note.partition("; found")[0] for note in notes]


def images_of(source: Source, row: dict[str, str]) -> list[str]:
    key = next(row[c] for c in row if c in KEYS)
    if source.cases:
        return [image for image, case in source.cases.items() if case == key]
    return stems(pd.Series([key], dtype="string")).tolist()


def outcome(source: Source, root: Path, file: str, content: bytes):
    """What is read when ``file`` holds ``content``; or the error."""
    (root / file).write_bytes(content)
    try:
        frame, excluded = source.reader(root)
    except TableError as error:
        assert str(root) in str(error) or file in str(error), error
        assert len(str(error)) < 5_000
        return error
    finally:
        (root / file).write_text(source.files[file], encoding="utf-8")
    told = set(excluded["image_id"])
    after, notes = cells_of(frame), excluded.attrs["notes"]
    images = {Path(address).stem for address in source.images}
    assert set(after) <= images
    for image in images - set(after):
        case = source.cases.get(image)
        said = image in told or case in told or any("image files are in no row" in n for n in notes)
        # Of a case in one of two tables a note says so by its name.
        said |= case is not None and any("no row for" in n and n.endswith(case) for n in notes)
        assert said, f"{image}: gone, untold"
    return after, excluded, notes


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(changes=CHANGES, form=FORMATS, damage=DAMAGE)
def test_a_changed_table_is_read_right_or_refused(place, changes, form, damage):
    source, root, file, before, notes_before = place
    mutant = Mutant(source.files[file])
    for change, a, b in changes:
        change(mutant, a, b)
    content = written(mutant, *form)
    found = outcome(source, root, file, content)
    if damage[0] is not None:
        damaged = outcome(source, root, file, damage[0](content, damage[1]))
        check_damage(source, found, damaged, nul=damage[0] is nul_byte)
        return
    if isinstance(found, TableError):
        readable = form[3] != "cp1252" or content.isascii()
        assert not (mutant.harmless and readable), f"refused without a reason: {found}"
        return
    after, excluded, notes = found
    if mutant.harmless:
        assert after == before and excluded.empty and heads(notes) == heads(notes_before)
        return
    new = " ".join(n for n in heads(notes) if n not in heads(notes_before))
    check_columns_are_told(source.tables[file], mutant, after, new, " ".join(notes))
    free = set().union(*(BECOMES.get(c, {c}) for c in mutant.lost))
    for number, original in enumerate(mutant.originals):
        # A row whose key is touched tells of another image or case.
        rows = [r for r in mutant.rows if r.origin == number and not r.touched & KEYS]
        touched = set().union(*(r.touched for r in rows))
        may = free.union(*(BECOMES.get(c, {c}) for c in touched))
        for image in images_of(source, original):
            if number in mutant.conflicts and len(rows) > 1:
                assert image not in after, "of two rows that differ, one was believed"
            if image in after:
                kept = {c: v for c, v in before[image].items() if c not in may}
                if rows:
                    assert {c: after[image].get(c) for c in kept} == kept
                else:
                    assert file in new, f"the row of {image} is gone without a word"


def check_columns_are_told(
    wanted: Columns, mutant: Mutant, after: dict[str, dict[str, str]], new: str, notes: str
) -> None:
    """An expected column that is lost is named, and so is the one that took its place."""
    there = {"_".join(h.lower().split()) for h in mutant.header}
    for column, name in mutant.lost.items():
        owner = next((n for n, ways in wanted.all.items() if column.lower() in ways), None)
        if owner in wanted.expected and not there.intersection(wanted.all[owner]):
            assert column.lower() in new, f"{column} is missing without a word"
            assert name is None or name in notes
        elif name and owner is None and not any(c == name for row in after.values() for c in row):
            assert not any(column in row for row in after.values())


def check_damage(source: Source, found, damaged, nul: bool) -> None:
    """A byte too many or too few is refused, or changes one cell, or a column that is named."""
    if isinstance(damaged, TableError):
        return
    assert not nul, "a NUL byte was read"
    if isinstance(found, TableError):
        return
    (before, _, notes_before), (after, _, notes) = found, damaged
    differ = {
        i: {c for c in {*before[i], *after[i]} if before[i].get(c) != after[i].get(c)}
        for i in after
        if i in before and after[i] != before[i]
    }
    if heads(notes) == heads(notes_before):
        rows = {source.cases.get(i, i) for i in differ}
        assert len(rows) <= 1, f"{rows} changed without a word"
        for image, cells in differ.items():  # by one published cell, not by cells that moved
            one = any(cells <= BECOMES.get(c, {c}) for c in {*BECOMES, *cells})
            assert one, f"{cells} of {image} changed without a word"
