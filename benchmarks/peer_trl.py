"""What Hugging Face TRL's DDPOTrainer gains from our start, reward and number of UNet passes.

    python benchmarks/peer_trl.py                 its trainings, ours, the panel
    python benchmarks/peer_trl.py --seeds 0       one seed

TRL lies in a folder of its own (``runs/peer_trl/packages``), where the first call installs it, over
the pinned requirements, and runs in a process of its own. Both start from stage 1 of the demo and
are paid by its reward. TRL may spend ``PASSES`` passes of an image through the UNet (a
backward one counts as two more), at the best of several learning rates, by the reward, on the first
seed. Ours gets as many, and fewer, to see how much it needs to get where TRL ends. Neither uses
classifier-free guidance. Every pipeline is measured on the same noise by judge and rules together,
sampled as it was trained: TRL's with the noise of DDPO in each step (η = 1), ours as stage 05 does;
so each has a stage 1 of its own to be compared with. Seeds are of the training, as in
``objectives.py``.

Writes ``benchmarks/results/peer_trl_cpu.csv`` (a row a training) and ``.json``: the gains, and, if
TRL gains anything at all, ``unet_passes_ratio`` and ``seconds_ratio``, theirs over ours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from objectives import MEASURED, PASSES, Measured, spent, stage1, trained

from derm_rl import config, pipeline, provenance
from derm_rl.config import Config
from derm_rl.ddpo import trainer
from derm_rl.evaluation import bootstrap, panel
from derm_rl.io import read_json, write_csv, write_json
from derm_rl.paths import ROOT, RUNS
from derm_rl.training import identity, process_state

RESULTS = Path(__file__).parent / "results"
WORK = RUNS / "peer_trl"
TRL = "trl==0.23.1"
RATES = (3e-4, 1e-3, 3e-3)
STEPS, ETA = 12, 1.0  # of TRL's samples
IMAGES = 256  # an epoch, eight of each prompt, as stage 04's
SHARES = (0.125, 0.25, 0.5, 1.0)  # of the passes, for ours


def peer() -> Path:
    """Folder that holds TRL; a path of it imports it, and nothing else does."""
    folder = WORK / "packages"
    if not (folder / "trl").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*command, "--target", str(folder), TRL], check=True)
    return folder


def basis(settings: Config) -> str:
    """What a training depends on beside its own arguments: the preset, this stage 1, the code."""
    stamp = (stage1(settings).parent / "stage.json").read_text(encoding="utf-8")
    known = {"settings": settings.model_dump(), "start": stamp, "trl": (TRL, STEPS, ETA, IMAGES)}
    known["paid"] = trainer.task_of(settings).judges
    return identity("derm_rl.ddpo.trainer", **known)[:8]


def train_trl(settings: Config, seed: int, rate: float, passes: int, folder: Path) -> None:
    """Where TRL can be imported: train, merge, save; ``log.json`` has rewards, passes, seconds."""
    from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

    task = trainer.task_of(settings)
    wanted = dict(zip(task.texts, task.wanted, strict=True))
    turn, rewards, done = itertools.cycle(task.texts), [], [0]

    def reward(images, texts, _metadata):
        with torch.no_grad():
            paid = task.reward(images.float(), torch.stack([wanted[t] for t in texts]))
        rewards.append(float(paid.mean()))
        return paid.float(), {}

    def count(_module, arguments, _kwargs):
        done[0] += len(arguments[0]) * (3 if torch.is_grad_enabled() else 1)

    process_state()  # or TRL's logger refuses to speak
    pipe = DefaultDDPOStableDiffusionPipeline(str(stage1(settings)), use_lora=True)
    # diffusers' old _encode_prompt, which TRL calls, puts the negative prompts first in any case;
    # without guidance there would be twice as many as latents.
    pipe.sd_pipeline._encode_prompt = lambda *_, prompt_embeds, **__: prompt_embeds
    pipe.unet.register_forward_pre_hook(count, with_kwargs=True)
    options = DDPOConfig(
        seed=seed, log_with=None, mixed_precision="no", save_freq=10**6,
        sample_num_steps=STEPS, sample_eta=ETA, sample_guidance_scale=1.0, train_cfg=False,
        sample_batch_size=128, sample_num_batches_per_epoch=IMAGES // 128, train_batch_size=64,
        train_gradient_accumulation_steps=1, train_learning_rate=rate,
        per_prompt_stat_tracking=True, project_kwargs={"project_dir": str(folder)},
    )  # fmt: skip
    loop = DDPOTrainer(options, reward, lambda: (next(turn), {}), pipe)
    began, step, epoch = time.perf_counter(), 0, 0
    while done[0] < passes:
        step, epoch = loop.step(epoch, step), epoch + 1
        print(f"rate {rate:g} epoch {epoch}: {done[0]:,} passes, {rewards[-1]:.3f}", flush=True)
    seconds = time.perf_counter() - began
    pipe.unet.fuse_lora()
    pipe.unet.unload_lora()
    pipeline.save(pipe.sd_pipeline, folder / "pipeline")
    facts = {"rewards": rewards, "unet_passes": done[0], "seconds": seconds, "epochs": epoch}
    write_json(folder / "log.json", facts)


def by_trl(settings: Config, seed: int, rate: float, passes: int) -> dict:
    """Facts of a training by TRL, which is done unless it was."""
    folder = WORK / f"demo_{seed}_{rate:g}_{passes}_{basis(settings)}"
    if not (folder / "log.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        argument = json.dumps([seed, rate, passes, str(folder)])
        subprocess.run(
            [sys.executable, __file__, "--train", argument],
            check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(peer())},
        )  # fmt: skip
    return read_json(folder / "log.json") | {"pipeline": folder / "pipeline"}


def ours(settings: Config, seed: int, passes: int) -> dict:
    """Facts of our training with the preset's settings, for about so many passes."""
    folder = trained(settings, {}, seed, passes)
    return {"pipeline": folder / "pipeline"} | spent(folder)


