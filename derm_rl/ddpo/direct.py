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

from derm_rl.ddpo.sampling import Policy, on_host, score_row
from derm_rl.ddpo.update import State, apply_gradients, mine, norm_row


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
    norms, scores = [], []
    policy.pipe.unet.train()
    for part in torch.arange(len(prompt)).chunk(settings.updates_per_epoch):
        for number in (part[i] for i in mine(part, accelerator, settings.batch_size)):
            _, images = policy.roll_out(
                prompt[number], number, seed, "direct", epoch, gradient_steps=settings.direct_steps
            )
            terms, found = policy.judge(images, prompt[number])
            reward = terms.mean(1)
            if not reward.requires_grad:
                raise ValueError(
                    "ddpo.direct_steps needs a reward with a gradient: soft, tempered, diagnosis"
                )
            accelerator.backward(-reward.sum() / len(part))
            scores.append(on_host(found))
        norms.append(apply_gradients(state, settings.max_grad_norm))
    everyone = gather_object(scores)
    every = {name: np.concatenate([part[name] for part in everyone]) for name in everyone[0]}
    row = score_row(every)
    # On policy by construction: what is drawn is trained on in the same pass.
    fixed = {"on_policy_deviation": 0.0, "skipped_images": 0, "loss": -row["reward"]}
    return row | fixed | norm_row(norms)
