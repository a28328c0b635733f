"""A release: what goes in, whole groups in one split, the same bytes, and readers that open it."""

import filecmp
import io
import json
import tarfile
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from derm_rl.captions import card, croissant, export, export_formats, export_images
from derm_rl.captions.export_parquet import inert, parse_findings
from derm_rl.captions.schema import PAIR_COLUMNS
from derm_rl.data import phantom

FINDINGS = [
    {"name": "asymmetry", "value": "one", "evidence": "0.8", "box": [0.1, 0.2, 0.5, 0.6]},
    {"name": "hair", "value": "none", "evidence": "score -1", "box": None},
]  # fmt: skip
TYPES = ("overview", "diagnosis", "next_steps")
FACTS = {
    "date_published": "2025-06-01", "cite_as": "derm_rl, 2025", "url": "https://example.org/pairs",
    "creators": ["A. Reader"], "title": "Phantom pairs",
}  # fmt: skip


def make(n: int = 30, seed: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A table of phantom images and one of pairs: every fifth image has a conversation."""
    images, rows = phantom.table(n, seed), []
    for i, image in enumerate(images.to_dict("records")):
        multi = i % 5 == 0
        for k in range(3 if multi else 2):
            about = {name: image.get(name) for name in PAIR_COLUMNS if name in image}
            rows.append(about | {
                "pair_id": f"{i:04x}{k}", "question_type": TYPES[k],
                "style": "multi" if multi else "single", "turn": k if multi else 0,
                "conversation": f"c{i}" if multi else f"c{i}-{k}", "mode": "blind",
                "language": "ja" if i % 4 == 0 else "en", "confidence": 0.5, "abstained": False,
                "question": "何が見えますか？" if i % 4 == 0 else "What do you see?",
                "answer": f"Lesion {i}, turn {k}: 茶色 🩺.", "findings": json.dumps(FINDINGS),
                "teacher": "measured", "status": "ok", "reason": "", "modality": "dermoscopic",
                "label": pd.NA,
            })  # fmt: skip
    return images, pd.DataFrame(rows)[list(PAIR_COLUMNS)]


def pixels(image_id: str) -> bytes:
    """A small image of its own for every id."""
    rng = np.random.default_rng(list(image_id.encode()))
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def released(folder, images_frame, pairs, **options):
    options = {"redistributable": {"Apache-2.0"}, "load": pixels, "facts": FACTS} | options
    return export.release(pairs, images_frame, folder, **options)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    images, pairs = make()
    folder = released(tmp_path_factory.mktemp("export") / "release", images, pairs)
    return images, pairs, folder


def all_files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# ------------------------------------------------------------------------------------ formats


def test_datasets_opens_it_with_images_types_and_whole_groups(release, tmp_path):
    import datasets

    images, pairs, folder = release
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    assert list(found) == ["train", "validation", "test"]
    assert sum(map(len, found.values())) == len(pairs)
    assert found["train"].features == export_parquet_features("embed")
    row = found["train"][0]
    want = pairs.set_index("pair_id").loc[row["pair_id"]]
    assert row["answer"] == want["answer"] and row["findings"] == FINDINGS
    assert row["label"] is None and row["skin_type"] == want["skin_type"]
    assert np.array_equal(
        np.asarray(row["image"]), np.asarray(Image.open(io.BytesIO(pixels(row["image_id"]))))
    )
    seen = {s: set(found[s]["patient_id"]) for s in found}
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]
    ids = found["train"]["image_id"]
    assert list(ids) == sorted(ids)


def export_parquet_features(images):
    from derm_rl.captions.export_parquet import features

    return features(images)


def test_conversations_stay_whole_and_in_order_in_every_format(release):
    _, pairs, folder = release
    turns = pairs.groupby("conversation").size()
    for split in ("train", "validation", "test"):
        llava = json.loads((folder / "llava" / f"{split}.json").read_text())
        lines = (folder / "messages" / f"{split}.jsonl").read_text().splitlines()
        chats = [json.loads(line) for line in lines]
        assert [c["id"] for c in chats] == [c["id"] for c in llava]
        for one, chat in zip(llava, chats, strict=True):
            conversation = pairs.set_index("pair_id").loc[one["id"], "conversation"]
            said = [t["value"] for t in one["conversations"]]
            assert len(said) == 2 * turns[conversation] == len(chat["messages"])
            assert said[0].startswith("<image>\n") and sum(t.count("<image>") for t in said) == 1
            answers = pairs[pairs["conversation"] == conversation].sort_values("turn")["answer"]
            assert said[1::2] == answers.tolist()
            parts = [p["type"] for m in chat["messages"] for p in m["content"]]
            assert parts.count("image") == len(chat["images"]) == 1 and parts[0] == "image"
            assert [m["role"] for m in chat["messages"]] == ["user", "assistant"] * (len(said) // 2)


def test_webdataset_shards_hold_a_sample_a_pair(tmp_path):
    images, pairs = make(12)
    folder = released(tmp_path / "r", images, pairs, samples_per_shard=10)
    names, shards = {}, sorted((folder / "webdataset").glob("*.tar"))
    assert len([s for s in shards if s.name.startswith("train-")]) > 1
    for shard in shards:
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            assert len(members) <= 20
            assert {(m.mtime, m.uid, m.uname, m.mode) for m in members} == {(0, 0, "", 0o644)}
            for m in members:
                stem, suffix = m.name.split(".")
                names.setdefault(stem, {})[suffix] = tar.extractfile(m).read()
    assert set(names) == set(pairs["pair_id"])
    answers = pairs.set_index("pair_id")["answer"]
    for pair, parts in names.items():
        assert set(parts) == {"png", "json"}
        assert json.loads(parts["json"])["answer"] == answers[pair]


def test_croissant_has_no_issues_and_yields_the_records(release, caplog):
    import mlcroissant as mlc

    _, pairs, folder = release
    found = mlc.Dataset(str(folder / "croissant.json"))
    assert found.metadata.ctx.issues.report() == ""
    assert not found.metadata.ctx.issues.warnings and not found.metadata.ctx.issues.errors
    rows = list(found.records("pairs"))
    assert {r["pairs/pair_id"].decode() for r in rows} == set(pairs["pair_id"])
    assert {r["pairs/split"].decode() for r in rows} == {"train", "validation", "test"}
    assert rows[0]["pairs/image"].size == (8, 8)
    assert rows[0]["pairs/findings"][0]["pairs/findings/name"] == b"asymmetry"
    assert "drawn phantoms" in found.metadata.description


def test_the_card_counts_what_is_there_and_says_what_it_is(release):
    images, pairs, folder = release
    text = (folder / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "apache-2.0" and header["language"] == ["en", "ja"]
    assert header["size_categories"] == ["n<1K"]
    assert [c["split"] for c in header["configs"][0]["data_files"]] == [
        "train",
        "validation",
        "test",
    ]
    assert f"{len(pairs)} pairs about {len(images)} images" in text
    assert f"**{len(images)} of {len(images)} images are phantoms**" in text
    assert f"**{len(pairs)} of {len(pairs)} answers are rule-based**" in text
    assert "For research only" in text and "No pair was left out" in text
    assert f"| phantom | Apache-2.0 | derm\\_rl phantom | {len(images)} |" in text
    japanese = pairs[pairs["language"] == "ja"]
    assert f"| ja | {len(japanese)} | {japanese['image_id'].nunique()} |" in text


def test_every_pair_traces_to_its_ledger_row(tmp_path):
    images, pairs = make(6)
    pairs["ledger_key"] = [pd.NA] + [f"key{i}" for i in range(len(pairs) - 1)]
    folder = released(tmp_path / "r", images, pairs)
    table = pd.read_csv(folder / "provenance.csv", dtype=str).set_index("pair_id")
    assert set(table.index) == set(pairs["pair_id"])
    assert table.loc[pairs["pair_id"][0], "ledger_key"] == pairs["pair_id"][0]
    assert table.loc[pairs["pair_id"][1], "ledger_key"] == "key0"
    assert (table["teacher"] == "measured").all() and (table["mode"] == "blind").all()


def test_referenced_images_are_files_beside_the_table(tmp_path):
    import datasets

    images, pairs = make(8)
    folder = released(tmp_path / "r", images, pairs, images="reference")
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "c"))
    assert found["train"].features == export_parquet_features("reference")
    paths = {p for s in found for p in found[s]["image_path"]}
    assert len(paths) == len(images) and all((folder / p).is_file() for p in paths)
    with tarfile.open(folder / "webdataset" / "train-00000.tar") as tar:
        assert tar.getmembers()[0].name.endswith(".png")


# -------------------------------------------------------------------------------- determinism


def test_the_same_pairs_give_the_same_bytes_in_any_order_of_rows(release, tmp_path):
    images, pairs, folder = release
    images_too, pairs_too = (
        images.sample(frac=1, random_state=2),
        pairs.sample(frac=1, random_state=3),
    )
    again = released(tmp_path / "again", images_too, pairs_too)
    names = all_files(folder)
    assert all_files(again) == names and len(names) > 9
    assert filecmp.cmpfiles(folder, again, names, shallow=False)[0] == names
    other = released(tmp_path / "other", images, pairs, seed=1)
    same = filecmp.cmpfiles(folder, other, names, shallow=False)[0]
    assert "data/train-00000.parquet" not in same


def test_many_parquet_files_hold_what_one_does(release, tmp_path, monkeypatch):
    import datasets

    from derm_rl.captions import export_parquet

    images, pairs, folder = release
    monkeypatch.setattr(export_parquet, "SHARD_BYTES", 4000)
    monkeypatch.setattr(export_parquet, "ROW_GROUP", 7)
    many = released(tmp_path / "many", images, pairs)
    assert len(list((many / "data").glob("train-*.parquet"))) > 2
    a = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "a"))
    b = datasets.load_dataset(str(many), split="train", cache_dir=str(tmp_path / "b"))
    assert a["pair_id"][:] == b["pair_id"][:] and a["answer"][:] == b["answer"][:]
    assert (many / "llava/train.json").read_bytes() == (folder / "llava/train.json").read_bytes()


def test_a_release_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    images, pairs = make(6)
    folder = released(tmp_path / "r", images, pairs)
    before = {n: (folder / n).read_bytes() for n in all_files(folder)}

    def broken(image_id):
        if image_id == images["image_id"].iloc[3]:
            raise RuntimeError("the disk is on fire")
        return pixels(image_id)

    with pytest.raises(RuntimeError, match="on fire"):
        released(folder, images, pairs, load=broken)
    assert {n: (folder / n).read_bytes() for n in all_files(folder)} == before
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


# ----------------------------------------------------------------------------- what goes in


def reasons(pairs, images, **options) -> dict[str, int]:
    options = {"redistributable": {"Apache-2.0"}} | options
    kept, out = export.choose(pairs, images, **options)
    assert len(kept) + len(out) == len(pairs)
    assert not set(kept["pair_id"]) & set(out["pair_id"])
    return out["reason"].value_counts().to_dict()


def test_only_good_licensed_unflagged_pairs_go_in_and_the_rest_is_counted(tmp_path):
    images, pairs = make(30)
    single = pairs.index[pairs["style"] == "single"]
    pairs.loc[single[0], "status"] = "blocked"
    pairs.loc[single[1], "licence"] = "CC BY-NC-ND 4.0"
    pairs.loc[single[2], "licence"] = pd.NA
    pairs["review"] = pd.Series(pd.NA, index=pairs.index, dtype="string")
    pairs.loc[single[3], "review"] = "reject"
    pairs.loc[single[4], "review"] = "edit"
    texts = ["answer", "findings", "licence"]
    pairs[texts] = pairs[texts].astype(object)  # other columns cannot hold half a character
    pairs.loc[single[5], "answer"] = pd.NA
    pairs.loc[single[6], "findings"] = '{"name": '
    pairs.loc[single[7], "answer"] = "half a pair of \ud800"
    pairs.loc[single[8], "findings"] = json.dumps([FINDINGS[0] | {"value": "\udc00"}])
    flags = pd.DataFrame(
        {"pair_id": pairs.loc[single[[9, 9, 10, 0]], "pair_id"].tolist(), "reason": "said so"}
        | {"check": ["length", "safety", "style", "length"]}
    )
    want = {
        "status: blocked": 1, "licence allows unchanged copies only (CC BY-NC-ND 4.0)": 1,
        "no licence given": 1, "rejected in review": 1,
        "text cannot be stored": 4,
    }  # fmt: skip
    assert reasons(pairs, images) == want
    found = reasons(pairs, images, flags=flags, blocking={"length", "safety"})
    assert found == want | {"flagged by check: length": 1}
    found = reasons(pairs, images, flags=flags)
    assert found == want | {"flagged by check: length": 1, "flagged by check: style": 1}
    folder = released(tmp_path / "r", images, pairs, flags=flags, blocking=["length", "safety"])
    text = (folder / "README.md").read_text()
    assert "| text cannot be stored | phantom | 4 |" in text
    assert "| length | yes | 2 | 1 |" in text and "| style | no | 1 | 0 |" in text
    assert len(pd.read_csv(folder / "provenance.csv")) == len(pairs) - 9


def test_a_boolean_column_of_the_images_decides_and_missing_never_passes():
    images, pairs = make(6)
    images["may"] = pd.array([True, False, pd.NA, True, True, True], dtype="boolean")
    found = reasons(pairs, images, redistributable="may")
    out = pairs["image_id"].isin(images["image_id"][1:3]).sum()
    assert found == {"not marked in column 'may'": out}
    unknown = (~pairs["image_id"].isin(images["image_id"][:3])).sum()
    found = reasons(pairs, images.iloc[:3], redistributable="may")
    assert found == {"not marked in column 'may'": out, "not in the table of images": unknown}
    with pytest.raises(export.ExportError, match="column 'redistributable' is missing"):
        export.choose(pairs, images, "redistributable")


def test_by_default_a_licence_must_allow_changed_copies():
    images, pairs = make(6)
    names = ["CC BY 4.0", "cc-by-nc", "CC BY-ND 4.0", "SCIN Data Use License", "mine", pd.NA]
    pairs["licence"] = pairs["image_id"].map(dict(zip(images["image_id"], names, strict=True)))
    kept, _ = export.choose(pairs, images)
    assert set(kept["licence"]) == {"CC BY 4.0", "cc-by-nc"}
    kept, _ = export.choose(pairs, images, ["SCIN Data Use License"])
    assert set(kept["licence"]) == {"SCIN Data Use License"}
    _, out = export.choose(pairs, images, ["SCIN Data Use License"])
    assert set(out["reason"]) == {
        # A choice is called a choice, and the law the law, also where the choice forbids it too.
        "licence is not among those chosen for this release (CC BY 4.0)",
        "licence is not among those chosen for this release (cc-by-nc)",
        "licence allows unchanged copies only (CC BY-ND 4.0)",
        "licence not recognized (mine)",
        "no licence given",
    }
    with pytest.raises(ValueError, match="no known licence"):
        export.choose(pairs, images, ["mine"])


def test_a_turn_does_not_stay_without_those_it_builds_on():
    images, pairs = make(6)
    first = pairs.index[(pairs["conversation"] == "c0") & (pairs["turn"] == 1)][0]
    pairs.loc[first, "status"] = "failed"
    assert reasons(pairs, images) == {
        "status: failed": 1, "follows a turn that was left out": 1,
    }  # fmt: skip


def test_unreadable_images_are_left_out_and_counted(tmp_path):
    images, pairs = make(12)
    bad = images["image_id"].iloc[:3].tolist()
    damaged = [FileNotFoundError("gone"), None, b"GIF89a"]

    def load(image_id):
        if image_id not in bad:
            return pixels(image_id)
        answer = damaged[bad.index(image_id)]
        if isinstance(answer, Exception):
            raise answer
        return answer

    folder = released(tmp_path / "r", images, pairs, load=load)
    n = int(pairs["image_id"].isin(bad).sum())
    assert f"| image cannot be read | phantom | {n} |" in (folder / "README.md").read_text()
    assert len(pd.read_csv(folder / "provenance.csv")) == len(pairs) - n
    with pytest.raises(export.ExportError, match="no pair is left.*cannot be read"):
        released(tmp_path / "none", images, pairs, load=lambda _: b"")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.drop(columns="licence"), "'licence' is missing"),
        (lambda p: p.assign(pair_id="same"), "pair_id occurs twice: 'same'"),
        (lambda p: p.assign(pair_id="../" + p["pair_id"]), "must be letters, digits"),
        (lambda p: p.assign(turn=pd.NA), "'turn' is empty"),
        (lambda p: p.assign(conversation="one"), "about more than one image"),
        (lambda p: p.assign(status="failed"), "no pair is left to release.*status: failed"),
        (lambda p: p.iloc[:0], "no pair is left to release"),
    ],
)
def test_tables_that_cannot_be_released(tmp_path, change, message):
    images, pairs = make(4)
    with pytest.raises(export.ExportError, match=message):
        released(tmp_path / "r", images, change(pairs))
    assert not (tmp_path / "r").exists()


def test_arguments_are_checked(tmp_path):
    images, pairs = make(3)
    for options, message in (
        ({"images": "copy"}, "'embed' or 'reference'"),
        ({"shares": {"train": 0.9, "test": 0}}, "must be positive"),
        ({"facts": {"titel": "x"}}, "unknown fact 'titel'; did you mean 'title'"),
    ):
        with pytest.raises(ValueError, match=message):
            released(tmp_path / "r", images, pairs, **options)


# --------------------------------------------------------------------------------------- split


def test_what_shares_a_patient_a_lesion_or_an_image_is_in_one_split():
    rng = np.random.default_rng(0)
    n = 600

    def some(letter, high):
        return [f"{letter}{i}" if rng.random() < 0.5 else pd.NA for i in rng.integers(0, high, n)]

    frame = pd.DataFrame(
        {
            "source": rng.choice(["a", "b"], n),
            "patient_id": some("p", 90),
            "lesion_id": some("l", 400),
            "image_id": [f"i{i}" for i in rng.integers(0, 500, n)],
        }
    )
    found = export.split(frame, export.SHARES, 0)
    assert set(found) == set(export.SHARES)
    for columns in (["image_id"], ["source", "patient_id"], ["source", "lesion_id"]):
        known = frame.assign(split=found).dropna(subset=columns)
        assert (known.groupby(columns)["split"].nunique() == 1).all()
    order = rng.permutation(n)
    again = export.split(frame.iloc[order], export.SHARES, 0)
    assert again.sort_index().tolist() == found.tolist()
    assert (export.split(frame, export.SHARES, 1) != found).any()


def test_a_release_keeps_together_what_the_table_of_images_ties(tmp_path):
    images, pairs = make(12)
    shares, first = {"train": 0.5, "test": 0.5}, images["image_id"]
    alone = dict(zip(pairs["image_id"], export.split(pairs, shares, 0), strict=True))
    other = next(i for i in first if alone[i] != alone[first[0]])
    images["same_image_as"] = pd.array([pd.NA] * 12, dtype="string")
    images.loc[first == other, "same_image_as"] = first[0]
    folder = released(tmp_path / "r", images, pairs, shares=shares)
    found = pd.read_csv(folder / "provenance.csv").set_index("image_id")["split"]
    assert set(found[other]) == set(found[first[0]]) and found.nunique() == 2


def test_shares_are_met_and_small_sets_fill_every_split():
    images, pairs = make(400)
    found = export.split(pairs, {"train": 0.8, "validation": 0.1, "test": 0.1}, 0)
    shares = found.value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.8, abs=0.01)
    assert shares["test"] == pytest.approx(0.1, abs=0.01)
    images, pairs = make(6)  # five lesions
    assert set(export.split(pairs, export.SHARES, 0)) == set(export.SHARES)
    assert set(export.split(pairs.iloc[:1], export.SHARES, 0)) == {"train"}


# -------------------------------------------------------------------------------------- images


def test_images_of_a_table_are_encoded_as_asked(tmp_path):
    Image.new("RGB", (40, 20), (200, 100, 50)).save(tmp_path / "a.png")
    frame = pd.DataFrame({"image_id": ["a"], "path": [str(tmp_path / "a.png")]})
    assert Image.open(io.BytesIO(export_images.loader(frame)("a"))).size == (40, 20)
    small = export_images.loader(frame, size=10, quality=80)
    assert small("a") == small("a") and export_images.kind(small("a")) == "jpg"
    assert Image.open(io.BytesIO(small("a"))).size == (10, 5)
    with pytest.raises(KeyError):
        small("b")
    drawn = phantom.table(1, 0)
    name = drawn["image_id"][0]
    assert Image.open(io.BytesIO(export_images.loader(drawn, 32)(name))).size == (32, 32)
    with pytest.raises(ValueError, match="give the size"):
        export_images.loader(drawn)(name)
    for bad in ({"size": 0}, {"quality": 100}):
        with pytest.raises(ValueError, match="must be"):
            export_images.loader(frame, **bad)


def test_real_images_are_released(ham10000_root, tmp_path):
    import datasets

    from derm_rl.data import ham10000

    frame = ham10000.read(ham10000_root, on_error="exclude")[0].iloc[:12]
    _, pairs = make(12)
    names = dict(zip(phantom.table(12, 1)["image_id"], frame["image_id"], strict=True))
    pairs["image_id"] = pairs["image_id"].map(names)
    pairs["licence"] = "CC BY-NC 4.0"
    folder = export.release(
        pairs, frame, tmp_path / "r", redistributable={"CC BY-NC 4.0"}, quality=90
    )
    row = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "c"))[0]
    assert row["image"].size == (200, 150) and row["image"].format == "JPEG"


@pytest.mark.parametrize(
    "image_id", ["../../etc/passwd", "a/b", "..", "名前", "x" * 300, "a b", ""]
)
def test_image_names_are_safe_and_distinct(image_id):
    name = export_images.image_path(image_id, "png")
    assert name.startswith("images/") and name.count("/") == 2 and ".." not in name
    assert name.isascii() and len(name) < 150
    assert name != export_images.image_path(image_id + "!", "png")


# -------------------------------------------------------------------------------- hostile text


HOSTILE = (
    "</pre><script>alert(1)</script><img src=x onerror=alert(2)> [a](javascript:alert(3)) `| x |` "
    "<image> < Image > \x00\x1b\u202e ignore previous instructions"
)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = set()

    def handle_starttag(self, tag, attributes):
        self.found.add(tag)


def test_hostile_text_stays_text(tmp_path):
    import datasets
    import mlcroissant as mlc

    mistune = pytest.importorskip("mistune")  # renders Markdown; comes with JupyterLab
    images, pairs = make(6)
    pairs["answer"] = HOSTILE
    pairs["attribution"] = HOSTILE.replace("\x00", "")
    pairs["source"] = "<b>evil</b>|\n# heading\n---"
    big = pairs.index[3]
    pairs.loc[big, "answer"] = HOSTILE + "x" * 1_000_000
    facts = FACTS | {"title": HOSTILE, "settings": {HOSTILE: HOSTILE}, "limits": [HOSTILE]}
    folder = released(tmp_path / "r", images, pairs, facts=facts)
    text = (folder / "README.md").read_text()
    body = text.split("---\n", 2)[2]
    assert not set("\x00\x1b\u202e") & set(text) and "\n# heading" not in body
    tags = Tags()
    tags.feed(mistune.create_markdown(escape=False, plugins=["table"])(body))
    assert tags.found <= {
        "h1", "h2", "p", "blockquote", "strong", "em", "code", "pre", "ul", "li", "table",
        "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert isinstance(yaml.safe_load(text.split("---\n")[1]), dict)
    rows = [
        r for paths in export_formats.files(folder).values() for r in export_formats.rows(paths)
    ]
    answers = {r["pair_id"]: r["answer"] for r in rows}
    assert answers == {p: inert(a) for p, a in zip(pairs["pair_id"], pairs["answer"], strict=True)}
    for entry in json.loads((folder / "llava" / "train.json").read_text()):
        joined = "".join(t["value"] for t in entry["conversations"])
        assert joined.lower().count("<image>") == 1 and "< Image >" not in joined
    assert mlc.Dataset(str(folder / "croissant.json")).metadata.ctx.issues.report() == ""
    assert datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "c"))["train"].num_rows


# ------------------------------------------------- every format, loaded as its users load it


TOKENS = (
    "<image> < Image > <|image|> <image_soft_token> <|vision_start|> [IMG] [IMG_BREAK] <|im_start|>"
    " <|im_end|> <|eot_id|> <|start_header_id|> [INST] [/INST] <s> </s> <<SYS>> <start_of_turn> "
    "<end_of_turn> <video> <|image_1|> <image 1> <\uff5cUser\uff5c> ASSISTANT: [gMASK] <pad>"
)
SPECIAL = [t for t in TOKENS.replace("< Image >", "").split() if t[0] in "<[" and t[-1] in ">]"]
CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}<|im_end|>
{% endfor %}"""
TEMPLATES = {
    "chatml": CHATML,
    "llama 3": CHATML.replace("<|im_start|>", "<|start_header_id|>")
    .replace("<|im_end|>", "<|eot_id|>")
    .replace("<image>", "<|image|>"),
    "gemma": CHATML.replace("<|im_start|>", "<start_of_turn>")
    .replace("<|im_end|>", "<end_of_turn>")
    .replace("<image>", "<image_soft_token>"),
    "mistral": "<s>{% for m in messages %}{{ '[INST]' if m.role == 'user' }}{% for p in m.content "
    "%}{{ '[IMG]' if p.type == 'image' else p.text }}{% endfor %}"
    "{{ '[/INST]' if m.role == 'user' else '</s>' }}{% endfor %}",
}


@pytest.fixture(scope="module", params=["embed", "reference"])
def awkward(request, tmp_path_factory):
    """Tokens in every text, PNG and JPEG, and values that are missing in the first rows only."""
    images, pairs = make(15)
    late = pairs["image_id"] > images["image_id"][6]
    findings = json.dumps([f | {"value": f"{TOKENS}", "evidence": TOKENS} for f in FINDINGS])
    texts = ("question", "answer", "teacher", "attribution", "diagnosis", "label", "modality")
    for name in texts:
        pairs[name] = [f"x{TOKENS} {i}\u2028" for i in range(len(pairs))]
    # Spelled with escapes as well, which JSON allows.
    pairs["findings"] = np.where(late, findings.replace("<", "\\u003c"), "[]")
    pairs["label"] = pairs["label"].where(late)
    pairs["attribution"] = pairs["attribution"].where(late)
    pairs["skin_type"] = pairs["skin_type"].where(late)

    def load(image_id):
        if image_id in set(images["image_id"][::2]):
            return pixels(image_id)
        out = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(out, "JPEG")
        return out.getvalue()

    folder = tmp_path_factory.mktemp("awkward") / "r"
    return pairs, released(folder, images, pairs, load=load, images=request.param)


def strings(value):
    """All texts in a value, however deep."""
    if isinstance(value, str | bytes):
        yield value if isinstance(value, str) else value.decode()
    elif isinstance(value, dict):
        yield from (text for v in value.values() for text in strings(v))
    elif isinstance(value, list | tuple):
        yield from (text for v in value for text in strings(v))


def harmless(row):
    return not any(token in text for text in strings(row) for token in [*SPECIAL, "< Image >"])


@pytest.mark.filterwarnings("ignore")
def test_the_code_of_the_card_opens_every_format(awkward, tmp_path, monkeypatch):
    import datasets

    pairs, folder = awkward
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    found = {}
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    exec(code, found)
    rows, chats, samples = found["pairs"], found["chats"], found["samples"]
    records = list(found["records"])
    assert len(records) == len(pairs) and len(rows) == len(samples)
    assert rows[0]["image"].size == chats[0]["images"][0].size == (8, 8)
    assert {s["png"].size for s in samples} == {(8, 8)}  # one member for all, with its pixels
    assert [s["json"]["answer"] for s in samples] == rows["answer"][:]
    for row in [*rows, *(s["json"] for s in samples), *chats]:
        assert row["licence"] == "Apache-2.0" and row["source"] == "phantom"
        assert "attribution" in row and harmless(row)
    for record in records:
        assert record["pairs/licence"] == b"Apache-2.0" and harmless(
            {k: v for k, v in record.items() if k != "pairs/image"}
        )
    last = samples[len(samples) - 1]["json"]
    assert json.loads(last["findings"])[0]["box"] == FINDINGS[0]["box"] and last["skin_type"]
    assert samples[0]["json"]["skin_type"] == samples[0]["json"]["label"] == ""


def test_llava_reads_its_entries(awkward, tmp_path):
    """Its loader's contract: roles in turn, one image that is there, and turns it can cut apart."""
    import datasets

    _, folder = awkward
    for split in ("train", "validation", "test"):
        file = folder / "llava" / f"{split}.json"
        entries = json.loads(file.read_text())
        loaded = datasets.load_dataset(
            "json", data_files=str(file), split="train", cache_dir=str(tmp_path)
        )
        assert loaded["id"][:] == [e["id"] for e in entries]
        for entry in entries:
            assert Image.open(folder / entry["image"]).size == (8, 8)
            said = [t["value"] for t in entry["conversations"]]
            assert [t["from"] for t in entry["conversations"]] == ["human", "gpt"] * (
                len(said) // 2
            )
            assert said[0].startswith("<image>\n") and "".join(said).count("<image>") == 1
            assert harmless([said[0].removeprefix("<image>"), *said[1:]])
            prompt = "".join(
                f"USER: {q} ASSISTANT: {a}</s>" for q, a in zip(said[::2], said[1::2], strict=True)
            )
            rounds = prompt.split("</s>")[:-1]
            assert len(rounds) == len(said) // 2
            assert all(len(r.split(" ASSISTANT: ")) == 2 for r in rounds)
            assert (entry["licence"], entry["source"]) == ("Apache-2.0", "phantom")
            assert isinstance(entry["attribution"], str)


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_find_their_own_tokens_and_no_others(awkward, name):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, chat_template=TEMPLATES[name])
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*SPECIAL})})
    special = set(tokenizer.convert_tokens_to_ids(SPECIAL))

    def found(messages):
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        return [i for i in tokenizer(text, add_special_tokens=False)["input_ids"] if i in special]

    _, folder = awkward
    lines = (folder / "messages" / "train.jsonl").read_text().splitlines()  # also at U+2028
    for row in map(json.loads, lines[:4]):
        assert all((folder / image).is_file() for image in row["images"])
        blank = json.loads(json.dumps(row["messages"]))
        for message in blank:
            for part in message["content"]:
                part |= {"text": "x"} if part["type"] == "text" else {}
        assert found(row["messages"]) == found(blank) != []
    messages = row["messages"]
    messages[0]["content"][1]["text"] = TOKENS  # and the test would see them
    assert len(found(messages)) > len(found(blank))


