"""Stage 1: text-conditioned fine-tuning of a Stable Diffusion pipeline on captioned images.

The denoising loss of Ho et al. 2020 with min-SNR weights (Hang et al. 2023, arXiv 2303.09556)
and dropped captions for classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.training_utils import EMAModel, compute_snr
from torch import Tensor
from tqdm import tqdm

from derm_rl import data, prompts
from derm_rl.config import Config
from derm_rl.io import write_csv
from derm_rl.pipeline import encode_images, fingerprint, load, save, set_image_size
from derm_rl.settings import FinetuneConfig
from derm_rl.training import (
    Callback,
    accelerator_of,
    check_alike,
    cosine_learning_rate,
    denoising_target,
    discard_checkpoint,
    generator,
    hash_of,
    identity,
    launched,
    load_checkpoint,
    main,
    merge_lora,
    prepare_unet,
    process_state,
    save_checkpoint,
)

STAGE = "03_finetune_stable_diffusion"


@dataclass(frozen=True)
class Examples:
    """Cached latents (views, N, C, h, w) float16, and the index (N,) of each one's caption."""

    latents: Tensor
    caption: Tensor
    captions: list[str]
    images: str = ""  # hash of the images


def examples(
    pipe: StableDiffusionPipeline, images: np.ndarray, captions: Sequence[str], views: int
) -> Examples:
    """Encode images (N, H, W, 3) uint8 once, in 1, 2 (mirrored) or 8 (turned too) views.

    A dermatoscope has no up or down, so all eight symmetries of the square are valid images.
    """
    if views not in (1, 2, 8):
        raise ValueError(f"views must be 1, 2 or 8, got {views}")
    turned = [np.rot90(images, k, (1, 2)) for k in range(4 if views == 8 else 1)]
    every = turned + ([t[:, :, ::-1] for t in turned] if views > 1 else [])
    unique = sorted(set(captions))
    index = {text: i for i, text in enumerate(unique)}
    latents = torch.stack([encode_images(pipe, v).half().cpu() for v in every])
    caption = torch.tensor([index[c] for c in captions])
    return Examples(latents, caption, unique, hash_of(images))


def training_examples(config: Config, pipe: StableDiffusionPipeline) -> Examples:
    """The diffusion split of a preset, encoded by ``pipe``."""
    training = data.load(config, "diffusion")
    views = 8 if config.image_size < 256 else 2  # every view is cached: large images are many
    captions = [prompts.render(finding) for finding in training.findings]
    return examples(pipe, training.images, captions, views)


def denoising_loss(
    output: Tensor,
    latents: Tensor,
    noise: Tensor,
    timestep: Tensor,
    scheduler: DDIMScheduler,
    gamma: float,
) -> Tensor:
    """Min-SNR weighted loss (): min(SNR, γ) · ‖x0 prediction - x0‖², per dimension.

    Written in the space of the model output (arXiv 2303.09556, equation 4 and table 1).
    """
    snr = compute_snr(scheduler, timestep)
    clipped = snr.clamp(max=gamma)
    per_error = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}
    weight = clipped / per_error[scheduler.config.prediction_type]
    target = denoising_target(scheduler, latents, noise, timestep).float()
    return (weight * (output.float() - target).square().flatten(1).mean(1)).mean()


