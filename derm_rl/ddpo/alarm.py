"""The reward hacking alarm: is the reward bought with images that no longer look like images?

Three things a reward classifier may not mind and a reader would: the reward's own verdict runs
ahead of the independent judge's, the look of all images drifts (colour, edges), and the images of
one prompt become alike. Each is compared with the first evaluation, before any training, on the
same noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from derm_rl.settings import AlarmConfig

THUMBNAIL = 8  # pixels a side: at this size two images differ in what they show, not in noise
GAP = ("eval_reward_hard", "eval_judge_hard")


def look(images: Tensor) -> dict[str, Tensor]:
    """Of images (B, 3, H, W) in [0, 1], (B,) each: colourfulness and edge density.

    ``saturation`` is the mean distance between the largest and the least channel of a pixel,
    ``edges`` the mean absolute difference of neighbouring pixels' brightness.
    """
    grey = images.mean(1)
    across, down = grey.diff(dim=-1).abs().mean((1, 2)), grey.diff(dim=-2).abs().mean((1, 2))
    return {
        "saturation": (images.amax(1) - images.amin(1)).mean((1, 2)),
        "edges": (across + down) / 2,
    }


def thumbnails(images: Tensor) -> Tensor:
    """Small versions (B, 192) of images (B, 3, H, W)."""
    return adaptive_avg_pool2d(images, THUMBNAIL).flatten(1)


def diversity(prompt: Tensor, small: Tensor) -> float:
    """Standard deviation of the thumbnails (B, D) of a prompt, averaged over pixels and prompts."""
    spreads = [small[prompt == p].std(0, correction=0).mean() for p in prompt.unique()]
    return torch.stack(spreads).mean().item()


def novelty(prompt: Tensor, small: Tensor) -> Tensor:
    """Mean difference (B,) of each thumbnail (B, D) to the nearest other one of its prompt (B,).

    Infinite where there is no other.
    """
    apart = torch.cdist(small, small, p=1) / small.shape[1]
    apart[prompt[:, None] != prompt[None]] = math.inf
    return apart.fill_diagonal_(math.inf).amin(1)


def drift(first: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """How far an evaluation is from the first one.

    ``gap``: reward's minus judge's share of labels right, beyond what it was at first. The others:
    log2 of the ratio to the first value, ± 1 being half or double; absent where it was 0.
    """
    found = {}
    if all(name in now for name in GAP):
        found["gap"] = (now[GAP[0]] - now[GAP[1]]) - (first[GAP[0]] - first[GAP[1]])
    for name in ("saturation", "edges", "diversity"):
        before, after = first[f"eval_{name}"], now[f"eval_{name}"]
        if before > 0:
            found[name] = math.log2(max(after, 1e-12) / before)
    return found


def drift_of(row: Mapping[str, float]) -> dict[str, float]:
    """The :func:`drift` that a row of the log holds, in its columns ``drift_*``."""
    return {n.removeprefix("drift_"): v for n, v in row.items() if n.startswith("drift_")}


def alarms(found: Mapping[str, float], limits: AlarmConfig) -> list[str]:
    """What of a :func:`drift` is past the limits, in words."""
    said = []
    if found.get("gap", 0.0) > limits.gap:
        said.append(
            f"the reward classifier sees {found['gap']:.3f} more of the labels than the judge does "
            f"(limit {limits.gap:g}): the reward is being hacked, or is wrong"
        )
    for name, limit in (("saturation", limits.look), ("edges", limits.look)):
        if abs(found.get(name, 0.0)) > limit:
            said.append(
                f"the {name} of the images changed to {2 ** found[name]:.2f} times that before "
                f"training (limit {2**limit:.2f} or 1/{2**limit:.2f})"
            )
    if found.get("diversity", 0.0) < -limits.diversity:
        said.append(
            f"the images of a prompt differ {2 ** found['diversity']:.2f} times as much as before "
            f"training (limit {2**-limits.diversity:.2f})"
        )
    return said
