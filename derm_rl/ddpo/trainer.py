"""Stage 2: the DDPO loop, *sample → reward → advantage → update* (arXiv 2503.15784, section 2).

What holds at every epoch, on any number of processes:

- What was sampled is what is scored: before the first update the importance ratio is 1.
- An image depends on the seed, the epoch and its number alone, not on who made it.
- Nothing random is remembered from one epoch to the next; a checkpoint holds all that is.
- Gradients are summed over processes once for each update, whichever of them had work to do.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from derm_rl import classifier, data, dependencies, prompts, rewards
from derm_rl.config import Config
from derm_rl.ddpo import alarm
from derm_rl.ddpo.advantages import RULES, PromptStatistics, advantages, by_step
from derm_rl.ddpo.direct import direct_update
from derm_rl.ddpo.sampling import Batch, Policy, Task, on_host, score_row
from derm_rl.ddpo.update import State, check_failures, update
from derm_rl.finetune import training_examples
from derm_rl.io import write_csv
from derm_rl.pipeline import fingerprint, load, save
from derm_rl.settings import DDPOConfig
from derm_rl.training import (
    Callback,
    accelerator_of,
    check_alike,
    cosine_learning_rate,
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

STAGE = "04_ddpo"
PER_IMAGE = ("rewards", "values", "thumbnails")  # of a batch, beside its scores


def train(
    pipe: StableDiffusionPipeline,
    task: Task,
    settings: DDPOConfig,
    folder: Path,
    seed: int,
    *,
    progress: bool = True,
    callback: Callback | None = None,
) -> pd.DataFrame:
    """Refine ``pipe`` in place; return the log, one row per epoch.

    Writes ``log.csv``, ``steps.csv`` (by denoising step) and ``timing.csv`` into ``folder``. An
    interrupted run with the same settings, seed, task, weights to start from and code continues
    from its checkpoint there, to the same weights and logs as an uninterrupted one.

    Raises:
        OffPolicyError: the importance ratio is not 1 before the first update.
        FloatingPointError: ``max_failures`` updates in a row had a reward, loss or gradient that
            is not finite. Single ones are skipped and counted.
    """
    mine = identity(
        "derm_rl.ddpo.trainer",
        settings=settings.model_dump(),
        seed=seed,
        task=[task.texts, hash_of(task.wanted), task.judges, task.anchor and task.anchor.images],
        start=fingerprint(pipe),
    )
    accelerator = accelerator_of(settings.mixed_precision)
    first = accelerator.is_main_process
    for part in (pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).to(accelerator.device)
    parameters = prepare_unet(
        pipe.unet.to(accelerator.device),
        settings.method,
        settings.lora_rank,
        seed,
        settings.lora_layers,
    )
    if settings.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    if settings.channels_last:
        pipe.unet.to(memory_format=torch.channels_last)
    if settings.compile:
        pipe.unet.compile()
    optimizer = torch.optim.AdamW(
        parameters,
        settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=accelerator.device.type == "cuda",  # one kernel for all parameters
    )
    state = State(
        parameters,
        accelerator.prepare(optimizer),
        EMAModel(parameters, decay=settings.ema_decay),
        PromptStatistics(settings.buffer_size, settings.min_count, settings.min_std),
        accelerator,
    )
    checkpoint = folder / "checkpoint.pt"
    if saved := load_checkpoint(checkpoint, mine, list(state.state_dict())):
        state.load_state_dict(saved)
        del saved
    check_alike(len(state.rows))
    policy = Policy(pipe, accelerator, task, settings)

    done = len(state.rows)
    bar = tqdm(
        range(done, settings.epochs),
        initial=done,
        total=settings.epochs,
        desc="DDPO",
        unit="epoch",
        mininterval=2,
        disable=not (progress and first),
    )
    for epoch in bar:
        row: dict[str, float] = {"epoch": epoch}
        for group in state.optimizer.param_groups:
            group["lr"] = cosine_learning_rate(
                epoch, settings.epochs, settings.learning_rate, 0, settings.learning_rate_floor
            )
        if epoch % settings.eval_every == 0:
            row |= evaluate(policy, state, seed)
            if sound_alarm(row, policy) and settings.alarm.stop:
                break

        began, policy.passes = time.perf_counter(), 0
        policy.for_epoch(epoch, seed)
        row["guidance_scale"] = policy.guidance_scale
        every = epoch_prompts(len(task.texts), settings, seed, epoch)
        if settings.direct_steps:
            sampled = began
            row |= direct_update(policy, every, state, seed, epoch)
        else:
            batch, shared = share_out(policy, every, seed, "rollout", epoch)
            sampled = time.perf_counter()
            row |= policy_gradient(policy, batch, shared, every, state, seed, epoch)
        check_failures(state, settings.max_failures, folder)
        passes = torch.tensor(policy.passes, device=accelerator.device)
        row["unet_passes"] = int(accelerator.reduce(passes, "sum"))
        state.rows.append(row)

        updated = time.perf_counter()
        bar.set_postfix(reward=f"{row['reward']:.3f}")
        if callback:
            callback(row)
        seconds = {"sample": sampled - began, "update": updated - sampled}
        state.timing.append({"epoch": epoch} | {f"seconds_{k}": v for k, v in seconds.items()})
        last = epoch + 1 == settings.epochs
        if first and (last or (epoch + 1) % settings.checkpoint_every == 0):
            save_checkpoint(checkpoint, state.state_dict(), mine)
    final = {"epoch": len(state.rows)} | evaluate(policy, state, seed)
    sound_alarm(final, policy)
    log = pd.DataFrame([*state.rows, final])
    if first:
        write_csv(folder / "log.csv", log)
        if state.steps:  # none under direct_steps
            write_csv(folder / "steps.csv", pd.DataFrame(state.steps))
        write_csv(folder / "timing.csv", pd.DataFrame(state.timing))
    state.ema.copy_to(parameters)
    accelerator.wait_for_everyone()
    pipe.unet._compiled_call_impl = None  # what comes next has other shapes
    merge_lora(pipe.unet)
    pipe.unet.eval()
    return log


def policy_gradient(
    policy: Policy,
    batch: Batch,
    everyone: dict[str, np.ndarray],
    prompt: Tensor,
    state: State,
    seed: int,
    epoch: int,
) -> dict[str, float]:
    """Advantages of an epoch's samples, and the updates they ask for; a row of the log."""
    settings = policy.settings
    row = score_row({n: v for n, v in everyone.items() if n not in PER_IMAGE})
    rule, clip = RULES[settings.advantages], settings.advantage_clip
    paid = everyone["rewards"]
    if settings.variety:
        far = alarm.novelty(prompt, torch.from_numpy(everyone["thumbnails"]))
        row["novelty"] = far.mean().item()
        paid = paid + settings.variety * far.numpy()[:, None]
    try:
        advantage = advantages(rule, prompt.tolist(), paid, state.statistics, clip)
    except FloatingPointError:  # a reward is not finite
        state.failures += settings.updates_per_epoch
        return row | {"failed_updates": settings.updates_per_epoch}
    if settings.gae_lambda is None:
        credit = np.repeat(advantage[:, None], policy.columns, 1)
    else:
        total, values = paid.mean(1), everyone["values"]
        credit = by_step(prompt.tolist(), advantage, total, values, settings.gae_lambda)
    return row | update(policy, batch, prompt, credit, state, seed, epoch)