def hits(measure: Measured, source: Path, eta: float) -> np.ndarray:
    """Of each image (P·n,) whether judge and rules see exactly what was asked for."""
    return panel.hits(measure.samples(source, eta)[1])["panel"].to_numpy(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--train", help=argparse.SUPPRESS)  # how this calls itself
    arguments = parser.parse_args()
    if arguments.train:
        *numbers, folder = json.loads(arguments.train)
        train_trl(config.load("demo"), *numbers, Path(folder))
        return
    rows, best, settings = [], None, config.load("demo")
    etas = {"trl": ETA, "ours": settings.alignment.eta}
    for seed in arguments.seeds:
        measure = Measured(settings, seed)
        before = {who: hits(measure, stage1(settings), eta) for who, eta in etas.items()}
        every = {rate: by_trl(settings, seed, rate, arguments.passes)
                 for rate in (RATES if best is None else (best,))}  # fmt: skip
        if best is None:  # the mean of what its last epoch was paid
            best = max(every, key=lambda rate: np.mean(every[rate]["rewards"][-2:]))
        runs = [("trl", rate, facts) for rate, facts in every.items()]
        runs += [("ours", s, ours(settings, seed, round(s * arguments.passes))) for s in SHARES]
        for who, what, facts in runs:
            after = hits(measure, facts["pipeline"], etas[who])
            gain = bootstrap.interval(after - before[who], strata=np.arange(len(after)) // MEASURED)
            rows.append(
                {"who": who, "rate" if who == "trl" else "share": what, "seed": seed}
                | {k: facts[k] for k in ("unet_passes", "seconds")}
                | {"panel_apr": after.mean()} | bootstrap.columns("gain", gain)
            )  # fmt: skip
            write_csv(RESULTS / "peer_trl_cpu.csv", pd.DataFrame(rows))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    facts = {"seeds": arguments.seeds, "rate": best, "trl": TRL}
    facts["passes"] = arguments.passes
    facts |= {"date": date.today().isoformat(), "commit": provenance.commit()}
    write_json(RESULTS / "peer_trl_cpu.json", facts | ratios(table, best))


def ratios(table: pd.DataFrame, rate: float) -> dict:
    """Mean gains over seeds; and what TRL spent over what we spent to have as much as it.

    None where it gains nothing, which no amount of work would be too little to reach.
    """
    trl = table[(table["who"] == "trl") & (table["rate"] == rate)].set_index("seed")
    own = table[table["who"] == "ours"]
    found = {
        "trl_gain": float(trl["gain"].mean()),
        "our_gain": float(own.loc[own["share"] == 1, "gain"].mean()),
        "unet_passes_ratio": None,
        "seconds_ratio": None,
    }
    if (trl["gain_low"] > 0).all():
        ratios = []
        for seed, theirs in trl.iterrows():
            enough = own[(own["seed"] == seed) & (own["gain"] >= theirs["gain"])]
            if enough.empty:
                return found | {"why": f"ours does not get where TRL ends with seed {seed}"}
            least = enough.nsmallest(1, "unet_passes").iloc[0]
            ratios.append([theirs[k] / least[k] for k in ("unet_passes", "seconds")])
        mean = np.mean(ratios, 0)
        found |= {"unet_passes_ratio": float(mean[0]), "seconds_ratio": float(mean[1])}
    return found


if __name__ == "__main__":
    sys.exit(main())
