"""Per-prompt advantages: how much better an image is than others of the same prompt.

Computed in float64: a group's rewards differ in the third digit once the policy is good.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np


class PromptStatistics:
    """Running mean and standard deviation of the reward of each prompt (arXiv 2305.13301, §5.4).

    Keeps the last ``buffer_size`` rewards of every prompt. A prompt seen fewer than ``min_count``
    times is judged against the whole batch instead. A standard deviation below ``min_std`` counts
    as ``min_std``: where every image is good, the differences that are left are noise, and dividing
    by their small spread would make them as loud as the failures of other prompts.
    """

    def __init__(self, buffer_size: int, min_count: int, min_std: float = 0.0) -> None:
        if not 1 <= min_count <= buffer_size:
            raise ValueError(
                f"min_count must be between 1 and buffer_size ({buffer_size}), got {min_count}"
            )
        self.buffer_size, self.min_count, self.min_std = buffer_size, min_count, min_std
        self.rewards: dict[int, deque[float]] = {}

    def advantages(
        self, prompt_ids: Sequence[int], rewards: Sequence[float], clip: float
    ) -> np.ndarray:
        """Take in a batch and return its advantages (N,) float64, clipped to ± ``clip``."""
        prompt_ids, rewards = np.asarray(prompt_ids), np.asarray(rewards, np.float64)
        if not np.isfinite(rewards).all():
            bad = np.flatnonzero(~np.isfinite(rewards))
            raise FloatingPointError(f"reward of images {bad[:8].tolist()} in the batch not finite")
        result = np.empty_like(rewards)
        for prompt in np.unique(prompt_ids):
            mine = prompt_ids == prompt
            buffer = self.rewards.setdefault(int(prompt), deque(maxlen=self.buffer_size))
            buffer.extend(rewards[mine].tolist())
            reference = np.array(buffer) if len(buffer) >= self.min_count else rewards
            result[mine] = normalize(rewards[mine], reference, self.min_std)
        return result.clip(-clip, clip)

    def state_dict(self) -> dict[int, list[float]]:
        return {prompt: list(buffer) for prompt, buffer in self.rewards.items()}

    def load_state_dict(self, state: dict[int, list[float]]) -> None:
        self.rewards = {int(p): deque(r, maxlen=self.buffer_size) for p, r in state.items()}


def normalize(
    values: np.ndarray, reference: np.ndarray, min_std: float = 0.0, eps: float = 1e-6
) -> np.ndarray:
    """(values - mean) / max(std, min_std) of ``reference``; zero where it has no spread at all."""
    spread = reference.std()
    if spread < eps:
        return np.zeros_like(values)
    return (values - reference.mean()) / max(spread, min_std)
