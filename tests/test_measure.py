"""What is measured agrees with hand-made pictures and with the phantom's exact truth."""

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from derm_rl.captions import artifacts as detectors
from derm_rl.captions.measure import measure, measure_all, skin_tone, typology_angle
from derm_rl.captions.schema import ARTIFACTS, COLOURS, Measurements
from derm_rl.captions.segment import View, grown, shrunk
from derm_rl.data import phantom
from derm_rl.data.phantom_scene import drawn_shape
from derm_rl.data.table import TableError

SKIN = (222, 178, 150)
BROWN, DARK, BLACK = (150, 102, 68), (84, 50, 34), (26, 18, 18)
RED, WHITE, BLUE = (188, 64, 68), (238, 226, 222), (102, 118, 150)
N = 250


def canvas(height=96, width=96, skin=SKIN):
    """Skin with a little of a sensor's noise, as float."""
    noise = np.random.default_rng(0).normal(0, 2, (height, width, 3))
    return np.asarray(skin, float) + noise


def polar(height=96, width=96, centre=(0.5, 0.5)):
    """Distance in pixels and angle about a point, (H, W) each."""
    y, x = np.mgrid[:height, :width] + 0.5
    y, x = y - centre[0] * height, x - centre[1] * width
    return np.hypot(x, y), np.arctan2(y, x)


def put(image, where, colour, soft=1.0):
    """Blend a colour in where a signed distance in pixels is negative, with a soft edge."""
    alpha = 1 / (1 + np.exp(np.clip(where / soft, -30, 30)))[..., None]
    return image * (1 - alpha) + np.asarray(colour, float) * alpha


def pixels(image):
    return np.clip(image, 0, 255).astype(np.uint8)


def disc(colour=DARK, radius=24, skin=SKIN, shape=(96, 96)):
    return put(canvas(*shape, skin), polar(*shape)[0] - radius, colour)


@lru_cache(maxsize=1)
def sample():
    """Table, scenes and measurements of N phantoms, with enough of the rare ink."""
    frame = phantom.table(N, 3, phantom.PAPER_PREVALENCE | {"ink": 0.2})
    found = list(measure_all(frame, 96, workers=1))
    return frame, [phantom.scene_at(path) for path in frame["path"]], found


# ------------------------------------------------------------------------ hand-made lesions


def test_a_disc_is_symmetric_with_a_regular_border():
    m = measure(pixels(disc()))
    assert m.segmented and m.asymmetric_axes == 0 and m.asymmetry < 0.015
    assert m.border < 0.02 and m.irregular_border is False
    assert m.colours == ("dark brown",)
    assert m.diameter == pytest.approx(0.5, abs=0.05)
    assert m.area == pytest.approx(np.pi / 16, rel=0.12)
    assert m.box == pytest.approx((0.25, 0.25, 0.75, 0.75), abs=0.03)
    assert not any(m.artifacts.values())


def test_an_ellipse_is_as_regular_as_a_disc():
    y, x = np.mgrid[:96, :96] - 47.5
    u, v = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)
    m = measure(pixels(put(canvas(), (np.hypot(u / 32, v / 18) - 1) * 20, DARK)))
    assert m.border < 0.03 and m.irregular_border is False and m.asymmetric_axes == 0


def test_two_halves_of_different_colour_are_asymmetric_in_one_axis():
    r, _ = polar()
    half = np.maximum(r - 24, 47.5 - np.mgrid[:96, :96][1])
    m = measure(pixels(put(disc(BROWN), half, BLACK)))
    assert m.segmented and m.asymmetric_axes == 1
    assert {"light brown", "black"} <= set(m.colours)
    assert m.asymmetry < 0.03  # the score is of the shape alone


