"""Stage 06: features in which distances mean something, and the tables made of them."""

import builtins
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from derm_rl import prompts
from derm_rl.data import phantom
from derm_rl.evaluation import features, quality_stage

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def images():
    addresses = [phantom.path_of(5, i, "NV", ("ink",) if i % 2 else ()) for i in range(6)]
    return phantom.render_paths(addresses, 48)[0]


# ------------------------------------------------------------------------------------ features


def test_white_stays_white_and_black_black():
    for value in (0, 1, 127, 254, 255):
        seen = features.pixel_values(np.full((1, 48, 48, 3), value, np.uint8))
        assert seen.shape == (1, 3, 224, 224)
        assert seen.numpy() == pytest.approx((value - 127) / 128, abs=1e-5)


def test_the_network_knows_imagenet():
    from skimage import data

    cat = features.network()(features.pixel_values(data.cat()[None]))
    assert int(cat.argmax()) in range(281, 286)  # the classes of cats


def test_imagenet_features_are_the_last_ones_whatever_the_batch(images):
    found = features.imagenet(images, batch_size=4)
    assert found.shape == (6, 1280) and found.std(0).max() > 0.05
    model = features.network()
    with torch.no_grad():
        maps = model.extract_features(features.pixel_values(images))
    assert found == pytest.approx(maps.mean((2, 3)).numpy(), abs=1e-4)
    assert features.imagenet(images[:0]).shape == (0, 1280)


def test_perceptual_distance_is_unweighted_lpips(images):
    vectors = features.perceptual(images[:2], batch_size=1)
    model = features.network()
    x, maps = features.pixel_values(images[:2]), []
    with torch.no_grad():
        x = model._swish(model._bn0(model._conv_stem(x)))
        for i, block in enumerate(model._blocks):
            x = block(x)
            if i in features.DEPTHS:
                maps.append(x)
    assert [m.shape[-1] for m in maps] == [112, 56, 28, 14, 7]
    expected = 0.0
    for m in maps:
        unit = m / m.norm(dim=1, keepdim=True)
        expected += float(((unit[0] - unit[1]) ** 2).sum(0).mean())
    assert ((vectors[0] - vectors[1]) ** 2).sum() == pytest.approx(expected, rel=1e-4)
    assert len(model._blocks[0]._forward_hooks) == 0


class Published(torch.nn.Module):
    """Answers as the published networks do: colours averaged over halves, or LPIPS's vectors."""

    def forward(
        self,
        images: torch.Tensor,
        return_features: bool = False,
        resize_images: bool = True,
        return_lpips: bool = False,
    ) -> torch.Tensor:
        assert return_features != return_lpips and images.dtype == torch.uint8
        assert not (return_lpips and resize_images)
        x = images.float() / 255
        return x.mean(3).flatten(1) if return_features else x.flatten(1)


