"""What Hugging Face TRL's DDPOTrainer gains from the same start, reward and work as stage 04.

    python benchmarks/peer_trl.py                 its trainings, ours, the panel
    python benchmarks/peer_trl.py --seeds 0       one seed

TRL lies in a folder of its own (``runs/peer_trl/packages``), where the first call installs it, over
the pinned requirements, and runs in a process of its own. Both start from stage 1 of the preset and
are paid by the preset's reward. TRL may spend as many passes of an image through the UNet as stage
04 did (a backward one counts as two more), at the best of several learning rates, by the reward, on
the first seed. Then ours is trained for shares of the preset's epochs, to see how much it needs to
get where TRL ends. Neither uses classifier-free guidance. Every pipeline is measured on the same
noise by judge and rules together, sampled as it was trained: TRL's with the noise of DDPO in each
step (η = 1), ours as stage 05 does; so each has a stage 1 of its own to be compared with.

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

from derm_rl import classifier, config, data, pipeline, prompts, provenance
from derm_rl.config import Config
from derm_rl.ddpo import trainer
from derm_rl.evaluation import bootstrap, panel
from derm_rl.evaluation.alignment_stage import _graded
from derm_rl.evaluation.generation import generate
from derm_rl.io import read_csv, read_json, write_csv, write_json
from derm_rl.paths import ROOT, RUNS
from derm_rl.training import discard_checkpoint, identity, process_state

RESULTS = Path(__file__).parent / "results"
WORK = RUNS / "peer_trl"
TRL = "trl==0.23.1"
RATES = (3e-4, 1e-3, 3e-3)
STEPS, ETA = 12, 1.0  # of TRL's samples
IMAGES = 256  # an epoch, eight of each prompt, as stage 04's
MEASURED = 16  # images of each prompt
FEWER = (0.1, 0.2, 0.4, 0.7)  # of our epochs


def peer() -> Path:
    """Folder that holds TRL; a path of it imports it, and nothing else does."""
    folder = WORK / "packages"
    if not (folder / "trl").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*command, "--target", str(folder), TRL], check=True)
    return folder


def stage1(settings: Config) -> Path:
    return settings.require("03_finetune_stable_diffusion") / "pipeline"


def basis(settings: Config) -> str:
    """What a training depends on beside its own arguments: the preset, this stage 1, the code."""
    stamp = (stage1(settings).parent / "stage.json").read_text(encoding="utf-8")
    known = {"settings": settings.model_dump(), "start": stamp, "trl": (STEPS, ETA, IMAGES)}
    return identity("derm_rl.ddpo.trainer", **known)[:8]


def train_trl(settings: Config, rate: float, passes: int, folder: Path) -> None:
    """Where TRL can be imported: train, merge, save; ``log.json`` has rewards, passes, seconds."""
    from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

    task = trainer.task_of(settings)
    wanted = dict(zip(task.texts, task.wanted, strict=True))
    turn, rewards, spent = itertools.cycle(task.texts), [], [0]

    def reward(images, texts, _metadata):
        with torch.no_grad():
            paid = task.reward(images.float(), torch.stack([wanted[t] for t in texts]))
        rewards.append(float(paid.mean()))
        return paid.float(), {}

    def count(_module, arguments, _kwargs):
        spent[0] += len(arguments[0]) * (3 if torch.is_grad_enabled() else 1)

    process_state()  # or TRL's logger refuses to speak
    pipe = DefaultDDPOStableDiffusionPipeline(str(stage1(settings)), use_lora=True)
    pipe.unet.register_forward_pre_hook(count, with_kwargs=True)
    options = DDPOConfig(
        seed=settings.seed, log_with=None, mixed_precision="no", save_freq=10**6,
        sample_num_steps=STEPS, sample_eta=ETA, sample_guidance_scale=1.0, train_cfg=False,
        sample_batch_size=128, sample_num_batches_per_epoch=IMAGES // 128, train_batch_size=64,
        train_gradient_accumulation_steps=1, train_learning_rate=rate,
        per_prompt_stat_tracking=True, project_kwargs={"project_dir": str(folder)},
    )  # fmt: skip
    loop = DDPOTrainer(options, reward, lambda: (next(turn), {}), pipe)
    began, step, epoch = time.perf_counter(), 0, 0
    while spent[0] < passes:
        step, epoch = loop.step(epoch, step), epoch + 1
        print(f"rate {rate:g} epoch {epoch}: {spent[0]:,} passes, {rewards[-1]:.3f}", flush=True)
    seconds = time.perf_counter() - began
    pipe.unet.fuse_lora()
    pipe.unet.unload_lora()
    pipeline.save(pipe.sd_pipeline, folder / "pipeline")
    facts = {"rewards": rewards, "unet_passes": spent[0], "seconds": seconds, "epochs": epoch}
    write_json(folder / "log.json", facts)


def by_trl(preset: str, seed: int, rate: float, passes: int) -> dict:
    """Facts of a training by TRL, which is done unless it was."""
    folder = WORK / f"{preset}_{seed}_{rate:g}_{passes}_{basis(loaded(preset, seed))}"
    if not (folder / "log.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        argument = json.dumps([preset, seed, rate, passes, str(folder)])
        subprocess.run(
            [sys.executable, __file__, "--train", argument],
            check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(peer())},
        )  # fmt: skip
    return read_json(folder / "log.json") | {"pipeline": folder / "pipeline"}


def ours(settings: Config, share: float) -> dict:
    """Facts of our training for a share of the preset's epochs; all of them is stage 04 itself."""
    folder = settings.require("04_ddpo")
    if share < 1:
        epochs = max(1, round(share * settings.ddpo.epochs))
        folder = WORK / f"ours_{settings.name}_{settings.seed}_{epochs}_{basis(settings)}"
        if not (folder / "done").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            pipe = pipeline.load(stage1(settings))
            fewer = settings.ddpo.model_copy(update={"epochs": epochs})
            trainer.train(pipe, trainer.task_of(settings), fewer, folder, settings.seed)
            pipeline.save(pipe, folder / "pipeline")
            discard_checkpoint(folder / "checkpoint.pt")
            (folder / "done").touch()
    log, timing = (read_csv(folder / f"{name}.csv") for name in ("log", "timing"))
    seconds = float(timing[["seconds_sample", "seconds_update"]].to_numpy().sum())
    passes = int(log["unet_passes"].sum())
    return {"pipeline": folder / "pipeline", "unet_passes": passes, "seconds": seconds}


