"""Stage 2: the DDPO loop, *sample → reward → advantage → update* (arXiv 2503.15784, section 2)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from derm_rl import classifier, data, prompts, rewards
from derm_rl.config import Config
from derm_rl.ddpo.advantages import PromptStatistics
from derm_rl.ddpo.loss import clipped_surrogate
from derm_rl.ddpo.policy import Steps, ddim_steps, replay, rollout
from derm_rl.io import write_csv
from derm_rl.pipeline import decode_latents, encode_prompts, load, save
from derm_rl.settings import DDPOConfig
from derm_rl.training import (
    Callback,
    accelerator_of,
    cosine_learning_rate,
    generator,
    identity,
    load_checkpoint,
    merge_lora,
    prepare_unet,
    save_checkpoint,
)

STAGE = "04_ddpo"


@dataclass(frozen=True)
class Task:
    """What the policy is asked for and how it is judged."""

    texts: list[str]  # P prompts
    wanted: Tensor  # (P, L) labels each prompt asks for
    reward: rewards.Reward  # trained on
    watched: dict[str, rewards.Reward]  # only measured: the judge


@dataclass(frozen=True)
class Batch:
    """One epoch's samples of this process: B images and how they came about."""

    prompt: Tensor  # (B,) long
    latents: Tensor  # (B, K+1, C, h, w)
    log_probs: Tensor  # (B, K)
    rewards: Tensor  # (B,)
    watched: dict[str, Tensor]