def test_published_networks_are_used_where_their_files_are(images, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(features.MissingFeatures, match=r"hub/checkpoints/inception-2015-12-05\.pt"):
        features.published("inception", images)
    for name in features.PUBLISHED:
        file = features.published_file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.jit.script(Published()).save(file)
    scaled = images / np.float32(255)
    found = features.published("inception", images, batch_size=4)
    assert found == pytest.approx(scaled.mean(2).transpose(0, 2, 1).reshape(6, -1), abs=1e-6)
    vectors = features.published("lpips", images[:2], batch_size=1)
    assert ((vectors[0] - vectors[1]) ** 2).sum() == pytest.approx(
        ((scaled[0] - scaled[1]) ** 2).sum(), rel=1e-4
    )


def test_absent_packages_are_named(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("efficientnet"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    features.network.cache_clear()
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(features.MissingFeatures, match=r"pip install 'derm-rl\[imagenet\]'"):
        features.network()


# -------------------------------------------------------------------------------------- tables

TEXTS = [prompts.render(prompts.Finding(d, a)) for d in ("MEL", "NV") for a in ((), ("ink",))]
TOLD = [text for text in TEXTS for _ in range(20)]


def sets(**spread):
    """Features (80, 4) of each set, those of a prompt around a place of its own."""
    places = np.repeat(RNG.normal(0, 3, (4, 4)), 20, 0)
    names = ("reference", "held_out", "stage1", "rl")
    return {k: places + spread.get(k, 1.0) * RNG.normal(size=(80, 4)) for k in names}


def test_a_collapse_shows_in_coverage_recall_and_spread_and_not_in_precision():
    found = quality_stage.measured("judge", sets(rl=0.05), TOLD, n=50, seed=0)
    every = found["quality"]
    table = every[every["group"] == "all"].set_index(["model", "measure"])["value"]
    assert table["rl", "precision"] == 1 and table["stage1", "coverage"] > 0.8
    for measure in ("coverage", "recall"):
        assert table["rl", measure] < 0.75 * table["stage1", measure]
        assert table["held_out", measure] > 0.8
        difference = table["rl", measure] - table["stage1", measure]
        assert table["gain", measure] == pytest.approx(difference)
    assert table["rl", "spread"] < 0.1 * table["stage1", "spread"]
    assert table["gain", "spread_ratio"] == pytest.approx(
        table["rl", "spread"] / table["stage1", "spread"]
    )
    assert table["rl", "fid"] > 2 * table["stage1", "fid"] > 0
    assert set(every["group"]) == {"all", "MEL", "NV"}
    names = quality_stage.headline(every)
    for name in ("judge.coverage.gain", "judge.precision.rl", "judge.recall.stage1"):
        assert f"quality.{name}" in names
    low, high = names["quality.judge.coverage.gain"][1:3]
    assert low <= table["gain", "coverage"] <= high < 0
    assert names["quality.spread.ratio"].value < 0.1

    within = found["prompts"].set_index(["model", "measure", "prompt"])["value"]
    assert len(within["rl", "coverage"]) == len(within["gain", "coverage"]) == 4
    assert (within["gain", "spread_ratio"] < 0.2).all()
    near = found["images"]
    inside = near[(near["model"] == "rl") & (near["measure"] == "coverage")]
    assert inside["inside"].mean() == pytest.approx(table["rl", "coverage"])
    assert inside["image"].tolist() == list(range(80))


def test_a_prompt_is_covered_by_its_own_images_alone():
    """Nevi with ink that look like melanomas with ink cover nothing among nevi."""
    given = sets()
    given["rl"][60:] = given["rl"][20:40] + 0.01
    found = quality_stage.measured("judge", given, TOLD, n=20, seed=0)
    within = found["prompts"].set_index(["model", "measure", "prompt"])["value"]
    assert within["rl", "coverage", TOLD[60]] < 0.3 * within["stage1", "coverage", TOLD[60]]
    assert within["rl", "coverage", TOLD[20]] > 0.5


def test_a_diagnosis_of_too_few_images_is_no_group_and_rows_are_those_of_the_files():
    few = list(range(43))  # three nevi
    given = {name: x[few] for name, x in sets().items()}
    at = np.arange(43) * 2
    lesions = np.repeat(np.arange(22), 2)[:43]
    told = [TOLD[i] for i in few]
    found = quality_stage.measured("judge", given, told, 50, 0, lesions, rows=at)
    assert set(found["quality"]["group"]) == {"all", "MEL"}
    near = found["images"].query("model == 'rl' and measure == 'precision'")
    assert near["image"].tolist() == at.tolist()
    assert "fid" in set(found["quality"].query("group == 'MEL'")["measure"])  # 40 of 4 features


def test_real_images_come_from_two_halves_by_lesion_as_many_of_each_prompt(monkeypatch):
    lesions = np.repeat([f"L{i}" for i in range(20)], 3)
    findings = [prompts.Finding("NV")] * 45 + [prompts.Finding("MEL")] * 15
    findings[7] = prompts.Finding("NV", ("ruler",))  # in one half alone
    test = SimpleNamespace(
        lesion_ids=lesions, findings=findings,
        images=np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8),
    )  # fmt: skip
    monkeypatch.setattr(quality_stage.data, "load", lambda config, split: test)
    config = SimpleNamespace(data=SimpleNamespace(source="ham10000"), seed=0)
    made = np.repeat([prompts.render(f) for f in (findings[0], findings[50], findings[7])], 8)
    shown, texts, of = quality_stage._others(config, made)
    rows = {name: x[:, 0, 0, 0].astype(int) for name, x in shown.items()}
    for x in rows.values():
        assert [prompts.render(findings[i]) for i in x] == texts == sorted(texts)
    assert max(texts.count(t) for t in set(texts)) == 8 and made[16] not in texts
    assert not set(lesions[rows["reference"]]) & set(lesions[rows["held_out"]])
    assert of.tolist() == lesions[rows["reference"]].tolist()


def test_fresh_phantoms_are_as_many_of_each_prompt_and_none_twice(monkeypatch):
    monkeypatch.setattr(quality_stage, "MOST", 4)
    config = SimpleNamespace(
        data=SimpleNamespace(source="phantom", phantom_seed=0), image_size=16,
        alignment=SimpleNamespace(seed=100),
    )  # fmt: skip
    shown, texts, lesions = quality_stage._others(config, np.array(TOLD[15:24]))
    assert texts == sorted(TOLD[16:24]) and lesions is None
    both = np.concatenate([shown["reference"], shown["held_out"]]).reshape(16, -1)
    assert len(np.unique(both, axis=0)) == 16


def test_a_point_of_the_front_has_as_many_images_of_each_prompt_as_the_reference_it_meets():
    made = np.repeat(["a", "b", "c"], 8)  # stage 05's images
    few, of = quality_stage._few(made, ["a", "b", "b", "b", "b"], 3)  # c: no real image
    assert few.tolist() == [0, 3, 4, 5]  # of 3 images each: the first of a, all of b
    assert of.tolist() == [0, 1, 2, 3]


def test_the_front_falls_where_a_point_collapses():
    random = np.random.default_rng(0)
    reference = random.normal(size=(60, 4))
    at = {
        ("rl", 1.0, 1.0, 1.0): random.normal(size=(60, 4)),
        ("rl", 4.0, 1.0, 1.0): 0.05 * random.normal(size=(60, 4)),
    }
    table = quality_stage._front("judge", reference, at, 200, 0, None).set_index("guidance_scale")
    assert table.loc[4.0, "coverage"] < 0.5 < table.loc[1.0, "coverage"]
    assert table.loc[4.0, "precision"] == 1
    assert (table["coverage_low"] <= table["coverage"]).all()
    assert (table["coverage"] <= table["coverage_high"]).all()