def test_a_pear_is_asymmetric_in_shape_and_a_rosette_is_not():
    y, x = (np.mgrid[:96, :96] - 47.5) * np.array([1.0, 1.2])[:, None, None]
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    pear = measure(pixels(put(canvas(), r - 24 * (1 + 0.22 * np.cos(3 * angle)), DARK)))
    rosette = measure(pixels(put(canvas(), r - 24 * (1 + 0.22 * np.cos(4 * angle)), DARK)))
    assert pear.asymmetry > 0.08 > 0.04 > rosette.asymmetry
    assert pear.irregular_border and rosette.irregular_border
    assert pear.asymmetric_axes == 1 and rosette.asymmetric_axes == 0


def test_shape_and_colour_that_differ_at_the_same_fold_make_one_axis():
    y, x = (np.mgrid[:96, :96] - 47.5) * np.array([1.0, 1.2])[:, None, None]
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    edge = r - 24 * (1 + 0.22 * np.cos(3 * angle))
    m = measure(pixels(put(put(canvas(), edge, BROWN), np.maximum(edge, -x), BLACK)))
    assert m.segmented and m.asymmetric_axes == 1


def test_a_leaning_pear_is_asymmetric_in_two_axes_however_even_its_colour():
    y, x = (np.mgrid[:96, :96] - 47.5) * np.array([1.0, 1.3])[:, None, None]
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    leaning = 24 * (1 + 0.2 * np.cos(3 * angle + np.pi / 4))
    m = measure(pixels(put(canvas(), r - leaning, DARK)))
    assert m.colours == ("dark brown",) and m.asymmetric_axes == 2
    slight = measure(pixels(put(canvas(), r - 24 - (leaning - 24) / 5, DARK)))
    assert slight.asymmetric_axes == 0


def test_border_grows_with_the_waves_of_the_outline():
    r, angle = polar()
    waves = [r - 25 * (1 + a * np.cos(5 * angle + 1)) for a in (0.0, 0.06, 0.12, 0.2)]
    found = [measure(pixels(put(canvas(), w, DARK))).border for w in waves]
    assert found == sorted(found) and found[-1] == pytest.approx(0.2 / np.sqrt(2), rel=0.25)


@pytest.mark.parametrize(
    ("name", "colour"), zip(COLOURS, (BROWN, DARK, BLACK, RED, WHITE, BLUE), strict=True)
)
def test_each_dermoscopic_colour_is_named(name, colour):
    found = set(measure(pixels(disc(colour))).colours)
    assert name in found and found <= {name, "dark brown"}  # which black fades through


def test_pink_light_makes_no_brown_lesion_red():
    light = np.array([1.0, 0.8, 0.82])
    assert "red" not in measure(pixels(disc(BROWN) * light)).colours


@pytest.mark.parametrize("skin", [(245, 220, 205), SKIN, (160, 110, 80), (88, 60, 48)])
def test_a_dark_lesion_is_found_on_every_skin(skin):
    m = measure(pixels(disc(BLACK, skin=skin)))
    assert m.segmented and m.diameter == pytest.approx(0.5, abs=0.06)


def test_a_lesion_that_leaves_the_image_keeps_to_it():
    m = measure(pixels(put(canvas(), polar(centre=(0.5, 0.1))[0] - 30, DARK)))
    assert m.segmented and m.box[0] <= 0.03 and all(0 <= v <= 1 for v in m.box)


# ------------------------------------------------------------------------ nothing, and oddities


def nothing_found(m):
    empty = (m.box, m.diameter, m.area, m.asymmetry, m.asymmetric_axes, m.border)
    return not m.segmented and m.colours == () and not any(v is not None for v in empty)


@pytest.mark.parametrize("value", [0, 128, 255], ids=["black", "gray", "white"])
def test_a_uniform_image_has_no_lesion(value):
    m = measure(np.full((96, 96, 3), value, np.uint8))
    assert nothing_found(m) and m.irregular_border is None
    assert set(m.artifacts) == set(m.scores) == set(ARTIFACTS)
    assert not any(m.artifacts[a] for a in ("hair", "gel_bubble", "ruler", "ink"))
    assert np.isfinite([m.ita, *m.scores.values()]).all()