def measured(settings: Config, folder: Path, eta: float) -> np.ndarray:
    """Of each image (P·n,) whether judge and rules see exactly what was asked for."""
    classifiers = settings.require("02_reward_classifier")
    judge, reward = (classifier.load(classifiers / name) for name in ("judge", "reward"))
    words = data.vocabulary(settings)
    findings = prompts.all_prompts(words.diagnoses, words.artifacts)
    common = settings.alignment
    images = generate(
        pipeline.load(folder), findings, MEASURED, common.seed + 2, common.inference_steps, 1.0,
        eta, common.batch_size, mixed_precision=common.mixed_precision, progress=True,
    )  # fmt: skip
    samples = _graded("rl", images, findings, MEASURED, judge, reward)
    return panel.hits(samples)["panel"].to_numpy(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", help=argparse.SUPPRESS)  # how this calls itself
    arguments = parser.parse_args()
    if arguments.train:
        preset, seed, rate, passes, folder = json.loads(arguments.train)
        train_trl(loaded(preset, seed), rate, passes, Path(folder))
        return
    rows, best = [], None
    for seed in arguments.seeds:
        settings = loaded(arguments.preset, seed)
        etas = {"trl": ETA, "ours": settings.alignment.eta}
        before = {who: measured(settings, stage1(settings), eta) for who, eta in etas.items()}
        whole = ours(settings, 1)
        every = {rate: by_trl(arguments.preset, seed, rate, whole["unet_passes"])
                 for rate in (RATES if best is None else (best,))}  # fmt: skip
        if best is None:  # the mean of what its last epoch was paid
            best = max(every, key=lambda rate: np.mean(every[rate]["rewards"][-2:]))
        trained = [("trl", rate, facts) for rate, facts in every.items()]
        trained += [("ours", share, ours(settings, share)) for share in (*FEWER, 1)]
        for who, what, facts in trained:
            after = measured(settings, facts["pipeline"], etas[who])
            gain = bootstrap.interval(after - before[who], strata=np.arange(len(after)) // MEASURED)
            rows.append(
                {"who": who, "rate" if who == "trl" else "share": what, "seed": seed}
                | {k: facts[k] for k in ("unet_passes", "seconds")}
                | {"panel_apr": after.mean()} | bootstrap.columns("gain", gain)
            )  # fmt: skip
            write_csv(RESULTS / "peer_trl_cpu.csv", pd.DataFrame(rows))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    facts = {"preset": arguments.preset, "seeds": arguments.seeds, "rate": best, "trl": TRL}
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


def loaded(preset: str, seed: int) -> Config:
    other = [] if config.load(preset).seed == seed else [f"seed={seed}"]
    return config.load(preset, other)


if __name__ == "__main__":
    sys.exit(main())