def train(
    pipe: StableDiffusionPipeline,
    dataset: Examples,
    settings: FinetuneConfig,
    folder: Path,
    seed: int,
    *,
    train_text_encoder: bool = False,
    progress: bool = True,
    callback: Callback | None = None,
) -> pd.DataFrame:
    """Train ``pipe`` in place (it ends with the averaged weights); return the log.

    An interrupted run with the same settings, seed, data, weights to start from and code continues
    from its checkpoint in ``folder``; the result is the same, bit for bit, as without the
    interruption.
    """
    mine = identity(
        "derm_rl.finetune",
        settings=settings.model_dump(),
        seed=seed,
        train_text_encoder=train_text_encoder,
        data=[dataset.images, list(dataset.latents.shape), hash_of(dataset.caption)],
        captions=dataset.captions,
        start=fingerprint(pipe),
    )
    accelerator = accelerator_of(settings.mixed_precision)
    device = accelerator.device
    rank, world = accelerator.process_index, accelerator.num_processes
    if settings.batch_size % world:
        raise ValueError(
            f"finetune.batch_size={settings.batch_size} cannot be shared out to {world} processes"
        )
    pipe.vae.requires_grad_(False).to(device)
    pipe.text_encoder.requires_grad_(train_text_encoder).to(device)
    parameters = prepare_unet(pipe.unet.to(device), settings.method, settings.lora_rank, seed)
    if train_text_encoder:
        parameters += list(pipe.text_encoder.parameters())
    optimizer = torch.optim.AdamW(
        parameters, settings.learning_rate, weight_decay=settings.weight_decay
    )
    ema = EMAModel(parameters, decay=settings.ema_decay)
    rows: list[dict] = []
    start = 0

    checkpoint = folder / "checkpoint.pt"
    if state := load_checkpoint(
        checkpoint, mine, ("parameters", "optimizer", "ema", "rows", "step")
    ):
        for parameter, saved in zip(parameters, state["parameters"], strict=True):
            parameter.data.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        ema.to(device)
        rows, start = state["rows"], state["step"]
    check_alike(start)
    unet, optimizer = accelerator.prepare(pipe.unet, optimizer)
    text_encoder = accelerator.prepare(pipe.text_encoder) if train_text_encoder else None
    unet.train()
    ids = pipe.tokenizer(
        ["", *dataset.captions],
        padding="max_length",
        truncation=True,
        max_length=pipe.tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids.to(device)
    with torch.no_grad():
        embeds = None if text_encoder else pipe.text_encoder(ids)[0]

    bar = tqdm(
        range(start, settings.steps),
        initial=start,
        total=settings.steps,
        desc="fine-tune",
        mininterval=2,
        disable=not (progress and accelerator.is_main_process),
    )
    for step in bar:
        # Every process draws the whole batch and takes its share: the images of one process.
        random, batch = generator(seed, "finetune", step, 0), settings.batch_size
        share = slice(rank, None, world)
        n = dataset.latents.shape[1]
        which = torch.randint(n, (batch,), generator=random)
        view = torch.randint(len(dataset.latents), (batch,), generator=random)
        latents = dataset.latents[view[share], which[share]].float().to(device)
        dropped = torch.rand(batch, generator=random) < settings.caption_dropout
        caption = torch.where(dropped, 0, dataset.caption[which] + 1)[share].to(device)
        noise = torch.randn(batch, *latents.shape[1:], generator=random)[share].to(device)
        timesteps = pipe.scheduler.config.num_train_timesteps
        timestep = torch.randint(timesteps, (batch,), generator=random)[share].to(device)

        for group in optimizer.param_groups:
            group["lr"] = cosine_learning_rate(
                step,
                settings.steps,
                settings.learning_rate,
                settings.warmup_steps,
                settings.learning_rate_floor,
            )
        noisy = pipe.scheduler.add_noise(latents, noise, timestep)
        with accelerator.autocast():
            table = text_encoder(ids)[0] if text_encoder else embeds
            output = unet(noisy, timestep, table[caption]).sample
        loss = denoising_loss(
            output, latents, noise, timestep, pipe.scheduler, settings.min_snr_gamma
        )
        mean = accelerator.reduce(loss.detach(), "mean")
        if not torch.isfinite(mean):
            raise FloatingPointError(
                f"fine-tuning: loss is {mean.item()} at step {step}; lower finetune.learning_rate "
                f"(now {settings.learning_rate:g})"
            )
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(parameters)

        rows.append({"step": step + 1, "loss": mean.item(), "grad_norm": float(norm)})
        if callback:
            callback(rows[-1])
        if (step + 1) % 50 == 0:
            recent = np.mean([r["loss"] for r in rows[-50:]])
            bar.set_postfix(loss=f"{recent:.4f}", refresh=False)
        if (step + 1) % settings.checkpoint_every == 0 and accelerator.is_main_process:
            state = {
                "parameters": [p.detach().cpu() for p in parameters],
                "optimizer": optimizer.state_dict(),
                "ema": ema.state_dict(),
                "rows": rows,
                "step": step + 1,
            }
            save_checkpoint(checkpoint, state, mine)
    ema.copy_to(parameters)
    accelerator.wait_for_everyone()
    merge_lora(pipe.unet)
    pipe.unet.eval()
    pipe.text_encoder.requires_grad_(False)
    return pd.DataFrame(rows)


def run(config: Config, progress: bool = True) -> Path:
    """Stage 1 of a preset: fine-tune ``pipeline.base`` on the diffusion split; save the result.

    Writes ``pipeline/`` (diffusers folder), ``log.csv`` and ``stage.json`` in the stage's folder.
    """
    from derm_rl.provenance import stamp

    folder = config.stage_dir(STAGE)
    folder.mkdir(parents=True, exist_ok=True)
    if launched(config, "derm_rl.finetune"):
        return folder
    pipe = load(config.pipeline.base).to(process_state().device)  # where images are encoded
    set_image_size(pipe, config.image_size)
    cached = training_examples(config, pipe)
    log = train(pipe, cached, config.finetune, folder, config.seed, progress=progress)
    if process_state().is_main_process:
        save(pipe, folder / "pipeline")
        write_csv(folder / "log.csv", log)
        discard_checkpoint(folder / "checkpoint.pt")
        stamp(config, STAGE, images=len(cached.caption), captions=len(cached.captions))
    return folder


if __name__ == "__main__":
    main(run)
