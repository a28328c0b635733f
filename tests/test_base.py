"""``make base`` in miniature, and whether the committed models are what their recipes say."""

import numpy as np
import pytest
import yaml

from derm_rl import base, classifier, pipeline
from derm_rl.data import phantom
from derm_rl.io import read_csv, read_json

TINY_UNET = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
}


def recipe_of(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))


def rendered(address):
    return phantom.render_path(address, 16)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Recipes of seconds, in folders of the test's own."""
    recipe, classifiers = recipe_of(base.FOLDER), recipe_of(base.CLASSIFIERS)
    recipe |= {"images": 96, "image_size": 16, "text_width": 16, "text_layers": 1}
    recipe["prevalence"] = dict.fromkeys(recipe["prevalence"], 0.25)
    recipe["unet"] |= TINY_UNET
    recipe["training"] |= {"steps": 4, "batch_size": 8, "warmup_steps": 1}
    for phase in recipe["phases"].values():
        phase |= {"images": 96}
        if phase["training"]:  # the first has the recipe's own
            phase["training"] = {"steps": 3, "warmup_steps": 1}
    classifiers |= {"images": 96, "image_size": 16, "validation": 0.3}
    classifiers["training"] |= {"epochs": 1}
    classifiers["training"]["redrawn"] |= {"inference_steps": 4}
    for name, content in (("FOLDER", recipe), ("CLASSIFIERS", classifiers)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        monkeypatch.setattr(base, name, folder)
    monkeypatch.setattr(base, "RUNS", tmp_path / "runs")
    return tmp_path


def test_make_base_writes_models_that_load(tiny, capsys):
    base.main()
    pipe = pipeline.load(base.FOLDER)
    assert pipe.unet.config.block_out_channels == [16, 32] and pipeline.image_size(pipe) == 16
    assert (base.FOLDER / "samples.png").is_file()
    log = read_csv(base.FOLDER / "training_log.csv")
    assert log["phase"].tolist() == list(recipe_of(base.FOLDER)["phases"])
    for name in ("resnet", "regnet"):
        model = classifier.load(base.CLASSIFIERS / name)
        assert model.network.config.model_type == name
        assert model.predict(np.zeros((1, 16, 16, 3), np.uint8)).shape == (1, 5)
    assert "saved in" in capsys.readouterr().out
    assert len(list((tiny / "runs/base").glob("redrawn_*.npy"))) == 1


def test_images_are_drawn_once_and_again_for_another_recipe(tiny):
    recipe = recipe_of(base.CLASSIFIERS)
    cache = tiny / "runs"
    cache.mkdir()
    images, frame = base.training_images(recipe, cache)
    assert images.shape == (96, 16, 16, 3) and len(frame) == 96
    again, _ = base.training_images(recipe, cache)
    assert np.array_equal(images, again) and len(list(cache.glob("*.npy"))) == 1
    base.training_images(recipe | {"seed": 3}, cache)
    assert len(list(cache.glob("*.npy"))) == 2
    decoyed, shown = base.training_images(recipe | {"decoys": 0.5}, cache)
    assert len(list(cache.glob("*.npy"))) == 3
    changed = shown["path"] != frame["path"]
    assert 24 < changed.sum() < 72 and (shown.drop(columns="path") == frame.drop(
        columns="path")).all().all()  # fmt: skip
    differ = (decoyed != images).any((1, 2, 3))
    assert (differ <= changed.to_numpy()).all() and differ.sum() > 0.7 * changed.sum()


@pytest.mark.parametrize("together", [0.0, 0.25])
def test_a_share_of_the_images_shows_several_artifacts(tiny, together):
    recipe = recipe_of(base.CLASSIFIERS) | {"together": together, "images": 40}
    recipe["prevalence"] = dict.fromkeys(recipe["prevalence"], 0.3)
    (tiny / "runs").mkdir()
    images, frame = base.training_images(recipe, tiny / "runs")
    shown = frame[list(base.ARTIFACTS)].sum(axis=1)
    assert len(images) == len(frame) == 40 and (shown > 1).sum() == 40 * together
    assert frame["path"].is_unique and np.array_equal(images[7], rendered(frame["path"][7]))
    recipe["prevalence"] = dict.fromkeys(recipe["prevalence"], 1.0)
    with pytest.raises(ValueError, match=f"together: {together} needs .* at most one artifact"):
        base.training_images(recipe, tiny / "runs")


def test_the_committed_pipeline_is_of_its_recipe():
    recipe, pipe = recipe_of(base.FOLDER), pipeline.load(base.FOLDER)
    for key, value in recipe["unet"].items():
        assert pipe.unet.config[key] == value, key
    assert pipeline.image_size(pipe) == recipe["image_size"]
    assert pipe.scheduler.config.prediction_type == recipe["prediction_type"]
    log = read_csv(base.FOLDER / "training_log.csv")
    for name, phase in recipe["phases"].items():
        steps = log.loc[log["phase"] == name, "step"]
        wanted = phase["training"].get("steps", recipe["training"]["steps"])
        assert len(steps) == wanted // 50
        assert steps.iloc[-1] == pytest.approx(wanted, abs=50)
    size = sum(f.stat().st_size for f in base.FOLDER.rglob("*") if f.is_file())
    assert size < 20e6


def test_the_committed_classifiers_are_of_their_recipe_and_share_no_lesion():
    recipe = recipe_of(base.CLASSIFIERS)
    seen = 0
    for name in ("resnet", "regnet"):
        card = read_json(base.CLASSIFIERS / name / "card.json")
        assert card["architecture"] == name and card["seed"] == recipe["seed"]
        history = read_csv(base.CLASSIFIERS / name / "history.csv")
        assert len(history) <= recipe["training"]["epochs"]
        seen += card["training_images"] + card["validation_images"]
    assert seen == recipe["images"]  # each image to one of the two
