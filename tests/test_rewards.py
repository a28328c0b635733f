"""Rewards against hand-computed values; they leave the images alone and refuse wrong input."""

import math

import pytest
import torch
from torch import nn

from derm_rl import rewards

NAMES = ["hair", "ink", "MEL"]


class Classifier(nn.Module):
    """Stands in for LabelClassifier: the logits of the first pixels of an image."""

    label_names = NAMES

    def logits(self, images):
        return (images[:, 0, 0, :3] - 0.5) * 20


def images(*probabilities):
    """Images for which the classifier gives these probabilities."""
    x = torch.full((len(probabilities), 3, 4, 4), 0.5)
    p = torch.tensor(probabilities, dtype=torch.float32)
    x[:, 0, 0, :3] = torch.logit(p) / 20 + 0.5
    return x


def test_hard_is_the_fraction_of_labels_that_match():
    x = images([0.9, 0.2, 0.6], [0.9, 0.2, 0.6], [0.1, 0.9, 0.1])
    wanted = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    assert rewards.hard(Classifier())(x, wanted).tolist() == pytest.approx([1, 2 / 3, 0])


def test_soft_is_the_rescaled_clamped_mean_log_likelihood():
    x = images([0.9, 0.2, 0.6], [0.9999, 0.5, 0.5])
    wanted = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    floor = math.log(0.01)
    first = (math.log(0.9) + math.log(0.8) + math.log(0.6)) / 3
    second = (floor + 2 * math.log(0.5)) / 3  # the first label, at 0.0001, is clamped
    got = rewards.soft(Classifier(), floor=0.01)(x, wanted)
    assert got.tolist() == pytest.approx([1 - first / floor, 1 - second / floor], abs=1e-5)


def test_soft_lies_between_zero_and_one_and_is_finite_at_certainty():
    x = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    got = rewards.soft(Classifier())(x, torch.ones(2, 3))
    assert got.tolist() == pytest.approx([0, 1], abs=1e-3)


def test_tempered_is_the_mean_likelihood_at_a_raised_temperature():
    x, wanted = images([0.9, 0.2, 0.6]), torch.tensor([[1.0, 0.0, 0.0]])
    logits = [math.log(0.9 / 0.1), -math.log(0.2 / 0.8), -math.log(0.6 / 0.4)]
    for temperature in (1.0, 4.0):
        expected = sum(1 / (1 + math.exp(-z / temperature)) for z in logits) / 3
        got = rewards.tempered(Classifier(), temperature)(x, wanted)
        assert got.tolist() == pytest.approx([expected], abs=1e-5)
    nearly_hard = rewards.tempered(Classifier(), 1e-3)(x, wanted)
    assert nearly_hard.tolist() == pytest.approx(rewards.hard(Classifier())(x, wanted).tolist())
    with pytest.raises(ValueError, match="must be positive, got 0"):
        rewards.tempered(Classifier(), 0)


def test_diagnosis_looks_at_the_diagnosis_alone():
    x = images([0.9, 0.9, 0.7], [0.1, 0.1, 0.7])
    got = rewards.diagnosis(Classifier())(x, torch.ones(2, 3))
    expected = 1 - math.log(0.7) / math.log(rewards.FLOOR)
    assert got.tolist() == pytest.approx([expected, expected], abs=1e-5)


def test_combine_weighs_names_and_functions_of_ones_own():
    def brightness(x, wanted):
        return x.mean((1, 2, 3))

    x, wanted = images([0.9, 0.2, 0.6], [0.3, 0.4, 0.2]), torch.ones(2, 3)
    got = rewards.combine({"hard": 2.0, brightness: -1.0}, Classifier())(x, wanted)
    expected = 2 * rewards.hard(Classifier())(x, wanted) - brightness(x, wanted)
    assert torch.equal(got, expected)
    built = rewards.build({"hard": 2.0}, Classifier(), NAMES)
    assert torch.equal(built(x, wanted), 2 * rewards.hard(Classifier())(x, wanted))


