"""Splits: whole lesions, the right shares of every finding, and the same every time."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derm_rl.data import ham10000, splits

FRACTIONS = {"diffusion": 0.4, "reward": 0.25, "judge": 0.25, "test": 0.1}


def cohort(lesions: int = 900, seed: int = 0, rare: float = 0.01) -> pd.DataFrame:
    """One to four images a lesion; hair in 40 %, ink in ``rare`` of the images."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(lesions), rng.choice([1, 2, 4], lesions, p=[0.8, 0.15, 0.05]))
    n = len(of)
    return pd.DataFrame(
        {
            "image_id": [f"image{i:05d}" for i in range(n)],
            "lesion_id": pd.array([f"lesion{i}" for i in of], dtype="string"),
            "diagnosis": np.where(rng.random(lesions) < 0.15, "MEL", "NV")[of],
            "hair": pd.array(rng.random(n) < 0.4, dtype="boolean"),
            "ink": pd.array(rng.random(n) < rare, dtype="boolean"),
        }
    )


@given(seed=st.integers(0, 10_000), lesions=st.integers(20, 200))
@settings(max_examples=30, deadline=None)
def test_every_lesion_is_in_one_split_and_every_image_in_some(seed, lesions):
    frame = cohort(lesions, seed)
    found = splits.assign(frame, FRACTIONS, seed)
    assert found.notna().all() and set(found) == set(FRACTIONS)
    assert (found.groupby(frame["lesion_id"]).nunique() == 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_shares_of_images_lesions_and_findings(seed):
    frame = cohort(seed=seed)
    found = splits.assign(frame, FRACTIONS, seed)
    findings = {
        "all": np.ones(len(frame), bool),
        "MEL": frame["diagnosis"] == "MEL",
        "hair": frame["hair"].to_numpy(bool),
        "MEL with hair": (frame["diagnosis"] == "MEL") & frame["hair"].to_numpy(bool),
    }
    for name, present in findings.items():
        for split, share in FRACTIONS.items():
            got = (found[present] == split).mean()
            assert got == pytest.approx(share, abs=0.02), (name, split)
    # Lesions of several photographs are not herded into the big splits.
    lesions = frame.groupby(found)["lesion_id"].nunique() / frame["lesion_id"].nunique()
    assert lesions.to_dict() == pytest.approx(FRACTIONS, abs=0.03)


@pytest.mark.parametrize("seed", range(20))
def test_a_finding_in_one_percent_of_the_images_reaches_every_split(seed):
    frame = cohort(lesions=400, seed=seed)
    one_each = frame.drop_duplicates("lesion_id").sample(len(frame) // 100, random_state=seed)
    frame["ink"] = frame.index.isin(one_each.index)
    assert frame["ink"].sum() in (4, 5, 6)
    assert set(splits.assign(frame, FRACTIONS, seed)[frame["ink"]]) == set(FRACTIONS)


def test_the_same_seed_gives_the_same_splits_in_any_order_of_rows():
    frame = cohort(200)
    first = splits.assign(frame, FRACTIONS, 3)
    assert first.equals(splits.assign(frame, FRACTIONS, 3))
    mixed = frame.sample(frac=1, random_state=1)
    again = splits.assign(mixed, FRACTIONS, 3)
    assert again.sort_index().tolist() == first.tolist()
    assert splits.assign(frame, FRACTIONS, 4).tolist() != first.tolist()


def test_images_without_lesion_id_are_lesions_of_their_own():
    frame = cohort(40)
    frame.loc[:10, "lesion_id"] = pd.NA
    ids = splits.groups(frame)
    assert ids[:11].nunique() == 11 and ids.notna().all()
    assert splits.assign(frame, FRACTIONS, 0).notna().all()


def test_findings_that_are_missing_or_absent_do_not_matter():
    frame = cohort(60).drop(columns="hair")
    frame["ink"] = pd.array([pd.NA] * len(frame), dtype="boolean")
    frame["diagnosis"] = pd.array([pd.NA] * len(frame), dtype="string")
    assert splits.assign(frame, FRACTIONS, 0).nunique() == 4


def test_settings_that_cannot_be():
    frame = cohort(3)
    with pytest.raises(ValueError, match="3 lesions cannot fill 4 splits"):
        splits.assign(frame, FRACTIONS, 0)
    with pytest.raises(ValueError, match="must be positive"):
        splits.assign(frame, {"a": 1.0, "b": 0.0}, 0)


def test_shared_lesions_by_hand():
    frame = pd.DataFrame(
        {
            "lesion_id": ["a", "a", "b", "b", "c", "c", "c", None, None, "d"],
            "official_split": [
                "train", "test", "train", "train", "train", "val", "test", "train", "test", None,
            ],
        }
    )  # fmt: skip
    found = splits.shared_lesions(frame).set_index("splits")
    assert found.index.tolist() == [
        "train and val", "train and test", "val and test", "any two or more",
    ]  # fmt: skip
    assert found["lesions"].tolist() == [1, 2, 1, 2]
    assert found["images"].tolist() == [3, 5, 3, 5]
    with pytest.raises(ValueError, match="column 'fold' is missing"):
        splits.shared_lesions(frame, "fold")


def test_the_published_splits_of_ham10000_share_lesions_and_ours_do_not(ham10000_root):
    frame, _ = ham10000.read(ham10000_root, on_error="exclude")
    published = splits.shared_lesions(frame).set_index("splits")
    # Of the 4,786 lesions in this subset of HAM10000.
    assert published["lesions"].tolist() == [225, 281, 53, 499]
    assert published.loc["any two or more", "images"] == 1200
    frame["split"] = splits.assign(frame, FRACTIONS, 0)
    assert (splits.shared_lesions(frame, "split")["lesions"] == 0).all()
    for finding in ("hair", "gel_bubble", "ruler", "dark_corner"):
        shares = frame["split"][frame[finding]].value_counts(normalize=True)
        assert shares.to_dict() == pytest.approx(FRACTIONS, abs=0.01)
    assert set(frame["split"][frame["ink"]]) == set(FRACTIONS)  # eight images
