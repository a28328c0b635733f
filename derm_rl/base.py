"""``make base``: train the small base pipeline ``models/phantom-sd`` from nothing.

It plays the part that Stable Diffusion 1.5 plays in the paper: a general model, here of phantom
dermoscopy with every combination of findings equally likely, from which stage 1 starts. Takes
about 75 minutes on one core, and continues where it was interrupted. ``accelerate launch
--num_processes 2 -m derm_rl.base`` shares the work between two processes.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import PartialState
from PIL import Image

from derm_rl import pipeline, prompts
from derm_rl.config import FinetuneConfig
from derm_rl.data import phantom
from derm_rl.finetune import examples, train
from derm_rl.io import write_csv
from derm_rl.paths import MODELS, RUNS

FOLDER = MODELS / "phantom-sd"
ARTIFACTS = ("hair", "gel_bubble", "ruler", "ink")


def training_images(recipe: dict, cache: Path) -> tuple[np.ndarray, list[str]]:
    """Phantom images (N, S, S, 3) uint8 and their captions; drawn once, then from ``cache``."""
    n, seed, size = recipe["images"], recipe["seed"], recipe["image_size"]
    findings = [phantom.draw_findings(seed, i, phantom.BALANCED_PREVALENCE) for i in range(n)]
    captions = [
        prompts.render(prompts.Finding(diagnosis, tuple(a for a in ARTIFACTS if a in artifacts)))
        for diagnosis, artifacts in findings
    ]
    file = cache / f"images_{seed}_{n}_{size}.npy"
    if not file.is_file():
        paths = [phantom.path_of(seed, i, *f) for i, f in enumerate(findings)]
        images, _ = phantom.render_paths(paths, size, progress=True)
        np.save(file, images)
    return np.load(file, mmap_mode="r"), captions


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


def main() -> None:
    recipe = yaml.safe_load((FOLDER / "recipe.yaml").read_text())
    work = RUNS / "base"
    work.mkdir(parents=True, exist_ok=True)
    state = PartialState()
    with state.main_process_first():
        images, captions = training_images(recipe, work)
    pipe = pipeline.build(
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
    settings = FinetuneConfig.model_validate(recipe["training"])
    cached = examples(pipe, images, captions, views=8)
    log = train(pipe, cached, settings, work, recipe["seed"], train_text_encoder=True)
    if not state.is_main_process:
        return
    pipeline.save(pipe.to(dtype=torch.float16), work / "pipeline")  # half the size in git
    for part in (work / "pipeline").iterdir():
        target = FOLDER / part.name
        if part.is_dir():
            shutil.copytree(part, target, dirs_exist_ok=True)
        else:
            shutil.copy2(part, target)
    every = log.groupby(log["step"].sub(1) // 50).mean(numeric_only=True).round(5)
    write_csv(FOLDER / "training_log.csv", every.assign(step=every["step"].round()))
    sample_sheet(FOLDER, FOLDER / "samples.png")
    print(f"saved {FOLDER} (torch {torch.__version__}, {platform.processor() or 'cpu'})")


if __name__ == "__main__":
    main()
