"""A reward hacked on purpose: does the alarm of ``derm_rl.ddpo.alarm`` sound, and when?

    python benchmarks/hacking.py

Trains the demo's stage 1 against its reward classifier with everything that holds a policy back
taken away: the direct gradient of the reward through the last steps, all weights, a high constant
learning rate, no clipping, no averaging of weights.
Writes ``benchmarks/results/hacking_demo.png``, the log behind it, ``hacking_demo.csv``, and
``hacking_demo.json``: the first epoch at which the alarm sounds, and what it says. Needs stages 01
to 03 of the demo preset, and runs them if they are missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from derm_rl import config as presets
from derm_rl import pipeline, prompts, provenance, reproduce
from derm_rl.ddpo import alarm, trainer
from derm_rl.evaluation.generation import generate
from derm_rl.figures.canvas import AFTER, COLOURS, PHANTOM, Picture, plain, show
from derm_rl.figures.training import drift_panels
from derm_rl.io import atomic_path, write_csv, write_json
from derm_rl.paths import RUNS

RESULTS = Path(__file__).parent / "results"
HACK = [
    "ddpo.objective=ddpo", "ddpo.anchor=0.0",
    "ddpo.method=full", "ddpo.direct_steps=2", "ddpo.learning_rate=0.0003",
    "ddpo.learning_rate_floor=1.0", "ddpo.max_grad_norm=1000.0", "ddpo.ema_decay=0.0",
    "ddpo.eval_every=2", "ddpo.eval_images_per_prompt=4", "ddpo.guidance_scales=[1.0]",
]  # fmt: skip
SHOWN = [0, 1, 5, 9, 13, 20]  # prompts in the picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs
    demo = presets.load("demo")  # whose stages 01 to 03 serve as they are
    reproduce.run(demo, until="03")
    config = presets.load("demo", [*HACK, f"ddpo.epochs={epochs}"])
    pipe = pipeline.load(demo.require("03_finetune_stable_diffusion") / "pipeline")
    task = trainer.task_of(demo)
    findings = [prompts.parse(task.texts[i]) for i in SHOWN]

    def images() -> np.ndarray:
        return generate(pipe, findings, 1, 7, config.ddpo.inference_steps, 1.0, 1.0)

    before = images()
    folder = RUNS / "benchmark_hacking"
    folder.mkdir(parents=True, exist_ok=True)
    log = trainer.train(pipe, task, config.ddpo, folder, config.seed)
    after = images()

    evaluated = log.dropna(subset="eval_reward_hard")
    heard = evaluated[evaluated["alarms"] > 0]
    said: list[str] = []
    if len(heard):
        said = alarm.alarms(alarm.drift_of(heard.iloc[0]), config.ddpo.alarm)
    facts = {
        "epochs": epochs,
        "first_alarm_epoch": int(heard["epoch"].iloc[0]) if len(heard) else None,
        "said": said,
        "settings": HACK,
        "seed": config.seed,
        "commit": provenance.commit(),
    }
    write_csv(RESULTS / "hacking_demo.csv", log)
    write_json(RESULTS / "hacking_demo.json", facts)
    draw(evaluated, before, after, config.ddpo.alarm)
    print(facts)


def draw(log, before: np.ndarray, after: np.ndarray, limits) -> None:
    """Curves above, the same prompts and noise before and after below."""
    fig = Picture(figsize=(11, 6), layout="constrained")
    grid = fig.add_gridspec(3, 2 * len(SHOWN), height_ratios=(3, 1.4, 1.4))
    third = 2 * len(SHOWN) // 3
    labels, gap, look = (fig.add_subplot(grid[0, i * third : (i + 1) * third]) for i in range(3))
    labels.plot(log["epoch"], log["eval_reward_hard"], color=COLOURS[0], label="reward classifier")
    labels.plot(log["epoch"], log["eval_judge_hard"], color=AFTER, label="judge")
    labels.set(title="labels right")
    drift_panels(gap, look, log, limits)
    for ax in (labels, gap, look):
        plain(ax)
        ax.set(xlabel="epoch")
        ax.legend(fontsize=7)
    for row, images in enumerate((before, after), start=1):
        for i, image in enumerate(images):
            show(fig.add_subplot(grid[row, 2 * i : 2 * i + 2]), image)
    fig.suptitle(f"A reward hacked on purpose; above stage 1, below after ({PHANTOM})", fontsize=9)
    with atomic_path(RESULTS / "hacking_demo.png") as temporary:
        fig.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