def test_bare_skin_has_no_lesion():
    assert nothing_found(measure(pixels(canvas())))


def test_noise_and_extremes_are_measured_without_a_warning(recwarn):
    rng = np.random.default_rng(1)
    for image in (
        rng.integers(0, 256, (96, 96, 3)),
        rng.integers(0, 2, (40, 70, 3)) * 255,
        np.eye(64)[..., None].repeat(3, 2) * 255,
        np.indices((50, 50)).sum(0)[..., None].repeat(3, 2),
    ):
        m = measure(image.astype(np.uint8))
        assert isinstance(m, Measurements) and np.isfinite([m.ita, *m.scores.values()]).all()
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("shape", [(16, 16), (17, 240), (240, 17), (150, 200), (450, 600)])
def test_any_size_and_shape_is_measured(shape):
    r = polar(*shape)[0] / min(shape) * 96
    m = measure(pixels(put(canvas(*shape), r - 24, DARK)))
    assert isinstance(m, Measurements)
    if min(shape) >= 150:
        assert m.segmented and m.colours == ("dark brown",) and m.asymmetric_axes == 0
        assert m.diameter == pytest.approx(0.5 * min(shape) / max(shape), abs=0.05)


def test_gray_images_are_measured():
    gray = pixels(disc())[..., 0]
    m = measure(gray)
    assert m == measure(gray[..., None]) == measure(gray[..., None].repeat(3, 2))
    assert m.segmented and not m.artifacts["ink"]


def test_the_size_of_the_image_matters_little():
    shape = (288, 288)
    large = put(canvas(*shape), (polar(*shape)[0] - 72) / 3, DARK)
    one, other = measure(pixels(disc())), measure(pixels(large))
    assert one.diameter == pytest.approx(other.diameter, abs=0.03) and one.colours == other.colours


def test_read_only_and_strided_arrays_are_left_as_they_are():
    image = pixels(disc())[:, ::-1]
    before = image.copy()
    image.flags.writeable = False
    assert measure(image) == measure(before) and (image == before).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((96, 96, 3)), np.zeros((96, 96, 4), np.uint8), np.zeros((2, 96, 96, 3), np.uint8),
        np.zeros((8, 96, 3), np.uint8), np.zeros((0, 0, 3), np.uint8), "image", None,
    ],
    ids=["float", "alpha", "batch", "thin", "empty", "text", "none"],
)  # fmt: skip
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="expected"):
        measure(image)


# ------------------------------------------------------------------------------ skin tone


@pytest.mark.parametrize(
    ("ita", "tone"),
    [(90, "very light"), (55.1, "very light"), (55, "light"), (41, "intermediate"), (28, "tan"),
     (10, "brown"), (-29.9, "brown"), (-30, "dark"), (-90, "dark")],
)  # fmt: skip
def test_classes_of_skin_tone(ita, tone):
    assert skin_tone(ita) == tone


def test_typology_angle():
    assert typology_angle(70, 20) == pytest.approx(45)
    assert typology_angle(50, 15) == 0
    assert typology_angle(40, 10) == pytest.approx(-45)
    assert typology_angle(70, -3) == pytest.approx(90, abs=0.1)


def test_skin_tone_is_that_of_the_skin_not_of_the_lesion():
    assert measure(pixels(disc(WHITE, skin=(88, 60, 48)))).skin_tone in ("brown", "dark")
    assert measure(pixels(disc(BLACK, skin=(245, 220, 205)))).skin_tone == "very light"


# ------------------------------------------------------------------------------- artifacts


def test_a_few_long_lines_are_hair_and_a_short_one_is_not():
    y, x = np.mgrid[:96, :96].astype(float)
    lines = [np.abs(x + k * y - c) / np.hypot(1, k) - 1 for k, c in ((0.3, 20), (0.2, 95), (1, 45))]
    hairy = measure(pixels(put(disc(), np.minimum.reduce(lines), BLACK, 0.3)))
    assert hairy.artifacts["hair"] and hairy.scores["hair"] > 0
    short = np.maximum(lines[1], np.abs(y - 20) - 5)
    assert not measure(pixels(put(disc(), short, BLACK, 0.3))).artifacts["hair"]


