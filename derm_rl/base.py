"""``make base``: train the small base models that the CPU presets start from, from nothing.

``models/phantom-sd`` plays the part that Stable Diffusion 1.5 plays in the paper: a general model,
here of phantom dermoscopy, from which stage 1 starts. It has seen every artifact alone and, only at
the end of its training and in few images, two or more together. ``models/phantom-classifiers``
plays the part of ImageNet's weights: where reward classifier and judge start from, each with what
it learned on lesions of its own.

Takes about an hour on one core, and continues where it was interrupted.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image

from derm_rl import classifier, pipeline, prompts
from derm_rl.data import findings_of, phantom, splits
from derm_rl.finetune import examples, train
from derm_rl.io import atomic_path, read_json, write_csv, write_json
from derm_rl.paths import MODELS, RUNS
from derm_rl.redraw import redraw
from derm_rl.settings import ClassifierConfig, FinetuneConfig
from derm_rl.training import identity, process_state

FOLDER = MODELS / "phantom-sd"
CLASSIFIERS = MODELS / "phantom-classifiers"
DIAGNOSES = ("MEL", "NV")
ARTIFACTS = ("hair", "gel_bubble", "ruler", "ink")


def training_images(recipe: dict, cache: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """Phantom images (N, S, S, 3) uint8, drawn once, then from ``cache``; and their table.

    ``together`` is the share of the images that show two or more artifacts; null leaves it to the
    prevalences, by which each artifact comes independently. ``decoys`` is the share that shows
    what is no artifact, see :mod:`derm_rl.data.phantom_decoys`.
    """
    n, seed, size, together = (recipe[k] for k in ("images", "seed", "image_size", "together"))
    decoys = recipe.get("decoys", 0)
    frame = phantom.table(2 * n, seed, recipe["prevalence"])
    if together is not None:
        several = frame[list(ARTIFACTS)].sum(axis=1) > 1
        want = {True: round(together * n), False: n - round(together * n)}
        if short := [k for k, count in want.items() if count > (several == k).sum()]:
            raise ValueError(
                f"together: {together} needs {want[short[0]]} images with "
                f"{'several artifacts' if short[0] else 'at most one artifact'}, the prevalences "
                f"give {(several == short[0]).sum()} in {2 * n}"
            )
        rows = [frame[several == k].head(count) for k, count in want.items()]
        frame = pd.concat(rows).sort_index()
    frame = frame.head(n).reset_index(drop=True)
    frame["path"] = phantom.with_decoys(frame["path"].tolist(), decoys, seed)
    facts = {"seed": seed, "images": n, "size": size, "prevalence": recipe["prevalence"]}
    belongs_to = identity("derm_rl.data.phantom", **facts, together=together, decoys=decoys)
    file = cache / f"images_{belongs_to[:16]}.npy"
    if not file.is_file():
        images, _ = phantom.render_paths(frame["path"].tolist(), size, progress=True)
        with atomic_path(file) as temporary:
            np.save(temporary, images)
    return np.load(file, mmap_mode="r"), frame


def vocabulary_texts() -> list[str]:
    """Texts from which the tokenizer learns its words: the whole grammar, drawn or not."""
    full = prompts.all_prompts(list(prompts.DIAGNOSES), list(prompts.ARTIFACTS))
    return [prompts.render(f) for f in full]


def sample_sheet(folder: Path, file: Path, seed: int = 0, scale: int = 3) -> None:
    """Eight images for each of eight prompts, by plain diffusers from the saved folder."""
    pipe = pipeline.load(folder)
    sets = [(), *[(a,) for a in ARTIFACTS], ("hair", "ruler"), ("gel_bubble", "ink"), ARTIFACTS]
    size = pipeline.image_size(pipe)
    side = size * scale + 4
    sheet = Image.new("RGB", (8 * side, len(sets) * side), "white")
    for row, artifacts in enumerate(sets):
        texts = [
            prompts.render(prompts.Finding(diagnosis, tuple(artifacts)))
            for diagnosis in ("MEL", "NV")
            for _ in range(4)
        ]
        random = [torch.Generator().manual_seed(seed + i) for i in range(8)]
        images = pipe(
            texts,
            num_inference_steps=25,
            guidance_scale=2.0,
            eta=1.0,
            generator=random,
            height=size,
            width=size,
        ).images
        for column, image in enumerate(images):
            image = image.resize((size * scale,) * 2, Image.Resampling.NEAREST)
            sheet.paste(image, (column * side + 2, row * side + 2))
    sheet.save(file)


def train_pipeline(recipe: dict, work: Path) -> None:
    """Train and save ``models/phantom-sd``, phase after phase, its log and its sample sheet."""
    pipe, logs = None, []
    for name, phase in recipe["phases"].items():
        part = recipe | phase
        with process_state().main_process_first():
            images, frame = training_images(part, work)
        pipe = pipe or pipeline.build(
            np.array(images[:3000]),
            vocabulary_texts(),
            **recipe["autoencoder"],
            unet=recipe["unet"],
            text_width=recipe["text_width"],
            text_layers=recipe["text_layers"],
            prediction_type=recipe["prediction_type"],
            beta_schedule=recipe["beta_schedule"],
            seed=recipe["seed"],
        )
        settings = FinetuneConfig.model_validate(recipe["training"] | phase["training"])
        captions = [prompts.render(finding) for finding in findings_of(frame, ARTIFACTS)]
        cached = examples(pipe, images, captions, views=8)
        folder = work / name
        folder.mkdir(exist_ok=True)
        log = train(pipe, cached, settings, folder, part["seed"], train_text_encoder=True)
        every = log.groupby(log["step"].sub(1) // 50).mean(numeric_only=True).round(5)
        logs.append(every.assign(phase=name, step=every["step"].round()))
    if not process_state().is_main_process:
        return
    pipeline.save(pipe.to(dtype=torch.float16), work / "pipeline")  # half the size in git
    for part in (work / "pipeline").iterdir():
        target = FOLDER / part.name
        if part.is_dir():
            shutil.copytree(part, target, dirs_exist_ok=True)
        else:
            shutil.copy2(part, target)
    write_csv(FOLDER / "training_log.csv", pd.concat(logs))
    sample_sheet(FOLDER, FOLDER / "samples.png")


def train_classifiers(recipe: dict, work: Path) -> None:
    """Train ``models/phantom-classifiers/<architecture>``, each on lesions of its own."""
    if not process_state().is_main_process:
        return
    settings = ClassifierConfig.model_validate(recipe["training"])
    images, frame = training_images(recipe | {"decoys": settings.decoys}, work)
    base = pipeline.fingerprint(pipeline.load(FOLDER))
    belongs_to = identity("derm_rl.base", **recipe, base=base)
    file = work / f"redrawn_{belongs_to[:16]}.npy"
    if not file.is_file():
        captions = [prompts.render(f) for f in findings_of(frame, ARTIFACTS)]
        with atomic_path(file) as temporary:
            np.save(temporary, redraw(pipeline.load(FOLDER), images, captions, settings.redrawn,
                                      recipe["seed"]))  # fmt: skip
    images = np.load(file, mmap_mode="r")
    backbones = {b.architecture: b for b in (settings.reward, settings.judge)}
    names = prompts.label_names(DIAGNOSES, ARTIFACTS)
    labels = np.array([prompts.labels(f, names) for f in findings_of(frame, ARTIFACTS)], np.float32)
    strata, seed = ("diagnosis", *ARTIFACTS), recipe["seed"]
    owner = splits.assign(frame, dict.fromkeys(backbones, 0.5), seed, strata)
    shares = {"train": 1 - recipe["validation"], "validation": recipe["validation"]}
    for name, backbone in backbones.items():
        rows = np.flatnonzero(owner == name)
        mine = frame.iloc[rows].reset_index(drop=True)
        validation = (splits.assign(mine, shares, seed, strata) == "validation").to_numpy(bool)
        lesions = splits.groups(mine).tolist()
        classifier.train(
            images[rows], labels[rows], lesions, names, validation,
            backbone, settings, seed, work / name, progress=True,
        )  # fmt: skip
        shutil.copytree(work / name, CLASSIFIERS / name, dirs_exist_ok=True)
        card = read_json(CLASSIFIERS / name / "card.json")
        # Not 9,000 names: no lesion of this seed is shown anywhere but to the base models.
        card["training_lesions"] = f"{len(set(lesions))} lesions of phantom seed {seed}"
        write_json(CLASSIFIERS / name / "card.json", card)


def main() -> None:
    work = RUNS / "base"
    work.mkdir(parents=True, exist_ok=True)
    for folder, fit in ((FOLDER, train_pipeline), (CLASSIFIERS, train_classifiers)):
        fit(yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")), work)
    print(f"saved in {MODELS} (torch {torch.__version__}, {platform.processor() or 'cpu'})")


if __name__ == "__main__":
    main()
