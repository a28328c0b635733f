"""Stage 10: from pairs, flags and the verdicts of readers to a release.

Without any verdict there is a release all the same, and its card says that nobody has reviewed it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from derm_rl import paths, provenance
from derm_rl.captions import agreement, export, pairs, review, sources
from derm_rl.io import read_json, write_csv, write_json

if TYPE_CHECKING:
    from derm_rl.captions.store import Store
    from derm_rl.config import Config

STAGE = "10_review_and_release"
RELEASED = "captions_release.csv"
TITLE = "Dermatology image-text pairs, made and checked by derm_rl"


def make(config: Config) -> Path:
    """Stage 10 of a preset; returns its folder.

    Writes ``review_plan.csv`` (pairs to review of each stratum), ``sample.csv`` (which ones),
    ``review.json`` (what the review found), ``thresholds.json`` (of the checks, as learned from
    it), ``flags.csv`` (checks of the reviewed pairs),
    ``left_out.csv`` (what does not enter the release, and why), ``release/`` and ``stage.json``.
    """
    from derm_rl.captions import checks

    folder = config.stage_dir(STAGE)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").unlink(missing_ok=True)  # unfinished from here on
    made, flags = pairs.load(config)
    frame, images = sources.load(config)
    sample = plan(config, made, folder)
    given = review.verdicts(config.reviews_dir)
    given = given[given["pair_id"].isin(made["pair_id"])]
    found = review.summary(given, sample)
    write_json(folder / "review.json", found)
    reviewed = review.apply(made, given, drop=False)
    if len(given):  # an edit can mend a fault or make one, and verdicts move thresholds
        scores = pd.read_csv(config.require(pairs.STAGE) / "scores.csv")
        settings = checks.learn(scores, given)
        write_json(folder / "thresholds.json", settings.model_dump())
        again = checks.scores(reviewed, frame, images.measurements(), settings)
        # A judge is asked once, about what the teacher wrote.
        judged = scores[(scores["check"] == "judge") & scores["pair_id"].isin(_unedited(reviewed))]
        flags = checks.flagged(pd.concat([again, judged], ignore_index=True), settings)
    write_csv(folder / "flags.csv", flags)
    settings = config.release
    allowed = settings.licences
    _, left_out = export.choose(reviewed, frame, allowed, flags)
    reasons = left_out.groupby(["source", "reason"]).size().rename("pairs").reset_index()
    write_csv(folder / "left_out.csv", reasons)
    export.release(
        reviewed,
        frame,
        folder / "release",
        redistributable=allowed,
        images=settings.images,
        load=images.image,
        shares={
            "train": 1 - settings.validation - settings.test,
            "validation": settings.validation,
            "test": settings.test,
        },
        seed=config.seed,
        flags=flags,
        facts=facts(config, found),
    )
    opened = validate(folder / "release")
    write_json(folder / "release.json", opened)
    write_csv(config.figures_dir / RELEASED, released(opened, reasons, found))
    provenance.record_metrics(config, STAGE, _metrics(config, opened, found))
    provenance.stamp(config, STAGE, **opened, reviewed=found["pairs"])
    _report(config, opened, found, reasons)
    return folder


def _unedited(reviewed: pd.DataFrame) -> set[str]:
    return set(reviewed.loc[(reviewed["review"] != "edit").fillna(True), "pair_id"])


def plan(config: Config, made: pd.DataFrame, folder: Path) -> list[str]:
    """Which pairs are to be reviewed; writes ``review_plan.csv`` and ``sample.csv``."""
    answered = made[made["status"] == "ok"]
    planned = agreement.plan(answered, config.release.upper_error)
    sample = agreement.sample(answered, planned, config.seed)
    write_csv(folder / "review_plan.csv", planned)
    write_csv(folder / "sample.csv", pd.DataFrame({"pair_id": sample}))
    return sample


def open_review(config: Config, reader: str, readers: tuple[str, ...] = ()) -> Any:
    """The review of a preset's pairs in JupyterLab, for the last line of a cell.

    Verdicts are kept in ``config.reviews_dir``; run stage 10 again to release by them.

    Args:
        reader: your name.
        readers: everybody's, yours among them, to share the work; default: you alone.
    """
    from derm_rl.captions.review_widget import review as widget

    made, flags = pairs.load(config)
    _, images = sources.load(config)
    sample = pd.read_csv(config.require(STAGE) / "sample.csv")["pair_id"].tolist()
    return widget(
        made, images.image, config.reviews_dir, reader, sample, flags,
        readers=readers or None, overlap=config.release.overlap, seed=config.seed,
    )  # fmt: skip


def examples(config: Config, n: int = 6) -> tuple[pd.DataFrame, Store]:
    """Unflagged first turns, of as many question types, languages and modes as there is room."""
    made, flags = pairs.load(config)
    good = made[(made["status"] == "ok") & (made["turn"] == 0) & (made["style"] == "single")]
    good = good[~good["pair_id"].isin(flags["pair_id"])]
    by = ["question_type", "language", "mode"]
    first = good.assign(key=[agreement.keyed(config.seed, p) for p in good["pair_id"]])
    first = first.sort_values("key").drop_duplicates(by).drop_duplicates("image_id")
    # Those of one type would else stand together.
    first["turn_of_type"] = first.groupby("question_type").cumcount()
    chosen = first.sort_values(["turn_of_type", "question_type"]).head(n)
    return chosen.drop(columns=["key", "turn_of_type"]), sources.load(config)[1]


def facts(config: Config, found: dict[str, Any]) -> dict[str, Any]:
    """What the card of a release says beside its counts."""
    settings = config.captions
    return {
        "title": TITLE,
        "description": "Questions and answers about dermatological images, made as DermaSynth "
        "was (arXiv 2502.00196). README.md says of which images, how they were checked, and how "
        "many of them a person has reviewed.",
        "date_published": _date(),
        "cite_as": "Yilmaz et al.: DermaSynth: Rich Synthetic Image-Text Pairs Using Open Access "
        "Dermatology Datasets, arXiv:2502.00196 (2025)",
        "commit": provenance.commit(),
        "settings": {
            "preset": config.name,
            "seed": config.seed,
            "teacher": settings.teacher,
            "share of grounded questions": settings.grounded,
            "longest side of an image, pixels": settings.image_size,
            "longest side when measured, pixels": settings.measured_size,
        },
        "review": found if found["pairs"] else None,
    }


def _date() -> str | None:
    """Day of the checkout's commit: the clock's would make two equal releases differ."""
    try:
        done = subprocess.run(
            ["git", "log", "-1", "--format=%cs"],
            cwd=paths.ROOT, check=True, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def validate(folder: Path) -> dict[str, Any]:
    """Open a release as its users will; returns what was found in it.

    Raises:
        ValueError: mlcroissant finds errors in the metadata, or a split has no pairs.
    """
    import logging

    import datasets
    import mlcroissant

    datasets.disable_progress_bars()
    # In memory-mapped files beside the release, not in a cache of the user's home.
    cache = folder.parent / "cache"
    opened = datasets.load_dataset(str(folder), cache_dir=str(cache), trust_remote_code=False)
    sizes = {name: len(part) for name, part in opened.items()}
    if empty := [name for name, size in sizes.items() if not size]:
        raise ValueError(f"{folder}: no pairs in split {', '.join(empty)}")
    first = next(iter(opened.values()))[0]
    width, height = first["image"].size if hasattr(first["image"], "size") else (None, None)
    logging.getLogger("absl").setLevel(logging.ERROR)
    metadata = mlcroissant.Dataset(jsonld=str(folder / "croissant.json")).metadata
    if metadata.ctx.issues.errors:
        raise ValueError(f"{folder / 'croissant.json'}: {metadata.ctx.issues.report()}")
    del opened
    shutil.rmtree(cache, ignore_errors=True)
    card = read_json(folder / "croissant.json")
    return {
        "splits": sizes,
        "pairs": sum(sizes.values()),
        "first_image": [width, height],
        "record_sets": len(card.get("recordSet", [])),
    }


def released(opened: dict[str, Any], reasons: pd.DataFrame, found: dict[str, Any]) -> pd.DataFrame:
    """Pairs by what became of them: ``what`` (split, left out, reviewed, verdict), ``which``."""
    rows = [("split", name, n) for name, n in opened["splits"].items()]
    rows += [("left out", r.reason, r.pairs) for r in reasons.itertuples()]
    rows += [("reviewed", "all", found["pairs"])]
    rows += [("verdict", name, n) for name, n in found["verdicts"].items()]
    return pd.DataFrame(rows, columns=["what", "which", "pairs"])


def _metrics(config: Config, opened: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    counts = {"released": opened["pairs"], "reviewed": found["pairs"]}
    out = {f"captions.{k}": provenance.metric(config, n, csv=RELEASED) for k, n in counts.items()}
    for name, rate in found["rates"].items():
        key = f"captions.review.{name.replace(' ', '_')}"
        values = (rate["value"], rate["low"], rate["high"], rate["n"])
        out[key] = provenance.metric(config, *values, csv=RELEASED)
    return out


def _report(
    config: Config, opened: dict[str, Any], found: dict[str, Any], reasons: pd.DataFrame
) -> None:
    print(f"released: {opened['pairs']:,} pairs {opened['splits']}")
    for row in reasons.itertuples():
        print(f"  left out: {row.pairs:,} of {row.source}: {row.reason}")
    planned = pd.read_csv(config.stage_dir(STAGE) / "review_plan.csv")
    print(
        f"review: {planned['n'].sum():,} of {planned['population'].sum():,} pairs, if none is "
        f"wrong, bound the error rate below {config.release.upper_error:.1%} (95 %)"
    )
    if not found["pairs"]:
        print("  no verdict yet: nobody has reviewed these pairs, and the card says so")
    for name, rate in found["rates"].items():
        print(
            f"  {name}: {rate['value']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}] of "
            f"{rate['n']} reviewed, below {rate['upper']:.1%} with 95 % confidence"
        )
