"""The policy against diffusers and torch, advantages and loss in closed form."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from derm_rl.ddpo import policy
from derm_rl.ddpo.advantages import PromptStatistics, normalize
from derm_rl.ddpo.loss import clipped_surrogate

KINDS = ("epsilon", "v_prediction", "sample")


def scheduler_of(kind="v_prediction", spacing="trailing", one=True, offset=1):
    return DDIMScheduler(
        prediction_type=kind, timestep_spacing=spacing, set_alpha_to_one=one, steps_offset=offset,
        clip_sample=False, beta_schedule="scaled_linear",
    )  # fmt: skip


def denoiser(latents, timestep, embeds):
    """Depends on all its inputs."""
    shift = embeds.mean((1, 2)).reshape(-1, 1, 1, 1)
    return 0.7 * latents + 0.01 * (timestep / 100).reshape(-1, 1, 1, 1) + shift


@pytest.mark.parametrize(
    ("kind", "spacing", "one", "eta"),
    list(itertools.product(KINDS, ("leading", "trailing", "linspace"), (True, False), (0.5, 1.0))),
)
def test_a_step_is_the_step_of_diffusers(kind, spacing, one, eta):
    scheduler = scheduler_of(kind, spacing, one, offset=0)
    steps = policy.ddim_steps(scheduler, 7, eta)
    assert steps.timestep.tolist() == scheduler.timesteps.tolist()
    random = torch.Generator().manual_seed(0)
    x, out, z = (torch.randn(2, 3, 4, 4, generator=random) for _ in range(3))
    for k, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(out, t, x, eta=eta, variance_noise=z).prev_sample
        ours = policy.step_mean(steps, torch.tensor(k), x, out) + steps.sigma[k].float() * z
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


def test_log_prob_is_that_of_a_normal():
    x, mean = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    sigma = torch.rand(5) + 0.1
    wide = torch.distributions.Normal(mean, sigma.reshape(-1, 1, 1, 1))
    expected = wide.log_prob(x).flatten(1).mean(1)
    torch.testing.assert_close(policy.log_prob(x, mean, sigma), expected)


def test_replay_scores_a_rollout_as_the_rollout_did():
    steps = policy.ddim_steps(scheduler_of(), 6, 1.0)
    embeds, null = torch.randn(4, 2, 8), torch.zeros(1, 2, 8)
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(4, 3, 4, 4, generator=random)
    for guidance in (1.0, 3.0):
        path = policy.rollout(denoiser, steps, noise, embeds, null, guidance, random)
        assert path.latents.shape == (4, 7, 3, 4, 4) and path.log_probs.shape == (4, 6)
        for k in range(6):
            _, again = policy.replay(
                denoiser, steps, torch.full((4,), k), path.latents[:, k], embeds, null, guidance,
                action=path.latents[:, k + 1],
            )  # fmt: skip
            torch.testing.assert_close(again, path.log_probs[:, k], rtol=0, atol=1e-6)


def test_the_last_step_has_no_noise_no_gradient_and_no_nan():
    steps = policy.ddim_steps(scheduler_of(one=True), 5, 1.0)
    assert steps.stochastic.tolist() == [True] * 4 + [False]
    scale = torch.tensor(0.5, requires_grad=True)
    x = torch.randn(2, 3, 4, 4)
    _, lp = policy.replay(
        lambda latents, t, e: scale * latents, steps, torch.tensor([4, 4]), x,
        torch.zeros(2, 1, 1), torch.zeros(1, 1, 1), 1.0, action=x,
    )  # fmt: skip
    lp.sum().backward()
    assert lp.tolist() == [0.0, 0.0] and scale.grad.item() == 0.0


def test_output_weights_make_every_step_pull_equally():
    steps = policy.ddim_steps(scheduler_of(), 8, 1.0)
    pulls = []
    for k in torch.nonzero(steps.stochastic)[:, 0]:
        out = torch.zeros(1, 1, 8, 8, requires_grad=True)
        mean = policy.step_mean(steps, k, torch.zeros(1, 1, 8, 8), out)
        action = mean.detach() + steps.sigma[k].float()  # noise of one everywhere
        lp = policy.log_prob(action, mean, steps.sigma[k])
        (steps.output_weight[k].float() * lp).sum().backward()
        pulls.append(out.grad.abs().sum().item())
    np.testing.assert_allclose(pulls, pulls[0], rtol=1e-4)


def test_advantages_are_per_prompt_once_a_prompt_is_known():
    tracker = PromptStatistics(buffer_size=4, min_count=3)
    first = tracker.advantages([0, 0, 1, 1], [1.0, 3.0, 5.0, 7.0], clip=5)
    np.testing.assert_allclose(first, normalize(np.array([1, 3, 5, 7.0]), np.array([1, 3, 5, 7.0])))
    second = tracker.advantages([0, 0], [2.0, 6.0], clip=5)
    buffer = np.array([1.0, 3.0, 2.0, 6.0])
    np.testing.assert_allclose(second, (np.array([2.0, 6.0]) - buffer.mean()) / buffer.std())
    tracker.advantages([0], [10.0], clip=5)
    assert tracker.state_dict()[0] == [3.0, 2.0, 6.0, 10.0]  # the oldest is forgotten
    other = PromptStatistics(4, 3)
    other.load_state_dict(tracker.state_dict())
    rewards = ([0, 1], [4.0, 4.0], 5)
    np.testing.assert_array_equal(other.advantages(*rewards), tracker.advantages(*rewards))


def test_small_differences_between_good_images_stay_small():
    rewards = [0.99, 0.98, 0.5, 1.0]
    tracker = PromptStatistics(buffer_size=4, min_count=2, min_std=0.1)
    found = tracker.advantages([0, 0, 1, 1], rewards, clip=5)
    np.testing.assert_allclose(found, [0.05, -0.05, -1.0, 1.0], atol=1e-9)


def test_advantages_are_clipped_and_zero_without_spread():
    tracker = PromptStatistics(32, 2)
    assert tracker.advantages([0] * 4, [0.5] * 4, clip=5).tolist() == [0.0] * 4
    many = PromptStatistics(100, 2).advantages([0] * 60, [0.0] * 59 + [1.0], clip=5)
    assert many.max() == 5
    with pytest.raises(FloatingPointError, match=r"images \[1\]"):
        tracker.advantages([0, 0], [1.0, float("nan")], clip=5)
    with pytest.raises(ValueError, match="min_count"):
        PromptStatistics(4, 5)


def test_the_surrogate_in_closed_form():
    old = torch.zeros(3)
    new = torch.log(torch.tensor([1.0, 1.5, 0.5])).requires_grad_()
    advantage = torch.tensor([1.0, 1.0, 1.0])
    found = clipped_surrogate(new, old, advantage, clip_range=0.2)
    # max(-r, -clip(r)): 1.5 is held at 1.2, 0.5 is not held.
    torch.testing.assert_close(found.loss, -torch.tensor([1.0, 1.2, 0.5]).mean())
    found.loss.backward()
    torch.testing.assert_close(new.grad, -torch.tensor([1.0, 0.0, 0.5]) / 3)
    torch.testing.assert_close(found.clip_fraction, torch.tensor(2 / 3))
    held = clipped_surrogate(new, old, -advantage, clip_range=0.2).loss
    torch.testing.assert_close(held, torch.tensor([1.0, 1.5, 0.8]).mean())
    weighted = clipped_surrogate(new, old, advantage, 10.0, weight=2.0)
    torch.testing.assert_close(weighted.ratio, torch.tensor([1.0, 2.25, 0.25]))
    assert weighted.approx_kl > 0
