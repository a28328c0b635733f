"""What the training loops share: which parameters train, checkpoints, the learning rate."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import convert_outputs_to_fp32
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the attention projections, as in the paper


def accelerator_of(mixed_precision: str) -> Accelerator:
    """An accelerator of this precision, also where one of another precision came before.

    Accelerate keeps its settings for the life of the process, which in a notebook is long.
    """
    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(mixed_precision=mixed_precision)


@contextmanager
def autocast_unet(pipe: StableDiffusionPipeline, mixed_precision: str) -> Iterator[None]:
    """Run the UNet in this precision, all else in float32: as Accelerate prepares a model."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if mixed_precision == "no":
        yield
        return
    forward = pipe.unet.forward
    cast = torch.autocast(pipe.device.type, kinds[mixed_precision])
    pipe.unet.forward = convert_outputs_to_fp32(cast(forward))
    try:
        yield
    finally:
        pipe.unet.forward = forward


def prepare_unet(
    unet: UNet2DConditionModel, method: str, lora_rank: int, seed: int
) -> list[nn.Parameter]:
    """Make a UNet trainable in full, or by LoRA adapters alone; return what trains."""
    if unet.device.type == "cpu":
        # The backward pass of torch's fused attention is slow on CPU for short sequences: plain
        # attention trains the small UNet a third faster (99 against 72 images/s on one core).
        unet.set_attn_processor(AttnProcessor())
    if method == "full":
        unet.requires_grad_(True)
    elif method == "lora":
        from peft import LoraConfig

        unet.requires_grad_(False)
        adapters = LoraConfig(
            r=lora_rank,
            lora_alpha=lora_rank,
            init_lora_weights="gaussian",
            target_modules=LORA_TARGETS,
        )
        with torch.random.fork_rng():  # peft draws from the global generator
            torch.manual_seed(seed)
            unet.add_adapter(adapters)
    else:
        raise ValueError(f"method {method!r}: expected 'full' or 'lora'")
    return [p for p in unet.parameters() if p.requires_grad]


def merge_lora(unet: UNet2DConditionModel) -> None:
    """Fold LoRA adapters into the weights, so that the folder saved next is a plain pipeline."""
    if getattr(unet, "peft_config", None):
        unet.fuse_lora()
        unet.unload_lora()
    unet.requires_grad_(False)


def cosine_learning_rate(step: int, total: int, peak: float, warmup: int, floor: float) -> float:
    """Linear warm-up to ``peak``, then a cosine down to ``floor`` × peak at ``total``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def generator(*seeds: int | str) -> torch.Generator:
    """A CPU generator that depends on all of ``seeds``.

    Every step of every loop draws from a generator of its own. There is then no random state to
    save: a resumed run draws what the uninterrupted one would have drawn.
    """
    digest = hashlib.sha256(json.dumps(seeds).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def identity(**facts: Any) -> str:
    """Hash of what a checkpoint belongs to: settings, seed, data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def save_checkpoint(path: Path, state: dict[str, Any], belongs_to: str) -> None:
    """Write a checkpoint whole or not at all."""
    from derm_rl.io import atomic_path

    with atomic_path(path) as temporary:
        torch.save({"belongs_to": belongs_to, **state}, temporary)


def load_checkpoint(path: Path, belongs_to: str) -> dict[str, Any] | None:
    """The checkpoint at ``path``, or None (said on stderr) if it is absent, torn or foreign."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        print(f"{path}: unreadable checkpoint ({error}); starting anew", file=sys.stderr)
        return None
    if state.get("belongs_to") != belongs_to:
        print(f"{path}: checkpoint of other settings, seed or data; starting anew", file=sys.stderr)
        return None
    return state


Callback = Callable[[dict[str, Any]], None]  # called with each new row of a loop's log