def epoch_prompts(prompts_in_all: int, settings: DDPOConfig, seed: int, epoch: int) -> Tensor:
    """Prompt ids (B,) of one epoch: a fresh random subset, or all, each several times in a row."""
    order = torch.randperm(prompts_in_all, generator=generator(seed, "prompts", epoch))
    chosen = order[: settings.prompts_per_epoch or prompts_in_all]
    return chosen.repeat_interleave(settings.images_per_prompt)


def share_out(
    policy: Policy, prompt: Tensor, *seeds: int | str
) -> tuple[Batch, dict[str, np.ndarray]]:
    """Sample the images of all processes together.

    Returns:
        this process's images: every ``world``-th, beginning with its rank; and of all images
        (B, …), in the order of ``prompt``, what ``PER_IMAGE`` names and the scores.
    """
    world, rank = policy.accelerator.num_processes, policy.accelerator.process_index
    if len(prompt) < world:
        raise ValueError(f"{len(prompt)} images cannot be shared out to {world} processes")
    number = torch.arange(len(prompt))[rank::world]
    batch = policy.sample(prompt[rank::world], number, *seeds)
    mine = on_host({name: getattr(batch, name) for name in PER_IMAGE} | batch.scores)
    parts = gather_object([mine])  # any number of images each, which a tensor's gather is not
    everyone = {}
    for name in mine:
        everyone[name] = np.empty((len(prompt), *mine[name].shape[1:]))
        for other, part in enumerate(parts):
            everyone[name][other::world] = part[name]
    return batch, everyone


