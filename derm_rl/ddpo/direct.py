"""For comparison: ascend the reward itself, back through the decoder and the last denoising steps.

DRaFT-K (Clark et al. 2023, arXiv 2309.17400). No advantages, no ratio, no noise in the gradient
but that of the samples; what it needs is a reward with a gradient, and what it invites is to be
exploited: it finds whatever pixels move the classifier. Watch the judge.
"""

from __future__ import annotations

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from derm_rl import rewards
from derm_rl.ddpo.alarm import look
from derm_rl.ddpo.policy import replay
from derm_rl.ddpo.sampling import Policy
from derm_rl.ddpo.update import State, apply_gradients, norm_row
from derm_rl.pipeline import decode_latents


def direct_update(
    policy: Policy, prompt: Tensor, state: State, seed: int, epoch: int
) -> dict[str, float]:
    """Gradient steps on the mean reward of an epoch's images; returns what is logged of them.

    Args:
        prompt: (B,) prompt ids of the images of all processes.

    Raises:
        ValueError: the reward has no gradient.
    """
    settings, accelerator = policy.settings, state.accelerator
    world, rank = accelerator.num_processes, accelerator.process_index
    norms, scores = [], []
    policy.pipe.unet.train()
    for part in torch.arange(len(prompt)).chunk(settings.updates_per_epoch):
        for number in part[part % world == rank].split(settings.batch_size):
            images, wanted = draw(policy, prompt[number], number, seed, "direct", epoch)
            reward = rewards.per_label(policy.task.reward)(images, wanted).mean(1)
            if not reward.requires_grad:
                raise ValueError(
                    "ddpo.direct_steps needs a reward with a gradient: soft, tempered, diagnosis"
                )
            accelerator.backward(-reward.sum() / len(part))
            with torch.no_grad():
                seen = images.detach()
                watched = {name: f(seen, wanted) for name, f in policy.task.watched.items()}
                found = {"reward": reward.detach(), **watched, **look(seen)}
            scores.append({name: value.double().cpu().numpy() for name, value in found.items()})
        norms.append(apply_gradients(state, settings.max_grad_norm))
    everyone = gather_object(scores)
    every = {name: np.concatenate([part[name] for part in everyone]) for name in everyone[0]}
    means = {name: float(value.mean()) for name, value in every.items()}
    # On policy by construction: what is drawn is trained on in the same pass.
    fixed = {"on_policy_deviation": 0.0, "skipped_images": 0, "loss": -means["reward"]}
    return means | {"reward_std": float(every["reward"].std())} | fixed | norm_row(norms)


def draw(
    policy: Policy, prompt: Tensor, number: Tensor, *seeds: int | str
) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) that remember how the last ``direct_steps`` made them, and their labels.

    The latents before are taken as given, which bounds the memory and keeps gradients from
    exploding over the whole chain.
    """
    noise = policy.noise(number, *seeds)
    latents, last = noise[:, 0], len(policy.steps) - policy.settings.direct_steps
    for k in range(len(policy.steps)):
        with torch.set_grad_enabled(k >= last):
            latents = replay(
                policy.denoise, policy.steps, torch.tensor(k), latents, policy.embeds[prompt],
                policy.null, policy.guidance_scale, noise=noise[:, k + 1],
            ).action  # fmt: skip
    images = decode_latents(policy.pipe, latents)
    return images, policy.task.wanted[prompt].to(images.device)
