"""The dataset card: what it says of made-up releases follows from pairs, flags and verdicts."""

import pandas as pd
import pytest

from derm_rl.captions import card, card_text, croissant, export, review
from derm_rl.captions.schema import PAIR_COLUMNS

N = 8


def table(**columns) -> pd.DataFrame:
    """Eight pairs about eight photographs, answered blind by a language model."""
    one = dict.fromkeys(PAIR_COLUMNS) | {
        "question_type": "overview", "style": "single", "turn": 0, "language": "en",
        "mode": "blind", "question": "?", "answer": "!", "findings": "[]", "confidence": 0.5,
        "abstained": False, "teacher": "openai:some", "status": "ok", "source": "hiba",
        "licence": "CC BY 4.0", "attribution": "HIBA",
    }  # fmt: skip
    ids = [f"i{i}" for i in range(N)]
    frame = pd.DataFrame([one] * N).assign(image_id=ids, pair_id=ids, conversation=ids)
    return frame.assign(review=pd.NA, **columns)


def flags(*pair_ids, check="length") -> pd.DataFrame:
    return pd.DataFrame({"pair_id": pair_ids, "check": check, "reason": "said so"}, dtype=object)


def described(pairs, flagged=None, licences=None, shares=export.SHARES, images=None, **facts):
    images = pairs[["image_id"]].drop_duplicates() if images is None else images
    kept, out = export.choose(pairs, images, licences, flagged)
    kept["split"] = export.split(kept, shares, 0) if len(kept) else ""
    told = card.complete(facts)
    return card.describe(kept, out, flagged, None, told, shares, 0, "embed", 0)


def said(*arguments, **options) -> str:
    return card_text.render(described(*arguments, **options))


def section(text: str, name: str) -> str:
    return text.partition(f"## {name}\n\n")[2].partition("\n\n## ")[0]


def test_checks_that_did_not_run_that_found_nothing_and_that_found_something():
    none = section(said(table()), "Checks")
    assert none == "No flags of automatic checks were handed to this release."
    empty = section(said(table(), flags()), "Checks")
    assert empty == "Automatic checks were run and flagged none of the 8 pairs."
    some = section(said(table(), flags("i0", "i3", "not a pair here")), "Checks")
    assert "| length | yes | 2 | 2 |" in some
    elsewhere = section(said(table(), flags("not a pair here")), "Checks")
    assert elsewhere == empty
    limits = [section(said(table(), f), "Limits") for f in (None, flags())]
    assert [("Automatic checks miss" in text) for text in limits] == [False, True]


def test_all_flagged_is_no_release(tmp_path):
    pairs = table()
    with pytest.raises(export.ExportError, match="no pair is left.*flagged by check: length': 8"):
        export.release(
            pairs, pairs[["image_id"]], tmp_path / "r", flags=flags(*pairs["pair_id"]), load=bytes
        )


def verdicts(**given) -> pd.DataFrame:
    rows = [
        {"pair_id": p, "reader": "A", "verdict": v, "answer": "new", "at": 1.0}
        | dict.fromkeys(review.RATINGS)
        for p, v in given.items()
    ]
    return pd.DataFrame(rows)


def test_no_review_a_review_of_some_and_one_whose_pairs_stayed_out():
    none = section(said(table()), "Review")
    assert none == "No pair of this release has been reviewed by a person."
    given = verdicts(i0="accept", i1="edit", i2="reject", i3="accept")
    pairs = review.apply(table(), given, drop=False)
    found = review.summary(given)
    some = section(said(pairs, review=found), "Review")
    assert "3 of the 7 pairs of this release have been reviewed by a person" in some
    assert "2 accepted, 1 with an edited answer" in some
    assert "1 reader(s) reviewed 4 pairs" in some and "| reject | 1 |" in some
    # The column alone says it too, without a summary.
    assert "3 of the 7 pairs of this release have been reviewed" in said(pairs)
    out = section(said(pairs, flags("i0", "i1", "i3"), review=found), "Review")
    assert out.startswith("No pair of this release has been reviewed") and "4 pairs" in out