@pytest.mark.parametrize("name", list(rewards.REWARDS))
def test_images_and_wanted_labels_are_never_modified(name):
    x, wanted = images([0.9, 0.2, 0.6]), torch.tensor([[1.0, 0.0, 1.0]])
    x_before, wanted_before, version = x.clone(), wanted.clone(), x._version
    rewards.combine({name: 1.0}, Classifier())(x, wanted)
    assert torch.equal(x, x_before) and torch.equal(wanted, wanted_before)
    assert x._version == version  # torch counts in-place changes, also those undone


def test_smooth_rewards_have_a_gradient_and_steps_have_none():
    x = images([0.9, 0.2, 0.6]).requires_grad_()
    for smooth in (rewards.soft, rewards.tempered):
        (slope,) = torch.autograd.grad(smooth(Classifier())(x, torch.ones(1, 3)).sum(), x)
        assert slope.abs().max() > 0
    for step in (rewards.hard, rewards.exact):
        assert not step(Classifier())(x, torch.ones(1, 3)).requires_grad


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="unknown reward 'sotf'; did you mean soft"):
        rewards.combine({"sotf": 1.0}, Classifier())
    with pytest.raises(ValueError, match="no reward given"):
        rewards.combine({}, Classifier())
    with pytest.raises(ValueError, match="finite"):
        rewards.combine({"hard": math.nan}, Classifier())
    with pytest.raises(ValueError, match="needs a classifier"):
        rewards.combine({"hard": 1.0})
    with pytest.raises(ValueError, match="the prompts ask for hair, MEL"):
        rewards.build({"hard": 1.0}, Classifier(), ["hair", "MEL"])
    with pytest.raises(ValueError, match="between 0 and 0.5"):
        rewards.soft(Classifier(), floor=0.7)
    reward = rewards.hard(Classifier())
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        reward(images([0.5, 0.5, 0.5]), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        reward(images([0.5, 0.5, 0.5]) - 1, torch.ones(1, 3))


def test_exact_is_the_apr_of_single_images():
    x = images([0.9, 0.2, 0.6], [0.9, 0.2, 0.6], [0.9, 0.8, 0.6])
    wanted = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert rewards.exact(Classifier())(x, wanted).tolist() == [1, 0, 1]  # the diagnosis is ignored
    assert rewards.exact(Classifier(), artifacts=1)(x, wanted).tolist() == [1, 1, 1]


def test_a_clip_score_is_a_reward_like_any_other():
    """Images against the words of their prompt, which the wanted labels give (arXiv 2104.08718)."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    model = CLIPModel(
        CLIPConfig(
            text_config=small
            | {"vocab_size": 16, "max_position_embeddings": 8, "eos_token_id": 15},
            vision_config=small | {"image_size": 8, "patch_size": 4},
            projection_dim=8,
        )
    ).eval()

    def clip_score(x, wanted):
        words = torch.where(wanted > 0.5, torch.arange(2, 5), 1)  # a word for each label, or none
        ids = torch.nn.functional.pad(words, (0, 1), value=15)  # CLIP reads the end token
        with torch.no_grad():
            out = model(input_ids=ids.long(), pixel_values=(x - 0.5) / 0.5)
        return (out.image_embeds * out.text_embeds).sum(1)

    x, wanted = torch.rand(4, 3, 8, 8), torch.eye(4, 3)
    alone = clip_score(x, wanted)
    assert alone.shape == (4,) and clip_score(x[:1].expand(4, -1, -1, -1), wanted).std() > 0
    both = rewards.combine({clip_score: 2.0, rewards.hard(Classifier()): 1.0})
    expected = 2 * alone + rewards.hard(Classifier())(x, wanted)
    torch.testing.assert_close(both(x, wanted), expected)
    # Without terms by label, it is one more that is the same for all of them.
    per_label = rewards.per_label(both)(x, wanted)
    assert per_label.shape == (4, 3)
    torch.testing.assert_close(per_label.mean(1), expected)