def test_rims_and_lines_along_an_edge_are_no_hair():
    y, x = np.mgrid[:96, :96].astype(float)
    rings = [np.abs(polar(centre=c)[0] - 8) - 1 for c in ((0.15, 0.2), (0.2, 0.85), (0.85, 0.8))]
    half = np.minimum.reduce([np.maximum(ring, 15 - y) for ring in rings[:2]])
    for dark in (np.minimum.reduce(rings), half):
        assert measure(pixels(put(disc(), dark, BLACK, 0.3))).scores["hair"] < -1
    for depth in (3, 10, 18):
        along = np.abs(y - depth - 0.03 * x) - 1  # a ruler's edge, a frame, a crack
        for turned in (along, along.T, along[::-1]):
            assert measure(pixels(put(disc(), turned, BLACK, 0.3))).scores["hair"] < -1
    inset = np.minimum.reduce([y, x, 95 - y, 95 - x])
    for depth in (3, 7):  # a frame on all sides, and on two
        assert (
            measure(pixels(put(disc(), np.abs(inset - depth) - 1, BLACK, 0.3))).scores["hair"] < -1
        )
        two = np.abs(np.minimum(y, x) - depth) - 1
        assert measure(pixels(put(disc(), two, BLACK, 0.3))).scores["hair"] < -1
    crossing = [np.abs(x - 0.9 * y - c) / 1.35 - 1 for c in (-75, 65)]  # as long, but it is none
    crossing += [np.abs(y - 84) - 1]
    assert measure(pixels(put(disc(), np.minimum.reduce(crossing), BLACK, 0.3))).artifacts["hair"]


def test_even_ticks_at_an_edge_are_a_ruler_and_uneven_ones_are_not():
    y, x = np.mgrid[:96, :96].astype(float)
    even = np.maximum(np.abs((x + 3.5) % 7 - 3.5) - 1, y - 8)
    assert measure(pixels(put(disc(), even, BLACK, 0.3))).artifacts["ruler"]
    assert measure(pixels(put(disc(), even.T, BLACK, 0.3))).artifacts["ruler"]
    assert measure(pixels(put(disc(), even[::-1], BLACK, 0.3))).artifacts["ruler"]
    where = np.array([5, 9, 22, 31, 52, 57, 80])
    uneven = np.maximum(np.abs(x[..., None] - where).min(-1) - 1, y - 8)
    assert not measure(pixels(put(disc(), uneven, BLACK, 0.3))).artifacts["ruler"]


def test_a_bright_ring_is_a_bubble():
    r = polar(centre=(0.2, 0.2))[0]
    m = measure(pixels(put(disc(), np.abs(r - 9) - 1, (255, 253, 250), 0.4)))
    assert m.artifacts["gel_bubble"] and m.segmented and m.asymmetric_axes == 0


def test_a_violet_stroke_is_ink_outside_the_lesion_only():
    y, x = np.mgrid[:96, :96].astype(float)
    stroke = np.maximum(np.abs(x - 8) - 2, np.abs(y - 48) - 30)
    assert measure(pixels(put(disc(), stroke, (60, 40, 150), 0.4))).artifacts["ink"]
    assert not measure(pixels(disc(BLUE))).artifacts["ink"]


def test_a_round_aperture_has_dark_corners_and_a_shadow_has_not():
    r, _ = polar()
    assert measure(pixels(put(disc(), 52 - r, (4, 4, 4), 0.7))).artifacts["dark_corner"]
    shadow = put(disc(), polar(centre=(0, 0))[0] - 20, (4, 4, 4), 0.7)
    assert not measure(pixels(shadow)).artifacts["dark_corner"]


