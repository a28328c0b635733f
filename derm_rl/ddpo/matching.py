"""Forward-process objectives: an image is as likely as its noised self is well denoised.

DDPO scores every denoising step that made an image, so it needs stochastic steps and keeps all of
them. But a diffusion model is trained to match x_t = √ᾱ_t·x0 + √(1-ᾱ_t)·ε to its target (ε, or v),
and the weighted error is a bound of -log p(x0) (Ho et al. 2020, arXiv 2006.11239). Both objectives
here only need the finished latents, each noised anew to a few timesteps: any sampler will do, a few
deterministic steps for one, and no trajectory is kept. What follows is written in the space of the
model output, ε or v alike: their errors differ by a factor of the timestep.

- *Advantage weighted matching* (arXiv 2509.25050): DDPO's clipped surrogate with
  log p := -‖out - target‖². Of an image with advantage A the gradient is A times that of
  pretraining's loss; it forgets and learns by one and the same loss.
- *Negative-aware fine-tuning* (DiffusionNFT, arXiv 2509.16117, equation 5): with r = ½ + A / 2 the
  probability that an image is a good one and out_old the model that drew it, the mixtures
  out± = out_old ± β (out - out_old) are to match the target: L = r ‖out₊ - target‖² +
  (1 - r) ‖out₋ - target‖². Its gradient, 2β [A (out_old - target) + β (out - out_old)], shows what
  it is: matching weighted by advantage, held to the old model by β where the surrogate clips. A
  is the advantage over ``advantage_clip``, which so weighs it against β.

Guidance is a part of the sampler, not of what is trained: the output is that of the prompt alone,
whatever the scale of the samples. With one above 1 the guided samples are what is learned from.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from derm_rl.training import denoising_target


class Noised(NamedTuple):
    """B finished latents, noised to T timesteps each."""

    timestep: Tensor  # (B, T) long, earliest (noisiest) first
    latents: Tensor  # (B, T, C, h, w)
    target: Tensor  # (B, T, C, h, w): what the model output should be
    output: Tensor  # (B, T, C, h, w): what it was for the weights that drew the images

    @property
    def log_probs(self) -> Tensor:
        """(B, T), see :func:`log_prob`."""
        return log_prob(self.output.flatten(0, 1), self.target.flatten(0, 1)).reshape(
            self.timestep.shape
        )


def timesteps(count: int, scheduler: DDIMScheduler, u: Tensor) -> Tensor:
    """(B, T) timesteps, one in each of T equal parts of the schedule, noisiest first.

    Args:
        u: (B, T) uniform in [0, 1).
    """
    part = torch.arange(count - 1, -1, -1, device=u.device)
    steps = scheduler.config.num_train_timesteps  # in float64, where no sum rounds up to a whole
    return ((part + u.double()) / count * steps).long()


def noised(
    scheduler: DDIMScheduler, latents: Tensor, timestep: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """x_t and the model's target (B, T, C, h, w) of finished latents (B, C, h, w)."""
    (b, t), shape = timestep.shape, latents.shape[1:]
    x0 = latents[:, None].expand(b, t, *shape).reshape(b * t, *shape)
    flat, eps = timestep.flatten(), noise.reshape(b * t, *shape)
    parts = scheduler.add_noise(x0, eps, flat), denoising_target(scheduler, x0, eps, flat)
    return parts[0].reshape(b, t, *shape), parts[1].reshape(b, t, *shape)


def log_prob(output: Tensor, target: Tensor) -> Tensor:
    """-‖out - target‖² (B,), the mean over dimensions as in :func:`policy.log_prob`."""
    return -(output - target).square().flatten(1).mean(1)


def negative_aware(
    output: Tensor, old_output: Tensor, target: Tensor, advantage: Tensor, beta: float
) -> Tensor:
    """The loss (B,) of negative-aware fine-tuning, averaged over dimensions, divided by 2β.

    Args:
        advantage: (B,) in [-1, 1], so that ½ + A/2 is a probability.
    """
    good = (0.5 + advantage.to(output) / 2).clamp(0, 1)
    change = beta * (output - old_output)
    towards = -log_prob(old_output + change, target)
    away = -log_prob(old_output - change, target)
    return (good * towards + (1 - good) * away) / (2 * beta)


def drift(output: Tensor, reference_output: Tensor) -> Tensor:
    """‖out - out_ref‖² (B,): the KL to a reference policy, up to a factor of the timestep."""
    return -log_prob(output, reference_output.detach())
