"""What the policy is asked for, and how its answers come about: roll out, decode, reward."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from torch import Tensor

from derm_rl import rewards
from derm_rl.ddpo import matching
from derm_rl.ddpo.alarm import look, thumbnails
from derm_rl.ddpo.matching import Noised
from derm_rl.ddpo.policy import Steps, Trajectory, Transition, ddim_steps, replay, rollout
from derm_rl.finetune import Examples
from derm_rl.pipeline import decode_latents, encode_prompts
from derm_rl.settings import DDPOConfig
from derm_rl.training import generator

STORAGE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Task:
    """What the policy is asked for and how it is judged."""

    texts: list[str]  # P prompts
    wanted: Tensor  # (P, L) labels each prompt asks for
    reward: rewards.Reward  # trained on
    watched: dict[str, rewards.Reward]  # only measured: the judge
    judges: str = ""  # hash of what reward and watched are made of
    anchor: Examples | None = None  # training images of stage 1, which are to stay likely


@dataclass(frozen=True)
class Batch:
    """B samples of this process and how they came about."""

    prompt: Tensor  # (B,) long
    latents: Tensor  # (B, K+1, C, h, w); of awm and nft the finished ones (B, 1, C, h, w)
    log_probs: Tensor  # (B, K) of each step; of awm and nft (B, T) of each noised timestep
    rewards: Tensor  # (B, L), their mean over L is the reward
    values: Tensor  # (B, K-1) of :meth:`Policy.values`
    thumbnails: Tensor  # (B, D) small images
    scores: dict[str, Tensor]  # (B,) each: the reward, what is watched, the look of the images
    noised: Noised | None = None  # of awm and nft


class Policy:
    """A pipeline's UNet as a policy over prompts: sampling, scoring, the model pass of both."""

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        accelerator: Accelerator,
        task: Task,
        settings: DDPOConfig,
    ) -> None:
        self.pipe, self.accelerator, self.task, self.settings = pipe, accelerator, task, settings
        self.embeds = encode_prompts(pipe, task.texts)  # once: the text encoder is not trained
        self.null = encode_prompts(pipe, [""])
        if settings.anchor:
            if task.anchor is None:
                raise ValueError("ddpo.anchor: the task has no training images to hold on to")
            self.anchor_embeds = encode_prompts(pipe, task.anchor.captions)
        self.shape = (pipe.unet.config.in_channels, *[pipe.unet.config.sample_size] * 2)
        self.storage = STORAGE[settings.latents_dtype]
        self.steps: Steps
        self.guidance_scale: float
        self.judges_steps: bool  # whether samples come with the values of their steps
        self.noises_anew: bool  # whether they come with their noised selves
        self.passes = 0  # of single images through the UNet; a backward one counts as two more
        self.for_evaluation()

    def for_evaluation(self) -> None:
        """From here on, sample at the last guidance scale, with noise in every step (``eta``) or,
        for an objective whose samples have none, in no step."""
        settings = self.settings
        self.guidance_scale = settings.guidance_scales[-1]
        self.judges_steps = self.noises_anew = False
        count = settings.eval_inference_steps or settings.inference_steps
        eta = settings.eta if settings.objective == "ddpo" else 0.0
        self.steps = ddim_steps(self.pipe.scheduler, count, eta)

    def for_epoch(self, epoch: int, *seeds: int | str) -> None:
        """From here on, sample as the settings say for this epoch: its guidance, its window."""
        settings = self.settings
        self.guidance_scale = settings.guidance_scales[epoch % len(settings.guidance_scales)]
        self.judges_steps = settings.gae_lambda is not None
        self.noises_anew = settings.objective != "ddpo"
        steps, size = settings.inference_steps, settings.stochastic_steps
        eta = torch.full((steps,), 0.0 if self.noises_anew else settings.eta)
        if size is not None:
            last = steps - settings.drop_last_steps - size
            random = generator(*seeds, epoch, "window")
            start = torch.randint(last + 1, (), generator=random).item()
            eta[:start] = eta[start + size :] = 0.0
        self.steps = ddim_steps(self.pipe.scheduler, steps, eta)

    @property
    def columns(self) -> int:
        """In how many places an image is trained: its denoising steps, or noised timesteps."""
        return self.settings.noised_timesteps if self.noises_anew else len(self.steps)

    def denoise(self, latents: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        self.passes += len(latents) * (3 if torch.is_grad_enabled() else 1)
        with self.accelerator.autocast():
            return self.pipe.unet(latents, timestep, embeds, return_dict=False)[0]

    @contextmanager
    def reference(self):
        """Inside, the policy is what it was before training: its adapters are off."""
        self.pipe.unet.disable_adapters()
        try:
            with torch.no_grad():
                yield
        finally:
            self.pipe.unet.enable_adapters()

    def noise(self, number: Tensor, *seeds: int | str) -> Tensor:
        """Noise (B, K+1, C, h, w) of these images: of their first latents, then of each step."""
        shape = (len(self.steps) + 1, *self.shape)
        each = [torch.randn(shape, generator=generator(*seeds, int(n))) for n in number]
        return torch.stack(each).to(self.pipe.device)

    def roll_out(
        self, prompt: Tensor, number: Tensor, *seeds: int | str, gradient_steps: int = 0
    ) -> tuple[Trajectory, Tensor]:
        """Trajectories and images (B, 3, H, W) of prompts (B,); the last steps with a gradient."""
        path = rollout(
            self.denoise, self.steps, self.noise(number, *seeds), self.embeds[prompt], self.null,
            self.guidance_scale, self.storage, gradient_steps,
        )  # fmt: skip
        return path, self.decode(path.latents[:, -1].float())

    @torch.no_grad()
    def noise_anew(self, path: Trajectory, prompt: Tensor, *seeds: int | str) -> Noised:
        """The finished latents at some timesteps, and the model's output there.

        Images of one prompt share timesteps and noise: where a prompt's advantages sum to zero,
        what the noise asks of all of them alike cancels, and what tells them apart remains.
        """
        latents, count, randoms = path.latents[:, -1].float(), self.settings.noised_timesteps, []
        for p in prompt:
            random = generator(*seeds, "noised", int(p))
            u = torch.rand(count, generator=random)
            randoms.append((u, torch.randn(count, *self.shape, generator=random)))
        u, noise = (torch.stack(each).to(latents.device) for each in zip(*randoms, strict=True))
        timestep = matching.timesteps(count, self.pipe.scheduler, u)
        at = matching.noised(self.pipe.scheduler, latents, timestep, noise)
        embeds = self.embeds[prompt]
        columns = zip(at[0].unbind(1), timestep.unbind(1), strict=True)
        output = torch.stack([self.denoise(x, t, embeds).float() for x, t in columns], 1)
        return Noised(timestep, *at, output)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) of latents (B, C, h, w), as many at once as the settings allow."""
        slices = latents.split(self.settings.decode_batch_size or len(latents))
        return torch.cat([decode_latents(self.pipe, part) for part in slices])

    @torch.no_grad()
    def values(self, path: Trajectory, prompt: Tensor) -> Tensor:
        """Reward (B, K-1) of the image that each step but the first expects; (B, 0) if unused."""
        if not self.judges_steps:
            return torch.empty(len(prompt), 0)
        wanted = self.task.wanted[prompt].to(path.latents.device)
        expected = path.predicted[:, 1:].unbind(1)
        return torch.stack([self.task.reward(self.decode(x), wanted).float() for x in expected], 1)

    def judge(self, images: Tensor, prompt: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Rewards (B, L) of images (B, 3, H, W) of prompts (B,), and their scores (B,) by name."""
        wanted = self.task.wanted[prompt].to(images.device)
        terms = rewards.per_label(self.task.reward)(images, wanted).float()
        with torch.no_grad():
            watched = {n: f(images, wanted).float() for n, f in self.task.watched.items()}
            return terms, {"reward": terms.mean(1), **watched, **look(images)}

    @torch.no_grad()
    def sample(self, prompt: Tensor, number: Tensor, *seeds: int | str) -> Batch:
        """Roll out, decode and judge one image for each entry of ``prompt`` (B,).

        ``number`` (B,) names each image among those of all processes. With ``seeds`` it gives the
        image's own noise, so how many processes or passes share the work changes no image.
        """
        self.pipe.unet.eval()
        size = self.settings.batch_size

        @torch.no_grad()  # a thread begins with gradients on
        def finish(ids: Tensor, path: Trajectory, images: Tensor, noised: Noised | None) -> Batch:
            terms, scores = self.judge(images, ids)
            latents, log_probs = path.latents, path.log_probs
            if noised is not None:
                latents, log_probs = latents[:, -1:].clone(), noised.log_probs
            kept = (latents, log_probs, terms, self.values(path, ids), thumbnails(images))
            return Batch(ids, *kept, scores, noised)

        with ThreadPoolExecutor(1) as pool:
            parts = []
            for ids, numbers in zip(prompt.split(size), number.split(size), strict=True):
                path, images = self.roll_out(ids, numbers, *seeds)
                noised = self.noise_anew(path, ids, *seeds) if self.noises_anew else None
                drawn = (ids, path, images, noised)
                if self.settings.background_reward:
                    parts.append(pool.submit(finish, *drawn))
                else:
                    parts.append(finish(*drawn))
            return _join([part.result() if isinstance(part, Future) else part for part in parts])

    def replay(self, batch: Batch, image: Tensor, k: Tensor) -> Transition:
        """Step ``k`` (n,) of ``image`` (n,) again, as the current weights see it."""
        return replay(
            self.denoise,
            self.steps,
            k,
            batch.latents[image, k],
            self.embeds[batch.prompt[image]],
            self.null,
            self.guidance_scale,
            action=batch.latents[image, k + 1],
        )


def on_host(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """As float64 arrays, which processes can exchange whatever their length."""
    return {name: value.double().cpu().numpy() for name, value in values.items()}


def score_row(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What the log says of an epoch's scores (B,), of all processes."""
    row = {name: float(value.mean()) for name, value in scores.items()}
    return row | {"reward_std": float(scores["reward"].std())}


def _join(parts: list[Batch]) -> Batch:
    names = [f.name for f in fields(Batch) if f.name not in ("scores", "noised")]
    scores = {name: torch.cat([p.scores[name] for p in parts]) for name in parts[0].scores}
    noised = None
    if parts[0].noised is not None:
        noised = Noised(*map(torch.cat, zip(*[p.noised for p in parts], strict=True)))
    joined = {n: torch.cat([getattr(p, n) for p in parts]) for n in names}
    return Batch(**joined, scores=scores, noised=noised)
