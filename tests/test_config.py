"""Presets are strict: every mistake is named, with the key and what was expected."""

import pytest
import yaml

from derm_rl import config, paths, settings


def test_every_preset_loads_and_describes_every_key():
    for name, description in config.presets().items():
        loaded = config.load(name)
        assert loaded.name == name and description == loaded.description != ""
        rows = list(config.describe(loaded))
        assert len(rows) > 50
        assert all(meaning for key, _, meaning in rows), [k for k, _, m in rows if not m]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ddpo.epoch=3", ["ddpo.epoch=3", "did you mean 'epochs'"]),
        ("dppo.epochs=3", ["did you mean 'ddpo'"]),
        ("ddpo.epochs=many", ["ddpo.epochs", "integer", "'many'"]),
        ("ddpo.epochs=0", ["ddpo.epochs", "greater than or equal to 1"]),
        ("ddpo.epochs=2.5", ["ddpo.epochs", "2.5"]),
        ("ddpo.epochs", ["key=value"]),
        ("seed.x=1", ["seed is a value"]),
        ("image_size.x.y=1", ["'x' is below a value"]),
        ("data.artifacts=[hairs]", ["artifacts", "did you mean 'hair'"]),
        ("data.artifacts=[hair, hair]", ["stands twice"]),
        ("data.diagnoses=[MEL, XX]", ["diagnoses", "'XX'"]),
        ("data.images=null", ["how many phantoms"]),
        ("ddpo.rewards.sofd=1", ["rewards", "did you mean 'soft'"]),
        ("data.split.test=0.9", ["data.split", "sum to 1"]),
        ("ddpo.drop_last_steps=99", ["drop_last_steps must be smaller"]),
        ("ddpo.step_weighting=sigma", ["ddpo.step_weighting", "'none' or 'output'"]),
    ],
)
def test_a_wrong_override_is_named(override, words):
    with pytest.raises(config.ConfigError) as error:
        config.load("smoke", [override])
    for word in words:
        assert word in str(error.value)


def test_a_fault_of_a_whole_section_names_its_key_and_shows_no_other():
    with pytest.raises(config.ConfigError) as error:
        config.load("smoke", ["captions.teacher=foo"])
    assert str(error.value).endswith(
        "captions.teacher: expected measured or provider:model, got 'foo'"
    )
    assert len(str(error.value)) < 150


BROKEN = {
    "unclosed": b"a: [",
    "list": b"- a\n- b\n",
    "empty": b"",
    "binary": bytes(range(256)),
    "latin1": "description: Läsion".encode("latin-1"),
    "utf16": "description: a".encode("utf-16"),
    "twice": b"description: a\nseed: 1\nseed: 2\n",
    "nested_twice": b"data: {images: 1, images: 2}\n",
    "date": b"seed: 2024-13-45\n",
    "deep": b"[" * 1000,
    "numbers": b"1: 2\n",
    "incomplete": b"description: only that\n",
}


def test_broken_presets_are_named_and_do_not_hide_the_others(tmp_path, monkeypatch):
    (tmp_path / "smoke.yaml").write_bytes((paths.PARAMS / "smoke.yaml").read_bytes())
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    for name, content in BROKEN.items():
        (tmp_path / f"{name}.yaml").write_bytes(content)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "dangling.yaml").symlink_to(tmp_path / "nowhere")
    found = config.presets()
    assert not found.pop("smoke").startswith("broken")
    assert set(found) == {*BROKEN, "folder", "dangling"}
    for name, said in found.items():
        assert said.startswith("broken: ") and f"{name}.yaml" in said
        with pytest.raises(config.ConfigError, match=rf"{name}\.yaml"):
            config.load(name)


def test_an_unknown_preset_or_key_in_the_file_is_named(tmp_path, monkeypatch):
    with pytest.raises(config.ConfigError, match="did you mean 'smoke'"):
        config.load("smok")
    values = yaml.safe_load((paths.PARAMS / "smoke.yaml").read_text())
    values["finetune"]["learning_rat"] = 1
    values["classifier"]["redrawn"]["shares"] = 1  # in a section that may be null
    del values["finetune"]["learning_rate"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    with pytest.raises(config.ConfigError) as error:
        config.load("mine")
    assert "mine.yaml: unknown key 'finetune.learning_rat'; did you mean" in str(error.value)
    assert "mine.yaml: key 'finetune.learning_rate' is missing" in str(error.value)
    assert "mine.yaml: unknown key 'classifier.redrawn.shares'; did you" in str(error.value)


def test_decoys_are_drawn_into_phantoms_only(tmp_path):
    with pytest.raises(
        config.ConfigError, match="classifier.decoys is 0.2.* ham10000 it must be 0"
    ):
        config.load("ham10000", ["classifier.decoys=0.2"], tmp_path)
    assert config.load("smoke", ["classifier.decoys=0.2"]).classifier.decoys == 0.2


def test_what_the_direct_gradient_does_not_know_is_refused():
    for name in ("anchor", "variety"):
        with pytest.raises(config.ConfigError, match=f"{name} is of the policy gradient"):
            config.load("smoke", ["ddpo.objective=ddpo", "ddpo.direct_steps=1", f"ddpo.{name}=0.5"])


def test_numbers_in_scientific_notation_are_numbers():
    assert config.load("smoke", ["ddpo.learning_rate=1e-4"]).ddpo.learning_rate == 1e-4


def test_an_override_moves_only_the_stages_that_read_it(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    plain, changed = config.load("smoke"), config.load("smoke", ["ddpo.epochs=3"])
    for stage in ("01_data", "02_reward_classifier", "03_finetune_stable_diffusion"):
        assert changed.stage_dir(stage) == plain.stage_dir(stage) == tmp_path / "smoke" / stage
    for stage in ("04_ddpo", "05_alignment"):
        assert changed.stage_dir(stage) != plain.stage_dir(stage)
    assert changed.figures_dir != plain.figures_dir


def test_committed_figures_are_written_by_plain_presets_only():
    assert config.load("demo").figures_dir == paths.FIGURES
    assert config.load("ham10000").figures_dir == paths.FIGURES / "ham10000"
    assert paths.FIGURES not in config.load("demo", ["seed=1"]).figures_dir.parents
    assert paths.FIGURES not in config.load("smoke").figures_dir.parents


def test_a_missing_stage_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    with pytest.raises(config.MissingArtifact, match="reproduce --preset smoke --only 04"):
        config.load("smoke").require("04_ddpo")


def test_real_presets_ask_for_their_images(tmp_path):
    with pytest.raises(config.ConfigError, match="--data-root"):
        config.check_data_root(config.load("ham10000"))
    with pytest.raises(config.ConfigError, match="no such folder"):
        config.check_data_root(config.load("ham10000", data_root=tmp_path / "nowhere"))
    config.check_data_root(config.load("ham10000", data_root=tmp_path))


def test_the_names_of_rewards_are_those_there_are():
    from derm_rl.rewards import REWARDS

    assert set(settings.REWARD_NAMES) == set(REWARDS)


def test_statistics_cannot_be_kept_of_a_network_that_has_none():
    config.load("demo", ["classifier.frozen_batchnorm=true"])
    with pytest.raises(config.ConfigError, match=r"reward\.pretrained is null"):
        config.load("smoke", ["classifier.frozen_batchnorm=true"])
