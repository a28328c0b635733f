"""What the DDPO engine promises: exact, unbreakable, the same on any number of processes."""

import functools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from train_tiny import brightness, settings_of, task_of

from derm_rl import pipeline
from derm_rl.ddpo import trainer, update
from derm_rl.ddpo.sampling import Policy
from derm_rl.ddpo.update import OffPolicyError, mine, parts
from derm_rl.io import read_csv, read_json
from derm_rl.training import accelerator_of, in_processes, previous

WORKER = Path(__file__).with_name("train_tiny.py")
RESULTS = ("weights.safetensors", "log.csv", "steps.csv")


def train(folder, out, reward=brightness, callback=None, **changes):
    pipe = pipeline.load(folder)
    log = trainer.train(
        pipe, task_of(reward), settings_of(**changes), out, 0, progress=False, callback=callback
    )
    return pipe, log


def weights(pipe):
    return torch.cat([p.detach().flatten() for p in pipe.unet.parameters()])


def distance(one, other):
    return (weights(one) - weights(other)).abs().max().item()


TWO = tuple(in_processes(2))


def process(folder, out, launch=(), **changes):
    command = [sys.executable, *launch, str(WORKER), str(folder), str(out), json.dumps(changes)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def kill_after_a_checkpoint(running, checkpoint, delay):
    """SIGKILL a training, with all its processes, ``delay`` seconds after its next checkpoint."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and running.poll() is None:
        if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
            break
        time.sleep(0.01)
    time.sleep(delay)
    assert running.poll() is None, f"it ended by itself: {running.communicate()[1][-2000:]}"
    started = psutil.Process(running.pid)
    for each in [started, *started.children(recursive=True)]:  # torchrun's are of another session
        each.kill()
    running.communicate()


def finish(running, seconds=240):
    error = running.communicate(timeout=seconds)[1].decode()
    assert running.returncode == 0, error[-3000:]
    return error


def test_a_run_killed_ten_times_ends_as_one_never_killed(tiny_pipeline_folder, tmp_path):
    changes = {"epochs": 60, "method": "lora"}
    finish(process(tiny_pipeline_folder, tmp_path / "whole", **changes))
    moments = random.Random(0)
    (tmp_path / "torn").mkdir()
    for _ in range(10):  # while it samples, updates, evaluates, or writes the next checkpoint
        running = process(tiny_pipeline_folder, tmp_path / "torn", **changes)
        kill_after_a_checkpoint(running, tmp_path / "torn/checkpoint.pt", moments.uniform(0, 0.2))
    finish(process(tiny_pipeline_folder, tmp_path / "torn", **changes))
    for name in RESULTS:
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_processes_killed_end_as_two_never_killed(tiny_pipeline_folder, tmp_path):
    changes = {"epochs": 16, "images_per_prompt": 3}
    finish(process(tiny_pipeline_folder, tmp_path / "whole", TWO, **changes))
    (tmp_path / "torn").mkdir()
    running = process(tiny_pipeline_folder, tmp_path / "torn", TWO, **changes)
    kill_after_a_checkpoint(running, tmp_path / "torn/checkpoint.pt", 0.3)
    finish(process(tiny_pipeline_folder, tmp_path / "torn", TWO, **changes))
    assert read_json(tmp_path / "torn/processes.json") == 2
    for name in RESULTS:
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_torn_checkpoint_is_refused_and_the_one_before_it_used(
    tiny_pipeline_folder, tmp_path, capsys
):
    whole, log = train(tiny_pipeline_folder, tmp_path / "a")

    def stop(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_pipeline_folder, tmp_path / "b", callback=stop)
    checkpoint = tmp_path / "b/checkpoint.pt"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    seen = []
    again, same = train(tiny_pipeline_folder, tmp_path / "b", callback=seen.append)
    assert f"{checkpoint}: unreadable checkpoint" in capsys.readouterr().err
    assert [row["epoch"] for row in seen] == [2, 3]  # three epochs were saved, the third is torn
    assert distance(whole, again) == 0 and log.equals(same)
    assert not previous(tmp_path / "c/checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("rule", "method"),
    [("running", "full"), ("even_images", "lora"), ("by step", "lora"), ("matching", "full")],
)
def test_two_processes_train_as_one_does(tiny_pipeline_folder, tmp_path, method, rule):
    """Also where there is an odd number of images, or nothing to do for the second process."""
    changes = {"method": method, "images_per_prompt": 3, "epochs": 3, "prompts_per_epoch": 3}
    changes |= {
        "running": {"advantages": "running"},
        "even_images": {"advantages": "even_images", "images_per_prompt": 4},
        "by step": {"gae_lambda": 0.5},
        "matching": {"objective": "nft", "background_reward": True, "anchor": 0.5, "variety": 0.3},
    }[rule]
    alone = process(tiny_pipeline_folder, tmp_path / "1", **changes)
    both = process(tiny_pipeline_folder, tmp_path / "2", TWO, **changes)
    finish(alone), finish(both)
    assert [read_json(tmp_path / n / "processes.json") for n in "12"] == [1, 2]
    one, other = (load_file(tmp_path / n / "weights.safetensors") for n in "12")
    base = dict(pipeline.load(tiny_pipeline_folder).unet.named_parameters())

    def flat(named):
        return torch.cat([named[n].detach().flatten() for n in one])

    # Over all weights: where a gradient is zero but for rounding, Adam makes a whole step of it.
    moved, apart = ((flat(one) - flat(end)).norm().item() for end in (base, other))
    assert moved > 1e-2 and apart < moved / 200, (moved, apart)
    logs = [read_csv(tmp_path / n / "log.csv") for n in "12"]
    for name in ("skipped_images", "unet_passes"):
        assert logs[0][name].equals(logs[1][name])
    for name in ("reward", "eval_reward", "judge_brightness"):
        np.testing.assert_allclose(logs[0][name], logs[1][name], atol=1e-4)


def test_an_image_depends_on_its_number_alone(tiny_pipeline_folder):
    settings = settings_of()
    policies = [
        Policy(pipeline.load(tiny_pipeline_folder), accelerator_of("no"), task_of(), s)
        for s in (settings, settings.model_copy(update={"batch_size": 3}))
    ]
    prompt, number = torch.tensor([0, 1, 2, 3, 0]), torch.arange(5)
    whole = policies[0].sample(prompt, number, "seed", 1)
    parts = policies[1].sample(prompt[1::2], number[1::2], "seed", 1)
    torch.testing.assert_close(whole.latents[1::2], parts.latents, rtol=0, atol=1e-5)
    other = policies[0].sample(prompt, number, "seed", 2)
    assert (other.latents - whole.latents).abs().max() > 1


def test_images_of_a_prompt_are_noised_alike_and_others_not(tiny_pipeline_folder):
    settings = settings_of(objective="awm", noised_timesteps=3)
    policy = Policy(pipeline.load(tiny_pipeline_folder), accelerator_of("no"), task_of(), settings)
    policy.for_epoch(0, 0)
    noised = policy.sample(torch.tensor([0, 0, 1]), torch.arange(3), "seed", 1).noised
    assert torch.equal(noised.timestep[0], noised.timestep[1])
    assert not torch.equal(noised.timestep[0], noised.timestep[2])
    images = policy.sample(torch.tensor([0, 0, 1]), torch.arange(3), "seed", 1).latents[:, -1]
    scheduler, t = policy.pipe.scheduler, noised.timestep
    signal = scheduler.alphas_cumprod[t].sqrt().float()[..., None, None, None]
    noise = noised.latents - signal * images[:, None]  # times a factor of t alone
    torch.testing.assert_close(noise[0], noise[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "trained_once"),
    [({}, 3 * 2 * 3), ({"objective": "nft"}, 2 * 3), ({"kl_weight": 0.1}, 3 * 2 * (3 + 1))],
)
def test_passes_through_the_unet_are_counted(tiny_pipeline_folder, tmp_path, changes, trained_once):
    """Of 4 steps, each with and without prompt, the last has no noise; a backward pass is two."""
    settings = {"guidance_scales": [2.0], "method": "lora", "epochs": 2} | changes
    log = train(tiny_pipeline_folder, tmp_path, **settings)[1].dropna(subset="unet_passes")
    matched = changes.get("objective") == "nft"  # which trains on images without advantage too
    trained = 16 - (log["skipped_images"] * (not matched))
    drawn = 4 * 2 + (2 if matched else 0)
    assert log["unet_passes"].tolist() == (16 * drawn + trained * trained_once).tolist()


def test_what_is_not_finite_is_skipped_counted_and_in_the_end_stops_the_run(
    tiny_pipeline_folder, tmp_path
):
    epoch = [0]

    def sometimes(images, wanted):
        bad = epoch[0] in (1, 2)
        return torch.full((len(images),), float("nan")) if bad else brightness(images, wanted)

    def count(row):
        epoch[0] = row["epoch"] + 1

    settings = {"eval_every": 100, "updates_per_epoch": 2}
    _, log = train(
        tiny_pipeline_folder, tmp_path / "a", sometimes, count, max_failures=5, **settings
    )
    assert log["failed_updates"].dropna().tolist() == [0, 2, 2, 0]
    epoch[0] = 0
    with pytest.raises(FloatingPointError, match=r"4 updates in a row .*max_failures=4"):
        train(tiny_pipeline_folder, tmp_path / "b", sometimes, count, max_failures=4, **settings)


def test_a_gradient_that_is_not_finite_changes_nothing(tiny_pipeline_folder, tmp_path, monkeypatch):
    from derm_rl.ddpo import update

    real, calls = update.loss_of, [0]

    def poisoned(*arguments):
        loss, *rest = real(*arguments)
        calls[0] += 1
        return (loss * float("inf") if calls[0] == 1 else loss), *rest

    monkeypatch.setattr(update, "loss_of", poisoned)
    pipe, log = train(tiny_pipeline_folder, tmp_path)
    assert log["failed_updates"].dropna().tolist() == [1, 0, 0, 0]
    assert torch.isfinite(weights(pipe)).all() and np.isfinite(log["grad_norm"].dropna()).all()


def test_a_policy_that_does_not_repeat_itself_is_found_out(
    tiny_pipeline_folder, tmp_path, monkeypatch
):
    honest = Policy.denoise
    calls = [0]

    def forgetful(self, latents, timestep, embeds):
        calls[0] += 1
        return honest(self, latents, timestep, embeds) * (1 + 1e-3 * calls[0])

    monkeypatch.setattr(Policy, "denoise", forgetful)
    with pytest.raises(OffPolicyError, match="epoch 0: the importance ratio is .* away from 1"):
        train(tiny_pipeline_folder, tmp_path)


@pytest.mark.parametrize("changes", [
    {"latents_dtype": "bfloat16"}, {"mixed_precision": "bf16"}, {"gradient_checkpointing": True},
    {"stochastic_steps": 2}, {"eval_inference_steps": 7},
    {"advantages": "group"}, {"advantages": "per_label"}, {"gae_lambda": 0.5},
    {"lora_layers": "all", "method": "lora"},
    {"kl_weight": 0.1, "method": "lora"},
    {"objective": "awm"}, {"objective": "nft", "background_reward": True},
    {"objective": "awm", "kl_weight": 0.1, "method": "lora", "mixed_precision": "bf16"},
], ids=str)  # fmt: skip
def test_every_option_trains_and_starts_on_policy(tiny_pipeline_folder, tmp_path, changes):
    pipe, log = train(tiny_pipeline_folder, tmp_path, **changes)
    assert log["on_policy_deviation"].max() < (1e-3 if "mixed_precision" in changes else 1e-6)
    assert (
        log["clip_fraction"].dropna().between(0, 1).all() and (log["approx_kl"].dropna() >= 0).all()
    )
    assert distance(pipe, pipeline.load(tiny_pipeline_folder)) > 1e-5
    steps = read_csv(tmp_path / "steps.csv")
    per_epoch = steps.groupby("epoch").size()
    matched = changes.get("objective", "ddpo") != "ddpo"
    columns = 2 if matched else changes.get("stochastic_steps", 3)  # the last of 4 has no noise
    assert (per_epoch == columns).all()
    if matched:
        assert steps["timestep"].head(2).tolist() == [750, 250]
    assert set(steps) == {
        "epoch",
        "step",
        "timestep",
        "loss",
        "ratio",
        "clip_fraction",
        "approx_kl",
        "output_grad_norm",
        "advantage",
    }
    assert (steps[["output_grad_norm", "advantage"]] > 0).all(axis=None)


def test_gradient_checkpointing_changes_no_gradient(tiny_pipeline_folder, tmp_path):
    plain, _ = train(tiny_pipeline_folder, tmp_path / "a", epochs=2)
    frugal, _ = train(tiny_pipeline_folder, tmp_path / "b", epochs=2, gradient_checkpointing=True)
    assert distance(plain, frugal) < 1e-6


@pytest.mark.parametrize("changes", [
    {"decode_batch_size": 3}, {"background_reward": True}, {"channels_last": True},
    {"compile": True},
], ids=lambda c: next(iter(c)))  # fmt: skip
def test_what_is_only_faster_or_smaller_learns_the_same(
    tiny_pipeline_folder, tmp_path, changes, monkeypatch
):
    # Captured as a graph, run without generated code: that takes minutes to make.
    quick = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", quick)
    start = weights(pipeline.load(tiny_pipeline_folder))
    plain, log = train(tiny_pipeline_folder, tmp_path / "a", epochs=2)
    other, other_log = train(tiny_pipeline_folder, tmp_path / "b", epochs=2, **changes)
    assert distance(plain, pipeline.load(tiny_pipeline_folder)) > 1e-4
    # Other kernels round otherwise, and Adam makes much of it where a gradient is almost zero:
    # the whole is compared, in parts of the way learned, not the weight that differs most.
    assert (weights(plain) - weights(other)).norm() < 1e-3 * (weights(plain) - start).norm()
    assert other_log["on_policy_deviation"].max() <= 1e-6
    assert np.allclose(log["reward"].dropna(), other_log["reward"].dropna(), atol=1e-5)


def test_a_heavy_kl_holds_the_policy_where_it_was(tiny_pipeline_folder, tmp_path):
    moved = {}
    for weight in (0.0, 1e4):
        pipe, _ = train(
            tiny_pipeline_folder, tmp_path / str(weight), method="lora", kl_weight=weight, epochs=8,
            clip_range=0.1,
        )  # fmt: skip
        policy = Policy(pipe, accelerator_of("no"), task_of(), settings_of())
        sample = policy.sample(torch.arange(4), torch.arange(4), "check")
        before = Policy(
            pipeline.load(tiny_pipeline_folder), accelerator_of("no"), task_of(), settings_of()
        ).sample(torch.arange(4), torch.arange(4), "check")
        moved[weight] = (sample.latents - before.latents).abs().mean().item()
    assert moved[1e4] < moved[0.0] / 2


@pytest.mark.parametrize("objective", ["awm", "nft"])
def test_a_forward_objective_raises_the_reward(tiny_pipeline_folder, tmp_path, objective):
    _, log = train(
        tiny_pipeline_folder, tmp_path, objective=objective, method="full", epochs=24,
        images_per_prompt=8, learning_rate=3e-3, learning_rate_floor=1.0, ema_decay=0.0,
        advantages="group", clip_range=1.0, advantage_clip=2.0, eval_every=24,
        eval_images_per_prompt=16, guidance_scales=[1.0],
    )  # fmt: skip
    evaluated = log["eval_reward"].dropna()
    assert evaluated.iloc[-1] > evaluated.iloc[0] + 0.05, evaluated.tolist()


@pytest.mark.parametrize("objective", ["awm", "ddpo"])
def test_an_anchor_keeps_training_images_likely(tiny_pipeline_folder, tmp_path, objective):
    task, loss = task_of(), {}
    latents, captions = task.anchor.latents.flatten(0, 1).float(), task.anchor.caption.repeat(2)
    random = torch.Generator().manual_seed(3)
    t = torch.randint(1000, (len(latents),), generator=random)
    noise = torch.randn(latents.shape, generator=random)
    for share in (0.0, 8.0):
        pipe, _ = train(
            tiny_pipeline_folder, tmp_path / str(share), objective=objective, anchor=share,
            method="full", epochs=6, learning_rate=3e-3, ema_decay=0.0, advantages="group",
        )  # fmt: skip
        embeds = pipeline.encode_prompts(pipe, task.anchor.captions)[captions]
        x, target = pipe.scheduler.add_noise(latents, noise, t), noise
        if pipe.scheduler.config.prediction_type == "v_prediction":
            target = pipe.scheduler.get_velocity(latents, noise, t)
        with torch.no_grad():
            output = pipe.unet(x, t, embeds).sample
        loss[share] = (output - target).square().mean().item()
    assert loss[8.0] < 0.9 * loss[0.0], loss


def test_a_process_without_an_image_to_hold_on_to_makes_no_pass(tiny_pipeline_folder):
    """Fewer training images than processes: attention refuses an empty batch on a GPU."""
    pipe = pipeline.load(tiny_pipeline_folder)
    policy = Policy(pipe, accelerator_of("no"), task_of(), settings_of(anchor=0.01))
    second = SimpleNamespace(num_processes=2, process_index=1)
    policy.denoise = None  # any pass would fail
    update.anchor(policy, 1, second, 0)


def test_the_direct_gradient_is_that_of_the_reward(tiny_pipeline_folder, tmp_path):
    """It brightens images in a few steps; through more of the chain than the last step, too."""
    for last in (1, 3):
        _, log = train(
            tiny_pipeline_folder, tmp_path / str(last), method="full", direct_steps=last, epochs=6,
            learning_rate=3e-3, ema_decay=0.0,
        )  # fmt: skip
        evaluated = log["eval_reward"].dropna()
        assert evaluated.iloc[-1] > evaluated.iloc[0] + 0.05
        assert (log["failed_updates"].dropna() == 0).all()
    policy = Policy(
        pipeline.load(tiny_pipeline_folder), accelerator_of("no"), task_of(),
        settings_of(direct_steps=2),
    )  # fmt: skip
    prompt = number = torch.arange(4)
    _, drawn = policy.roll_out(prompt, number, "seed", gradient_steps=2)
    assert drawn.requires_grad
    sampled = policy.sample(prompt, number, "seed")
    latents = sampled.latents[:, -1]
    torch.testing.assert_close(drawn, pipeline.decode_latents(policy.pipe, latents))


def test_the_direct_gradient_needs_a_reward_that_has_one(tiny_pipeline_folder, tmp_path):
    with pytest.raises(ValueError, match="needs a reward with a gradient"):
        train(
            tiny_pipeline_folder, tmp_path, lambda images, wanted: images.detach().mean((1, 2, 3)),
            direct_steps=1,
        )  # fmt: skip


def test_images_given_to_a_reward_stay_as_they_are(tiny_pipeline_folder):
    from derm_rl import classifier, rewards
    from derm_rl.config import load

    model = classifier.build(load("smoke").classifier.reward, ["hair", "MEL"], 16)
    images, wanted = torch.rand(4, 3, 16, 16), torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]])
    untouched = images.clone()
    for name in rewards.REWARDS:
        reward = rewards.build({name: 0.5, "hard": 1.0}, model)
        terms = rewards.per_label(reward)(images, wanted)
        torch.testing.assert_close(terms.mean(1), reward(images, wanted))
    assert torch.equal(images, untouched)


def test_kl_without_adapters_is_refused():
    from derm_rl import config

    with pytest.raises(ValueError, match="kl_weight needs method: lora"):
        config.load("smoke", ["ddpo.method=full", "ddpo.kl_weight=0.1"])
    with pytest.raises(ValueError, match="stochastic_steps must not exceed"):
        config.load("smoke", ["ddpo.stochastic_steps=50"])
    with pytest.raises(ValueError, match="gae_lambda is about denoising steps, of which .* awm"):
        config.load("smoke", ["ddpo.objective=awm", "ddpo.gae_lambda=0.5"])


def test_both_trainings_of_a_preset_run_in_two_processes(runs, monkeypatch):
    """By the notebooks, as a user runs them."""
    from derm_rl import config, finetune, reproduce

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = config.load("smoke", ["processes=2"])
    for stage in ("01", "02", "03", "04"):
        reproduce.run(settings, only=stage)
    for stage in ("03_finetune_stable_diffusion", "04_ddpo"):
        folder = settings.stage_dir(stage)
        assert (folder / "pipeline/model_index.json").is_file()
        assert (folder / "stage.json").is_file() and not (folder / "checkpoint.pt").exists()
    log = read_csv(folder / "log.csv")
    assert len(log) == settings.ddpo.epochs + 1
    assert log["on_policy_deviation"].max() < 1e-3
    both = read_csv(settings.stage_dir(finetune.STAGE) / "log.csv")
    alone = read_csv(finetune.run(config.load("smoke"), progress=False) / "log.csv")
    for column in both:  # of the same images; this run always trains anew
        np.testing.assert_allclose(both[column], alone[column], rtol=1e-4)


PARENT = """
import subprocess, sys
child = "import time; from derm_rl import training; training.end_with_parent(); time.sleep(90)"
running = subprocess.Popen([sys.executable, "-c", child])
print(running.pid, flush=True)
running.wait()
"""


def test_a_process_ends_with_the_one_that_started_it():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        deadline = time.monotonic() + 60
        while not child.num_threads() > 1 and time.monotonic() < deadline:
            time.sleep(0.1)  # it watches
        time.sleep(1)
        parent.kill()
        child.wait(30)
    assert not child.is_running()


def test_processes_that_do_not_find_each_other_are_an_error(monkeypatch):
    from derm_rl.training import process_state

    process_state()  # of one process
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="2 processes were started, 1 found each other"):
        process_state()


def test_all_useful_images_of_a_prompt_are_in_one_update():
    prompt = torch.arange(6).repeat_interleave(4)
    useful = torch.ones(24, dtype=torch.bool)
    useful[:5] = False  # all of prompt 0, one of prompt 1
    found = parts(prompt, useful, 3, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(found).tolist()) == list(range(5, 24))
    owners = [set(prompt[part].tolist()) for part in found]
    assert [len(each) for each in owners] == [2, 2, 1] and len(set.union(*owners)) == 5
    again = parts(prompt, useful, 3, torch.Generator().manual_seed(1))
    assert [part.tolist() for part in again] != [part.tolist() for part in found]
    assert len(parts(prompt, useful, 9, torch.Generator())) == 5  # no update without images
    nine = torch.arange(9)
    even = parts(nine, torch.ones(9, dtype=torch.bool), 4, torch.Generator())
    assert [len(part) for part in even] == [3, 2, 2, 2]
    assert parts(prompt, torch.zeros(24, dtype=torch.bool), 3, torch.Generator()) == []


@pytest.mark.parametrize("world", [1, 3])
def test_processes_share_the_images_of_an_update_and_hand_on_no_empty_pass(world):
    image = torch.tensor([0, 0, 4, 4, 5, 5, 6])
    seen = []
    for rank in range(world):
        passes = mine(image, SimpleNamespace(num_processes=world, process_index=rank), 2)
        assert all(0 < len(at) <= 2 for at in passes)
        assert all((image[at] % world == rank).all() for at in passes)
        seen += [int(i) for at in passes for i in at]
    assert sorted(seen) == list(range(7))
    assert mine(torch.tensor([0, 3]), SimpleNamespace(num_processes=3, process_index=1), 2) == []


@pytest.mark.parametrize("objective", ["ddpo", "awm"])
def test_an_evaluation_samples_as_the_objective_does(tiny_pipeline_folder, objective):
    pipe = pipeline.load(tiny_pipeline_folder)
    policy = Policy(pipe, accelerator_of("no"), task_of(), settings_of(objective=objective))
    noisy = policy.steps.stochastic.any()
    policy.for_epoch(0, 0)
    assert noisy == policy.steps.stochastic.any() == (objective == "ddpo")
