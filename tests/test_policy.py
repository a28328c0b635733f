"""The policy against diffusers and torch, advantages and loss in closed form."""

import functools
import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from derm_rl.ddpo import policy
from derm_rl.ddpo.advantages import RULES, PromptStatistics, advantages, by_step, normalize
from derm_rl.ddpo.loss import clipped_surrogate, gaussian_kl
from derm_rl.ddpo.update import output_gradient

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
    ("kind", "spacing", "one", "offset"),
    list(itertools.product(KINDS, ("leading", "trailing", "linspace"), (True, False), (0, 1))),
)
@settings(max_examples=12, deadline=None)
@given(eta=st.floats(0.01, 1), n=st.integers(1, 60), seed=st.integers(0, 9))
def test_a_step_is_the_step_of_diffusers(kind, spacing, one, offset, eta, n, seed):
    scheduler = scheduler_of(kind, spacing, one, offset)
    assume(spacing != "leading" or offset + 1000 // n * (n - 1) < 1000)
    steps = policy.ddim_steps(scheduler, n, eta)
    assert steps.timestep.tolist() == scheduler.timesteps.tolist()
    random = torch.Generator().manual_seed(seed)
    x, out, z = (torch.randn(2, 3, 4, 4, generator=random) for _ in range(3))
    for k, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(out, t, x, eta=eta, variance_noise=z).prev_sample
        ours = policy.step_mean(steps, torch.tensor(k), x, out) + steps.sigma[k].float() * z
        scale = max(1.0, float(theirs.abs().max()))  # 1/a is large where the noise is
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=2e-4)


def test_a_scheduler_that_clips_is_refused():
    with pytest.raises(ValueError, match="clip_sample is true"):
        policy.ddim_steps(DDIMScheduler(clip_sample=True), 5, 1.0)
    with pytest.raises(ValueError, match="prediction_type 'flow'"):
        policy.ddim_steps(scheduler_of("flow"), 5, 1.0)


def test_steps_outside_the_window_are_those_of_deterministic_ddim():
    eta = torch.tensor([0, 0, 1.0, 0.5, 0, 0])
    steps = policy.ddim_steps(scheduler_of(), 6, eta)
    assert steps.stochastic.tolist() == [False, False, True, True, False, False]
    for other, rows in ((0.0, [0, 1, 4, 5]), (1.0, [2]), (0.5, [3])):
        whole = policy.ddim_steps(scheduler_of(), 6, other)
        for name in ("mean_x", "mean_out", "sigma"):
            torch.testing.assert_close(getattr(steps, name)[rows], getattr(whole, name)[rows])


