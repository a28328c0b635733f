"""What the training loops share: which parameters train, checkpoints, the learning rate."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import convert_outputs_to_fp32
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from derm_rl import paths

if TYPE_CHECKING:
    from derm_rl.config import Config

LAUNCHED = "DERM_RL_LAUNCHED"  # in the environment of the processes that train together

# Linear and convolutional layers that get adapters, by the end of their name.
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # the attention projections, as in the paper
BLOCKS = ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "time_emb_proj"]
LORA_TARGETS = {"attention": ATTENTION, "all": ATTENTION + BLOCKS}


def accelerator_of(mixed_precision: str) -> Accelerator:
    """An accelerator of this precision, also where one of another precision came before.

    Accelerate keeps its settings for the life of the process, which in a notebook is long.
    """
    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(mixed_precision=mixed_precision)


def launched(config: Config, module: str) -> bool:
    """Whether ``module`` ran elsewhere: under `accelerate launch`, in ``config.processes``.

    False, with nothing done, if the preset wants one process or this is one of those launched.
    """
    if config.processes == 1 or LAUNCHED in os.environ:
        return False
    cpu = [] if torch.cuda.is_available() else ["--cpu"]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *cpu, "--num_machines", "1",
        "--num_processes", str(config.processes), "--mixed_precision", "no",
        "--dynamo_backend", "no", "--main_process_port", "0", "-m", module,
        config.name, str(config.data_root or ""), *config.overrides,
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=paths.ROOT, env=os.environ | {LAUNCHED: "1"})
    return True


def main(run: Callable[[Config], Path]) -> None:
    """Run a stage in one of the processes that :func:`launched` starts."""
    from derm_rl.config import load

    preset, data_root, *overrides = sys.argv[1:]
    run(load(preset, overrides, data_root or None))


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
    unet: UNet2DConditionModel,
    method: str,
    lora_rank: int,
    seed: int,
    lora_layers: str = "attention",
) -> list[nn.Parameter]:
    """Make a UNet trainable in full, or by LoRA adapters alone; return what trains.

    Args:
        lora_layers: "attention" as in the paper, or "all": those of the residual blocks too.
    """
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
            target_modules=LORA_TARGETS[lora_layers],
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
    """Write a checkpoint whole or not at all; the one before stays, as ``*.previous``."""
    from derm_rl.io import atomic_path

    with atomic_path(path) as temporary:
        torch.save({"belongs_to": belongs_to, **state}, temporary)
        if path.exists():  # a kill between this and the next line leaves the previous one
            os.replace(path, previous(path))


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one is."""
    return path.with_name(path.name + ".previous")


def discard_checkpoint(path: Path) -> None:
    """Remove a checkpoint and the one before it."""
    path.unlink(missing_ok=True)
    previous(path).unlink(missing_ok=True)


def load_checkpoint(
    path: Path, belongs_to: str, needs: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The newest usable checkpoint of ``path``, or None.

    One that is torn, is no mapping or lacks one of the keys it ``needs``, or belongs to other
    settings, is refused (said on stderr with the reason) and the one before it is used.
    """
    for candidate in (path, previous(path)):
        if not candidate.is_file():
            continue
        state, problem = {}, "checkpoint of other settings, seed or data"
        try:
            state = torch.load(candidate, map_location="cpu", weights_only=True)
            if problem_of := _unlike_a_checkpoint(state, belongs_to, needs):
                state = {}
                raise pickle.UnpicklingError(problem_of)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            problem = f"unreadable checkpoint ({error})"
            candidate.unlink(missing_ok=True)  # or the next save would put it over the one before
        if state.get("belongs_to") == belongs_to:
            return state
        print(f"{candidate}: {problem}; not used", file=sys.stderr)
    return None


def _unlike_a_checkpoint(state: Any, belongs_to: str, needs: Sequence[str]) -> str | None:
    if not isinstance(state, dict):
        return f"it holds a {type(state).__name__}, not a mapping"
    lacking = [key for key in needs if key not in state]
    mine = state.get("belongs_to") == belongs_to
    return f"it lacks {', '.join(lacking)}" if mine and lacking else None


Callback = Callable[[dict[str, Any]], None]  # called with each new row of a loop's log
