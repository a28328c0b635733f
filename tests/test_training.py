"""Stage 1 and stage 2 on a tiny pipeline: they learn, and an interruption changes nothing."""

import dataclasses
import errno
import io
import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import contents, no_descriptors
from diffusers import StableDiffusionPipeline
from train_tiny import brightness, task_of

from derm_rl import config, dependencies, pipeline, prompts, training
from derm_rl.ddpo import trainer
from derm_rl.errors import FileError
from derm_rl.finetune import examples
from derm_rl.finetune import train as finetune
from derm_rl.training import load_checkpoint, previous, save_checkpoint


class Interrupted(Exception):
    pass


def interrupt_at(key, value):
    def callback(row):
        if row[key] == value:
            raise Interrupted

    return callback


def weights(pipe):
    return torch.cat([p.detach().flatten() for p in pipe.unet.parameters()])


def finetune_settings(**changes):
    settings = {"steps": 8, "batch_size": 4, "checkpoint_every": 3, "warmup_steps": 1}
    return config.load("smoke").finetune.model_copy(update=settings | changes)


def ddpo_settings(**changes):
    settings = {
        "epochs": 4, "images_per_prompt": 8, "prompts_per_epoch": None, "inference_steps": 4,
        "batch_size": 64, "updates_per_epoch": 1, "timestep_fraction": 1.0, "drop_last_steps": 0,
        "checkpoint_every": 1, "eval_every": 2, "eval_images_per_prompt": 2, "min_count": 2,
    }  # fmt: skip
    return config.load("smoke").ddpo.model_copy(update=settings | changes)


@pytest.fixture
def cached(tiny_pipeline_folder, tiny_images):
    pipe = pipeline.load(tiny_pipeline_folder)
    captions = [prompts.render(f) for f in prompts.all_prompts()]
    return examples(pipe, tiny_images, captions, views=8)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_finetuning_resumes_to_the_same_weights(method, tiny_pipeline_folder, cached, tmp_path):
    settings = finetune_settings(method=method)
    straight, broken = (pipeline.load(tiny_pipeline_folder) for _ in range(2))
    log = finetune(straight, cached, settings, tmp_path / "a", 0, progress=False)
    with pytest.raises(Interrupted):
        finetune(
            broken, cached, settings, tmp_path / "b", 0, progress=False,
            callback=interrupt_at("step", 5),
        )  # fmt: skip
    assert (tmp_path / "b/checkpoint.pt").is_file()
    resumed, seen = pipeline.load(tiny_pipeline_folder), []
    again = finetune(
        resumed, cached, settings, tmp_path / "b", 0, progress=False, callback=seen.append
    )
    assert [row["step"] for row in seen] == [4, 5, 6, 7, 8]  # from the checkpoint, not anew
    assert torch.equal(weights(straight), weights(resumed))
    assert log.equals(again)
    assert not torch.equal(weights(straight), weights(pipeline.load(tiny_pipeline_folder)))


def test_finetuning_lowers_the_loss(tiny_pipeline_folder, cached, tmp_path):
    settings = finetune_settings(steps=60, batch_size=16, learning_rate=3e-3)
    pipe = pipeline.load(tiny_pipeline_folder)
    log = finetune(pipe, cached, settings, tmp_path, 0, progress=False)
    assert log["loss"][-15:].mean() < 0.9 * log["loss"][:15].mean()


def test_a_torn_or_foreign_checkpoint_is_said_and_not_used(
    tiny_pipeline_folder, cached, tmp_path, capsys
):
    pipe = pipeline.load(tiny_pipeline_folder)
    finetune(pipe, cached, finetune_settings(), tmp_path, 0, progress=False)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    other = pipeline.load(tiny_pipeline_folder)
    log = finetune(other, cached, finetune_settings(), tmp_path, 1, progress=False)
    assert "other settings, seed or data" in capsys.readouterr().err
    assert len(log) == 8
    (tmp_path / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    finetune(
        pipeline.load(tiny_pipeline_folder),
        cached,
        finetune_settings(),
        tmp_path,
        0,
        progress=False,
    )
    assert "unreadable checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({"belongs_to": "mine", "epoch": 5}, "lacks rows"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_said_and_the_one_before_used(
    tmp_path, capsys, content, said
):
    path = tmp_path / "checkpoint.pt"
    for epoch in (1, 2):
        save_checkpoint(path, {"epoch": epoch, "rows": []}, "mine")
    torch.save(content, path)
    assert load_checkpoint(path, "mine", ("epoch", "rows"))["epoch"] == 1
    assert said in capsys.readouterr().err


