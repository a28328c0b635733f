"""The clipped importance-ratio loss of DDPO-IS (arXiv 2305.13301, equation 3; PPO's clipping)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surrogate:
    """Of each sample (B,): loss, and for the log importance ratio, whether clipped, KL."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    approx_kl: Tensor


def clipped_surrogate(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip_range: float,
    weight: Tensor | float = 1.0,
) -> Surrogate:
    """max(-A·r, -A·clip(r, 1 ± clip_range)), with r = exp(weight · (log p - log p_old)).

    Args:
        log_prob, old_log_prob: per-dimension mean log-probabilities (B,).
        advantage: (B,), already normalized and clipped.
        weight: per-step weight (B,) of the log-ratio (:attr:`Steps.output_weight`), 1 as published.
    """
    log_ratio = weight * (log_prob - old_log_prob.detach())
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    advantage = advantage.to(ratio)
    loss = torch.maximum(-advantage * ratio, -advantage * clipped)
    with torch.no_grad():
        outside = ((ratio - 1).abs() > clip_range).float()
        # Schulman's non-negative estimator, (r - 1) - log r. It is the square of a small number:
        # taken from the rounded ratio, it would be noise of either sign.
        exact = log_ratio.double()
        kl = torch.expm1(exact) - exact
    return Surrogate(loss, ratio.detach(), outside, kl)


def gaussian_kl(mean: Tensor, reference_mean: Tensor, sigma: Tensor) -> Tensor:
    """KL (B,) per dimension between N(mean, σ²) and N(reference_mean, σ²), σ (B,) positive.

    KL = (μ - μ_ref)² / 2σ²       averaged over the dimensions, as the log-probabilities are
    """
    squared = ((mean - reference_mean) ** 2).flatten(1).mean(1)
    return squared / (2 * sigma.to(squared) ** 2)
