"""The classifier: augmentation, calibration, training and resume, the folder format, the tables."""

import copy
import errno
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from derm_rl import classifier, dependencies
from derm_rl.classifier import augment, calibration, training
from derm_rl.classifier.backbones import last_layer
from derm_rl.classifier.model import as_tensor
from derm_rl.data import phantom, phantom_decoys
from derm_rl.errors import FileError
from derm_rl.evaluation import classification

NAMES = ["ink", "MEL"]
RESNET = SimpleNamespace(architecture="resnet", widths=[8, 16], depths=[1, 1], pretrained=None)
REGNET = SimpleNamespace(architecture="regnet", widths=[16, 32], depths=[1, 1], pretrained=None)
CONVNEXT = SimpleNamespace(architecture="convnext", widths=[8, 16], depths=[1, 1], pretrained=None)


def settings(**changes):
    values = dict(epochs=3, batch_size=16, learning_rate=5e-3, weight_decay=1e-2, patience=9)
    values |= {"augment": True, "redrawn": None, "frozen_batchnorm": False, "decoys": 0}
    return SimpleNamespace(**(values | changes))


def toy(n=96, size=16, seed=0):
    """Blue dots (ink) and dark discs (MEL) on noise; every third image repeats a lesion."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 2)) < [0.3, 0.5]).astype(np.float32)
    images = rng.integers(150, 200, (n, size, size, 3), dtype=np.uint8)
    images[labels[:, 1] == 1, 5:11, 5:11] = 40
    images[labels[:, 0] == 1, 1:4, 1:4] = (0, 0, 255)
    lesions = [f"lesion_{i - (i % 3 == 1)}" for i in range(n)]
    validation = np.array([hash_of(lesion) % 4 == 0 for lesion in lesions])
    return images, labels, lesions, validation


def hash_of(lesion):
    return int(lesion.split("_")[1])


def fit(folder, backbone=RESNET, data=None, seed=0, callback=None, confounder=None, **changes):
    images, labels, lesions, validation = data or toy()
    return classifier.train(
        images, labels, lesions, NAMES, validation, backbone, settings(**changes), seed, folder,
        callback=callback, confounder=confounder,
    )  # fmt: skip


def history(folder):
    return pd.read_csv(folder / "history.csv").drop(columns="seconds")


# --- augmentation -------------------------------------------------------------------------------


def test_augmentation_is_deterministic_in_range_and_leaves_its_input_alone():
    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    first, again = (augment.augment(x, torch.Generator().manual_seed(1)) for _ in range(2))
    other = augment.augment(x, torch.Generator().manual_seed(2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(x, before)
    assert first.shape == x.shape and first.min() >= 0 and first.max() <= 1


def test_dihedral_reaches_all_eight_symmetries_and_only_them():
    tile = torch.arange(12.0).reshape(1, 3, 2, 2) / 12
    expected = {
        tuple(t.flatten().tolist())
        for k in range(4)
        for t in (torch.rot90(tile, k, (-2, -1)), torch.rot90(tile, k, (-2, -1)).flip(-1))
    }
    out = augment.dihedral(tile.expand(400, 3, 2, 2), torch.Generator().manual_seed(0))
    counts = pd.Series([tuple(t.flatten().tolist()) for t in out]).value_counts()
    assert set(counts.index) == expected and counts.min() > 25
    with pytest.raises(ValueError, match="square"):
        augment.dihedral(torch.zeros(1, 3, 2, 3), torch.Generator())


def test_blur_keeps_the_mean_and_adds_at_most_half_a_pixel_of_variance():
    x = torch.zeros(200, 3, 15, 15)
    x[:, :, 7, 7] = 1
    y = augment.blur(x, torch.Generator().manual_seed(0))[:, 0]
    assert y.sum((1, 2)) == pytest.approx(torch.ones(200))
    variance = (y.sum(1) * (torch.arange(15.0) - 7) ** 2).sum(1)
    assert variance.max() <= 0.5 + 1e-6 and 0.4 < (variance == 0).float().mean() < 0.6


# --- class balance and calibration --------------------------------------------------------------


def test_positive_weight_and_bias_balance_the_classes_also_beyond_the_bound():
    labels = np.zeros((1000, 3))
    labels[:200, 0], labels[:500, 1], labels[:10, 2] = 1, 1, 1
    weight, bias = calibration.positive_weight(labels)
    assert weight == pytest.approx([4, 1, calibration.MAX_WEIGHT])
    assert bias == pytest.approx([0, 0, np.log(99 / calibration.MAX_WEIGHT)], abs=1e-6)


def test_temperature_recovers_the_scale_of_overconfident_logits():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, (20_000, 2))
    labels = (rng.random(true.shape) < 1 / (1 + np.exp(-true))).astype(float)
    found = calibration.fit_temperature(true * [3.0, 1.0], labels)
    assert found == pytest.approx([3.0, 1.0], rel=0.06)
    assert calibration.fit_temperature(true, np.ones_like(labels)) == pytest.approx([1, 1])


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [RESNET, REGNET, CONVNEXT], ids=lambda b: b.architecture)
def test_training_learns_and_the_folder_gives_the_same_classifier(tmp_path, backbone):
    model = fit(tmp_path / "m", backbone, epochs=20, learning_rate=1e-2, batch_size=8)
    images, labels, *_ = toy(seed=1)
    p = model.predict(images, batch_size=17)
    assert p.dtype == np.float32 and p.shape == (96, 2)
    assert classification.attribute_table(p, labels, range(96), NAMES, 0)["auc"].min() > 0.95
    loaded = classifier.load(tmp_path / "m")
    assert np.array_equal(loaded.predict(images, batch_size=17), p)
    assert loaded.label_names == NAMES and loaded.image_size == 16
    card = json.loads((tmp_path / "m" / "card.json").read_text())
    assert card["training_lesions"] == sorted(set(toy()[2]))
    assert "not for diagnosis" in (tmp_path / "m" / "README.md").read_text()
    assert not list(tmp_path.glob("*.checkpoint.pt"))


def test_the_network_is_a_plain_transformers_folder(tmp_path):
    from transformers import AutoModelForImageClassification

    model = fit(tmp_path / "m", epochs=1)
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "m")
    assert plain.config.id2label == {0: "ink", 1: "MEL"}
    x = as_tensor(toy()[0][:4])
    with torch.no_grad():
        raw = plain(pixel_values=model.pixel_values(x)).logits
    assert torch.equal(raw, model.raw_logits(x))
    assert torch.equal(model.logits(x), (raw + model.bias) / model.temperature)


@pytest.mark.parametrize("widths, expected", [
    ([8, 16], torch.contiguous_format), ([16, 32], torch.channels_last),
])  # fmt: skip
def test_images_are_laid_out_such_that_the_backward_pass_stays_in_its_memory(widths, expected):
    backbone = SimpleNamespace(**(vars(RESNET) | {"widths": widths}))
    model = classifier.build(backbone, NAMES, 48, [0.5] * 3, [0.2] * 3)
    assert training._layout(model) is expected


def test_a_killed_training_continues_bit_for_bit(tmp_path):
    class Killed(Exception):
        pass

    def kill(row):
        if row["epoch"] == 2:
            raise Killed

    whole = fit(tmp_path / "whole" / "m", CONVNEXT)
    with pytest.raises(Killed):
        fit(tmp_path / "m", CONVNEXT, callback=kill)
    assert (tmp_path / "m.checkpoint.pt").is_file() and not (tmp_path / "m").exists()
    torch.rand(7)  # another random state than that of the uninterrupted run
    resumed = fit(tmp_path / "m", CONVNEXT)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    pd.testing.assert_frame_equal(history(tmp_path / "whole" / "m"), history(tmp_path / "m"))


def test_a_finished_training_is_not_repeated_unless_something_changed(tmp_path):
    rows = []
    fit(tmp_path / "m", epochs=1)
    fit(tmp_path / "m", epochs=1, callback=rows.append)
    assert rows == []
    fit(tmp_path / "m", epochs=1, seed=1, callback=rows.append)
    assert len(rows) == 1


@pytest.mark.parametrize("file", ["model.safetensors", "calibration.json"])
def test_a_damaged_training_is_set_aside_and_repeated(tmp_path, file, capsys):
    # A copy: weights are mapped from the file that is damaged here.
    whole = copy.deepcopy(fit(tmp_path / "m", epochs=1).state_dict())
    files = dependencies.files_under(tmp_path)
    damaged = tmp_path / "m" / file
    damaged.write_bytes(damaged.read_bytes()[:-9])
    torn = damaged.read_bytes()
    again = fit(tmp_path / "m", epochs=1).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert (tmp_path / "m.torn-1" / file).read_bytes() == torn
    assert f"{file}: " in capsys.readouterr().err
    # What depends on the folder above sees what it would have seen.
    assert set(dependencies.files_under(tmp_path)) == set(files)
    rows = []
    fit(tmp_path / "m", epochs=1, callback=rows.append)
    assert rows == []


def test_a_training_that_lost_a_file_is_repeated(tmp_path):
    fit(tmp_path / "m", epochs=1)
    for number, file in enumerate(("calibration.json", "model.safetensors"), start=1):
        (tmp_path / "m" / file).unlink()
        fit(tmp_path / "m", epochs=1)
        assert (tmp_path / "m" / file).is_file() and (tmp_path / f"m.torn-{number}").is_dir()


def test_a_classifier_that_cannot_be_read_now_is_left_as_it_is(tmp_path, monkeypatch):
    fit(tmp_path / "m", epochs=1)

    def fail(folder):
        raise FileError("cannot be loaded") from OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(training, "load_classifier", fail)
    with pytest.raises(FileError, match="cannot be loaded"):
        fit(tmp_path / "m", epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_training_leaves_the_random_state_and_the_images_alone(tmp_path):
    data = toy()
    before, state = data[0].copy(), torch.get_rng_state()
    fit(tmp_path / "m", data=data, epochs=1)
    assert torch.equal(state, torch.get_rng_state()) and np.array_equal(before, data[0])


def test_early_stopping_keeps_the_best_weights(tmp_path, monkeypatch):
    values = iter([0.5, 0.4, 0.6, 0.7])
    states = []
    real = calibration.loss

    def fake(logits, *others):
        if logits.requires_grad:
            return real(logits, *others)
        return torch.tensor(next(values))

    monkeypatch.setattr(training.calibration, "loss", fake)
    monkeypatch.setattr(
        training.training,
        "save_checkpoint",
        lambda path, state, of: states.append({k: v.clone() for k, v in state["network"].items()}),
    )
    model = fit(tmp_path / "m", epochs=9, patience=2)
    assert len(history(tmp_path / "m")) == 4
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, states[1][name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, g, v: (x, y[:-1], g, v), r"labels of shape \(95, 2\)"),
        (lambda x, y, g, v: (x, y, ["same"] * 96, v), "1 lesions are in training and validation"),
        (lambda x, y, g, v: (x, y * [0, 1], g, v), "label 'ink': 0 of"),
        (lambda x, y, g, v: (x, y, g, v & False), "0 of 96 images are for validation"),
    ],
)
def test_bad_training_data_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "m", data=change(*toy()))


# --- the model ----------------------------------------------------------------------------------


def untrained(size=16, backbone=RESNET):
    torch.manual_seed(0)
    return classifier.build(backbone, NAMES, size).requires_grad_(False)


def test_arrays_and_tensors_of_the_same_images_get_the_same_answer_and_stay_as_they_are():
    images = toy()[0]
    tensor = as_tensor(images)
    array_before, tensor_before, version = images.copy(), tensor.clone(), tensor._version
    model = untrained()
    assert np.array_equal(model.predict(images), model.predict(tensor))
    assert np.array_equal(images, array_before) and torch.equal(tensor, tensor_before)
    assert tensor._version == version
    assert len(model.predict(images[:0])) == 0


def test_features_are_the_last_ones_whatever_the_batch_and_the_mode():
    model, (images, *_) = untrained(), toy(n=9)
    found = model.features(images, batch_size=4)
    with torch.no_grad():
        states = model.network(
            pixel_values=model.pixel_values(as_tensor(images)), output_hidden_states=True
        ).hidden_states[-1]
    assert found == pytest.approx(states.mean((2, 3)).numpy(), abs=1e-5)
    model.train()  # a batch's own statistics would make it depend on its neighbours
    assert np.array_equal(model.features(images, batch_size=4), found) and model.training


def test_other_sizes_are_resized_to_the_size_of_training():
    model = untrained(size=16)
    images = toy(8, size=16)[0]
    larger = images.repeat(4, 1).repeat(4, 2)
    assert model.predict(larger) == pytest.approx(model.predict(images), abs=0.05)
    assert model.pixel_values(as_tensor(larger)).shape[-1] == model.input_size == 32


def test_logits_are_differentiable_in_the_images():
    x = as_tensor(toy()[0][:2]).requires_grad_()
    untrained().logits(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_wrong_images_are_refused():
    model, images = untrained(), toy()[0][:2]
    with pytest.raises(ValueError, match="must be uint8"):
        model.predict(images.astype(np.float32))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        model.predict(as_tensor(images) * 2 - 1)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        model.predict(as_tensor(images) * float("nan"))
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        model.predict(torch.rand(2, 16, 16, 3))
    with pytest.raises(TypeError, match="list"):
        model.predict([images[0]])


def test_thin_structures_survive_the_stem_of_the_networks():
    for backbone in (RESNET, REGNET):
        assert untrained(48, backbone).input_size == 96
        assert untrained(224, backbone).input_size == 224
    assert untrained(48, CONVNEXT).input_size == 48


def test_efficientnet_is_b0_with_batch_statistics_that_average():
    backbone = SimpleNamespace(
        architecture="efficientnet-b0", widths=[], depths=[], pretrained=None
    )
    network = untrained(32, backbone).network
    assert 3.9e6 < sum(p.numel() for p in network.parameters()) < 4.1e6
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {0.1}


def test_pretrained_folder_gets_a_new_head_and_the_right_family(tmp_path):
    source = classifier.build(RESNET, ["a", "b", "c"], 16)
    source.save(tmp_path / "pretrained")
    backbone = SimpleNamespace(**vars(RESNET) | {"pretrained": str(tmp_path / "pretrained")})
    model = classifier.build(backbone, NAMES, 16)
    assert model.network.config.num_labels == 2
    theirs, ours = source.network.resnet.state_dict(), model.network.resnet.state_dict()
    assert all(torch.equal(theirs[k], ours[k]) for k in theirs)
    classifier.build(RESNET, ["a", "b"], 16).save(tmp_path / "others")
    backbone.pretrained = str(tmp_path / "others")
    other, same = (classifier.build(backbone, names, 16) for names in (NAMES, ["a", "b"]))
    kept = last_layer(classifier.load(tmp_path / "others").network).weight
    assert torch.equal(last_layer(same.network).weight, kept)
    assert not torch.equal(last_layer(other.network).weight, kept)  # two labels, but others
    backbone.architecture = "convnext"
    with pytest.raises(ValueError, match="is a resnet, but the preset asks for"):
        classifier.build(backbone, NAMES, 16)
    backbone.architecture = "vgg"
    with pytest.raises(ValueError, match="'vgg' is not known; expected one of resnet"):
        classifier.build(backbone, NAMES, 16)


def test_a_damaged_classifier_names_its_file_and_what_it_lacks(tmp_path):
    folder = tmp_path / "m"
    classifier.build(RESNET, NAMES, 16).save(folder, card={"belongs_to": "x"})
    good = json.loads((folder / "calibration.json").read_text())
    without = {k: v for k, v in good.items() if k != "temperature"}
    for value, said in (
        (without, "temperature: Field required"),
        (good | {"temperature": [1.0]}, "temperature has 1 values for 2 label_names"),
        (good | {"temperature": [0.0, 1.0]}, "temperature.0"),
        (good | {"bias": "none"}, "bias"),
        ([1], "expected a JSON object, found list"),
    ):
        (folder / "calibration.json").write_text(json.dumps(value))
        with pytest.raises(FileError, match=f"calibration.json: {said}"):
            classifier.load(folder)
    (folder / "calibration.json").write_text(json.dumps(good))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:4], b""):
        weights.write_bytes(content)
        with pytest.raises(FileError, match=r"model\.safetensors: cannot be loaded"):
            classifier.load(folder)
    tensors = safetensors.torch.load(whole)
    tensors.pop(min(tensors))
    weights.write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
    with pytest.raises(FileError, match="1 weights of the resnet are missing"):
        classifier.load(folder)


def test_a_new_head_is_no_news(tmp_path, capfd):
    classifier.build(RESNET, ["a", "b", "c"], 16).save(tmp_path / "pretrained")
    backbone = SimpleNamespace(**vars(RESNET) | {"pretrained": str(tmp_path / "pretrained")})
    classifier.build(backbone, NAMES, 16)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def statistics(model):
    return [v for k, v in model.state_dict().items() if "running_" in k]


def pretrained(folder):
    fit(folder)
    return SimpleNamespace(**vars(RESNET) | {"pretrained": str(folder)})


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_statistics_stay_as_pretrained_if_asked(tmp_path, frozen):
    backbone = pretrained(tmp_path / "before")
    before, after = (
        classifier.load(tmp_path / "before"),
        fit(tmp_path / "after", backbone, data=toy(seed=5), epochs=1, frozen_batchnorm=frozen),
    )
    pairs = list(zip(statistics(before), statistics(after), strict=True))
    assert pairs and all(torch.equal(a, b) == frozen for a, b in pairs)
    weights = zip(before.parameters(), after.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in weights)


def test_a_pretrained_classifier_is_continued_from_its_own_logits(tmp_path):
    backbone = pretrained(tmp_path / "before")
    beside = json.loads((tmp_path / "before" / "calibration.json").read_text())
    beside["bias"] = [-0.5, 0.25]
    (tmp_path / "before" / "calibration.json").write_text(json.dumps(beside))
    images, labels, lesions, validation = toy(256, seed=3)
    rare = labels * (np.arange(256)[:, None] % [40, 1] == 0)
    rare[[0, 40]], validation[[0, 40]] = 1, [True, False]
    data = images, rare.astype(np.float32), [f"lesion_{i}" for i in range(256)], validation
    after = fit(tmp_path / "after", backbone, data, epochs=1, learning_rate=1e-12, augment=False,
                frozen_batchnorm=True)  # fmt: skip
    before = classifier.load(tmp_path / "before")
    assert after.bias[0] > 0.3 and before.bias.tolist() == [-0.5, 0.25]  # ink is rarer now
    x = as_tensor(images)
    with torch.no_grad():
        there, here = (m.raw_logits(x) + m.bias for m in (before, after))
    torch.testing.assert_close(there, here, atol=1e-4, rtol=0)


def test_loading_something_else_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no calibration\.json"):
        classifier.load(tmp_path)
    untrained().save(tmp_path / "m")
    beside = json.loads((tmp_path / "m" / "calibration.json").read_text())
    beside |= {"label_names": ["MEL"], "bias": [0.0], "temperature": [1.0]}
    (tmp_path / "m" / "calibration.json").write_text(json.dumps(beside))
    with pytest.raises(ValueError, match=r"2 outputs, but calibration\.json names 1"):
        classifier.load(tmp_path / "m")


# --- measurement --------------------------------------------------------------------------------


def test_attribute_table_agrees_with_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

    rng = np.random.default_rng(0)
    y = (rng.random((300, 2)) < 0.3).astype(float)
    p = (rng.random((300, 2)) + 0.4 * y) / 1.4
    table = classification.attribute_table(p, y, np.arange(300) // 2, NAMES, resamples=200)
    for j, row in table.iterrows():
        assert row["auc"] == pytest.approx(roc_auc_score(y[:, j], p[:, j]))
        decided = p[:, j] > 0.5
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y[:, j], decided))
        assert row["f1"] == pytest.approx(f1_score(y[:, j], decided))
        for measured in ("auc", "balanced_accuracy", "f1"):
            assert row[f"{measured}_low"] < row[measured] < row[f"{measured}_high"]


def test_reliability_of_calibrated_and_of_overconfident_probabilities():
    rng = np.random.default_rng(0)
    p = rng.random((20_000, 1))
    y = (rng.random(p.shape) < p).astype(float)
    good = classification.reliability_table(p, y, ["MEL"])
    assert good["ece"].iloc[0] < 0.02 and good["n"].sum() == 20_000
    assert good["observed"].to_numpy() == pytest.approx(good["stated"].to_numpy(), abs=0.05)
    bad = classification.reliability_table((p > 0.5).astype(float), y, ["MEL"])
    assert bad["ece"].iloc[0] == pytest.approx(0.25, abs=0.02)


def test_reliability_bins_have_equal_mass_counts_and_intervals():
    p = np.r_[np.linspace(0, 0.05, 900), np.linspace(0.9, 1, 100)][:, None]  # two heaps
    y = np.r_[np.zeros(895), np.ones(5), np.zeros(2), np.ones(98)][:, None]
    table = classification.reliability_table(p, y, ["MEL"])
    assert table["n"].sum() == 1000 and table["positives"].sum() == 103
    # The same weight in each: half of it lies with the 897 negatives, half with the 103 positives.
    mass = (table["n"] - table["positives"]) / 897 / 2 + table["positives"] / 103 / 2
    assert mass.between(0.08, 0.12).all() and len(table) == 10
    inside = (table["low"] <= table["observed"]) & (table["observed"] <= table["high"])
    assert inside.all() and (table["high"] - table["low"] > 0).all()
    balanced = classification.reliability_table(
        np.full((40, 1), 0.3), np.r_[np.ones(20), np.zeros(20)][:, None], ["MEL"]
    ).iloc[0]  # equal numbers: no weights, Wilson's own interval of 20 of 40; ties are one bin
    assert (balanced["low"], balanced["high"]) == pytest.approx((0.352, 0.648), abs=1e-3)
    assert balanced["n"] == 40 and balanced["ece"] == pytest.approx(0.2)


def test_so_weighted_no_label_depends_on_the_confounder():
    rng = np.random.default_rng(0)
    group = rng.random(2000) < 0.2
    labels = (rng.random((2000, 2)) < np.where(group[:, None], [0.6, 0.3], [0.05, 0.3])).astype(
        np.float32
    )
    known = rng.random(2000) < 0.7
    each = calibration.independent(labels, group, known)
    for y, w in zip(labels[known].T, each[known].T, strict=True):
        dark = group[known]
        shares = [np.average(y[dark == g], weights=w[dark == g]) for g in (False, True)]
        np.testing.assert_allclose(shares, y.mean(), rtol=1e-5)  # as many as before, in both
        assert w.mean() == pytest.approx(1, abs=1e-5)
    assert each[:, 1].max() < 1.2 < 2 < each[:, 0].max()
    nobody = calibration.independent(labels, np.zeros(2000, bool), known)
    np.testing.assert_allclose(nobody, 1, rtol=1e-5)


def test_what_confounds_does_not_pay(tmp_path):
    """Ink mostly comes with a black corner; a corner alone must not be called ink."""
    images, labels, lesions, validation = toy(480)
    rng = np.random.default_rng(1)
    corner = rng.random(480) < np.where(labels[:, 0] == 1, 0.9, 0.1)
    dim = rng.random(480) < 0.7  # most dots can hardly be seen: the corner is the better sign
    for i in np.flatnonzero((labels[:, 0] == 1) & dim):
        images[i, 1:4, 1:4] = images[i, 8, 2]
    images[corner, 12:, 12:] = 0
    called = {}
    for name, confounder in (("plain", None), ("weighted", corner)):
        model = fit(
            tmp_path / name, data=(images, labels, lesions, validation), confounder=confounder,
            epochs=8, augment=False,
        )  # fmt: skip
        table = classification.corner_table(model.predict(images) > 0.5, labels, NAMES, corner)
        rows = table[~table["shown"]].set_index("dark_corner")["called"]
        called[name] = rows[True] - rows[False]
    assert called["weighted"] < called["plain"] - 0.2


def test_the_table_of_corners_counts_calls_by_what_is_shown_and_dark():
    called = np.array([[1, 0], [0, 0], [1, 1], [0, 1], [1, 1]], bool)
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    dark = np.array([True, True, False, True, True])
    table = classification.corner_table(called, labels, NAMES, dark)
    assert table[["attribute", "shown", "dark_corner", "called", "n"]].values.tolist() == [
        ["ink", True, True, 0.5, 2], ["ink", False, False, 1.0, 1], ["ink", False, True, 0.5, 2],
    ]  # fmt: skip


def test_roc_table_runs_from_corner_to_corner():
    p, y = np.array([[0.1], [0.4], [0.35], [0.8]]), np.array([[0], [0], [1], [1]])
    table = classification.roc_table(p, y, ["MEL"])
    ends = table[["false_positive_rate", "true_positive_rate"]].iloc[[0, -1]].to_numpy()
    assert ends.tolist() == [[0, 0], [1, 1]]
    assert table["threshold"].max() <= 1


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A configuration with stage 01 replaced by the toy images."""
    import derm_rl.data

    frames = {}
    for i, split in enumerate(("reward", "judge", "test")):
        images, labels, lesions, _ = toy(96, seed=i)
        frame = pd.DataFrame({"image_id": [f"{split}_{j}" for j in range(96)]})
        frame["lesion_id"] = pd.array([f"{split}_{x}" for x in lesions], dtype="string")
        frame.loc[5, "lesion_id"] = pd.NA
        frame["diagnosis"] = np.where(labels[:, 1] == 1, "MEL", "NV")
        frame["ink"] = pd.array(labels[:, 0] == 1, dtype="boolean")
        frame["dark_corner"] = pd.array(np.arange(96) % 4 == 0, dtype="boolean")
        frames[split] = SimpleNamespace(
            frame=frame, images=images, labels=labels, label_names=NAMES, artifacts=["ink"]
        )
    monkeypatch.setattr(derm_rl.data, "load", lambda config, split: frames[split])
    monkeypatch.setattr(classification.pipeline, "load", lambda base: base)
    # An autoencoder that loses every image, so that nothing but chance agreement is left.
    monkeypatch.setattr(classification.pipeline, "reconstruct", lambda pipe, x: 0 * x + 128)
    return SimpleNamespace(
        name="smoke",
        preset="smoke",
        seed=0,
        overrides=(),
        image_size=16,
        data=SimpleNamespace(source="ham10000"),
        pipeline=SimpleNamespace(base="models/phantom-sd"),
        classifier=SimpleNamespace(
            reward=RESNET, judge=CONVNEXT, bootstrap=50, **vars(settings(epochs=2))
        ),
        stage_dir=lambda name: tmp_path / name,
    )