def test_a_torn_checkpoint_never_takes_the_place_of_the_one_before(tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    for epoch in (1, 2):
        save_checkpoint(path, {"epoch": epoch}, "mine")
    path.write_bytes(path.read_bytes()[:100])
    assert load_checkpoint(path, "mine")["epoch"] == 1
    assert "unreadable checkpoint" in capsys.readouterr().err
    save_checkpoint(path, {"epoch": 3}, "mine")
    path.unlink()  # a kill between the two moves of a save leaves this
    assert load_checkpoint(path, "mine")["epoch"] == 1 and previous(path).is_file()


@pytest.fixture
def two(tmp_path):
    """A checkpoint and the one before it."""
    for epoch in (1, 2):
        save_checkpoint(tmp_path / "c/checkpoint.pt", {"epoch": epoch, "w": torch.ones(99)}, "mine")
    return tmp_path / "c/checkpoint.pt"


def test_without_descriptors_every_checkpoint_stays(two):
    before = contents(two.parent)
    with no_descriptors(), pytest.raises(OSError, match="cannot be read now.*checkpoint.pt"):
        load_checkpoint(two, "mine")
    assert contents(two.parent) == before
    assert load_checkpoint(two, "mine")["epoch"] == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "I/O error"), OSError(errno.ENFILE, "table full"), OSError("no number"),
        PermissionError(errno.EACCES, "denied"), TimeoutError("no answer"), MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)  # fmt: skip
def test_an_error_of_reading_is_raised_and_touches_nothing(two, monkeypatch, error):
    def fails(*_, **__):
        raise error

    before = contents(two.parent)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", fails)
        with pytest.raises(OSError, match="left as it is"):
            load_checkpoint(two, "mine")
    assert contents(two.parent) == before and load_checkpoint(two, "mine")["epoch"] == 2


def test_a_disk_that_does_not_answer_costs_no_checkpoint(two):
    content = two.read_bytes()
    two.unlink()
    two.symlink_to("/proc/self/mem")  # opens, and fails to be read
    with pytest.raises(OSError, match="cannot be read now"):
        load_checkpoint(two, "mine")
    assert two.is_symlink() and previous(two).is_file()
    two.unlink()
    two.write_bytes(content)
    assert load_checkpoint(two, "mine")["epoch"] == 2