def evaluate(policy: Policy, state: State, seed: int) -> dict[str, float]:
    """Scores of the averaged weights, on the same noise every time, and how far they drifted."""
    n = policy.settings.eval_images_per_prompt
    prompt = torch.arange(len(policy.task.texts)).repeat_interleave(n)
    state.ema.store(state.parameters)
    state.ema.copy_to(state.parameters)
    policy.for_evaluation()
    _, scores = share_out(policy, prompt, seed, "eval")
    state.ema.restore(state.parameters)
    del scores["rewards"], scores["values"]
    variety = alarm.diversity(prompt, torch.from_numpy(scores.pop("thumbnails")))
    found = {f"eval_{name}": float(value.mean()) for name, value in scores.items()}
    found["eval_diversity"] = variety
    drift = alarm.drift(state.rows[0] if state.rows else found, found)
    return found | {f"drift_{name}": value for name, value in drift.items()}


def sound_alarm(row: dict[str, float], policy: Policy) -> int:
    """Say on stderr what of an evaluation is past the limits; log and return how much it is."""
    said = alarm.alarms(alarm.drift_of(row), policy.settings.alarm)
    if policy.accelerator.is_main_process:
        for text in said:  # through tqdm, which moves its bar out of the way
            tqdm.write(f"reward hacking alarm, epoch {row['epoch']}: {text}", file=sys.stderr)
    row["alarms"] = len(said)
    return len(said)


def stage1(config: Config) -> StableDiffusionPipeline:
    """The pipeline that stage 1 has trained."""
    return load(config.require("03_finetune_stable_diffusion") / "pipeline")


def task_of(config: Config) -> Task:
    """All prompts of the preset's vocabulary; the reward classifier pays, the judge watches."""
    vocabulary = data.vocabulary(config)
    findings = prompts.all_prompts(vocabulary.diagnoses, vocabulary.artifacts)
    folder = config.require("02_reward_classifier")
    device = process_state().device
    paid, judge = (classifier.load(folder / name, device) for name in ("reward", "judge"))
    names = paid.label_names
    files = [dependencies.files_under(folder / name) for name in ("reward", "judge")]
    return Task(
        texts=[prompts.render(f) for f in findings],
        wanted=torch.tensor([prompts.labels(f, names) for f in findings]),
        reward=rewards.build(config.ddpo.rewards, paid, vocabulary.label_names),
        watched={
            "reward_hard": rewards.hard(paid),
            "judge_hard": rewards.hard(judge),
            "judge_apr": rewards.exact(judge, len(vocabulary.artifacts)),
        },
        judges=dependencies.digest(files),
        anchor=training_examples(config, stage1(config).to(device)) if config.ddpo.anchor else None,
    )


def run(config: Config, progress: bool = True) -> Path:
    """Stage 2 of a preset: from stage 1's pipeline to ``pipeline/`` and ``log.csv``."""
    from derm_rl.provenance import stamp

    folder = config.stage_dir(STAGE)
    folder.mkdir(parents=True, exist_ok=True)
    if launched(config, "derm_rl.ddpo.trainer"):
        return folder
    pipe = stage1(config)
    train(pipe, task_of(config), config.ddpo, folder, config.seed, progress=progress)
    if process_state().is_main_process:
        save(pipe, folder / "pipeline")
        discard_checkpoint(folder / "checkpoint.pt")
        stamp(config, STAGE, epochs=config.ddpo.epochs)
    return folder


if __name__ == "__main__":
    main(run)