def test_log_prob_is_that_of_a_normal():
    x, mean = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    sigma = torch.rand(5) + 0.1
    wide = torch.distributions.Normal(mean, sigma.reshape(-1, 1, 1, 1))
    expected = wide.log_prob(x).flatten(1).mean(1)
    torch.testing.assert_close(policy.log_prob(x, mean, sigma), expected)


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_replay_scores_what_the_rollout_kept(storage, guidance):
    steps = policy.ddim_steps(scheduler_of(), 6, 1.0)
    embeds, null = torch.randn(4, 2, 8), torch.zeros(1, 2, 8)
    noise = torch.randn(4, 7, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    path = policy.rollout(denoiser, steps, noise, embeds, null, guidance, storage)
    assert path.latents.shape == (4, 7, 3, 4, 4) and path.log_probs.shape == (4, 6)
    assert path.latents.dtype == storage
    for k in range(6):
        again = policy.replay(
            denoiser, steps, torch.full((4,), k), path.latents[:, k], embeds, null, guidance,
            action=path.latents[:, k + 1],
        )  # fmt: skip
        torch.testing.assert_close(again.log_prob, path.log_probs[:, k], rtol=0, atol=1e-6)


def test_the_kl_of_two_policies_is_that_of_torch():
    mean, other = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    sigma = torch.tensor([0.1, 0.5, 2.0])
    wide = sigma.reshape(-1, 1, 1, 1).expand_as(mean)
    normals = [torch.distributions.Normal(m, wide) for m in (mean, other)]
    expected = torch.distributions.kl_divergence(*normals).flatten(1).mean(1)
    torch.testing.assert_close(gaussian_kl(mean, other, sigma), expected)


def test_the_last_step_has_no_noise_no_gradient_and_no_nan():
    steps = policy.ddim_steps(scheduler_of(one=True), 5, 1.0)
    assert steps.stochastic.tolist() == [True] * 4 + [False]
    scale = torch.tensor(0.5, requires_grad=True)
    x = torch.randn(2, 3, 4, 4)
    lp = policy.replay(
        lambda latents, t, e: scale * latents, steps, torch.tensor([4, 4]), x,
        torch.zeros(2, 1, 1), torch.zeros(1, 1, 1), 1.0, action=x,
    ).log_prob  # fmt: skip
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


def advantages_of(rule, ids, rewards, tracker=None, clip=5.0):
    rewards = np.array(rewards, float).reshape(len(ids), -1)
    return advantages(RULES[rule], ids, rewards, tracker or PromptStatistics(32, 2), clip)


def test_advantages_are_per_prompt_once_a_prompt_is_known():
    tracker = PromptStatistics(buffer_size=4, min_count=3)
    everyone = np.array([1, 3, 5, 7.0])
    first = advantages_of("running", [0, 0, 1, 1], everyone, tracker)
    np.testing.assert_allclose(first, normalize(everyone, everyone))
    second = advantages_of("running", [0, 0], [2.0, 6.0], tracker)
    buffer = np.array([1.0, 3.0, 2.0, 6.0])
    np.testing.assert_allclose(second, (np.array([2.0, 6.0]) - buffer.mean()) / buffer.std())
    advantages_of("running", [0], [10.0], tracker)
    assert tracker.state_dict()[0] == [3.0, 2.0, 6.0, 10.0]  # the oldest is forgotten
    other = PromptStatistics(4, 3)
    other.load_state_dict(tracker.state_dict())
    found = [advantages_of("running", [0, 1], [4.0, 4.0], t) for t in (other, tracker)]
    np.testing.assert_array_equal(*found)


def test_group_advantages_do_not_look_back():
    tracker = PromptStatistics(buffer_size=32, min_count=1)
    advantages_of("group", [0, 0], [100.0, 200.0], tracker)
    found = advantages_of("group", [0, 1, 0, 1], [1.0, 5.0, 3.0, 5.0], tracker)
    np.testing.assert_allclose(found, [-1.0, 0.0, 1.0, 0.0])


def test_each_label_counts_alike_whatever_its_scale():
    rewards = [[0.0, 0.50], [0.0, 0.51], [1.0, 0.50], [1.0, 0.51]]  # the second varies little
    found = advantages_of("per_label", [0] * 4, rewards)
    np.testing.assert_allclose(found, np.array([-2.0, 0.0, 0.0, 2.0]) / np.sqrt(2))
    whole = advantages_of("group", [0] * 4, rewards)
    np.testing.assert_allclose(whole, [-1.01, -0.99, 0.99, 1.01], atol=1e-3)


def test_small_differences_between_good_images_stay_small():
    rewards = [0.99, 0.98, 0.5, 1.0]
    tracker = PromptStatistics(buffer_size=4, min_count=2, min_std=0.1)
    for rule in ("running", "group"):
        found = advantages_of(rule, [0, 0, 1, 1], rewards, tracker)
        np.testing.assert_allclose(found, [0.05, -0.05, -1.0, 1.0], atol=1e-9)
        tracker = PromptStatistics(buffer_size=4, min_count=2, min_std=0.1)


near = functools.partial(np.testing.assert_allclose, atol=1e-9)


def test_steps_share_out_the_advantage_of_their_image():
    random = np.random.default_rng(0)
    ids = [0, 0, 0, 1, 1, 1]
    rewards = np.array([0.1, 0.5, 0.6, 0.9, 0.7, 0.8])
    values = rewards[:, None] + random.normal(0, 0.1, (6, 4))
    total = advantages_of("group", ids, rewards)
    near(by_step(ids, total, rewards, values, 0).sum(1), total)
    whole = by_step(ids, total, rewards, values, 1)
    near(whole[:, 0], total)  # nothing is known before the first step
    # A baseline by least squares: what is left of the outcome is orthogonal to it.
    scaled = np.concatenate([normalize(rewards[g], rewards[g]) for g in ([0, 1, 2], [3, 4, 5])])
    near(total, scaled)
    for k in range(1, 5):
        near(whole[:, k] @ (total - whole[:, k]), 0)
        assert whole[:, k].std() < total.std()
    change = by_step(ids, total, rewards, values, 0)
    half = by_step(ids, total, rewards, values, 0.5)
    near(half[:, 2], change[:, 2] + change[:, 3] / 2 + change[:, 4] / 4)


def test_the_step_that_decides_has_all_the_credit():
    ids, rewards = [0] * 4, np.array([0.0, 0.0, 1.0, 1.0])
    total = advantages_of("group", ids, rewards)
    values = np.array([[0.5, 0.5, r, r] for r in rewards])  # decided by step 2 of 0 to 4
    found = by_step(ids, total, rewards, values, 0)
    near(found, np.outer(total, [0, 0, 1, 0, 0]))
    # Values that say nothing: all is open until the last step, as published with lambda 1.
    nothing = by_step(ids, total, rewards, np.ones((4, 4)), 1)
    near(nothing, np.repeat(total[:, None], 5, 1))
    same = by_step(ids, np.zeros(4), np.full(4, 0.3), values, 0.5)
    np.testing.assert_array_equal(same, 0)


def test_advantages_are_clipped_and_zero_without_spread():
    for rule in RULES:
        assert advantages_of(rule, [0] * 4, [0.5] * 4).tolist() == [0.0] * 4
        tracker = PromptStatistics(100, 2)
        many = advantages_of(rule, [0] * 60, [0.0] * 59 + [1.0], tracker)
        assert many.max() == 5
        with pytest.raises(FloatingPointError, match=r"images \[1\]"):
            advantages_of(rule, [0, 0], [1.0, float("nan")], tracker)
        assert len(tracker.rewards[0]) == 60  # nothing was remembered of the bad batch
    with pytest.raises(ValueError, match="min_count"):
        PromptStatistics(4, 5)


def test_the_surrogate_in_closed_form():
    old = torch.zeros(3)
    new = torch.log(torch.tensor([1.0, 1.5, 0.5])).requires_grad_()
    advantage = torch.tensor([1.0, 1.0, 1.0])
    found = clipped_surrogate(new, old, advantage, clip_range=0.2)
    # max(-r, -clip(r)): 1.5 is held at 1.2, 0.5 is not held.
    torch.testing.assert_close(found.loss, -torch.tensor([1.0, 1.2, 0.5]))
    found.loss.mean().backward()
    torch.testing.assert_close(new.grad, -torch.tensor([1.0, 0.0, 0.5]) / 3)
    assert found.clipped.tolist() == [0, 1, 1]
    held = clipped_surrogate(new, old, -advantage, clip_range=0.2).loss
    torch.testing.assert_close(held, torch.tensor([1.0, 1.5, 0.8]))
    weighted = clipped_surrogate(new, old, advantage, 10.0, weight=2.0)
    torch.testing.assert_close(weighted.ratio, torch.tensor([1.0, 2.25, 0.25]))
    assert (weighted.approx_kl >= 0).all() and weighted.approx_kl[0] == 0
    tiny = torch.tensor([1e-4, -3e-5, 1e-7])  # float32 cannot tell these ratios from their logs
    found = clipped_surrogate(tiny, torch.zeros(3), advantage, 0.2).approx_kl
    torch.testing.assert_close(found, tiny.double() ** 2 / 2, rtol=1e-3, atol=0)


def test_the_logged_gradient_is_that_of_the_models_output():
    steps = policy.ddim_steps(scheduler_of(), 5, 1.0)
    k, output = torch.arange(4), torch.randn(4, 4, 3, 3, requires_grad=True)
    mean = policy.step_mean(steps, k, torch.randn(4, 4, 3, 3), output)
    score = policy.log_prob(torch.randn(4, 4, 3, 3), mean, steps.sigma[k])
    loss = clipped_surrogate(score, score.detach(), torch.tensor([2.0, -1.0, 0.5, 0.0]), 0.1).loss
    found = output_gradient(loss, mean, steps.mean_out[k])
    (expected,) = torch.autograd.grad(loss.sum(), output)
    torch.testing.assert_close(found, expected.flatten(1).norm(dim=1))
    assert (found[:3] > 0).all() and found[3] == 0
