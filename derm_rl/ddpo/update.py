"""The update of DDPO: clipped gradient steps on one epoch's samples, and what is logged of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor

from derm_rl.ddpo import matching
from derm_rl.ddpo.advantages import PromptStatistics
from derm_rl.ddpo.loss import Surrogate, clipped_surrogate, gaussian_kl
from derm_rl.ddpo.sampling import Batch, Policy
from derm_rl.training import generator

# How far the importance ratio may be from 1 before anything has been updated. In bf16 and fp16 the
# order of a sum depends on the batch's shape; the model output moves by its rounding, 2^-8 or
# 2^-11 of its size, and the mean per-dimension log-probability by that over σ, averaged.
ON_POLICY = {"no": 1e-6, "bf16": 1e-3, "fp16": 1e-3}


class OffPolicyError(RuntimeError):
    """Replay does not see what was sampled: the gradient would be of something else."""


@dataclass
class State:
    """Everything that an epoch hands to the next."""

    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    ema: EMAModel
    statistics: PromptStatistics
    accelerator: Accelerator
    rows: list[dict] = field(default_factory=list)  # of log.csv, one an epoch
    steps: list[dict] = field(default_factory=list)  # of steps.csv, one an epoch and step
    timing: list[dict] = field(default_factory=list)  # of timing.csv, one an epoch
    failures: int = 0  # updates in a row that were skipped because something was not finite

    def state_dict(self) -> dict:
        scaler = self.accelerator.scaler
        return {
            "parameters": [p.detach().cpu() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "statistics": self.statistics.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "rows": self.rows,
            "steps": self.steps,
            "timing": self.timing,
            "failures": self.failures,
        }

    def load_state_dict(self, state: dict) -> None:
        for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
            parameter.data.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.accelerator.device)
        self.statistics.load_state_dict(state["statistics"])
        if state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.rows, self.steps, self.timing = state["rows"], state["steps"], state["timing"]
        self.failures = state["failures"]


def update(
    policy: Policy,
    batch: Batch,
    prompt: Tensor,
    advantage: np.ndarray,
    state: State,
    seed: int,
    epoch: int,
) -> dict[str, float]:
    """Several clipped gradient steps on one epoch's samples; returns what is logged of them.

    The prompts are split into at most ``updates_per_epoch`` parts; each gives one optimizer step
    over a random ``timestep_fraction`` of its images' trained steps (or noised timesteps), in
    passes of ``batch_size`` (image, step) pairs. Images without advantage cost no pass, unless the
    objective has something to ask of them too.

    Args:
        batch: this process's images.
        prompt: (B,) of the images of all processes.
        advantage: (B, K) of each step, or noised timestep, of the images of all processes.
    """
    settings, accelerator = policy.settings, state.accelerator
    world, random = accelerator.num_processes, generator(seed, epoch, "update")
    trainable = trained_columns(policy)
    per_image = max(1, round(settings.timestep_fraction * len(trainable)))
    advantage = torch.from_numpy(advantage)
    useful = (advantage != 0).any(1) | (settings.objective == "nft")  # it holds on to the others
    choice = torch.rand(int(prompt.max()) + 1, len(trainable), generator=random)
    choice = choice.argsort(1)[prompt, :per_image]  # images of a prompt train the same
    tally, norms, deviation = Tally(policy.columns, accelerator.device), [], 0.0
    policy.pipe.unet.train()
    for part in parts(prompt, useful, settings.updates_per_epoch, random):
        image, k = part.repeat_interleave(per_image), trainable[choice[part].flatten()]
        for i in mine(image, accelerator, settings.batch_size):
            weight = advantage[image[i], k[i]]
            loss, surrogate, *at = loss_of(policy, batch, image[i] // world, k[i], weight)
            pull = output_gradient(loss, *at)
            accelerator.backward(loss.sum() / len(image))
            tally.add(k[i], loss.detach(), surrogate, pull, weight)
        if settings.anchor:
            anchor(policy, len(image), accelerator, seed, epoch, len(norms))
        if not norms:  # nothing has been updated yet
            deviation = check_on_policy(tally, accelerator, epoch)
        norms.append(apply_gradients(state, settings.max_grad_norm))
    sums = accelerator.reduce(tally.sums, "sum")
    for step, row in enumerate(means(sums)):
        if row:
            at = {"epoch": epoch, "step": step, "timestep": timestep_of(policy, step)}
            state.steps.append(at | row)
    overall = means(sums.sum(0, keepdim=True))[0]
    for name in ("ratio", "output_grad_norm", "advantage"):  # of all steps together: nothing to see
        overall.pop(name, None)
    skipped = int((~useful).sum())
    return overall | {"on_policy_deviation": deviation, "skipped_images": skipped} | norm_row(norms)


def parts(prompt: Tensor, useful: Tensor, count: int, random: torch.Generator) -> list[Tensor]:
    """The useful images of each of at most ``count`` updates, none of which is empty.

    All images of a prompt are in one update: where their advantages sum to zero (``group``), what
    is alike in them cancels there, the noise that forward objectives add to them for one.

    Args:
        prompt, useful: (B,) of each image, its prompt and whether it has anything to teach.
    """
    ids = prompt[useful].unique()
    ids = ids[torch.randperm(len(ids), generator=random)]
    found = [torch.isin(prompt, part) & useful for part in ids.tensor_split(count) if len(part)]
    return [torch.nonzero(each)[:, 0] for each in found]


def mine(image: Tensor, accelerator: Accelerator, size: int) -> list[Tensor]:
    """Where in ``image`` (n,) are numbers of this process's images: none, or ``size`` at a time."""
    at = torch.nonzero(image % accelerator.num_processes == accelerator.process_index)[:, 0]
    return [part for part in at.split(size) if len(part)]


