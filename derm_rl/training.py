"""What the training loops share: which parameters train, checkpoints, the learning rate."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import convert_outputs_to_fp32, gather_object
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from derm_rl import dependencies, paths
from derm_rl.io import atomic_path, cannot_read, set_aside

if TYPE_CHECKING:
    from derm_rl.config import Config

STARTED = "LOCAL_RANK"  # in the environment of what `torchrun` starts

# Linear and convolutional layers that get adapters, by the end of their name.
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]  # the attention projections, as in the paper
BLOCKS = ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "time_emb_proj"]
LORA_TARGETS = {"attention": ATTENTION, "all": ATTENTION + BLOCKS}


def process_state() -> PartialState:
    """Which of how many processes this is. The first call of a process decides, so: always by this.

    Without being told, Accelerate takes the processes of `torchrun` on a CPU for separate runs.

    Raises:
        RuntimeError: they did not find each other. All would write the same files.
    """
    started = STARTED in os.environ
    # One may work alone for hours, as when it draws images. If it dies, torchrun ends the others.
    wait = timedelta(days=1)
    state = PartialState(cpu=started and not torch.cuda.is_available(), timeout=wait)
    wanted = int(os.environ["WORLD_SIZE"]) if started else state.num_processes
    if state.num_processes != wanted:
        raise RuntimeError(
            f"{wanted} processes were started, {state.num_processes} found each other: on a CPU "
            "call derm_rl.training.process_state() before Accelerate is used"
        )
    return state


def check_alike(done: int) -> None:
    """Raise RuntimeError if the processes of this run continue from different steps."""
    if len(set(found := gather_object([done]))) > 1:
        raise RuntimeError(f"the processes read different checkpoints, of steps {found}")


def accelerator_of(mixed_precision: str) -> Accelerator:
    """An accelerator of this precision, also where one of another precision came before.

    Accelerate keeps its settings for the life of the process, which in a notebook is long.
    """
    AcceleratorState._reset_state(reset_partial_state=False)
    device = process_state().device
    accelerator = Accelerator(mixed_precision=usable_precision(mixed_precision, device))
    if accelerator.scaler:  # it starts with the first loss, which this process may not have
        accelerator.scaler.scale(torch.zeros((), device=device))
    return accelerator


def usable_precision(mixed_precision: str, device: torch.device) -> str:
    """``mixed_precision``, or "no" where a CPU has no arithmetic of its own for bf16.

    There it is imitated: the demo's UNet, on a CPU with AVX2 alone, is 17 times slower in bf16 than
    in float32 (5 against 86 images/s on one core).
    """
    if mixed_precision == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        return "no"
    return mixed_precision


@lru_cache(maxsize=1)
def cpu_has_bf16() -> bool:
    """Whether oneDNN, which torch computes with, has bf16 kernels for this CPU; says so if not."""
    has = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not has:
        print("this CPU has no bf16: float32 takes its place", file=sys.stderr)
    return has


def launched(config: Config, module: str) -> bool:
    """Whether ``module`` ran elsewhere: in ``config.processes``, which `torchrun` starts.

    (`accelerate launch --cpu --num_processes 2` starts one, and says nothing.) False, with nothing
    done, if the preset wants one process or this is one of those launched.
    """
    if config.processes == 1 or STARTED in os.environ:
        return False
    if 0 < (most := torch.cuda.device_count()) < config.processes:
        raise ValueError(f"processes: {config.processes} need a GPU each, and there are {most}")
    command = [
        sys.executable, *in_processes(config.processes), "-m", module,
        config.name, str(config.data_root or ""), *config.overrides,
    ]  # fmt: skip
    threads = str(max(1, (os.cpu_count() or 1) // config.processes))  # torchrun would say 1
    environment = {"OMP_NUM_THREADS": threads} | os.environ
    with subprocess.Popen(command, cwd=paths.ROOT, env=environment) as started:
        try:
            code = started.wait()
        except BaseException:
            started.terminate()  # it ends its processes; killed at once, it would leave them
            with suppress(subprocess.TimeoutExpired):
                started.wait(40)
            started.kill()
            raise
    if code:
        raise RuntimeError(
            f"{module} failed in one of {config.processes} processes: what went wrong is above, in "
            "the output of the kernel or the command"
        )
    return True


def in_processes(count: int) -> list[str]:
    """Arguments of Python that run what follows in ``count`` processes of this machine."""
    here = ["--standalone", "--local_addr", "127.0.0.1"]  # a host's own name may not resolve
    return ["-m", "torch.distributed.run", *here, "--nproc_per_node", str(count)]


def end_with_parent() -> None:
    """From here on, this process ends when the one that started it is gone.

    `torchrun` ends its processes unless it is killed; then they would go on, and write the same
    checkpoint as the run that is started in their place.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(run: Callable[[Config], Path]) -> None:
    """Run a stage in one of the processes that :func:`launched` starts."""
    from derm_rl.config import load

    end_with_parent()
    preset, data_root, *overrides = sys.argv[1:]
    run(load(preset, overrides, data_root or None))
    process_state().destroy_process_group()


