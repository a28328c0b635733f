"""Eyes against instruments: readers say what they see in images, without knowing what was asked.

    python benchmarks/blind_reading.py draw FOLDER --readers anna ben     sheets to look at
    python benchmarks/blind_reading.py score FOLDER                       what follows from them

``draw`` takes two images of every prompt from stage 05, before and after RL, from the same noise,
and two of each with guidance ``GUIDED`` from its front, mixes them all, and draws them enlarged,
with nothing but a number, in another order for each reader: ``FOLDER/<reader>_<page>.png``. Beside
them lies ``FOLDER/<reader>.csv`` with the numbers (and a hash of each image), for the reader to
fill in: in the column ``seen`` the artifacts that are really there, with spaces between.

``score`` writes ``benchmarks/results/blind_reading_<preset>.csv`` (what was asked, and what each
reader, judge and rules saw) and ``.json``: the APR by eye of each model, where all readers see
exactly what was asked; RL's gain; how far readers agree (kappa); and of each artifact the share
that judge and rules see where all readers do, and where none does, in the images of both models.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from sklearn.metrics import cohen_kappa_score

from derm_rl import classifier, config, data, prompts, provenance
from derm_rl.captions.sampling import wilson
from derm_rl.config import Config
from derm_rl.evaluation import audit_sheet, bootstrap
from derm_rl.evaluation.alignment_stage import MODELS, front_file, graded
from derm_rl.evaluation.panel import INSTRUMENTS, seen
from derm_rl.io import read_csv, write_csv, write_json

RESULTS = Path(__file__).parent / "results"
GUIDED = 4.0
INDICES = (5, 6)  # of the images of a prompt: the first ones are in figures, which readers may know
SEED = 1510
SIDE, ACROSS, PAGE = 288, 4, 16  # pixels of an image on the sheet; images in a row, on a page
MARGIN, TOP = 22, 20


def chosen(settings: Config) -> tuple[pd.DataFrame, np.ndarray]:
    """Mixed rows of stage 05's samples table, with ``number`` and ``image``; (N, S, S, 3) uint8."""
    parts, images = [], []
    for model in MODELS:
        samples, made = audit_sheet.drawn(settings, model)
        parts.append(samples[samples["index"].isin(INDICES)])
        images.append(made[parts[-1].index])
    for part, some in guided(settings):
        parts.append(part)
        images.append(some)
    table, images = pd.concat(parts, ignore_index=True), np.concatenate(images)
    order = np.random.default_rng(SEED).permutation(len(table))
    return audit_sheet.numbered(table.loc[order], images[order])


def guided(settings: Config) -> list[tuple[pd.DataFrame, np.ndarray]]:
    """Samples table and images of each model at guidance ``GUIDED``, two of every prompt."""
    classifiers = settings.require("02_reward_classifier")
    judge, reward = (classifier.load(classifiers / name) for name in ("judge", "reward"))
    words, n = data.vocabulary(settings), settings.alignment.front_images_per_prompt
    asked = prompts.all_prompts(words.diagnoses, words.artifacts)
    rows, found = (np.arange(len(asked))[:, None] * n + np.arange(2)).ravel(), []
    for model, adapter in (("stage1", 0.0), ("rl", 1.0)):
        file = settings.require("05_alignment") / front_file(
            model, GUIDED, adapter, settings.alignment.eta
        )
        images, name = np.load(file, mmap_mode="r")[rows], f"{model} at guidance {GUIDED:g}"
        found.append((graded(name, images, asked, 2, judge, reward), images))
    return found


