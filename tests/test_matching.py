"""Forward-process objectives against their closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler

from derm_rl.ddpo import matching
from derm_rl.ddpo.loss import clipped_surrogate


def scheduler_of(kind):
    return DDIMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing="trailing")


def test_each_timestep_is_in_a_part_of_its_own():
    u = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    found = matching.timesteps(4, scheduler_of("epsilon"), u)
    assert ((found // 250) == torch.tensor([3, 2, 1, 0])).all() and found.dtype == torch.long
    ends = matching.timesteps(2, scheduler_of("epsilon"), torch.tensor([[0.0, 0.9999]]))
    assert ends.tolist() == [[500, 499]]
    last = torch.full((1, 4), 1 - 2**-24)  # the largest that torch.rand gives
    assert matching.timesteps(4, scheduler_of("epsilon"), last).tolist() == [[999, 749, 499, 249]]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_what_is_noised_and_its_target_give_back_the_latents(kind):
    scheduler, random = scheduler_of(kind), torch.Generator().manual_seed(0)
    x0, noise = torch.randn(3, 2, 4, 4, generator=random), torch.randn(3, 5, 2, 4, 4)
    timestep = torch.randint(1000, (3, 5), generator=random)
    x, target = matching.noised(scheduler, x0, timestep, noise)
    alpha = scheduler.alphas_cumprod[timestep].reshape(3, 5, 1, 1, 1)
    a, s = alpha.sqrt(), (1 - alpha).sqrt()
    torch.testing.assert_close(x, a * x0[:, None] + s * noise)
    expected = {
        "epsilon": lambda: (x - s * target) / a, "v_prediction": lambda: a * x - s * target,
        "sample": lambda: target,
    }[kind]()  # fmt: skip
    torch.testing.assert_close(expected, x0[:, None].expand_as(expected), atol=1e-2, rtol=1e-3)


def test_matching_is_pretrainings_gradient_times_the_advantage():
    random = torch.Generator().manual_seed(0)
    output = torch.randn(4, 2, 3, 3, generator=random, requires_grad=True)
    target = torch.randn(4, 2, 3, 3, generator=random)
    advantage = torch.tensor([1.0, -2.0, 0.5, 0.0])
    score = matching.log_prob(output, target)
    loss = clipped_surrogate(score, score.detach(), advantage, clip_range=0.1).loss
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    by_hand = advantage.reshape(-1, 1, 1, 1) * 2 * (output - target) / 18
    torch.testing.assert_close(gradient, by_hand.detach())


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_the_gradient_of_negative_aware_fine_tuning_is_the_one_in_its_docstring(beta):
    random = torch.Generator().manual_seed(0)
    old, output, target = torch.randn(3, 4, 2, 3, 3, generator=random)
    output.requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 0.3, 0.0])
    loss = matching.negative_aware(output, old, target, advantage, beta)
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    a = advantage.reshape(-1, 1, 1, 1)
    by_hand = (a * (old - target) + beta * (output - old)) / 18
    torch.testing.assert_close(gradient, by_hand.detach())


def test_drift_is_nothing_where_nothing_changed():
    output = torch.randn(3, 2, 4, 4)
    assert matching.drift(output, output).tolist() == [0, 0, 0]
    torch.testing.assert_close(matching.drift(output + 0.5, output), torch.full((3,), 0.25))
