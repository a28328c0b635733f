"""Advantages: how much better an image is than others of the same prompt.

An advantage rule is any function

    rule(prompt_ids (N,), rewards (N, L) float64, statistics) -> advantages (N,) float64

of a whole epoch, all processes together. A reward that is a single number has L = 1; the named
ones can be asked for one column per label. Add your own to ``RULES``. All is computed in float64:
a group's rewards differ in the third digit once the policy is good.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np


class PromptStatistics:
    """The last ``buffer_size`` rewards of every prompt (arXiv 2305.13301, §5.4).

    A prompt seen fewer than ``min_count`` times is judged against the whole batch instead. A
    standard deviation below ``min_std`` counts as ``min_std``: where every image is good, the
    differences that are left are noise, and dividing by their small spread would make them as loud
    as the failures of other prompts.
    """

    def __init__(self, buffer_size: int, min_count: int, min_std: float = 0.0) -> None:
        if not 1 <= min_count <= buffer_size:
            raise ValueError(
                f"min_count must be between 1 and buffer_size ({buffer_size}), got {min_count}"
            )
        self.buffer_size, self.min_count, self.min_std = buffer_size, min_count, min_std
        self.rewards: dict[int, deque[float]] = {}

    def extend(self, ids: np.ndarray, rewards: np.ndarray) -> None:
        """Remember the rewards (N,) of images of the prompts ``ids`` (N,)."""
        for prompt in np.unique(ids):
            buffer = self.rewards.setdefault(int(prompt), deque(maxlen=self.buffer_size))
            buffer.extend(rewards[ids == prompt].tolist())

    def known(self, prompt: int) -> np.ndarray | None:
        """The remembered rewards of a prompt, or None if there are fewer than ``min_count``."""
        buffer = self.rewards.get(int(prompt), ())
        return np.array(buffer) if len(buffer) >= self.min_count else None

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


def _by_prompt(
    ids: np.ndarray,
    rewards: np.ndarray,
    reference: Callable[[int, np.ndarray], np.ndarray],
    min_std: float,
) -> np.ndarray:
    """Rewards (N,) of each prompt, normalized by ``reference(prompt, its rewards)``."""
    result = np.zeros(len(ids))
    for prompt in np.unique(ids):
        mine = ids == prompt
        result[mine] = normalize(rewards[mine], reference(prompt, rewards[mine]), min_std)
    return result


def running(ids: np.ndarray, rewards: np.ndarray, statistics: PromptStatistics) -> np.ndarray:
    """The paper's: against all that is remembered of the prompt, this epoch included."""
    rewards = rewards.mean(1)

    def reference(prompt: int, mine: np.ndarray) -> np.ndarray:
        known = statistics.known(prompt)
        return rewards if known is None else known

    return _by_prompt(ids, rewards, reference, statistics.min_std)


def group(ids: np.ndarray, rewards: np.ndarray, statistics: PromptStatistics) -> np.ndarray:
    """Against this epoch's images of the prompt alone, as GRPO does (arXiv 2402.03300)."""
    return _by_prompt(ids, rewards.mean(1), lambda prompt, mine: mine, statistics.min_std)


def per_label(ids: np.ndarray, rewards: np.ndarray, statistics: PromptStatistics) -> np.ndarray:
    """Each label against this epoch's images of the prompt, then their sum over sqrt(L).

    A label that varies little in a group then counts as much as one that varies a lot. Independent
    labels give a sum of variance L, hence the square root.
    """
    columns = [group(ids, column[:, None], statistics) for column in rewards.T]
    return np.sum(columns, axis=0) / np.sqrt(len(columns))


Rule = Callable[[np.ndarray, np.ndarray, PromptStatistics], np.ndarray]
# What the key `ddpo.advantages` of a preset may name.
RULES: dict[str, Rule] = {"running": running, "group": group, "per_label": per_label}


def advantages(
    rule: Rule,
    prompt_ids: Sequence[int],
    rewards: np.ndarray,
    statistics: PromptStatistics,
    clip: float,
) -> np.ndarray:
    """Advantages (N,) float64 by ``rule``, clipped to ± ``clip``; the rewards are remembered.

    Raises:
        FloatingPointError: a reward is not finite. Nothing has been remembered of it then.
    """
    ids, rewards = np.asarray(prompt_ids), np.asarray(rewards, np.float64).reshape(len(rewards), -1)
    if not np.isfinite(rewards).all():
        bad = np.flatnonzero(~np.isfinite(rewards).all(1))
        raise FloatingPointError(f"reward of images {bad[:8].tolist()} in the batch not finite")
    statistics.extend(ids, rewards.mean(1))
    return rule(ids, rewards, statistics).clip(-clip, clip)


def by_step(
    prompt_ids: Sequence[int],
    advantages: np.ndarray,
    rewards: np.ndarray,
    values: np.ndarray,
    gae_lambda: float,
) -> np.ndarray:
    """Advantages (N, K) of each denoising step, from those of the images (N,).

    As published, every step of an image has the image's advantage A, though what the other steps
    did decides most of it. Generalized advantage estimation (arXiv 1506.02438, equation 16) gives
    a step the credit of what changed with it, and less and less of what changed later:

        A_k = Σ_{j ≥ k} λ^{j-k} (V_{j+1} - V_j),    V_0 = 0,    V_K = A - (its prompt's mean)

    V_k is the part of V_K that is known before step k: b_k times how far the image that the step
    expects is above its prompt's mean, in the unit of A; b_k by least squares over the epoch. With
    λ = 1 it is a baseline and leaves the gradient's expectation alone; a smaller λ trusts it, which
    takes more noise away. Dense rewards of the expected images are also in arXiv 2411.11727, and
    another way to share out a reward in arXiv 2505.19196.

    Args:
        rewards: (N,), whose spread within a prompt the advantages rescale.
        values: (N, K-1), the reward of the image that each step but the first expects.
        gae_lambda: λ in [0, 1].
    """
    group = np.unique(prompt_ids, return_inverse=True)[1]
    count = np.bincount(group)

    def deviation(x: np.ndarray) -> np.ndarray:
        return x - (np.bincount(group, x) / count)[group]

    def spread(x: np.ndarray) -> np.ndarray:
        return np.sqrt(np.bincount(group, deviation(x) ** 2) / count)[group]

    tiny = 1e-12
    outcome, unit = deviation(advantages), spread(advantages) / np.maximum(spread(rewards), tiny)
    guess = np.stack([unit * deviation(column) for column in values.T], 1)
    slope = outcome @ guess / np.maximum((guess**2).sum(0), tiny)
    known = np.column_stack([guess * slope, outcome])
    change = np.diff(known, axis=1, prepend=0.0)
    for k in reversed(range(change.shape[1] - 1)):
        change[:, k] += gae_lambda * change[:, k + 1]
    return change
