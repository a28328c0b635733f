"""The reward hacking alarm: what it measures, when it sounds, and what it stops."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from train_tiny import brightness, settings_of, task_of

from derm_rl import pipeline
from derm_rl.ddpo import advantages, alarm, trainer
from derm_rl.paths import ROOT
from derm_rl.settings import AlarmConfig

LIMITS = AlarmConfig(gap=0.1, look=1.0, diversity=1.0, stop=False)


def test_colour_and_edges_of_images_that_are_known():
    grey = torch.full((1, 3, 8, 8), 0.4)
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 0.9
    stripes = torch.zeros(1, 3, 8, 8)
    stripes[..., ::2] = 1.0  # every step across is one, none down
    found = alarm.look(torch.cat([grey, red, stripes]))
    torch.testing.assert_close(found["saturation"], torch.tensor([0.0, 0.9, 0.0]))
    torch.testing.assert_close(found["edges"], torch.tensor([0.0, 0.0, 0.5]))


def test_diversity_is_within_prompts_not_between_them():
    apart = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    assert alarm.diversity(torch.tensor([0, 0, 1, 1]), apart) == 0
    assert alarm.diversity(torch.tensor([0, 1, 0, 1]), apart) == 0.5


def test_novelty_is_the_distance_to_the_nearest_of_the_same_prompt():
    small = torch.tensor([[0.0, 0.0], [0.2, 0.4], [1.0, 1.0], [0.1, 0.1]])
    found = alarm.novelty(torch.tensor([0, 0, 0, 1]), small)
    torch.testing.assert_close(found, torch.tensor([0.3, 0.3, 0.7, math.inf]))


def test_drift_is_against_the_first_evaluation():
    first = {"eval_reward_hard": 0.8, "eval_judge_hard": 0.7, "eval_saturation": 0.2,
             "eval_edges": 0.1, "eval_diversity": 0.4}  # fmt: skip
    now = first | {"eval_reward_hard": 1.0, "eval_saturation": 0.4, "eval_diversity": 0.1}
    found = alarm.drift(first, now)
    assert found == pytest.approx({"gap": 0.2, "saturation": 1, "edges": 0, "diversity": -2})
    said = " ".join(alarm.alarms(found, LIMITS))
    assert "sees 0.200 more" in said and "differ 0.25 times" in said
    assert "saturation" not in said  # at the limit, not past it
    assert alarm.alarms(alarm.drift(first, first), LIMITS) == []
    assert "gap" not in alarm.drift({k: v for k, v in first.items() if "hard" not in k},
                                    {k: v for k, v in now.items() if "hard" not in k})  # fmt: skip


def test_a_run_made_to_hack_is_found_out_and_stopped(tiny_pipeline_folder, tmp_path, capsys):
    """Paid for darkness without a bound, at a high rate, it loses its edges and its variety."""
    settings = settings_of(
        method="full", learning_rate=0.02, clip_range=1.0, epochs=24, images_per_prompt=8,
        ema_decay=0.0, eval_every=2, max_grad_norm=100.0,
        alarm=AlarmConfig(gap=0.1, look=0.4, diversity=0.4, stop=True),
    )  # fmt: skip
    pipe = pipeline.load(tiny_pipeline_folder)
    task = task_of(lambda images, wanted: -brightness(images, wanted))
    log = trainer.train(pipe, task, settings, tmp_path, 0, progress=False)
    assert len(log) < 24 and log["alarms"].iloc[-1] >= 1
    assert "reward hacking alarm, epoch" in capsys.readouterr().err
    assert log["alarms"].iloc[0] == 0


def test_the_example_in_the_notebook_works(tiny_pipeline_folder, tmp_path, monkeypatch):
    cells = json.loads((ROOT / "notebooks/04_ddpo.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.setattr(trainer, "task_of", lambda config: task_of())
    monkeypatch.setattr(advantages, "RULES", dict(advantages.RULES))
    monkeypatch.setattr(trainer, "RULES", advantages.RULES)
    config = SimpleNamespace(
        ddpo=settings_of(),
        require=lambda stage: tiny_pipeline_folder.parent,
        stage_dir=lambda name: tmp_path / name,
    )
    names = {"config": config, "np": np}
    exec(example, names)
    assert len(names["log"]) == 3 and (tmp_path / "my_reward/log.csv").is_file()
    ids, rewards = np.array([0, 0, 1]), np.array([[0.1, 0.3], [0.5, 0.5], [0.0, 0.0]])
    assert names["best_of_group"](ids, rewards, None).tolist() == [0, 1, 1]
