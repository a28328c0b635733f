"""The denoising policy: the stochastic DDIM step, its log-probability, rollout and replay.

Sampling is a Markov decision process whose action is the next, less noisy latent
(arXiv 2305.13301, section 4): p(x_{t-1} | x_t, c) = N(μ_θ(x_t, t, c), σ_t² I), with μ and σ of
DDIM (Song et al. 2020, arXiv 2010.02502, equations 12 and 16).

Latents are (B, C, h, w); a :class:`Step` holds one row per denoising step, noisiest first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler
from torch import Tensor

# Below this standard deviation a step is taken as deterministic: it has no density to differentiate
# and would divide by zero (the last step of a schedule that ends at alpha = 1 has σ = 0 exactly).
SIGMA_FLOOR = 1e-4

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # (latents, timestep, embeds) -> output


@dataclass(frozen=True)
class Steps:
    """Coefficients of all K denoising steps, float64 tensors (K,).

    With ``out`` the model output and ``x`` the latents: x0 = x0_x·x + x0_out·out,
    ε = eps_x·x + eps_out·out, μ = mean_x0·x0 + mean_eps·ε, and the action is μ + sigma·z.
    """

    timestep: Tensor
    x0_x: Tensor
    x0_out: Tensor
    eps_x: Tensor
    eps_out: Tensor
    mean_x0: Tensor
    mean_eps: Tensor
    sigma: Tensor

    def __len__(self) -> int:
        return len(self.timestep)

    @property
    def mean_x(self) -> Tensor:
        return self.mean_x0 * self.x0_x + self.mean_eps * self.eps_x

    @property
    def mean_out(self) -> Tensor:
        """∂μ/∂out (K,), in closed form."""
        return self.mean_x0 * self.x0_out + self.mean_eps * self.eps_out

    @property
    def stochastic(self) -> Tensor:
        """Steps (K,) bool that have a density."""
        return self.sigma > SIGMA_FLOOR

    @property
    def output_weight(self) -> Tensor:
        """σ / |∂μ/∂out| (K,), 0 where σ is; scaled to mean 1 over the stochastic steps.

        ∇ log p = z/σ · ∂μ/∂out · ∇out: unweighted, the last, low-noise steps dominate the gradient.
        With this weight every step's gradient is as large in the space of model outputs.
        """
        weight = torch.where(self.stochastic, self.sigma / self.mean_out.abs(), 0.0)
        return weight / weight[self.stochastic].mean()


def ddim_steps(scheduler: DDIMScheduler, num_inference_steps: int, eta: float | Tensor) -> Steps:
    """Coefficients of the steps that ``scheduler.step(..., eta=eta)`` would take.

    Args:
        eta: stochasticity of every step, or of each (K,): 0 makes a step deterministic.

    Raises:
        ValueError: the scheduler predicts something else, or clips x0: a clipped step is no
            Gaussian around a mean that is linear in the model output.
    """
    config = scheduler.config
    for name in ("clip_sample", "thresholding"):
        if config.get(name):
            raise ValueError(f"scheduler: {name} is true; DDPO's steps need it false")
    scheduler.set_timesteps(num_inference_steps)
    timestep = scheduler.timesteps.cpu()
    alphas = scheduler.alphas_cumprod.double().cpu()
    previous = timestep - config.num_train_timesteps // num_inference_steps
    final = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    alpha = alphas[timestep]
    alpha_prev = torch.where(previous >= 0, alphas[previous.clamp(min=0)], final)
    variance = (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
    sigma = torch.as_tensor(eta).double() * variance.clamp(min=0).sqrt()
    a, s = alpha.sqrt(), (1 - alpha).sqrt()
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    kind = config.prediction_type
    if kind == "epsilon":
        x0_x, x0_out, eps_x, eps_out = 1 / a, -s / a, zero, one
    elif kind == "v_prediction":
        x0_x, x0_out, eps_x, eps_out = a, -s, s, a
    elif kind == "sample":
        x0_x, x0_out, eps_x, eps_out = zero, one, 1 / s, -a / s
    else:
        raise ValueError(
            f"prediction_type {kind!r}: expected epsilon, v_prediction or sample in the scheduler"
        )
    mean_eps = (1 - alpha_prev - sigma**2).clamp(min=0).sqrt()
    return Steps(timestep, x0_x, x0_out, eps_x, eps_out, alpha_prev.sqrt(), mean_eps, sigma)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Coefficients () or (B,) shaped to multiply latents (B, C, h, w), as they are stored."""
    return values.to(like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def guided_output(
    denoiser: Denoiser,
    latents: Tensor,
    timestep: Tensor,
    embeds: Tensor,
    null_embeds: Tensor,
    guidance_scale: float,
) -> Tensor:
    """Model output with classifier-free guidance (Ho & Salimans 2022); one pass if scale is 1."""
    timestep = timestep.to(latents.device).expand(len(latents))
    if guidance_scale == 1.0:
        return denoiser(latents, timestep, embeds).float()
    null = null_embeds.expand(len(latents), -1, -1)
    output = denoiser(
        torch.cat([latents, latents]), torch.cat([timestep, timestep]), torch.cat([null, embeds])
    )
    without, with_prompt = output.float().chunk(2)
    return without + guidance_scale * (with_prompt - without)


def step_mean(steps: Steps, k: Tensor, latents: Tensor, output: Tensor) -> Tensor:
    """μ (B, C, h, w) of step(s) ``k`` (() or (B,) long) for latents and model output."""
    mean_x = _per_sample(steps.mean_x[k], latents)
    return mean_x * latents + _per_sample(steps.mean_out[k], latents) * output


def log_prob(sample: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Mean over dimensions (B,) of log N(sample; mean, σ²). σ (() or (B,)) must be positive.

    The mean, not the sum, as in the paper's code: the clip range is stated per dimension.
    """
    sigma = _per_sample(sigma, mean)
    squared = ((sample.detach() - mean) / sigma) ** 2
    return (-0.5 * squared - sigma.log() - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


class Transition(NamedTuple):
    """One step of the policy for B latents."""

    action: Tensor  # x_{t-1} (B, C, h, w)
    log_prob: Tensor  # (B,), 0 where the step is deterministic
    mean: Tensor  # μ (B, C, h, w)
    predicted: Tensor  # x0 (B, C, h, w) as the model expects it


def replay(
    denoiser: Denoiser,
    steps: Steps,
    k: Tensor,
    latents: Tensor,
    embeds: Tensor,
    null_embeds: Tensor,
    guidance_scale: float,
    action: Tensor | None = None,
    noise: Tensor | None = None,
    storage: torch.dtype = torch.float32,
) -> Transition:
    """One policy step: take ``action`` if given, else μ + σ·noise, and score it.

    Rollout and training both come through here, so they cannot disagree on a log-probability.

    Args:
        k: step of each sample, () or (B,) long.
        latents: x_t (B, C, h, w), computed with in float32.
        storage: a new action is rounded to what can be stored of it before it is scored: what is
            replayed later is then exactly what was scored.
    """
    latents = latents.float()
    output = guided_output(
        denoiser, latents, steps.timestep[k], embeds, null_embeds, guidance_scale
    )
    mean, sigma = step_mean(steps, k, latents, output), steps.sigma[k]
    if action is None:
        action = (mean + _per_sample(sigma, mean) * noise).to(storage)
    density = steps.stochastic[k].to(mean.device).expand(len(mean))
    safe = torch.where(steps.stochastic[k], sigma, 1.0)
    score = log_prob(action.float(), mean, safe)
    predicted = _per_sample(steps.x0_x[k], latents) * latents
    predicted = predicted + _per_sample(steps.x0_out[k], latents) * output.detach()
    return Transition(action.float(), torch.where(density, score, 0.0), mean, predicted)


@dataclass(frozen=True)
class Trajectory:
    """B images' denoising of K steps."""

    latents: Tensor  # (B, K+1, C, h, w), noise first
    log_probs: Tensor  # (B, K)
    predicted: Tensor  # (B, K, C, h, w): the x0 that each step expects, before its noise


def rollout(
    denoiser: Denoiser,
    steps: Steps,
    noise: Tensor,
    embeds: Tensor,
    null_embeds: Tensor,
    guidance_scale: float,
    storage: torch.dtype = torch.float32,
    gradient_steps: int = 0,
) -> Trajectory:
    """Sample whole trajectories under the current policy.

    Args:
        noise: standard normal (B, K+1, C, h, w): the first latents, then the noise of each step.
        storage: dtype in which the latents are kept.
        gradient_steps: how many of the last steps remember their gradient. What came before them is
            taken as given, which bounds the memory and the growth of the gradient.
    """
    first = noise[:, 0].to(storage)
    latents, log_probs, predicted = [first], [], []
    for k in range(len(steps)):
        with torch.set_grad_enabled(k >= len(steps) - gradient_steps):
            step = replay(
                denoiser,
                steps,
                torch.tensor(k),
                latents[-1],
                embeds,
                null_embeds,
                guidance_scale,
                noise=noise[:, k + 1],
                storage=storage,
            )
        latents.append(step.action.to(storage))
        log_probs.append(step.log_prob)
        predicted.append(step.predicted)
    return Trajectory(*[torch.stack(each, 1) for each in (latents, log_probs, predicted)])