def draw(settings: Config, folder: Path, readers: list[str]) -> None:
    """Pages and an empty form for each reader; a form that is there is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    table, images = chosen(settings)
    cell = SIDE + MARGIN
    for k, reader in enumerate(readers):
        order = np.random.default_rng([SEED, k]).permutation(len(table))
        for page, start in enumerate(range(0, len(order), PAGE), start=1):
            rows = order[start : start + PAGE]
            height = (cell + TOP) * -(-len(rows) // ACROSS)
            sheet = Image.new("RGB", (cell * ACROSS, height), "white")
            for j, row in enumerate(rows):
                x, y = cell * (j % ACROSS), (cell + TOP) * (j // ACROSS)
                large = Image.fromarray(images[row]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                sheet.paste(large, (x, y + TOP))
                ImageDraw.Draw(sheet).text((x, y + 4), f"#{row + 1}", fill="black")
            sheet.save(folder / f"{reader}_{page}.png")
        if not (form := folder / f"{reader}.csv").exists():
            blank = table.loc[order, ["number", "image"]].assign(seen="")
            write_csv(form, blank)


def read(form: Path, table: pd.DataFrame, names: list[str]) -> np.ndarray:
    """What a reader saw (N, A) bool in the images of ``table``.

    Raises:
        ValueError: an image is missing or twice, an artifact is unknown, or stage 05 has drawn
            other images since; names the file.
    """
    given = read_csv(form, dtype={"seen": "string"})
    if sorted(given["number"]) != sorted(table["number"]):
        raise ValueError(f"{form}: each number from 1 to {len(table)} must be there once")
    given = given.set_index("number").loc[table["number"]].reset_index()
    if (given["image"] != table["image"]).any():
        raise ValueError(f"{form} is about other images than those of stage 05: draw sheets anew")
    words = given["seen"].fillna("").str.split()
    if unknown := sorted(set(itertools.chain.from_iterable(words)) - set(names)):
        raise ValueError(f"{form}: {unknown[0]!r} is none of {', '.join(names)}")
    return np.array([[name in row for name in names] for row in words])


def score(settings: Config, folder: Path) -> tuple[pd.DataFrame, dict]:
    """The table of all that was seen, and what follows from it."""
    table, _ = chosen(settings)
    by, wanted, names = seen(table)
    forms = sorted(folder.glob("*.csv"))
    if len(forms) < 2:
        raise ValueError(f"{folder} holds {len(forms)} filled-in forms (*.csv); two are needed")
    readers = {form.stem: read(form, table, names) for form in forms}
    out = table[["image", "model", "prompt", "index", "image_seed"]].copy()
    for who, what in {
        "wanted": wanted,
        **readers,
        "judge": by["judge"],
        "rules": by["rules"],
    }.items():
        for j, name in enumerate(names):
            out[f"{who}_{name}"] = what[:, j].astype(int)
    right = np.all([(found == wanted).all(1) for found in readers.values()], axis=0)
    results: dict = {"readers": list(readers), "images": len(table)}
    for model in (*MODELS, *sorted(set(table["model"]) - set(MODELS))):
        part = right[(table["model"] == model).to_numpy()]
        results[f"apr.{model}"] = wilson(int(part.sum()), len(part))._asdict()
    compared = table["model"].isin(MODELS).to_numpy()
    pairs = out.assign(right=right)[compared].pivot(
        index=["prompt", "index"], columns="model", values="right"
    )
    gain = (pairs["rl"].astype(float) - pairs["stage1"]).to_numpy()
    results["apr.gain"] = bootstrap.interval(gain, seed=SEED)._asdict()
    for a, b in itertools.combinations(readers, 2):
        kappa = cohen_kappa_score(readers[a].ravel(), readers[b].ravel())
        results[f"kappa.{a}.{b}"] = float(kappa)
    for instrument, (j, name) in itertools.product(INSTRUMENTS, enumerate(names)):
        votes = np.sum([found[:, j] for found in readers.values()], axis=0)
        for kind, rows in (("recall", votes == len(readers)), ("false_add", votes == 0)):
            found = by[instrument][rows & compared, j]
            found = wilson(int(found.sum()), len(found))
            results[f"{instrument}.{kind}.{name}"] = found._asdict()
    return out, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("draw", "score"))
    parser.add_argument("folder", type=Path, help="of the sheets and forms")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--readers", nargs="+", default=["reader_1", "reader_2"])
    arguments = parser.parse_args()
    settings = config.load(arguments.preset)
    if arguments.what == "draw":
        draw(settings, arguments.folder, arguments.readers)
        print(f"sheets and forms in {arguments.folder}")
        return
    table, results = score(settings, arguments.folder)
    name = f"blind_reading_{arguments.preset}"
    write_csv(RESULTS / f"{name}.csv", table)
    facts = {"preset": arguments.preset, "seed": settings.seed, "commit": provenance.commit()}
    write_json(RESULTS / f"{name}.json", facts | results)
    for key, value in results.items():
        print(f"{key:30s} {value}")


if __name__ == "__main__":
    main()
