"""The DDPO engine on a CUDA device: every option that is there for speed or memory, by itself.

    python benchmarks/gpu.py                              Stable Diffusion 1.5's shape, 512 px
    python benchmarks/gpu.py --pipeline models/phantom-sd     any diffusers folder or hub id

Without ``--pipeline`` the networks have the shape of Stable Diffusion 1.5 and random weights:
nothing is downloaded, and speed does not depend on what the weights know. Each variant trains some
epochs; the last one counts. Writes ``benchmarks/results/gpu_<device>.csv`` and ``.json``: images a
second in rollout and update, the share of the matmul peak measured in the same run, peak memory.
A variant that runs out of memory is a row that says so. On a CUDA device ``benchmarks/ddpo.py``
measures the recipes and writes ``ddpo_<device>.json``.
"""

from __future__ import annotations

import argparse
import gc
import re
from datetime import date

import pandas as pd
import torch
from ddpo import RESULTS, epoch_time, matmul_peak
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from derm_rl import config as presets
from derm_rl import pipeline, prompts, provenance
from derm_rl.ddpo.sampling import Task
from derm_rl.io import write_csv, write_json
from derm_rl.settings import DDPOConfig

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What differs from bf16 with LoRA in attention; the last is all that pays, together.
VARIANTS = {
    "bf16": {},
    "fp16": {"mixed_precision": "fp16"},
    "channels_last": {"channels_last": True},
    "compile": {"compile": True},
    "background_reward": {"background_reward": True},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "guidance": {"guidance_scales": [5.0]},
    "window of 4 steps": {"stochastic_steps": 4},
    "channels_last, compile": {"channels_last": True, "compile": True},
}


def stable_diffusion() -> StableDiffusionPipeline:
    """The shape of Stable Diffusion 1.5 with random weights (arXiv 2112.10752; its model card)."""
    small = pipeline.load("models/phantom-sd")  # for the tokenizer: which words matters to no one
    channels = (128, 256, 512, 512)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=channels,
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                layers_per_block=2,
                sample_size=512,
            ),
            unet=UNet2DConditionModel(
                sample_size=64, cross_attention_dim=768, attention_head_dim=8
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=768,
                    intermediate_size=3072,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                )
            ),
            tokenizer=small.tokenizer,
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def redness(images: Tensor, wanted: Tensor) -> Tensor:
    """A reward that costs next to nothing: the engine is measured, not a classifier."""
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def task(count: int) -> Task:
    texts = [prompts.render(f) for f in prompts.all_prompts()[:count]]
    return Task(texts, torch.zeros(count, 1), redness, {})


def settings(images: int, batch_size: int, steps: int, epochs: int) -> DDPOConfig:
    """Of the isic2019 preset, with fewer steps and images."""
    return presets.load("isic2019").ddpo.model_copy(
        update={
            "epochs": epochs, "images_per_prompt": images, "prompts_per_epoch": None,
            "batch_size": batch_size, "inference_steps": steps, "guidance_scales": [1.0],
            "mixed_precision": "bf16", "advantages": "group", "min_std": 0.0, "drop_last_steps": 1,
            "eval_every": 1000, "eval_images_per_prompt": 1, "checkpoint_every": 1000,
        }
    )  # fmt: skip


def measure(make, plain: DDPOConfig, changes: dict, count: int) -> dict[str, float | str]:
    """One row: the last epoch of a training with ``changes``."""
    variant = plain.model_copy(update=changes)
    cuda = torch.cuda.is_available()
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        found = epoch_time(make(), task(count), variant)
    except torch.cuda.OutOfMemoryError:
        return {"note": "out of memory"}
    peak = matmul_peak(DTYPES[variant.mixed_precision], 8192 if cuda else 1024)
    return {
        **found,
        "peak_fraction": found["unet_flops_per_second"] / peak,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else float("nan"),
        "note": "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", help="diffusers folder or hub id")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--images", type=int, default=8, help="of each prompt (default 8)")
    parser.add_argument("--batch-size", type=int, default=16, help="(default 16)")
    parser.add_argument("--steps", type=int, default=12, help="denoising steps (default 12)")
    parser.add_argument("--epochs", type=int, default=2, help="the last one counts (default 2)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu.py: torch finds no CUDA device; benchmarks/ddpo.py measures a CPU")
    device = torch.cuda.get_device_name()
    name = re.sub(r"\W+", "_", device.lower())
    plain = settings(arguments.images, arguments.batch_size, arguments.steps, arguments.epochs)

    def make() -> StableDiffusionPipeline:
        return pipeline.load(arguments.pipeline) if arguments.pipeline else stable_diffusion()

    rows = []
    for variant in tqdm(arguments.variants, desc="variants"):
        rows.append(
            {"variant": variant} | measure(make, plain, VARIANTS[variant], arguments.prompts)
        )
        write_csv(RESULTS / f"gpu_{name}.csv", pd.DataFrame(rows))  # after each: they are long
        tqdm.write(str(rows[-1]))
    facts = {
        "date": date.today().isoformat(),
        "device": device,
        "torch": torch.__version__,
        "commit": provenance.commit(),
        "pipeline": arguments.pipeline or "shape of Stable Diffusion 1.5, random weights",
        "settings": plain.model_dump(),
        "variants": rows,
    }
    write_json(RESULTS / f"gpu_{name}.json", facts)


if __name__ == "__main__":
    main()