def test_growing_and_shrinking_masks():
    point = np.zeros((15, 15), bool)
    point[7, 7] = True
    assert grown(point, 0).sum() == 1 and grown(point).sum() == 5 and grown(point, 2).sum() == 21
    assert (shrunk(grown(point, 4), 4) == point).all()
    assert shrunk(np.ones((5, 5), bool)).sum() == 9  # what lies beyond the image is outside
    assert not grown(np.zeros((4, 4), bool), 3).any()


def test_lines_do_not_answer_to_a_uniform_image_and_less_to_an_edge():
    flat = np.full((64, 64), 50.0)
    assert np.abs(detectors.lines(flat)).max() < 1e-3
    line, edge = flat.copy(), flat.copy()
    line[:, 31:33], edge[:, 32:] = 20, 20
    assert detectors.lines(line)[0].max() > 1.5 * detectors.lines(edge)[0].max()
    assert View(np.full((32, 32, 3), 0.5, np.float32)).field.all()


# ---------------------------------------------------------------------- against the phantom


@pytest.mark.parametrize("name", ["hair", "gel_bubble", "ruler", "ink", "dark_corner"])
def test_artifacts_of_the_phantom(name):
    frame, _, found = sample()
    true = frame[name].to_numpy(bool)
    seen = np.array([m.artifacts[name] for m in found])
    assert 2 * (true & seen).sum() / (true.sum() + seen.sum()) > 0.9


@pytest.mark.parametrize("size", [48, 96])
def test_a_bubble_without_hair_has_none_and_hair_beside_bubbles_is_seen(size):
    def hairs(*shown):
        drawn = [phantom.path_of(5, 4 * i, ("NV", "MEL")[i % 2], shown) for i in range(24)]
        return np.mean([m.artifacts["hair"] for m in measure_all(drawn, size, workers=1)])

    assert hairs("gel_bubble") <= 2 / 24  # of its dark outline, 0.5 were taken for hair once
    assert hairs("hair", "gel_bubble") >= 21 / 24


def test_lesions_of_the_phantom():
    _, scenes, found = sample()
    kept = [(s, m) for s, m in zip(scenes, found, strict=True) if m.segmented]
    assert len(kept) > 0.98 * N
    off = np.array([len(m.colours) - len(s.colours) for s, m in kept])
    assert (np.abs(off) <= 1).mean() > 0.9 and abs(off.mean()) < 0.3
    drawn = np.array([drawn_shape(s) for s, _ in kept]).T
    for name, true, least in zip(("asymmetry", "border"), drawn, (0.72, 0.82), strict=True):
        assert spearmanr(true, [getattr(m, name) for _, m in kept]).statistic > least, name
    turned = np.array([(s.skin_lab[0] > 60) == (m.ita > 28) for s, m in kept])
    assert turned.mean() > 0.85


def test_masks_agree_with_the_phantoms_own():
    frame, _, found = sample()
    paths = frame["path"].tolist()[:40]
    _, masks = phantom.render_paths(paths, 96, workers=1)
    true = masks.mean((1, 2))
    area = np.array([m.area if m.segmented else 0 for m in found[:40]])
    assert np.median(np.abs(area / true - 1)) < 0.12


# ------------------------------------------------------------------------------ many images


def test_measure_all_keeps_the_order_whatever_the_workers():
    frame = phantom.table(70, 5)
    alone = list(measure_all(frame, 64, workers=1))
    assert alone == list(measure_all(frame["path"].tolist(), 64, workers=2, progress=True))
    assert alone[3] == measure(phantom.render_path(frame["path"][3], 64)) and len(alone) == 70


def test_measure_all_of_nothing_is_nothing():
    assert list(measure_all([])) == []
    assert list(measure_all(pd.DataFrame({"path": []}))) == []


def test_measure_all_names_a_missing_image(tmp_path):
    with pytest.raises(TableError, match="gone.png: not found"):
        list(measure_all([str(tmp_path / "gone.png")], workers=1))