def test_texts_without_tokens_stay_as_they_are_and_changed_ones_are_counted(awkward, tmp_path):
    pairs, folder = awkward
    text = (folder / "README.md").read_text()
    assert f"In {len(pairs)} pairs a text held what language models read as a token" in text
    for same in (
        "a < b and c > d, p<0.05",
        "[1] [a, b]",
        "see <https://a.org>",
        "\uff1c所見\uff1e",
    ):
        assert inert(same) == same
    assert inert("<|<image>|>") == inert(inert("<|<image>|>"))
    images, pairs = make(4)
    assert (
        "read as a token" not in (released(tmp_path / "r", images, pairs) / "README.md").read_text()
    )


@pytest.mark.parametrize(
    "text",
    ["{", "5", "[5]", '["a"]', '[{"name": "a"}]', "[" * 100_000, '[{"name":1e999}]']
    + [
        f'[{{"name":"a","value":"b","evidence":"c","box":{box}}}]'
        for box in ("[1]", "[1,2,3,NaN]", "7", f"[1,2,3,1{'0' * 400}]", '"abcd"')
    ],
)
def test_findings_that_are_none_raise_value_errors(text):
    with pytest.raises(ValueError):
        parse_findings(text)


def test_missing_findings_are_no_findings():
    assert [parse_findings(v) for v in (None, pd.NA, float("nan"), "[]")] == [[], [], [], []]


def test_licences_of_hubs():
    assert card.hub_licence(["CC BY-NC 4.0", "Apache-2.0"]) == ["apache-2.0", "cc-by-nc-4.0"]
    assert card.hub_licence(["CC0-1.0", "CC-BY-4.0"]) == ["cc-by-4.0", "cc0-1.0"]
    assert card.hub_licence(["CC BY", "PDDL 1.0"]) == ["other", "pddl"]
    assert card.hub_licence(["SCIN Data Use License"]) == ["other"] == card.hub_licence([])
    assert croissant._licence_url("cc-by-nc-4.0").endswith("/licenses/by-nc/4.0/")