class Policy:
    """A pipeline's UNet as a policy over prompts: sampling, scoring, the model pass of both."""

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        unet: torch.nn.Module,
        accelerator: Accelerator,
        task: Task,
        settings: DDPOConfig,
    ) -> None:
        self.pipe, self.unet, self.accelerator, self.settings = pipe, unet, accelerator, settings
        self.steps: Steps = ddim_steps(pipe.scheduler, settings.inference_steps, settings.eta)
        self.embeds = encode_prompts(pipe, task.texts)
        self.null = encode_prompts(pipe, [""])
        self.shape = (pipe.unet.config.in_channels, *[pipe.unet.config.sample_size] * 2)

    def denoise(self, latents: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return self.unet(latents, timestep, embeds, return_dict=False)[0]

    @torch.no_grad()
    def sample(self, prompt: Tensor, task: Task, seeds: Sequence[int | str]) -> Batch:
        """Roll out one image for each entry of ``prompt`` (B,), reward it, watch it."""
        self.unet.eval()
        parts = []
        for i, ids in enumerate(prompt.split(self.settings.batch_size)):
            random = generator(*seeds, i)
            noise = torch.randn((len(ids), *self.shape), generator=random).to(self.pipe.device)
            guidance = self.settings.guidance_scale
            path = rollout(
                self.denoise, self.steps, noise, self.embeds[ids], self.null, guidance, random
            )
            images = decode_latents(self.pipe, path.latents[:, -1])
            wanted = task.wanted[ids].to(images.device)
            watched = {name: f(images, wanted).float() for name, f in task.watched.items()}
            reward = task.reward(images, wanted).float()
            parts.append(Batch(ids, path.latents, path.log_probs, reward, watched))
        return Batch(
            *(torch.cat([getattr(p, f) for p in parts]) for f in list(Batch.__annotations__)[:4]),
            watched={name: torch.cat([p.watched[name] for p in parts]) for name in task.watched},
        )

    def score(self, batch: Batch, image: Tensor, k: Tensor) -> Tensor:
        """Log-probability (n,) under the current weights of step ``k`` (n,) of ``image`` (n,)."""
        return replay(
            self.denoise,
            self.steps,
            k,
            batch.latents[image, k],
            self.embeds[batch.prompt[image]],
            self.null,
            self.settings.guidance_scale,
            action=batch.latents[image, k + 1],
        )[1]


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

    An interrupted run with the same settings and seed continues from its checkpoint in ``folder``.
    """
    accelerator = accelerator_of(settings.mixed_precision)
    rank, world = accelerator.process_index, accelerator.num_processes
    for part in (pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).to(accelerator.device)
    parameters = prepare_unet(
        pipe.unet.to(accelerator.device), settings.method, settings.lora_rank, seed
    )
    optimizer = torch.optim.AdamW(
        parameters, settings.learning_rate, weight_decay=settings.weight_decay
    )
    ema = EMAModel(parameters, decay=settings.ema_decay)
    statistics = PromptStatistics(settings.buffer_size, settings.min_count, settings.min_std)
    rows: list[dict] = []

    checkpoint = folder / "checkpoint.pt"
    mine = identity(settings=settings.model_dump(), seed=seed, texts=task.texts)
    if state := load_checkpoint(checkpoint, mine):
        for parameter, saved in zip(parameters, state["parameters"], strict=True):
            parameter.data.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        statistics.load_state_dict(state["statistics"])
        rows = state["rows"]
    unet, optimizer = accelerator.prepare(pipe.unet, optimizer)
    policy = Policy(pipe, unet, accelerator, task, settings)

    bar = tqdm(
        range(len(rows), settings.epochs),
        initial=len(rows),
        total=settings.epochs,
        desc="DDPO",
        unit="epoch",
        mininterval=2,
        disable=not (progress and accelerator.is_main_process),
    )
    for epoch in bar:
        began = time.perf_counter()
        row: dict[str, float] = {"epoch": epoch}
        for group in optimizer.param_groups:
            group["lr"] = cosine_learning_rate(
                epoch, settings.epochs, settings.learning_rate, 0, settings.learning_rate_floor
            )
        if epoch % settings.eval_every == 0:
            row |= evaluate(policy, task, ema, parameters, seed)

        every = epoch_prompts(len(task.texts), settings, seed, epoch)
        batch = policy.sample(every[rank::world], task, (seed, "rollout", epoch, rank))
        prompt = accelerator.gather(batch.prompt.to(accelerator.device)).cpu()
        reward = accelerator.gather(batch.rewards).cpu()
        advantages = statistics.advantages(
            prompt.tolist(), reward.tolist(), settings.advantage_clip
        )
        own = torch.from_numpy(advantages)[rank * len(batch.prompt) :][: len(batch.prompt)]
        sampled = time.perf_counter()

        row |= update(policy, batch, own, parameters, optimizer, ema, (seed, epoch, rank))
        row |= {
            "reward": reward.mean().item(),
            "reward_std": reward.std().item(),
            **{k: accelerator.gather(v).mean().item() for k, v in batch.watched.items()},
            "seconds_sample": sampled - began,
            "seconds_update": time.perf_counter() - sampled,
        }
        rows.append(row)
        bar.set_postfix(reward=f"{row['reward']:.3f}", clip=f"{row['clip_fraction']:.2f}")
        if callback:
            callback(row)
        last = epoch + 1 == settings.epochs
        if accelerator.is_main_process and (last or (epoch + 1) % settings.checkpoint_every == 0):
            state = {
                "parameters": [p.detach().cpu() for p in parameters],
                "optimizer": optimizer.state_dict(),
                "ema": ema.state_dict(),
                "statistics": statistics.state_dict(),
                "rows": rows,
            }
            save_checkpoint(checkpoint, state, mine)
    final = {"epoch": settings.epochs} | evaluate(policy, task, ema, parameters, seed)
    ema.copy_to(parameters)
    accelerator.wait_for_everyone()
    merge_lora(pipe.unet)
    pipe.unet.eval()
    return pd.DataFrame([*rows, final])


def epoch_prompts(prompts_in_all: int, settings: DDPOConfig, seed: int, epoch: int) -> Tensor:
    """Prompt ids (B,) of one epoch: a fresh random subset, or all, each several times in a row."""
    order = torch.randperm(prompts_in_all, generator=generator(seed, "prompts", epoch))
    chosen = order[: settings.prompts_per_epoch or prompts_in_all]
    return chosen.repeat_interleave(settings.images_per_prompt)


def update(
    policy: Policy,
    batch: Batch,
    advantages: Tensor,
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    seeds: tuple,
) -> dict[str, float]:
    """Several clipped gradient steps on one epoch's samples; returns what is logged of them.

    The images are split into ``updates_per_epoch`` parts; each part gives one optimizer step over
    a random ``timestep_fraction`` of its trained steps, in passes of ``batch_size`` (image, step)
    pairs. Images without advantage carry no gradient and cost no pass.
    """
    settings, steps = policy.settings, policy.steps
    random = generator(*seeds, "update")
    kept = len(steps) - settings.drop_last_steps
    trainable = torch.nonzero(steps.stochastic[:kept])[:, 0]
    if not len(trainable):
        raise ValueError(
            f"no denoising step is left to train: ddpo.inference_steps={len(steps)}, "
            f"ddpo.drop_last_steps={settings.drop_last_steps}, ddpo.eta={settings.eta}"
        )
    weights = steps.output_weight if settings.step_weighting == "output" else None
    per_image = max(1, round(settings.timestep_fraction * len(trainable)))
    policy.unet.train()
    order = torch.randperm(len(batch.prompt), generator=random)
    logged, norms, deviation = [], [], None
    for part in order.chunk(settings.updates_per_epoch):
        part = part[advantages[part] != 0]
        if not len(part):
            continue
        choice = torch.rand(len(part), len(trainable), generator=random).argsort(1)[:, :per_image]
        image, k = part.repeat_interleave(per_image), trainable[choice.flatten()]
        for i, j in zip(
            image.split(settings.batch_size), k.split(settings.batch_size), strict=True
        ):
            surrogate = clipped_surrogate(
                policy.score(batch, i, j),
                batch.log_probs[i, j],
                advantages[i],
                settings.clip_range,
                1.0 if weights is None else weights[j].float().to(batch.log_probs.device),
            )
            share = len(i) / len(image)
            policy.accelerator.backward(surrogate.loss * share)
            logged.append(
                [share, surrogate.loss.detach(), surrogate.clip_fraction, surrogate.approx_kl]
            )
            if deviation is None:  # nothing has been updated yet: the ratio should be exactly 1
                deviation = (surrogate.ratio - 1).abs().max().item()
        norm = policy.accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
        if torch.isfinite(norm):
            optimizer.step()
            ema.step(parameters)
        optimizer.zero_grad(set_to_none=True)
        norms.append(float(norm))
    logged = [[float(v) for v in row] for row in logged] or [[1.0, 0.0, 0.0, 0.0]]
    share, loss, clipped, kl = np.array(logged).T
    return {
        "loss": float(np.average(loss, weights=share)),
        "clip_fraction": float(np.average(clipped, weights=share)),
        "approx_kl": float(np.average(kl, weights=share)),
        "grad_norm": float(np.mean(norms)) if norms else 0.0,
        "on_policy_deviation": deviation or 0.0,
        "skipped_images": int((advantages == 0).sum()),
    }


def evaluate(
    policy: Policy, task: Task, ema: EMAModel, parameters: list, seed: int
) -> dict[str, float]:
    """Reward and watched scores of the averaged weights, on the same noise every time."""
    n = policy.settings.eval_images_per_prompt
    prompt = torch.arange(len(task.texts)).repeat_interleave(n)
    world, rank = policy.accelerator.num_processes, policy.accelerator.process_index
    ema.store(parameters)
    ema.copy_to(parameters)
    batch = policy.sample(prompt[rank::world], task, (seed, "eval", rank))
    ema.restore(parameters)
    gather = policy.accelerator.gather
    scores = {"reward": batch.rewards, **batch.watched}
    return {f"eval_{name}": gather(value).mean().item() for name, value in scores.items()}


def task_of(config: Config) -> Task:
    """All prompts of the preset's vocabulary; the reward classifier pays, the judge watches."""
    vocabulary = data.vocabulary(config)
    findings = prompts.all_prompts(vocabulary.diagnoses, vocabulary.artifacts)
    folder = config.require("02_reward_classifier")
    paid, judge = classifier.load(folder / "reward"), classifier.load(folder / "judge")
    names = paid.label_names
    return Task(
        texts=[prompts.render(f) for f in findings],
        wanted=torch.tensor([prompts.labels(f, names) for f in findings]),
        reward=rewards.build(config.ddpo.rewards, paid, vocabulary.label_names),
        watched={
            "reward_hard": rewards.hard(paid),
            "judge_hard": rewards.hard(judge),
            "judge_apr": rewards.exact(judge, len(vocabulary.artifacts)),
        },
    )


def run(config: Config, progress: bool = True) -> Path:
    """Stage 2 of a preset: from stage 1's pipeline to ``pipeline/`` and ``log.csv``."""
    from derm_rl.provenance import stamp

    folder = config.stage_dir(STAGE)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = load(config.require("03_finetune_stable_diffusion") / "pipeline")
    log = train(pipe, task_of(config), config.ddpo, folder, config.seed, progress=progress)
    save(pipe, folder / "pipeline")
    write_csv(folder / "log.csv", log)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    stamp(config, STAGE, epochs=config.ddpo.epochs)
    return folder
