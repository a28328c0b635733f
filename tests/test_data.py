"""Stage 01: table, vocabulary, splits and images of a preset, from phantom and from files."""

import io
import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from derm_rl import config, data, paths
from derm_rl.data import ham10000, phantom, table
from derm_rl.data.table import TableError

SHARES = "{diffusion: 0.4, reward: 0.2, judge: 0.2, test: 0.2}"
BASE = ["image_size=16", f"data.split={SHARES}", "data.artifacts=[hair, gel_bubble, ruler, ink]"]


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")


def phantom_config(*overrides: str) -> config.Config:
    settings = ["data.source=phantom", "data.images=80", "data.min_positives=4"]
    return config.load("demo", [*BASE, *settings, *overrides])


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((40, 30)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def files(tmp_path):
    """A small HAM10000 download: 60 images of 40 lesions, hair in half, ink in three."""
    n, root = 60, tmp_path / "download"
    root.mkdir()
    ids = [f"ISIC_{k:07d}" for k in range(n)]
    meta = pd.DataFrame({"lesion_id": [f"HAM_{k % 40}" for k in range(n)], "image_id": ids})
    meta["dx"] = ["mel" if k % 4 == 0 else "nv" for k in range(n)]
    meta = meta.assign(dx_type="histo", age=50, sex="male", localization="back")
    meta.to_csv(root / "HAM10000_metadata.csv", index=False)
    notes = pd.DataFrame({"image": ids, "hair": [k // 2 % 2 for k in range(n)]})
    notes["gel_bubble"] = [int(k % 3 == 0) for k in range(n)]
    notes["ink"] = [int(k < 3) for k in range(n)]
    notes = notes.assign(ruler=0, dark_corner=0)
    notes["official_split"] = ["train" if k < 45 else "test" for k in range(n)]
    notes.to_csv(root / "isic2019_artifacts.csv", index=False)
    with zipfile.ZipFile(root / "HAM10000_images.zip", "w") as archive:
        for k, name in enumerate(ids):
            archive.writestr(f"{name}.jpg", jpeg(k))
    return root


def ham_config(root, *overrides: str) -> config.Config:
    settings = ["data.source=ham10000", "data.images=null", "data.min_positives=5"]
    settings.append("classifier.decoys=0")
    return config.load("demo", [*BASE, *settings, "data.on_error=raise", *overrides], root)


def spoil(root, k: int) -> None:
    """Cut image ``k`` short, as a broken-off download does."""
    with zipfile.ZipFile(root / "HAM10000_images.zip") as archive:
        content = {m: archive.read(m) for m in archive.namelist()}
    name = f"ISIC_{k:07d}.jpg"
    content[name] = content[name][:200]
    with zipfile.ZipFile(root / "HAM10000_images.zip", "w") as archive:
        for member, image in content.items():
            archive.writestr(member, image)


def test_phantom_images_masks_and_rows_belong_together():
    settings = phantom_config()
    folder = data.prepare(settings, progress=False)
    found = data.load(settings)
    assert found.images.shape == (80, 16, 16, 3) and found.images.dtype == np.uint8
    masks = np.load(folder / "masks.npy")
    assert masks.shape == (80, 16, 16)
    for row in (0, 17, 79):
        image, mask = phantom.render_paths([found.frame["path"][row]], 16)
        assert np.array_equal(found.images[row], image[0])
        assert np.array_equal(masks[row], mask[0])


def test_a_split_is_a_part_of_the_whole_and_stays_on_disk():
    settings = phantom_config()
    data.prepare(settings, progress=False)
    whole = data.load(settings)
    parts = [data.load(settings, name) for name in ("diffusion", "reward", "judge", "test")]
    assert sum(map(len, parts)) == len(whole) == 80
    for part in parts:
        assert part.frame["split"].nunique() == 1
        assert isinstance(part.images, np.memmap)
        again = data.load(settings, ids=part.frame["image_id"])
        assert np.array_equal(again.images, part.images)
        assert np.array_equal(again.labels, part.labels)
    lesions = [set(part.lesion_ids) for part in parts]
    assert sum(map(len, lesions)) == len(set.union(*lesions))
    part.images[0] = 0  # a copy on write: the file keeps what it has
    assert np.array_equal(data.load(settings).images, whole.images)


def test_labels_are_the_table_in_the_vocabularys_order():
    settings = phantom_config("data.artifacts=[hair, gel_bubble, ruler]")
    data.prepare(settings, progress=False)
    found = data.load(settings)
    assert found.label_names == ["hair", "gel_bubble", "ruler", "MEL"]
    assert found.labels.dtype == np.float32
    for k, name in enumerate(found.artifacts):
        assert np.array_equal(found.labels[:, k], found.frame[name].to_numpy(float))
    assert np.array_equal(found.labels[:, -1] == 1, found.frame["diagnosis"] == "MEL")
    assert found.findings[5].diagnosis == found.frame["diagnosis"][5]


def test_the_same_settings_give_the_same_files():
    settings = phantom_config()
    folder = data.prepare(settings, progress=False)
    names = ["table.csv", "images.npy", "masks.npy", "vocabulary.json"]
    before = [(folder / n).read_bytes() for n in names]
    data.prepare(settings, progress=False)
    assert [(folder / n).read_bytes() for n in names] == before
    assert not [f for f in folder.iterdir() if f.name.startswith(".")]


def test_real_files_and_what_is_left_out_is_said(files, capsys):
    settings = ham_config(files)
    folder = data.prepare(settings, progress=False)
    out = capsys.readouterr().out
    assert "ink left out: 3 images, fewer than data.min_positives=5" in out
    assert "ruler left out: 0 images" in out
    assert "published splits: 15 lesions (30 images) are in more than one" in out
    words = data.vocabulary(settings)
    assert words.artifacts == ("hair", "gel_bubble") and words.diagnoses == ("MEL", "NV")
    assert words.left_out == {"ruler": 0, "ink": 3}
    assert words.label_names == data.load(settings).label_names == ["hair", "gel_bubble", "MEL"]
    assert pd.read_csv(folder / "published_splits.csv")["lesions"].tolist() == [15, 15]
    assert json.loads((folder / "stage.json").read_text())["facts"]["images"] == 60
    found = data.load(settings)
    assert not (folder / "masks.npy").exists() and len(found) == 60
    expected = table.load_image(found.frame["path"][7], 16)
    assert np.array_equal(found.images[7], expected)


@pytest.mark.parametrize("crop, kept", [("null", None), ("center", "center")])
def test_the_preset_says_whether_images_are_cut_square(files, crop, kept):
    settings = ham_config(files, f"data.crop={crop}")
    data.prepare(settings, progress=False)
    whole = data.load(settings)
    for row in (0, len(whole) - 1):
        expected = table.load_image(whole.frame["path"][row], 16, crop=kept)
        assert np.array_equal(whole.images[row], expected)


def test_summary_counts_by_split_and_in_all(files):
    settings = ham_config(files)
    data.prepare(settings, progress=False)
    found = data.load(settings)
    counts = data.summary(found)
    assert counts.index.tolist() == ["diffusion", "reward", "judge", "test", "all"]
    assert counts.columns.tolist() == ["images", "lesions", "MEL", "NV", "hair", "gel_bubble"]
    assert (counts.iloc[:4].sum() == counts.loc["all"]).all()
    assert counts.loc["all"].tolist() == [60, 40, 15, 45, 30, 20]


def test_a_damaged_image_stops_or_is_left_out_and_nothing_half_is_left(files, capsys):
    spoil(files, 9)
    settings = ham_config(files)
    with pytest.raises(TableError, match=r"1 images .*ISIC_0000009.jpg: cannot be decoded .*exclu"):
        data.prepare(settings, progress=False)
    folder = settings.stage_dir("01_data")
    assert not list(folder.glob("*.npy")) and not (folder / "stage.json").exists()
    with pytest.raises(config.MissingArtifact):
        data.load(settings)

    settings = ham_config(files, "data.on_error=exclude")
    folder = data.prepare(settings, progress=False)
    assert "1 images excluded, each named in exclusions.csv:\n  1: damaged file\n" in (
        capsys.readouterr().out
    )
    excluded = pd.read_csv(folder / "exclusions.csv")
    assert excluded["image_id"].tolist() == ["ISIC_0000009"]
    assert "cannot be decoded" in excluded["reason"][0]
    found = data.load(settings)
    assert len(found) == len(found.images) == 59
    assert sorted(f.name for f in folder.glob("*.npy")) == ["images.npy"]
    for row in range(0, 59, 7):
        assert np.array_equal(found.images[row], table.load_image(found.frame["path"][row], 16))


def test_a_stage_that_fails_again_is_not_taken_for_finished(files):
    settings = ham_config(files)
    data.prepare(settings, progress=False)
    (files / "isic2019_artifacts.csv").unlink()
    with pytest.raises(TableError):
        data.prepare(settings, progress=False)
    with pytest.raises(config.MissingArtifact):
        data.load(settings)


def test_a_subset_is_of_whole_lesions(files):
    settings = ham_config(files, "data.images=30", "data.min_positives=1")
    data.prepare(settings, progress=False)
    frame = data.load(settings).frame
    assert len(frame) == pytest.approx(30, abs=2)
    everything, _ = ham10000.read(files)
    sizes = everything["lesion_id"].value_counts().to_dict()
    found = frame["lesion_id"].value_counts().to_dict()
    assert found == {lesion: sizes[lesion] for lesion in found}


def test_images_that_show_the_same_are_reported_and_stay_in_one_split(files, capsys):
    with zipfile.ZipFile(files / "HAM10000_images.zip") as archive:
        content = {m: archive.read(m) for m in archive.namelist()}
    ids = [f"ISIC_{k:07d}" for k in (0, 1, 2, 3)]
    shown = Image.fromarray(phantom.render_path("phantom::1/4/MEL/hair", 120))
    for name, angle in zip(ids, (0, 90, 180, 90), strict=True):
        out = io.BytesIO()
        shown.rotate(angle).save(out, "JPEG", quality=90)
        content[f"{name}.jpg"] = out.getvalue()
    with zipfile.ZipFile(files / "HAM10000_images.zip", "w") as archive:
        for member, image in content.items():
            archive.writestr(member, image)
    (files / "same_images.csv").write_text(
        "image_id_1,image_id_2,same,by\n" + "".join(f"{ids[3]},{i},no,Ada\n" for i in ids[:3])
    )
    settings = ham_config(files)
    folder = data.prepare(settings, progress=False)
    assert (
        "same images: 3 pairs under different lesion ids, each kept in one split; 0 more of one "
        "lesion id (data_same_images.csv); 3 kept apart by same_images.csv\n"
    ) in capsys.readouterr().out
    ties = pd.read_csv(settings.figures_dir / "data_same_images.csv")
    assert ties["tied"].tolist().count(True) == 3 and (ties["score"].dropna() > 0.8).all()
    assert ties.equals(pd.read_csv(folder / "data_same_images.csv"))
    frame = data.load(settings).frame.set_index("image_id")
    assert frame.loc[ids, "same_image_as"].fillna("").tolist() == ["", ids[0], ids[0], ""]
    found = data.load(settings)
    by_lesion = found.frame["lesion_id"].map({f"HAM_{k}": "HAM_0" for k in (0, 1, 2)})
    together = found.frame["split"][by_lesion.notna()]  # each lesion has another image, too
    assert len(together) == 6 and together.nunique() == 1
    assert data.summary(found).loc["all", "lesions"] == 38


def test_settings_that_do_not_fit_the_data(files, tmp_path):
    with pytest.raises(config.ConfigError, match="artifacts: unknown name 'hairs'; did you mean"):
        phantom_config("data.artifacts=[hairs]")
    with pytest.raises(ValueError, match="data.diagnoses: no image shows BCC"):
        data.prepare(phantom_config("data.diagnoses=[MEL, BCC]"), progress=False)
    with pytest.raises(ValueError, match="no artifact is in 1000 images or more"):
        data.prepare(ham_config(files, "data.min_positives=1000"), progress=False)
    with pytest.raises(config.ConfigError, match="--data-root"):
        data.prepare(ham_config(None), progress=False)
    settings = phantom_config()
    with pytest.raises(config.MissingArtifact, match="01_data"):
        data.vocabulary(settings)
    data.prepare(settings, progress=False)
    with pytest.raises(ValueError, match="no images in split 'train'; splits are diffusion, re"):
        data.load(settings, "train")
    with pytest.raises(KeyError, match="unknown image ids: nobody"):
        data.load(settings, ids=["nobody"])


def test_the_real_subset_end_to_end(ham10000_root, capsys):
    settings = ham_config(
        ham10000_root, "data.images=300", "data.on_error=exclude", "data.min_positives=4"
    )
    data.prepare(settings, progress=False)
    assert "ink left out" in capsys.readouterr().out
    found = data.load(settings, "test")
    assert found.label_names == ["hair", "gel_bubble", "ruler", "MEL"]
    assert found.images.std() > 10