def anchor(policy: Policy, pairs: int, accelerator: Accelerator, *seeds: int | str) -> None:
    """Add the gradient of denoising training images of stage 1, beside ``pairs`` of an update.

    What advantage weighted matching would ask of them at an advantage of 1, and so what holds the
    policy to the distribution from which stage 1 has learned.
    """
    examples, settings, unet = policy.task.anchor, policy.settings, policy.pipe.unet
    views, n = examples.latents.shape[:2]
    count, random = max(1, round(settings.anchor * pairs)), generator(*seeds, "anchor")
    row = torch.randint(views * n, (count,), generator=random)
    u = torch.rand(count, 1, generator=random)
    noise = torch.randn(count, 1, *policy.shape, generator=random)
    scheduler = policy.pipe.scheduler
    for i in mine(torch.arange(count), accelerator, settings.batch_size):
        latents = examples.latents.flatten(0, 1)[row[i]].float().to(unet.device)
        timestep = matching.timesteps(1, scheduler, u[i]).to(unet.device)
        noised, target = matching.noised(scheduler, latents, timestep, noise[i].to(unet.device))
        embeds = policy.anchor_embeds[examples.caption[row[i] % n]]
        output = policy.denoise(noised[:, 0], timestep[:, 0], embeds).float()
        accelerator.backward(-matching.log_prob(output, target[:, 0]).sum() / pairs)


def trained_columns(policy: Policy) -> Tensor:
    """Of an image's denoising steps, or noised timesteps, those that are trained (n,)."""
    if policy.noises_anew:
        return torch.arange(policy.columns)
    steps, settings = policy.steps, policy.settings
    trainable = torch.nonzero(steps.stochastic[: len(steps) - settings.drop_last_steps])[:, 0]
    if not len(trainable):
        raise ValueError(
            "no denoising step left to train: lower ddpo.drop_last_steps="
            f"{settings.drop_last_steps} or raise ddpo.eta={settings.eta}"
        )
    return trainable


def timestep_of(policy: Policy, column: int) -> int:
    """The timestep of a denoising step; the middle of those that one column is noised to."""
    if not policy.noises_anew:
        return int(policy.steps.timestep[column])
    middle = torch.full((1, policy.columns), 0.5)
    return int(matching.timesteps(policy.columns, policy.pipe.scheduler, middle)[0, column])


def apply_gradients(state: State, max_norm: float) -> float:
    """One optimizer step with the gradients of all processes; skipped if they are not finite.

    Returns their norm before clipping, which says whether it was.
    """
    accelerator = state.accelerator
    for parameter in state.parameters:
        if parameter.grad is None:  # this process had nothing to do, another one may have
            parameter.grad = torch.zeros_like(parameter)
        if accelerator.num_processes > 1:
            parameter.grad = accelerator.reduce(parameter.grad, "sum")
    norm = accelerator.clip_grad_norm_(state.parameters, max_norm)
    if torch.isfinite(norm):
        state.optimizer.step()
        state.ema.step(state.parameters)
        state.failures = 0
    else:
        state.failures += 1
        if accelerator.scaler:  # it lowers its scale
            state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return float(norm)


def norm_row(norms: list[float]) -> dict[str, float]:
    """What the log says of the gradient norms of an epoch's updates."""
    finite = [n for n in norms if np.isfinite(n)]
    mean = float(np.mean(finite)) if finite else 0.0
    return {"grad_norm": mean, "failed_updates": len(norms) - len(finite)}


def loss_of(
    policy: Policy, batch: Batch, image: Tensor, k: Tensor, advantage: Tensor
) -> tuple[Tensor, Surrogate, Tensor, Tensor]:
    """Loss (n,) of step ``k`` (n,) of ``image`` (n,): the surrogate, and what drifting costs.

    The third value is what the loss is a function of (n, C, h, w), μ of those steps or the model
    output, from which the gradient flows on; the fourth its derivative (n,) by the model output.
    """
    if batch.noised is not None:
        return matching_loss_of(policy, batch, image, k, advantage)
    settings, steps = policy.settings, policy.steps
    now = policy.replay(batch, image, k)
    old = batch.log_probs[image, k]
    weight = steps.output_weight[k].to(old) if settings.step_weighting == "output" else 1.0
    surrogate = clipped_surrogate(now.log_prob, old, advantage, settings.clip_range, weight)
    loss = surrogate.loss
    if settings.kl_weight:
        with policy.reference():
            before = policy.replay(batch, image, k)
        loss = loss + settings.kl_weight * gaussian_kl(now.mean, before.mean, steps.sigma[k])
    return loss, surrogate, now.mean, steps.mean_out[k]