@contextmanager
def autocast_unet(pipe: StableDiffusionPipeline, mixed_precision: str) -> Iterator[None]:
    """Run the UNet in this precision, all else in float32: as Accelerate prepares a model."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    mixed_precision = usable_precision(mixed_precision, pipe.device)
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


def denoising_target(
    scheduler: DDIMScheduler, latents: Tensor, noise: Tensor, timestep: Tensor
) -> Tensor:
    """What the model output should be (B, C, h, w) for ``latents`` noised to ``timestep`` (B,)."""
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timestep)
    return noise if kind == "epsilon" else latents


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


def identity(module: str, **facts: Any) -> str:
    """Hash of what a checkpoint or a cached file belongs to.

    Args:
        module: whose code makes it; all that it imports counts.
        facts: settings, seed, data and whatever else it depends on.
    """
    facts |= {"code": dependencies.code(module)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def hash_of(*arrays: Any) -> str:
    """Hash of all bytes of arrays or tensors, however large: a memory map is read in pieces."""
    found = hashlib.sha256()
    for array in arrays:
        for i in range(0, len(array), 256):
            found.update(np.ascontiguousarray(array[i : i + 256]).tobytes())
    return found.hexdigest()


def save_checkpoint(path: Path, state: dict[str, Any], belongs_to: str) -> None:
    """Write a checkpoint whole or not at all; the one before stays, as ``*.previous``."""
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

    One that was read and is torn, is none, lacks one of the keys it ``needs`` or belongs to
    something else, is renamed (said on stderr with the reason) and the one before it is used.

    Raises:
        OSError: one cannot be read just now, which says nothing about it; all stay as they are.
    """
    for candidate in (path, previous(path)):
        try:
            if not _is_whole(candidate):
                set_aside(candidate, "torn", "unreadable checkpoint")
                continue
            state = torch.load(candidate, map_location="cpu", weights_only=True)
        except FileNotFoundError:  # or another process of this run has set it aside
            continue
        except pickle.UnpicklingError as error:
            set_aside(candidate, "foreign", f"unreadable checkpoint ({error})")
            continue
        except Exception as error:  # memory ran out, for instance
            raise cannot_read(candidate, error) from error
        problem = _unlike_a_checkpoint(state, belongs_to, needs)
        if problem is None:
            return state
        # Left in its place, the next save but one would end it.
        set_aside(candidate, "foreign", problem)
    return None


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint, a zip archive, has every byte that it had; torch does not look.

    Raises:
        OSError: it cannot be read just now.
    """
    try:
        with open(path, "rb") as file:
            file.read(1)  # fails here rather than where zipfile makes it "not a zip file"
            with zipfile.ZipFile(file) as archive:
                return archive.testzip() is None
    except FileNotFoundError:
        raise
    except Exception as error:  # anything, on hostile bytes
        cause = error if isinstance(error, OSError) else error.__context__  # zipfile hides it
        if isinstance(cause, OSError) and cause.errno == errno.EINVAL:  # it leads nowhere
            return False
        if isinstance(error, MemoryError) or isinstance(cause, OSError):
            raise cannot_read(path, cause or error) from error
        return False


def _unlike_a_checkpoint(state: Any, belongs_to: str, needs: Sequence[str]) -> str | None:
    """Why what was read is not the checkpoint asked for; None if it is."""
    if not isinstance(state, dict) or "belongs_to" not in state:
        return f"not a checkpoint of this program: it holds a {type(state).__name__}"
    if state["belongs_to"] != belongs_to:
        return "checkpoint of other settings, seed or data, or of other code"
    lacking = [key for key in needs if key not in state]
    return f"this checkpoint lacks {', '.join(lacking)}" if lacking else None


Callback = Callable[[dict[str, Any]], None]  # called with each new row of a loop's log
