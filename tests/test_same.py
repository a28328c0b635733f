"""Near-identical images: copies are found however changed, look-alikes are not; people overrule."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

from derm_rl.captions import export
from derm_rl.data import ham10000, phantom, same, splits, table
from derm_rl.data.table import TableError

BASE = 6


def recoded(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(out)


def cropped(image: Image.Image, *shares: float) -> Image.Image:
    width, height = image.size
    left, top, right, bottom = shares
    box = (width * left, height * top, width * (1 - right), height * (1 - bottom))
    return image.crop(tuple(map(round, box)))


def coloured(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image) * [1.1, 0.9, 0.8] + [5, 0, 12]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


CHANGES = {
    "copied": lambda i: i,
    "compressed": lambda i: recoded(i, 60),
    "shrunk": lambda i: i.resize((i.width * 2 // 3, i.height * 2 // 3)),
    "mirrored": lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by a quarter": lambda i: i.transpose(Image.Transpose.ROTATE_90),
    "turned by ten degrees": lambda i: i.rotate(10, Image.Resampling.BICUBIC),
    "brightened": lambda i: ImageEnhance.Brightness(i).enhance(1.2),
    "coloured": coloured,
    "cropped": lambda i: cropped(i, 0.05, 0.05, 0.05, 0.05),
    "shifted": lambda i: Image.fromarray(np.roll(np.asarray(i), (6, -9), (0, 1))),
    "all at once": lambda i: recoded(coloured(cropped(i.transpose(1), 0.05, 0, 0, 0.05)), 70),
}


def written(folder, images: dict[str, Image.Image]) -> pd.DataFrame:
    """A table of images in files; a lesion each."""
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    frame = pd.DataFrame({"image_id": list(images)}, dtype="string")
    return frame.assign(
        path=[str(folder / f"{i}.png") for i in images],
        lesion_id=("L" + frame["image_id"]).astype("string"),
    )


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    """Six lesions, 160 px."""
    paths = phantom.table(40, 3).drop_duplicates("lesion_id")["path"].tolist()[:BASE]
    return [Image.fromarray(phantom.render_path(path, 160)) for path in paths]


@pytest.fixture
def twins(tmp_path, drawn) -> pd.DataFrame:
    """Three lesions; b shows a's again, mirrored, and c shows it compressed."""
    images = {"a": drawn[0], "b": drawn[0].transpose(0), "c": recoded(drawn[0], 70)}
    return written(tmp_path, images | {"d": drawn[1], "e": drawn[2]})


# ------------------------------------------------------------------------------------- found


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else_is(tmp_path, drawn, change):
    images = {f"{k:02d}": image for k, image in enumerate(drawn)}
    images |= {f"{k}x": CHANGES[change](image) for k, image in enumerate(drawn)}
    pairs = same.find(written(tmp_path, images))
    found = set(zip(pairs["image_id_1"], pairs["image_id_2"], strict=True))
    expected = {(f"{k:02d}", f"{k}x") for k in range(BASE)}
    assert not found - expected
    assert len(found) >= BASE - (change == "all at once")
    assert pairs["score"].between(same.SAME, 1).all()


def test_images_that_show_nothing_or_cannot_be_read_have_no_twin(tmp_path, drawn):
    flat = Image.new("RGB", (60, 60), "gray")
    frame = written(tmp_path, {"a": flat, "b": flat, "c": drawn[0], "d": drawn[0], "e": drawn[0]})
    (tmp_path / "e.png").write_bytes(b"no image")
    pairs = same.find(frame)
    assert pairs.values.tolist() == [["c", "d", 1.0]]
    assert same.find(frame.iloc[:1]).empty


def test_drawn_images_are_not_compared(monkeypatch):
    monkeypatch.setattr(table, "load_image", None)
    assert same.find(phantom.table(50, 0)).empty


def test_what_was_looked_at_once_is_not_decoded_again(tmp_path, twins, monkeypatch):
    cache = tmp_path / "cache" / "same.npz"
    first, asked, load = same.find(twins, cache), [], table.load_image
    monkeypatch.setattr(table, "load_image", lambda *a, **k: asked.append(a[0]) or load(*a, **k))
    assert same.find(twins, cache).equals(first) and not asked
    Image.open(tmp_path / "d.png").rotate(90).save(tmp_path / "e.png")  # another image, same name
    changed = same.find(twins, cache)
    assert asked == [str(tmp_path / "e.png")]
    assert ["d", "e"] in changed[["image_id_1", "image_id_2"]].values.tolist()
    cache.write_bytes(cache.read_bytes()[:5000])
    assert same.find(twins, cache).equals(changed) and len(asked) == 6


def test_the_lesions_that_ham10000_has_twice_and_its_look_alikes(ham10000_root):
    twice = "25226 30074 27027 29036 33421 33481 33556 32634 25387 29880"
    alike = "25635 26838 30703 32852 26660 26657 33252 33283 32886 24704 26141 29493"
    ids = [f"ISIC_{int(i):07d}" for i in (twice + " " + alike).split()]
    images = ham10000.find_images(ham10000_root, "HAM10000_images*")
    frame = pd.DataFrame({"image_id": ids, "path": [images[i] for i in ids]}, dtype="string")
    pairs = same.find(frame)
    found = {frozenset(p) for p in zip(pairs["image_id_1"], pairs["image_id_2"], strict=True)}
    assert found == {frozenset(ids[k : k + 2]) for k in range(0, 10, 2)}


# -------------------------------------------------------------------------------------- tied


