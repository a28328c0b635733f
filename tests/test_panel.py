"""The panel: an image counts where judge and rules agree."""

import numpy as np
import pandas as pd
import pytest

from derm_rl import config, prompts
from derm_rl.captions.verdicts import Store, Verdict
from derm_rl.data import phantom
from derm_rl.evaluation import audit, audit_sheet, panel
from derm_rl.io import write_csv

NAMES = ("hair", "gel_bubble", "ruler", "ink")


def test_rules_see_what_phantoms_show_and_nothing_else():
    sets = [tuple(a for k, a in enumerate(NAMES) if i >> k & 1) for i in range(16)]
    addresses = [phantom.path_of(77, i, "NV", shown) for i, shown in enumerate(sets * 4)]
    images, _ = phantom.render_paths(addresses, 48)
    found = panel.rules(images, NAMES)
    wanted = np.array([[a in shown for a in NAMES] for shown in sets * 4])
    assert found.shape == (64, 4) and (found == wanted).mean(0).min() >= 0.95
    assert panel.rules(images[:0], NAMES).shape == (0, 4)
    # Columns are those asked for, in that order.
    assert np.array_equal(panel.rules(images[:8], ["ink", "hair"]), found[:8][:, [3, 0]])


def samples(rows):
    """Rows of (model, prompt's artifacts, judge's, rules') as stage 05 writes them."""
    out = []
    for model, wanted, judge, rules in rows:
        row = {"model": model, "prompt": prompts.render(prompts.Finding("NV", wanted))}
        for name in NAMES:
            row |= {
                f"wanted_{name}": name in wanted,
                f"judge_{name}": 0.9 if name in judge else 0.2,
                f"rules_{name}": int(name in rules),
            }
        out.append(row | {"wanted_MEL": 0, "judge_MEL": 0.1})
    return pd.DataFrame(out)


R, RI, INK, N = ("ruler",), ("ruler", "ink"), ("ink",), ()
TABLE = samples(
    [
        ("stage1", RI, RI, RI), ("stage1", RI, INK, INK), ("stage1", N, N, N), ("stage1", N, N, R),
        ("rl", RI, RI, INK), ("rl", RI, RI, RI), ("rl", N, N, N), ("rl", N, R, N),
    ]
)  # fmt: skip


def test_an_image_is_right_where_both_say_so():
    found = panel.hits(TABLE)
    assert found["judge"].tolist() == [1, 0, 1, 1, 1, 1, 1, 0]
    assert found["rules"].tolist() == [1, 0, 1, 0, 0, 1, 1, 1]
    assert found["panel"].tolist() == [1, 0, 1, 0, 0, 1, 1, 0]
    # Errors of two kinds do not make a right: neither sees exactly what was asked for.
    crossed = samples([("rl", R, RI, R + ("hair",))])
    assert not panel.hits(crossed).to_numpy().any()


def test_rates_by_hand():
    cells = panel.table(TABLE, n=20).set_index(["model", "instrument", "measure", "attribute"])
    value = cells["value"]
    assert value["rl", "judge", "apr", "all"] == 0.75
    assert value["rl", "panel", "apr", "all"] == 0.5
    assert value["rl", "judge", "recall", "ruler"] == 1
    assert value["rl", "rules", "recall", "ruler"] == value["rl", "panel", "recall", "ruler"] == 0.5
    assert value["stage1", "rules", "false_add", "ruler"] == 0.5
    assert value["rl", "rules", "recall", "ruler_with_ink"] == 0.5
    assert cells["n"]["rl", "rules", "recall", "ruler_with_ink"] == 2
    assert cells["n"]["rl", "rules", "recall", "hair"] == 0  # nobody asked for it
    found = panel.headline(TABLE, panel.table(TABLE, n=20), resamples=20)
    assert found["panel.apr.gain"].value == 0 and found["panel.rules.apr.gain"].value == 0.25
    assert found["panel.apr.least"].value == 0.5 and found["panel.apr.least"].low > 0.05
    rows = panel.by_prompt(TABLE).set_index(["model", "prompt"])
    empty = prompts.render(prompts.Finding("NV"))
    assert rows.loc[("rl", empty)].tolist() == [1.0, 0.5]
    assert found["panel.rules.recall.ruler_with_ink"].value == 0.5
    assert found["panel.apr.stage1"].value == 0.5


def test_the_audit_shows_hits_of_the_judge_that_ask_for_something():
    part = TABLE[TABLE["model"] == "rl"].reset_index(drop=True)
    many = pd.concat([TABLE] * 10, ignore_index=True)
    chosen = audit_sheet.sample(many, n=12)
    of = pd.concat([part] * 10, ignore_index=True).iloc[chosen]
    assert len(set(chosen)) == 12 and of["wanted_ruler"].all() and panel.hits(of)["judge"].all()
    assert chosen == audit_sheet.sample(many, n=12) != audit_sheet.sample(many, n=12, seed=1)
    assert sorted(audit_sheet.sample(TABLE, model="rl")) == [0, 1]


@pytest.fixture
def sheet(tmp_path, monkeypatch):
    """Settings whose published sheet shows three images."""
    table = pd.DataFrame({"number": [1, 2, 3], "prompt": "a ruler", "image": ["aa", "bb", "cc"]})
    write_csv(tmp_path / "audit.csv", table)
    monkeypatch.setattr(audit, "sheet", lambda config: (table, np.zeros((3, 6, 6, 3), np.uint8)))
    settings = config.load("smoke")
    monkeypatch.setattr(type(settings), "figures_dir", tmp_path)
    return settings


def test_readers_look_at_the_sheet_in_the_review_tool(sheet):
    first = audit.review(sheet, "first")
    assert sorted(first.queue.pairs) == ["aa", "bb", "cc"] and "a ruler" in first.view.value
    assert 'src="data:image/png' in first.picture.value and audit.metrics(sheet) == {}
    said = {"aa": "a", "bb": "r", "cc": "a"}
    for key in map(said.get, first.queue.pairs):
        assert audit.metrics(sheet) == {}, "before every image has been looked at"
        first.actions()[key]()
    alone = audit.metrics(sheet)["panel.audit.visible"]
    assert alone["value"] == pytest.approx(2 / 3, abs=1e-6) and alone["n"] == 3
    assert 0.2 < alone["low"] < alone["value"] < alone["high"] < 1


def test_what_one_reader_does_not_see_is_not_visible(sheet, tmp_path):
    for reader, unseen in (("first", "bb"), ("second", "cc")):
        store = Store(tmp_path / audit.FOLDER, reader)
        for image in ("aa", "bb", "cc", "of another sheet"):
            store.put(image, Verdict("reject" if image == unseen else "accept"))
    assert audit.readings(sheet)["second"].tolist() == [True, True, False]
    assert audit.metrics(sheet)["panel.audit.visible"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    Store(tmp_path / audit.FOLDER, "third").put("aa", Verdict("reject"))  # has not finished
    assert audit.metrics(sheet)["panel.audit.visible"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    (tmp_path / "audit.csv").unlink()
    assert audit.metrics(sheet) == {}


def test_a_vocabulary_without_the_pair_has_no_such_row():
    less = TABLE.drop(columns=[c for c in TABLE if c.endswith(("_ink", "_gel_bubble"))])
    assert "ruler_with_ink" not in set(panel.table(less, n=5)["attribute"])
    with pytest.raises(KeyError, match="rules_hair"):
        panel.hits(TABLE.drop(columns="rules_hair"))
