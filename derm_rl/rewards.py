"""Reward functions: how well images show the findings that their prompts asked for.

A reward is any function of images and wanted labels that returns one number per image:

    reward(images float (N, 3, H, W) in [0, 1], wanted float (N, L) of 0 and 1) -> Tensor (N,)

Write your own and hand it to the trainer, or weigh several with :func:`combine`. The images belong
to the caller: they are resized and normalized in copies, never in place. A reward that is a mean
over labels offers its terms, (N, L), as the function ``reward.per_label``. ``soft``, ``tempered``
and ``diagnosis`` can be differentiated through.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from derm_rl import prompts
from derm_rl.classifier.model import LabelClassifier, as_tensor

Reward = Callable[[Tensor, Tensor], Tensor]

FLOOR = 1e-3  # least likelihood of one label that the soft reward still tells apart
TEMPERATURE = 2.0  # of the tempered reward: calibrated logits of our classifiers reach ± 10


def hard(classifier: LabelClassifier) -> Reward:
    """The paper's reward: the fraction of labels whose prediction at 0.5 is the wanted one.

        r = 1/L · Σ_l 1[1[p_l > 1/2] = y_l]          (arXiv 2503.15784, reward function)

    In [0, 1]. It sees a label only when it flips, so most changes of an image go unrewarded.
    """

    @torch.no_grad()
    def terms(images: Tensor, wanted: Tensor) -> Tensor:
        logits, wanted = _judge(classifier, images, wanted)
        return ((logits > 0) == (wanted > 0.5)).float()

    return _mean_of(terms)


def exact(classifier: LabelClassifier, artifacts: int | None = None) -> Reward:
    """1 where every artifact is predicted as wanted, else 0; its mean is the APR of the paper.

    ``artifacts`` is the number of leading labels to compare; default: all that are artifacts.
    """
    names = classifier.label_names
    flags = [name in prompts.ARTIFACTS for name in names]
    columns = [i for i, yes in enumerate(flags) if (yes if artifacts is None else i < artifacts)]

    @torch.no_grad()
    def reward(images: Tensor, wanted: Tensor) -> Tensor:
        logits, wanted = _judge(classifier, images, wanted)
        return ((logits > 0) == (wanted > 0.5))[:, columns].all(1).float()

    return reward


def soft(
    classifier: LabelClassifier, floor: float = FLOOR, columns: Sequence[int] | None = None
) -> Reward:
    """Mean clamped log-likelihood of the wanted labels, rescaled to [0, 1].

        r = 1 - 1/L · Σ_l max(log q_l, log floor) / log floor,    q_l = p_l if y_l = 1 else 1 - p_l

    1 where every label is certain to be as wanted, 0 where each likelihood is at most ``floor``; a
    classifier that knows nothing (q = 1/2) gives 1 - log(1/2) / log(floor), 0.90 at 0.001. Clamping
    keeps one hopeless label from drowning the others, and from being worth an exploit. p are
    calibrated probabilities at a balanced prior (:class:`derm_rl.classifier.LabelClassifier`).

    Args:
        floor: least likelihood of one label that still makes a difference.
        columns: labels to look at; default: all.
    """
    if not 0 < floor < 0.5:
        raise ValueError(f"floor of the soft reward must lie between 0 and 0.5, got {floor}")
    columns = list(range(len(classifier.label_names))) if columns is None else list(columns)

    def terms(images: Tensor, wanted: Tensor) -> Tensor:
        logits, wanted = _judge(classifier, images, wanted)
        log_likelihood = torch.nn.functional.logsigmoid(logits * (2 * wanted - 1))[:, columns]
        return 1 - log_likelihood.clamp(min=math.log(floor)) / math.log(floor)

    return _mean_of(terms)


def tempered(classifier: LabelClassifier, temperature: float = TEMPERATURE) -> Reward:
    """Mean likelihood of the wanted labels at a raised temperature; in [0, 1].

        r = 1/L · Σ_l sigmoid(± z_l / T),    z_l the calibrated logit, + if y_l = 1 else -

    Between the hard and the soft reward, to which it owes its shape. The hard one (T → 0) says
    nothing of a label until it flips. The soft one pays most of its range for turning a certain
    error into a doubt, before anything has flipped. This one is steepest where a label flips, and
    still tells an error of which the classifier is certain (z = -10) from a worse one.

    Args:
        temperature: T > 0; 1 gives the mean calibrated probability.
    """
    if not temperature > 0:
        raise ValueError(f"temperature of the tempered reward must be positive, got {temperature}")

    def terms(images: Tensor, wanted: Tensor) -> Tensor:
        logits, wanted = _judge(classifier, images, wanted)
        return torch.sigmoid(logits * (2 * wanted - 1) / temperature)

    return _mean_of(terms)


def diagnosis(classifier: LabelClassifier, floor: float = FLOOR) -> Reward:
    """The soft reward of the diagnosis alone, of the labels that are no artifacts; in [0, 1]."""
    columns = [i for i, name in enumerate(classifier.label_names) if name not in prompts.ARTIFACTS]
    if not columns:
        raise ValueError(
            f"the classifier has no label of a diagnosis among {', '.join(classifier.label_names)}"
        )
    return soft(classifier, floor, columns)


# What the key `ddpo.rewards` of a preset may name.
REWARDS: dict[str, Callable[[LabelClassifier], Reward]] = {
    "hard": hard,
    "soft": soft,
    "tempered": tempered,
    "diagnosis": diagnosis,
    "exact": exact,
}


def combine(
    weights: Mapping[str | Reward, float], classifier: LabelClassifier | None = None
) -> Reward:
    """Weighted sum Σ w·r. Keys are names of ``REWARDS`` (for ``classifier``) or reward functions.

    Raises:
        ValueError: an unknown name, a weight that is no finite number, or nothing to weigh.
    """
    if not weights:
        raise ValueError(f"no reward given; choose from {', '.join(REWARDS)}")
    terms = [(_named(key, classifier), float(weight)) for key, weight in weights.items()]
    if not all(math.isfinite(weight) for _, weight in terms):
        raise ValueError(f"reward weights must be finite numbers, got {dict(weights)}")

    def reward(images: Tensor, wanted: Tensor) -> Tensor:
        return torch.stack([weight * term(images, wanted) for term, weight in terms]).sum(0)

    def labels(images: Tensor, wanted: Tensor) -> Tensor:
        return sum(weight * per_label(term)(images, wanted) for term, weight in terms)

    reward.per_label = labels  # the reward is not their mean bit for bit: it sums in another order
    return reward


def per_label(reward: Reward) -> Callable[[Tensor, Tensor], Tensor]:
    """The terms (N, L) whose mean over labels is the reward; (N, 1) for one that has no terms."""
    return getattr(reward, "per_label", lambda images, wanted: reward(images, wanted)[:, None])


def _mean_of(terms: Callable[[Tensor, Tensor], Tensor]) -> Reward:
    def reward(images: Tensor, wanted: Tensor) -> Tensor:
        return terms(images, wanted).mean(1)

    reward.per_label = terms
    return reward


def build(
    weights: Mapping[str, float],
    classifier: LabelClassifier,
    label_names: Sequence[str] | None = None,
) -> Reward:
    """The reward of a preset (``ddpo.rewards``), for prompts with these ``label_names`` if given.

    Raises:
        ValueError: as :func:`combine`, or the classifier's labels are not the prompts'.
    """
    if label_names is not None and list(label_names) != list(classifier.label_names):
        raise ValueError(
            f"the reward classifier knows the labels {', '.join(classifier.label_names)}, but the "
            f"prompts ask for {', '.join(label_names)}; train it on this vocabulary (stage 02)"
        )
    return combine(weights, classifier)


def _named(key: str | Reward, classifier: LabelClassifier | None) -> Reward:
    if callable(key):
        return key
    if key not in REWARDS:
        near = difflib.get_close_matches(str(key), REWARDS, n=2, cutoff=0.3) or list(REWARDS)
        raise ValueError(f"unknown reward {key!r}; did you mean {' or '.join(near)}?")
    if classifier is None:
        raise ValueError(f"reward {key!r} needs a classifier")
    return REWARDS[key](classifier)


def _judge(classifier: LabelClassifier, images: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Calibrated logits and wanted labels, both (N, L) float on the device of ``images``."""
    if tuple(wanted.shape) != (len(images), len(classifier.label_names)):
        raise ValueError(
            f"wanted labels must have the shape ({len(images)}, {len(classifier.label_names)}): "
            f"{', '.join(classifier.label_names)}; got {tuple(wanted.shape)}"
        )
    logits = classifier.logits(as_tensor(images)).to(images.device)
    return logits, wanted.to(images.device, torch.float32)