def parts(frame: pd.DataFrame) -> list[set[str]]:
    """Images of each group, those alone aside."""
    found = [set(ids) for _, ids in frame["image_id"].groupby(splits.groups(frame))]
    return sorted((g for g in found if len(g) > 1), key=min)


def test_no_split_parts_what_is_the_same(twins):
    frame, ties = splits.with_ties(twins)
    assert frame["same_image_as"].fillna("").tolist() == ["", "a", "a", "", ""]
    assert list(ties.columns) == splits.TIES and ties["tied"].all() and len(ties) == 3
    assert "3 pairs under different lesion ids" in splits.described(ties, "x.csv")
    assert parts(frame) == [{"a", "b", "c"}]
    assert splits.groups(frame).tolist() == ["La", "La", "La", "Ld", "Le"]
    pairs = frame[["image_id", "lesion_id"]].assign(source="s", patient_id=pd.NA)
    for seed in range(6):
        assert splits.assign(frame, {"x": 0.5, "y": 0.5}, seed)[:3].nunique() == 1
        shares = {"train": 0.5, "test": 0.5}
        # c has no pair of its own, and b is tied to it alone
        images = frame.assign(same_image_as=[pd.NA, "c", "a", pd.NA, pd.NA])
        dealt = export.split(pairs.drop(index=2), shares, seed, images)
        assert dealt[:2].nunique() == 1 and dealt.nunique() == 2


def test_lesions_patients_and_ties_hold_together_at_any_remove():
    frame = pd.DataFrame(
        {
            "image_id": list("abcdefgh"),
            "source": ["s"] * 7 + ["t"],
            "lesion_id": ["1", "1", "2", pd.NA, "3", pd.NA, "4", "1"],
            "patient_id": [pd.NA, pd.NA, "p", "p", pd.NA, pd.NA, pd.NA, "p"],
            "same_image_as": [pd.NA, "c", pd.NA, pd.NA, "f", pd.NA, pd.NA, pd.NA],
        },
        dtype="string",
    )
    assert parts(frame) == [{"a", "b", "c", "d"}, {"e", "f"}]
    assert parts(frame.sample(frac=1, random_state=1)) == parts(frame)


# ----------------------------------------------------------------------------------- overruled


def say(folder, *rows: str) -> None:
    (folder / "same_images.csv").write_text(
        "\n".join(["image_id_1,image_id_2,same,by,why", *rows]), encoding="utf-8"
    )


def test_a_person_ties_and_unties(tmp_path, twins):
    say(tmp_path, "e,d,yes,Ada,one scar", "a,b,no,Ada,looked", "c,b,No,Ada,looked", "d,zz,no,,")
    frame, ties = splits.with_ties(twins, [tmp_path])
    assert parts(frame) == [{"a", "c"}, {"d", "e"}]
    ties = ties.set_index(["image_id_1", "image_id_2"])
    assert ties["tied"].to_dict() == {
        ("a", "b"): False, ("a", "c"): True, ("b", "c"): False, ("d", "e"): True,
    }  # fmt: skip
    assert pd.isna(ties.loc[("d", "e"), "score"]) and ties.loc[("a", "b"), "score"] > same.SAME
    assert ties.loc[("a", "b"), "said_by"] == f"{tmp_path / 'same_images.csv'}, line 3"
    assert "2 kept apart by same_images.csv" in splits.described(ties.reset_index(), "x.csv")


def test_a_person_may_name_files_and_learns_of_names_that_are_none(tmp_path, twins, capsys):
    say(tmp_path, "images/e.jpg,d.png,yes,Ada,one scar", "a,b_typo,no,Ada,looked")
    frame, ties = splits.with_ties(twins, [tmp_path])
    assert {"d", "e"} in parts(frame) and "b_typo" not in set(ties["image_id_2"])
    assert "same_images.csv: not among the images" in (said := capsys.readouterr().out)
    assert said.rstrip().endswith(": b_typo")


def test_files_with_the_same_content_are_tied_and_can_be_untied(tmp_path, twins):
    frame = twins.assign(same_image_as=[pd.NA, pd.NA, pd.NA, pd.NA, "d"])
    assert parts(splits.with_ties(frame)[0]) == [{"a", "b", "c"}, {"d", "e"}]
    say(tmp_path, "d,e,no,Ada,a placeholder")
    assert parts(splits.with_ties(frame, [tmp_path])[0]) == [{"a", "b", "c"}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,b,perhaps,,"], "line 2, column 'same': expected yes or no; found 'perhaps'"),
        (["a,b,yes,,", "a,,yes,,"], "line 3, column 'image_id_2': expected the id of another"),
        (["a,a,yes,,"], "line 2, column 'image_id_2': .* than a; found 'a'"),
        (["a,d,yes,,", "d,a,no,,"], "line 3, column 'same': says no of d and a, and line 2 the"),
        (["a,b,no,,"], "line 2: column 'same' says no of a and b, but others tie them .*a, b, c"),
    ],
)
def test_what_cannot_be_meant_names_row_and_column(tmp_path, twins, rows, message):
    say(tmp_path, *rows)
    with pytest.raises(TableError, match=f"same_images.csv(:|,) {message}"):
        splits.with_ties(twins, [tmp_path])


def test_a_column_that_is_missing_is_named(tmp_path, twins):
    (tmp_path / "same_images.csv").write_text("image_id_1,image_id_2\na,b\n")
    with pytest.raises(TableError, match=r"same_images.csv: column 'same' is missing; found"):
        splits.with_ties(twins, [tmp_path])