def pickled(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("why", "change"),
    [
        *[("torn", lambda c, n=n: c[: n * len(c) // 8]) for n in range(8)],
        ("torn", lambda c: c.replace(b"\0\0\x80\x3f", b"\0\0\x80\x40", 1)),  # a weight
        ("torn", lambda c: bytes(len(c))),
        ("torn", lambda c: b"PK\x03\x04 and so on"),
        ("foreign", lambda c: pickled([1, 2])),
        ("foreign", lambda c: pickled({"w": torch.ones(3)})),
        ("foreign", lambda c: pickled({"belongs_to": "other", "epoch": 9})),
        ("foreign", lambda c: pickled(torch.nn.Linear(2, 2))),  # needs code, which is not run
    ],
)
def test_what_was_read_and_cannot_be_used_is_renamed_and_kept(two, why, change, capsys):
    bad = change(two.read_bytes())
    two.write_bytes(bad)
    (two.parent / f"checkpoint.pt.{why}-1").write_bytes(b"of an earlier time")
    assert load_checkpoint(two, "mine")["epoch"] == 1
    aside = two.parent / f"checkpoint.pt.{why}-2"
    assert not two.exists() and aside.read_bytes() == bad
    assert aside.name in capsys.readouterr().err
    save_checkpoint(two, {"epoch": 3}, "mine")
    save_checkpoint(two, {"epoch": 4}, "mine")
    assert aside.read_bytes() == bad
    assert (two.parent / f"checkpoint.pt.{why}-1").read_bytes() == b"of an earlier time"


def test_a_checkpoint_of_other_weights_data_or_code_is_not_continued(
    tiny_pipeline_folder, cached, tmp_path, monkeypatch, capsys
):
    def go(images=cached, scale=1.0):
        pipe = pipeline.load(tiny_pipeline_folder)
        with torch.no_grad():
            next(pipe.text_encoder.parameters()).mul_(scale)
        seen = []
        settings = finetune_settings(steps=3)
        finetune(pipe, images, settings, tmp_path, 0, progress=False, callback=seen.append)
        return len(seen)

    assert [go(), go()] == [3, 0]
    assert go(dataclasses.replace(cached, images="others")) == 3
    assert go(dataclasses.replace(cached, images="others"), 1.1) == 3
    monkeypatch.setattr(dependencies, "code", lambda *modules: "edited")
    assert go(dataclasses.replace(cached, images="others"), 1.1) == 3
    assert len(list(tmp_path.glob("checkpoint.pt.foreign-*"))) == 3


def test_ddpo_raises_a_reward_that_can_be_raised(tiny_pipeline_folder, tmp_path):
    pipe = pipeline.load(tiny_pipeline_folder)
    settings = ddpo_settings(
        method="full", epochs=15, images_per_prompt=16, learning_rate=1e-3, clip_range=0.05,
        ema_decay=0.0,
    )  # fmt: skip
    log = trainer.train(pipe, task_of(brightness), settings, tmp_path, 0, progress=False)
    evaluated = log["eval_reward"].dropna()
    assert evaluated.iloc[-1] > evaluated.iloc[0] + log["reward_std"].iloc[0] / 4
    assert log["on_policy_deviation"].max() < 1e-4
    assert log["eval_judge_brightness"].dropna().equals(evaluated.rename("eval_judge_brightness"))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_ddpo_resumes_to_the_same_weights_and_log(method, tiny_pipeline_folder, tmp_path):
    settings = ddpo_settings(method=method)
    straight, broken = (pipeline.load(tiny_pipeline_folder) for _ in range(2))
    log = trainer.train(straight, task_of(brightness), settings, tmp_path / "a", 0, progress=False)
    with pytest.raises(Interrupted):
        trainer.train(
            broken, task_of(brightness), settings, tmp_path / "b", 0, progress=False,
            callback=interrupt_at("epoch", 2),
        )  # fmt: skip
    resumed, seen = pipeline.load(tiny_pipeline_folder), []
    again = trainer.train(
        resumed, task_of(brightness), settings, tmp_path / "b", 0, progress=False,
        callback=seen.append,
    )  # fmt: skip
    assert [row["epoch"] for row in seen] == [2, 3]  # from the checkpoint, not anew
    assert torch.equal(weights(straight), weights(resumed))
    assert log.equals(again)
    for name in ("log.csv", "steps.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_images_without_advantage_cost_nothing_and_change_nothing(tiny_pipeline_folder, tmp_path):
    pipe = pipeline.load(tiny_pipeline_folder)
    before = weights(pipe)
    task = task_of(lambda images, wanted: torch.ones(len(images)))
    log = trainer.train(pipe, task, ddpo_settings(), tmp_path, 0, progress=False)
    assert log["skipped_images"].dropna().eq(32).all()
    decayed = (weights(pipe) - before).abs().max()
    assert decayed < 1e-4  # weight decay alone


def test_a_pipeline_goes_through_plain_diffusers(tiny_pipeline_folder, tmp_path):
    ours = pipeline.load(tiny_pipeline_folder)
    plain = StableDiffusionPipeline.from_pretrained(str(tiny_pipeline_folder))
    plain.set_progress_bar_config(disable=True)
    text = prompts.render(prompts.Finding("MEL", ("hair",)))
    made = [
        pipe(
            text, num_inference_steps=4, guidance_scale=2.0, eta=1.0, height=16, width=16,
            generator=torch.Generator().manual_seed(3), output_type="pt",
        ).images
        for pipe in (ours, plain)
    ]  # fmt: skip
    assert torch.equal(*made) and made[0].shape == (1, 3, 16, 16)


def test_plain_diffusers_loads_a_saved_pipeline_in_a_fresh_process(tiny_pipeline_folder):
    """Of the package only `import derm_rl` is needed, which loads nothing heavy; and quietly."""
    code = (
        "import sys, derm_rl\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(tiny_pipeline_folder)!r})\n"
        "import derm_rl.pipeline\n"
        "assert type(pipe.vae) is derm_rl.pipeline.PatchAutoencoder\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Expected types" not in done.stderr and "torchvision" not in done.stderr


def scheduled(folder, target, **config):
    """A copy of a pipeline whose scheduler is described by ``config`` alone."""
    shutil.copytree(folder, target)
    index = json.loads((target / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", config["_class_name"]]
    (target / "model_index.json").write_text(json.dumps(index))
    (target / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return pipeline.load(target).scheduler.config


def test_what_a_scheduler_does_not_state_is_its_own_default(tiny_pipeline_folder, tmp_path):
    stated = {"num_train_timesteps": 1000, "steps_offset": 1, "beta_schedule": "scaled_linear"}
    # Stable Diffusion 1.5's scheduler knows no clipping, and ends at its own first alpha.
    found = scheduled(tiny_pipeline_folder, tmp_path / "a", _class_name="PNDMScheduler", **stated)
    assert found.clip_sample is False and found.set_alpha_to_one is False
    # Diffusers never clips latents: an unstated value of a class that would is switched off.
    found = scheduled(tiny_pipeline_folder, tmp_path / "b", _class_name="DDIMScheduler", **stated)
    assert found.clip_sample is False and found.set_alpha_to_one is True
    name = "EulerDiscreteScheduler"
    found = scheduled(tiny_pipeline_folder, tmp_path / "c", _class_name=name, steps_offset=1)
    assert found.clip_sample is False and found.timestep_spacing == "linspace"
    found = scheduled(tiny_pipeline_folder, tmp_path / "d", _class_name="LCMScheduler")
    assert found.beta_schedule == "scaled_linear" and found.beta_end == 0.012


def test_a_damaged_pipeline_names_its_file(tiny_pipeline_folder, tmp_path):
    for number, (name, content) in enumerate(
        {
            "unet/diffusion_pytorch_model.safetensors": None,
            "vae/config.json": b"{",
            "text_encoder/model.safetensors": b"",
            "model_index.json": b"[]",
        }.items()
    ):
        folder = tmp_path / str(number)
        shutil.copytree(tiny_pipeline_folder, folder)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
        with pytest.raises(FileError) as error:
            pipeline.load(folder)
        assert str(folder / name if name != "model_index.json" else folder) in str(error.value)


def test_another_image_size_is_saved_with_the_pipeline(tiny_pipeline_folder, tmp_path):
    pipe = pipeline.load(tiny_pipeline_folder)
    pipeline.set_image_size(pipe, 24)
    task, settings = task_of(brightness), ddpo_settings(epochs=1)
    trainer.train(pipe, task, settings, tmp_path, 0, progress=False)
    plain = StableDiffusionPipeline.from_pretrained(str(pipeline.save(pipe, tmp_path / "pipeline")))
    image = plain(task.texts[0], num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 24, 24, 3)
    with pytest.raises(ValueError, match="image_size 20: this pipeline needs a multiple of 8"):
        pipeline.set_image_size(pipe, 20)


def test_all_components_reconstruct_exactly_and_few_keep_most(tiny_images):
    whole = pipeline.PatchAutoencoder.build(4, 48, 16)
    assert whole.fit(tiny_images) == pytest.approx(1)
    x = torch.from_numpy(tiny_images).permute(0, 3, 1, 2).float() / 127.5 - 1
    back = whole.decode(whole.encode(x).latent_dist.mode()).sample
    torch.testing.assert_close(back, x, atol=2e-3, rtol=0)
    assert 0.8 < pipeline.PatchAutoencoder.build(4, 16, 16).fit(tiny_images) < 1


def test_every_prompt_has_tokens_of_its_own(tiny_pipeline_folder):
    tokenizer = pipeline.load(tiny_pipeline_folder).tokenizer
    ids = [tuple(tokenizer(prompts.render(f)).input_ids) for f in prompts.all_prompts()]
    assert len(set(ids)) == 32 and max(map(len, ids)) <= tokenizer.model_max_length


def test_a_folder_that_is_no_pipeline_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        pipeline.load("./nowhere")
    with pytest.raises(FileNotFoundError, match=r"model_index\.json is missing"):
        pipeline.load(tmp_path)


def test_bf16_where_the_cpu_has_none_is_float32(tiny_pipeline_folder, monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    pipe = pipeline.load(tiny_pipeline_folder)
    forward = pipe.unet.forward
    for has, expected in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(training, "cpu_has_bf16", lambda has=has: has)
        assert training.usable_precision("bf16", cpu) == expected
        assert training.usable_precision("bf16", gpu) == "bf16"
        assert training.usable_precision("no", cpu) == "no"
        assert training.accelerator_of("bf16").mixed_precision == expected
        with training.autocast_unet(pipe, "bf16"):
            assert (pipe.unet.forward != forward) is has