def test_a_share_of_a_phantom_split_is_drawn_anew_with_decoys():
    frame = phantom.table(40, 5, {"hair": 0.5})
    images = phantom.render_paths(frame["path"].tolist(), 16)[0]
    part = SimpleNamespace(frame=frame, images=images)
    found = classification._with_decoys(part, 0.4, seed=1)
    after = phantom.with_decoys(frame["path"].tolist(), 0.4, 1)
    changed = [a != b for a, b in zip(after, frame["path"], strict=True)]
    assert 8 <= sum(changed) <= 24
    for i, path in enumerate(after):
        assert np.array_equal(found[i], phantom.render_path(path, 16))
    assert np.array_equal(images, phantom.render_paths(frame["path"].tolist(), 16)[0])
    again = classification._with_decoys(part, 0.4, seed=2)
    assert (again != found).any()


def test_stage_trains_both_and_writes_every_table(stage, tmp_path, monkeypatch):
    from derm_rl import provenance

    recorded = {}
    monkeypatch.setattr(provenance, "record_metrics", lambda c, s, m: recorded.update(m))
    monkeypatch.setattr(provenance, "metric", lambda config, value, *a, **k: {"value": value})
    monkeypatch.setattr(provenance, "stamp", lambda config, stage, **facts: None)
    folder = classification.run(stage)
    assert folder == tmp_path / "02_reward_classifier"
    tables = {
        name: pd.read_csv(folder / f"{name}.csv")
        for name in ("history", "attributes", "roc", "reliability", "predictions", "corners")
    }
    assert all(set(t["model"]) == {"reward", "judge"} for t in tables.values())
    attributes = tables["attributes"].set_index(["model", "attribute"])
    for model in ("reward", "judge"):
        values = attributes.loc[model]["auc"]
        assert recorded[f"classifier.{model}.auc.ink"]["value"] == pytest.approx(
            values["ink"],
            abs=1e-5,  # the table rounds
        )
        assert recorded[f"classifier.{model}.auc.min"]["value"] == pytest.approx(
            values.min(), abs=1e-5
        )
        rows = tables["predictions"].query("model == @model")
        again = classification.attribute_table(
            rows[["p_ink", "p_MEL"]].to_numpy(), rows[NAMES].to_numpy(), rows["lesion_id"], NAMES, 0
        )
        assert again["auc"].to_numpy() == pytest.approx(values.to_numpy(), abs=1e-3)
    decoys = pd.read_csv(folder / "decoys.csv")
    free = pd.read_csv(folder / "predictions.csv").query("model == 'judge' and ink == 0")
    for model, rows in decoys.groupby("model"):
        assert sorted(rows["image_id"]) == sorted(free["image_id"])  # each without an artifact once
        calls = tables["predictions"].query("model == @model").set_index("image_id")["p_ink"] > 0.5
        assert rows["before"].tolist() == calls[rows["image_id"]].tolist()
        assert set(rows["family"]) == set(phantom_decoys.HELD_OUT)
        assert ((rows["p_ink"] > 0.5) == rows["called"]).all()  # the diagnosis does not count
        assert recorded[f"decoys.false.{model}"]["value"] == pytest.approx(rows["called"].mean())
    pairs = pd.read_csv(folder / "autoencoder.csv")
    kept = recorded["autoencoder.exact_match_kept"]
    assert kept["value"] == pytest.approx(pairs["reconstruction"].sum() / pairs["original"].sum())
    reward, judge = (classifier.load(folder / name) for name in ("reward", "judge"))
    assert reward.network.config.model_type != judge.network.config.model_type


def test_weights_count_in_the_temperature():
    z = np.array([[4.0], [4.0], [-4.0], [4.0]], np.float32)
    y = np.array([[1], [1], [0], [0]], np.float32)  # the last is sure and wrong
    plain = calibration.fit_temperature(z, y)
    each = np.array([[1], [1], [1], [0]], np.float32)
    assert calibration.fit_temperature(z, y, each) < plain
    assert calibration.fit_temperature(z, y, np.ones_like(y)) == plain