def test_left_out_by_the_setting_by_the_licence_and_not_at_all():
    assert section(said(table()), "Left out") == "No pair was left out."
    names = ["CC BY 4.0"] * 4 + ["CC0 1.0", "CC BY-ND 4.0", "SCIN Data Use License", pd.NA]
    images = table()[["image_id"]].iloc[1:]
    text = section(said(table(licence=names), None, ["CC BY 4.0"], images=images), "Left out")
    for line in (
        "| licence is not among those chosen for this release (CC0 1.0) | hiba | 1 |",
        "| licence allows unchanged copies only (CC BY-ND 4.0) | hiba | 1 |",
        "| licence has terms of its own: read them, then allow LicenseRef-SCIN (SCIN Data Use "
        "License) | hiba | 1 |",
        "| no licence given | hiba | 1 |",
        "| not in the table of images | hiba | 1 |",
    ):
        assert line in text
    assert "CC0" not in section(said(table(licence=names)), "Left out")


def test_phantoms_rules_and_what_a_person_edited():
    plain = said(table())
    for words in ("phantom", "rule-based", "What rules say"):
        assert words not in plain
    pairs = table(source=["phantom"] * 2 + ["hiba"] * 6, teacher=["measured"] * 5 + ["x:y"] * 3)
    text = said(pairs)
    assert "**2 of 8 images are phantoms**" in text and "test instrument: its pairs say" in text
    assert "**5 of 8 answers are rule-based**" in text and "dark corners in 3 pairs" in text
    edited = review.apply(pairs, verdicts(i0="edit"), drop=False)
    assert "**4 of 8 answers are rule-based**" in said(edited)  # a person wrote the fifth
    # Phantoms that stay out leave no word behind.
    assert "phantom" not in said(pairs, flags("i0", "i1")).partition("## Left out")[0]
    about = croissant._description(described(pairs))
    assert "2 images are drawn phantoms" in about and "5 answers are rule-based" in about


def test_modes_and_what_a_teacher_was_told():
    made = {m: said(table(mode=m, diagnosis="MEL")) for m in ("blind", "grounded")}
    for mode, other in (("blind", "grounded"), ("grounded", "blind")):
        assert f"In *{mode}* pairs" in made[mode] and f"In *{other}* pairs" not in made[mode]
    told = "8 grounded pairs a diagnosis is recorded"
    assert told in made["grounded"] and told not in made["blind"]
    assert "diagnosis is recorded" not in said(table(mode="grounded"))
    rules = table(mode="grounded", diagnosis="MEL", teacher="measured")
    assert "diagnosis is recorded" not in said(rules)  # they do not argue


def test_splits_that_got_nothing_and_skin_types_that_are_known():
    assert "No pair fell to" not in said(table())
    assert "No pair fell to validation, test." in said(table(image_id="i0", conversation="c"))
    known = table(skin_type=[3, 4] + [pd.NA] * 6)
    assert "skin type is known of 2 of 8 images" in said(known)


def test_duplicates_are_counted_once_and_an_image_with_two_licences_twice():
    twice = table(image_id=["i0"] * 2 + [f"i{i}" for i in range(2, 8)])
    text = said(twice, flags("i0", "i0", check="near_duplicate"))
    assert "| near_duplicate | yes | 1 | 1 |".replace("_", "\\_") in text
    assert "7 pairs about 7 images" in text
    licences = said(twice.assign(licence=["CC0 1.0"] + ["CC BY 4.0"] * 7))
    assert "| hiba | CC0 1.0 | HIBA | 1 |" in licences and "| CC BY 4.0 | HIBA | 7 |" in licences


def test_what_the_stage_tells_the_card_promises_nothing():
    from derm_rl import config
    from derm_rl.captions import release

    facts = release.facts(config.load("demo"), {"pairs": 0})
    assert facts["review"] is None and "limits" not in facts
    text = said(table(), flags(), **facts)
    assert card_text.plain(facts["description"]) in text and "by a person" in text