def matching_loss_of(
    policy: Policy, batch: Batch, image: Tensor, k: Tensor, advantage: Tensor
) -> tuple[Tensor, Surrogate, Tensor, Tensor]:
    """:func:`loss_of` for the objectives of :mod:`derm_rl.ddpo.matching`."""
    settings, noised = policy.settings, batch.noised
    latents, timestep, target = (
        each[image, k] for each in (noised.latents, noised.timestep, noised.target)
    )
    embeds = policy.embeds[batch.prompt[image]]
    output = policy.denoise(latents, timestep, embeds).float()
    log_prob, old = matching.log_prob(output, target), batch.log_probs[image, k]
    surrogate = clipped_surrogate(log_prob, old, advantage, settings.clip_range)
    loss = surrogate.loss
    if settings.objective == "nft":
        a = advantage / settings.advantage_clip
        old_output = noised.output[image, k]
        loss = matching.negative_aware(output, old_output, target, a, settings.nft_beta)
    if settings.kl_weight:
        with policy.reference():
            before = policy.denoise(latents, timestep, embeds).float()
        loss = loss + settings.kl_weight * matching.drift(output, before)
    return loss, surrogate, output, torch.ones(len(output))


def output_gradient(loss: Tensor, mean: Tensor, mean_out: Tensor) -> Tensor:
    """Norm (n,) of each pair's ∂loss/∂(model output): how hard a step pulls on the UNet.

    The gradient of the weights is a sum over the steps of a pass and cannot be told apart; that of
    the output can, and costs no pass: ∂loss/∂μ · ∂μ/∂out, with ``mean_out`` (n,) the latter.
    """
    (gradient,) = torch.autograd.grad(loss.sum(), mean, retain_graph=True)
    return gradient.flatten(1).norm(dim=1) * mean_out.abs().to(gradient)


class Tally:
    """Sums by denoising step (K, 7): pairs, and of each pair what ``NAMES`` says.

    The advantage without its sign: how much is at stake in a step.
    """

    NAMES = ("loss", "ratio", "clip_fraction", "approx_kl", "output_grad_norm", "advantage")

    def __init__(self, steps: int, device: torch.device) -> None:
        self.sums = torch.zeros(steps, 1 + len(self.NAMES), dtype=torch.float64, device=device)
        self.largest = torch.zeros((), device=device)  # |ratio - 1|

    def add(
        self, k: Tensor, loss: Tensor, surrogate: Surrogate, pull: Tensor, advantage: Tensor
    ) -> None:
        values = [torch.ones_like(loss), loss, surrogate.ratio, surrogate.clipped]
        values += [surrogate.approx_kl, pull, advantage.abs().to(loss)]
        rows = torch.stack(values, 1).to(self.sums)
        self.sums.index_add_(0, k.to(rows.device), rows)
        self.largest = torch.maximum(self.largest, (surrogate.ratio - 1).abs().max())


def means(sums: Tensor) -> list[dict[str, float]]:
    """Of each row of a :class:`Tally` the means by name; empty where nothing was trained."""
    return [
        dict(zip(Tally.NAMES, (row[1:] / row[0]).tolist(), strict=True)) if row[0] else {}
        for row in sums.cpu()
    ]


def check_on_policy(tally: Tally, accelerator: Accelerator, epoch: int) -> float:
    """Largest |ratio - 1| before the first update, of all processes.

    Raises:
        OffPolicyError: it is larger than rounding explains.
    """
    deviation = accelerator.gather(tally.largest[None]).max().item()
    bound = ON_POLICY[accelerator.mixed_precision]
    if not deviation <= bound:
        raise OffPolicyError(
            f"epoch {epoch}: the importance ratio is {deviation:.1e} away from 1 before any update "
            f"(at most {bound:.0e} is rounding). What is trained on is not what was sampled: look "
            "for dropout, another dtype, or a model pass that depends on more than its inputs"
        )
    return deviation


def check_failures(state: State, most: int, folder: Path) -> None:
    """Stop when ``most`` updates in a row had to be skipped."""
    if state.failures >= most:
        raise FloatingPointError(
            f"{state.failures} updates in a row had a reward, loss or gradient that is not finite; "
            f"stopped (ddpo.max_failures={most}). The last checkpoint is in {folder}. Lower "
            "ddpo.learning_rate, or look at the reward"
        )
