"""Trains the tiny pipeline by DDPO, in a process of its own: to be killed, or by `torchrun`.

    python tests/train_tiny.py PIPELINE OUT '{"epochs": 3}'

Leaves ``OUT/weights.safetensors``, the logs, and ``OUT/processes.json``: how many found each other.
Not a test; tests run it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from derm_rl import config, pipeline, prompts
from derm_rl.ddpo import advantages, trainer
from derm_rl.finetune import Examples
from derm_rl.io import write_json
from derm_rl.training import process_state

SETTINGS = {
    "epochs": 4, "images_per_prompt": 4, "prompts_per_epoch": None, "inference_steps": 4,
    "batch_size": 16, "updates_per_epoch": 2, "timestep_fraction": 1.0, "drop_last_steps": 0,
    "checkpoint_every": 1, "eval_every": 2, "eval_images_per_prompt": 3, "min_count": 2,
    "guidance_scales": [2.0], "noised_timesteps": 2,
}  # fmt: skip


def settings_of(**changes):
    return config.load("smoke").ddpo.model_copy(update=SETTINGS | changes)


def brightness(images, wanted):
    return images.mean((1, 2, 3))


def even_images(ids, rewards, statistics):
    """An advantage rule that leaves the second of two processes without anything to do."""
    number = np.arange(len(ids))
    return np.where(number % 2, 0.0, advantages.group(ids, rewards, statistics))


def anchor_of():
    """Six images of four captions, two views of each: noise, but always the same."""
    random = torch.Generator().manual_seed(5)
    texts = [prompts.render(f) for f in prompts.all_prompts()[:4]]
    latents = torch.randn(2, 6, 8, 4, 4, generator=random).half()
    return Examples(latents, torch.arange(6) % 4, texts, "noise")


def task_of(reward=brightness):
    findings = prompts.all_prompts()[:4]
    names = ["hair", "gel_bubble", "ruler", "ink", "MEL"]
    return trainer.Task(
        texts=[prompts.render(f) for f in findings],
        wanted=torch.tensor([prompts.labels(f, names) for f in findings]),
        reward=reward,
        watched={"judge_brightness": brightness},
        anchor=anchor_of(),
    )


def main(folder, out, changes="{}"):
    torch.set_num_threads(1)
    advantages.RULES["even_images"] = even_images
    pipe, task = pipeline.load(folder), task_of()
    settings = settings_of(**json.loads(changes))
    trainer.train(pipe, task, settings, Path(out), 0, progress=False)
    if process_state().is_main_process:
        weights = {name: p.detach().contiguous() for name, p in pipe.unet.named_parameters()}
        save_file(weights, Path(out) / "weights.safetensors")
        write_json(Path(out) / "processes.json", process_state().num_processes)


if __name__ == "__main__":
    main(*sys.argv[1:])
