"""Near-identical images: two files, or two photographs, that show one lesion under two names.

Data sets hold such pairs without saying so (in HAM10000, ISIC_0025226 and ISIC_0030074 are one
lesion with the same hair, under two lesion ids), and a split that parts them leaks. They are found
in three steps, each on what the one before left:

1. A perceptual hash: the power spectrum in polar coordinates, and of it the magnitudes along the
   angle. Neither shifts nor turns nor mirroring change it, and small crops change it little.
   Nearest neighbours in a k-d tree are the candidates, so that the cost is about linear.
2. The spectra's correlation along the angle says how one image is turned against the other, a
   cross-correlation of their textures how it is shifted (Reddy & Chatterji, IEEE Trans. Image
   Processing 5, 1996).
3. Small tiles of one image are looked for in the other. The score is the mean correlation of those
   found where all the others say, 0 for the rest, less what chance gives: hairs, pores and pigment
   agree in place, and an outline alone does not.

Drawn images (phantoms) are not compared: their lesion ids are exact, and different ones share the
lattice of a pigment network or a ruler to the pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.fft import dctn, fft2, irfft, irfft2, rfft, rfft2

from derm_rl import dependencies
from derm_rl.data import images, table
from derm_rl.io import atomic_path, cannot_read, passing, set_aside

# Least score of a pair. Of HAM10000's pairs under different lesion ids, the 21 above it are one
# lesion to the eye, and 0.13 is the highest of others; noise without any detail reaches 0.2.
SAME = 0.22
SIDE = 96  # pixels of the thumbnails; hairs of a 150 px field are still seen
NEIGHBOURS = 6, 4  # candidates of each image by spectrum and by layout
ALIKE = 0.35  # correlation of whole textures below which tiles are not looked at
TILE, REACH = 16, 4  # side of a tile and how far it may lie from where it is expected, pixels
COARSE = (0.7, 2)  # scales of the texture, pixels
_RADII = np.geomspace(1.5, 16, 12)  # half cycles a field
_ANGLES = 64  # over half a turn
_BATCH = 256


def find(frame: pd.DataFrame, cache: Path | None = None, progress: bool = False) -> pd.DataFrame:
    """Pairs of near-identical images of a table: ``image_id_1, image_id_2, score``, best first.

    Args:
        frame: with ``image_id`` and ``path``. What cannot be read or shows nothing has no pair.
        cache: file of thumbnails, by the content of each image; made, and added to.
    """
    drawn = frame["path"].str.partition("::")[0].isin(list(table.OPENERS))
    ids, thumbs = thumbnails(frame[~drawn], cache, progress)
    found = []
    if len(ids) > 1:
        # Copies of one image would be all the neighbours that it has.
        _, first, again = np.unique(
            thumbs.reshape(len(thumbs), -1), axis=0, return_index=True, return_inverse=True
        )
        found = [(int(first[g]), i, 1.0) for i, g in enumerate(again) if first[g] != i]
        rows = np.sort(first)
        found += [(int(rows[a]), int(rows[b]), s) for a, b, s in _scored(thumbs[rows], progress)]
    pairs = [(*sorted((ids[a], ids[b])), score) for a, b, score in found]
    out = pd.DataFrame(pairs, columns=["image_id_1", "image_id_2", "score"])
    return out.sort_values(["score", "image_id_1", "image_id_2"], ascending=[False, True, True],
                           ignore_index=True)  # fmt: skip


def thumbnails(
    frame: pd.DataFrame, cache: Path | None = None, progress: bool = False
) -> tuple[list[str], np.ndarray]:
    """Ids and grey central squares (N, SIDE, SIDE) uint8 of the images that show something."""
    from joblib import Parallel, delayed
    from tqdm import tqdm

    known = _read_cache(cache)

    def look(address: str) -> tuple[str, np.ndarray] | None:
        try:
            key = sha256(images.read_bytes(address)).hexdigest()
            if key in known:
                return key, known[key]
            image = table.load_image(address, SIDE).astype(np.float32)
        except Exception as error:  # of archives and decoders; whoever uses the images says so
            if passing(error):
                raise cannot_read(address, error) from error
            return None
        return key, (image @ np.float32([0.299, 0.587, 0.114]) + 0.5).astype(np.uint8)

    # Threads suffice: Pillow decodes outside the interpreter lock.
    parallel = Parallel(n_jobs=-1, prefer="threads", return_as="generator")
    done = parallel(delayed(look)(address) for address in frame["path"])
    bar = tqdm(done, total=len(frame), desc="same images?", unit="image", mininterval=1,
               disable=not progress)  # fmt: skip
    read = {i: r for i, r in zip(frame["image_id"], bar, strict=True) if r is not None}
    if cache is not None and (new := {k: t for k, t in read.values() if k not in known}):
        _write_cache(cache, known | new)
    shown = {i: thumb for i, (_, thumb) in read.items() if thumb.std() > 1}
    empty = np.empty((0, SIDE, SIDE), np.uint8)
    return list(shown), np.stack(list(shown.values())) if shown else empty


def _read_cache(file: Path | None) -> dict[str, np.ndarray]:
    if file is None or not file.is_file():
        return {}
    try:
        with np.load(file) as stored:
            if str(stored["code"]) != dependencies.code("derm_rl.data.same"):
                return {}
            return dict(zip(stored["keys"].tolist(), stored["thumbs"], strict=True))
    except Exception as error:  # anything, on torn files
        if passing(error):
            raise cannot_read(file, error) from error
        set_aside(file, "torn", f"not a whole file of thumbnails ({error})")
        return {}


def _write_cache(file: Path, known: dict[str, np.ndarray]) -> None:
    with atomic_path(file) as temporary, open(temporary, "wb") as opened:
        np.savez(
            opened,
            code=dependencies.code("derm_rl.data.same"),
            keys=list(known),
            thumbs=np.stack(list(known.values())),
        )


# ------------------------------------------------------------------------------- hash, candidates


def spectra(thumbs: np.ndarray) -> np.ndarray:
    """Power spectra (N, radius, frequency along the angle) complex of thumbnails, scaled alike."""
    side = SIDE // 2
    r = np.hypot(*np.meshgrid(*[(np.arange(side) - (side - 1) / 2) / (side / 2)] * 2))
    window = np.cos(np.clip(r, 0, 1) * np.pi / 2).astype(np.float32)
    angle = np.arange(_ANGLES) / _ANGLES * np.pi
    y, x = _RADII[:, None] * np.sin(angle), _RADII[:, None] * np.cos(angle)
    parts = []
    for start in range(0, len(thumbs), _BATCH):
        small = _halved(thumbs[start : start + _BATCH])
        small = small - (small * window).sum((1, 2), keepdims=True) / window.sum()
        power = np.abs(fft2(small * window, (SIDE, SIDE)))  # zeros around: half cycles
        # The exponent keeps one strong blob from deciding alone.
        polar = np.sqrt(_sample(power, y % SIDE, x % SIDE))
        polar /= np.sqrt((polar**2).sum((1, 2), keepdims=True)) + 1e-9
        parts.append(rfft(polar, axis=2, norm="ortho")[:, :, :16].astype(np.complex64))
    return np.concatenate(parts)


def hashes(spectrum: np.ndarray, thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Perceptual hashes, two of each image: near in Euclidean distance if images are alike.

    The first (N, 24) is of the spectrum, indifferent to shifts, turns and mirroring; the second
    (N, 24) of the layout (low frequencies of the cosine transform), which bears a zoom better.
    """
    turning = np.abs(spectrum[:, :, :6]).reshape(len(spectrum), -1).astype(np.float64)
    turning = turning / (turning.std(0) + 1e-9)
    small = thumbs.reshape(-1, SIDE // 3, 3, SIDE // 3, 3).mean((2, 4), dtype=np.float32)
    layout = dctn(small, axes=(1, 2))[:, :8, :8].reshape(len(thumbs), -1)[:, 1:].astype(np.float64)
    layout /= np.linalg.norm(layout, axis=1, keepdims=True) + 1e-9
    return _principal(turning), _principal(layout)


def _principal(values: np.ndarray, length: int = 24) -> np.ndarray:
    values = values - values.mean(0)
    return values @ np.linalg.eigh(values.T @ values)[1][:, ::-1][:, :length]


def candidates(values: np.ndarray, neighbours: int) -> np.ndarray:
    """Pairs (M, 2) of rows, the first the smaller, of each row with its nearest ones."""
    from scipy.spatial import cKDTree

    k = min(neighbours + 1, len(values))
    near = cKDTree(values).query(values, k=k)[1].reshape(len(values), -1)
    pairs = np.stack([np.repeat(np.arange(len(values)), near.shape[1]), near.ravel()], 1)
    return np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)


def _halved(images: np.ndarray) -> np.ndarray:
    n, side, _ = images.shape
    return images.reshape(n, side // 2, 2, side // 2, 2).mean((2, 4), dtype=np.float32)


def _sample(images: np.ndarray, y: np.ndarray, x: np.ndarray, each: bool = False) -> np.ndarray:
    """Bilinear samples of images (N, S, S) at y, x in [0, S), which wrap around.

    Both are of one shape for all images, or (N, …) with ``each``.
    """
    n, side, _ = images.shape
    top, left = y.astype(np.int32), x.astype(np.int32)
    wy, wx = (y - top).astype(np.float32), (x - left).astype(np.float32)
    below, right = top + 1, left + 1
    below[below == side] = 0
    right[right == side] = 0
    if each:
        first = np.arange(n, dtype=np.int32).reshape(n, *[1] * (y.ndim - 1)) * side**2
        top, below, flat = first + top * side, first + below * side, images.ravel()
        corner = [flat.take(row + column) for row in (top, below) for column in (left, right)]
    else:
        corner = [images[:, row, column] for row in (top, below) for column in (left, right)]
    upper = corner[0] + (corner[1] - corner[0]) * wx
    lower = corner[2] + (corner[3] - corner[2]) * wx
    return upper + (lower - upper) * wy


# ------------------------------------------------------------------------------------ the check


def _scored(thumbs: np.ndarray, progress: bool) -> Iterator[tuple[int, int, float]]:
    """Pairs of different thumbnails whose score is ``SAME`` or more."""
    from tqdm import tqdm

    spectrum = spectra(thumbs)
    both = zip(hashes(spectrum, thumbs), NEIGHBOURS, strict=True)
    pairs = np.unique(np.concatenate([candidates(h, n) for h, n in both]), axis=0)

    @lru_cache(maxsize=1 << 14)  # 300 MB
    def fine(row: int) -> np.ndarray:
        return texture(thumbs[row : row + 1], 0.7, 3)[0].astype(np.float16)

    small = texture(_halved(thumbs), *COARSE)
    for start in tqdm(range(0, len(pairs), _BATCH), desc="same images?", unit=f"×{_BATCH}",
                      mininterval=1, disable=not progress):  # fmt: skip
        a, b = pairs[start : start + _BATCH].T
        mirrored, angle = turns(spectrum[a], spectrum[b])
        alike, half, shift = shifts(turned(small[a], mirrored, angle), small[b])
        angle = angle + 180 * half
        for k in np.flatnonzero(alike >= ALIKE):
            moved = turned(np.float32(fine(a[k])[None]), mirrored[k : k + 1], angle[k : k + 1])[0]
            score = tiles_found(moved, np.float32(fine(b[k])), 2 * shift[k])
            if score >= SAME:
                yield int(a[k]), int(b[k]), score


def texture(images: np.ndarray, low: float, high: float) -> np.ndarray:
    """Images (N, S, S) between two scales (pixels), at the same local contrast everywhere."""
    from scipy.ndimage import gaussian_filter

    def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
        return gaussian_filter(x, (0, sigma, sigma), truncate=2.5)

    x = images.astype(np.float32)
    x = smooth(x, low) - smooth(x, high)
    return x / (np.sqrt(smooth(x * x, 2 * high)) + 1.5)


def turns(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs of spectra: is a mirrored (N,), then turned by how many degrees (N,), mod 180."""
    along = np.stack([(x * b).sum(1) for x in (a.conj(), a)], 1)
    along = irfft(along, _ANGLES)  # (N, mirrored, angle)
    rows, at = np.arange(len(a)), along.reshape(len(a), -1).argmax(1)
    mirrored, k = at >= _ANGLES, at % _ANGLES
    along = along[rows, mirrored.astype(int)]
    left, peak, right = (along[rows, (k + step) % _ANGLES] for step in (-1, 0, 1))
    bend = np.minimum(left - 2 * peak + right, -1e-12)
    return mirrored, (k + 0.5 * (left - right) / bend) * 180 / _ANGLES


def turned(images: np.ndarray, mirrored: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Images (N, S, S) mirrored left to right, then turned; NaN where nothing was."""
    quarter = 90 * np.round(angle / 90)
    angle = np.where(np.abs(angle - quarter) < 3, quarter, angle)  # tiles bear 3 degrees
    side, middle = images.shape[-1], (images.shape[-1] - 1) / 2
    c, s = (f(np.deg2rad(angle))[:, None, None].round(6) for f in (np.cos, np.sin))
    v, u = np.float32(np.mgrid[:side, :side] - middle)
    flip = np.where(mirrored, -1, 1)[:, None, None]
    y = np.float32(c) * v - np.float32(s) * u + np.float32(middle)
    x = np.float32(flip * s) * v + np.float32(flip * c) * u + np.float32(middle)
    outside = (np.minimum(y, x) < 0) | (np.maximum(y, x) > side - 1)
    out = _sample(images, y.clip(0, side - 1), x.clip(0, side - 1), each=True)
    out[outside] = np.nan
    return out


def shifts(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of pairs of textures: correlation at the best shift (N,), is a turned half, shift (N, 2)."""
    n, side = len(a), a.shape[-1]
    a, b = rfft2(_windowed(np.nan_to_num(a))), rfft2(_windowed(b))
    # Turned half, rows and columns run backwards: the conjugate, and one pixel further.
    phase = np.exp(2j * np.pi * np.fft.fftfreq(side)).astype(np.complex64)
    back = a * b * (phase.conj()[:, None] * phase.conj()[: side // 2 + 1])
    over = irfft2(np.stack([a.conj() * b, back], 1), (side, side)).reshape(n, -1)
    at = over.argmax(1)
    half, at_shift = at >= side**2, np.stack(np.divmod(at % side**2, side), 1)
    return over[np.arange(n), at], half, (at_shift + side // 2) % side - side // 2


def _windowed(images: np.ndarray) -> np.ndarray:
    side = images.shape[-1]
    edge = np.sin(np.clip((np.arange(side) + 0.5) / (side / 8), 0, 1) * np.pi / 2)
    edge = (edge * edge[::-1]).astype(np.float32)
    images = images * (edge[:, None] * edge)
    images -= images.mean((1, 2), keepdims=True)
    return images / (np.sqrt((images**2).sum((1, 2), keepdims=True)) + 1e-9)


def tiles_found(a: np.ndarray, b: np.ndarray, shift: np.ndarray) -> float:
    """Share of the tiles of texture a found in b about ``shift`` away, by how well they agree."""
    side, wide = len(a), TILE + 2 * REACH
    start = np.maximum(REACH, REACH - shift)
    count = (np.minimum(side - REACH, side - REACH - shift) - start) // TILE
    if (count < 3).any():
        return 0.0
    at = start + TILE * np.stack(np.unravel_index(np.arange(count.prod()), count), 1)
    within, around = np.arange(TILE), np.arange(-REACH, TILE + REACH)
    tile = a[at[:, 0, None, None] + within[:, None], at[:, 1, None, None] + within]
    whole = ~np.isnan(tile).any((1, 2))
    if whole.sum() < 9:
        return 0.0
    at, tile, to = at[whole], tile[whole], at[whole] + shift
    place = b[to[:, 0, None, None] + around[:, None], to[:, 1, None, None] + around]
    tile = tile - tile.mean((1, 2), keepdims=True)
    reach = 2 * REACH + 1
    over = irfft2(rfft2(tile, (wide, wide)).conj() * rfft2(place), (wide, wide))
    sums = np.pad(np.stack([place, place**2]), ((0, 0), (0, 0), (1, 0), (1, 0))).cumsum(2).cumsum(3)
    mean, square = (
        sums[..., TILE:, TILE:] - sums[..., :-TILE, TILE:] - sums[..., TILE:, :-TILE]
        + sums[..., :-TILE, :-TILE]
    ) / TILE**2  # fmt: skip
    spread = np.sqrt(np.maximum(square - mean**2, 1e-6)) * TILE
    norm = np.sqrt((tile**2).sum((1, 2)))[:, None, None] * spread + 1e-3
    agree = (over[:, :reach, :reach] / norm).reshape(len(tile), -1)
    best = agree.max(1).clip(0)
    offset = np.stack(np.divmod(agree.argmax(1), reach), 1) - REACH
    # Where the others say: an affine map of the tiles' places, fitted again without outliers.
    places = np.column_stack([np.ones(len(at)), at - at.mean(0)])
    weight = best**2
    for _ in range(4):
        weighted = places * weight[:, None]
        fitted = np.linalg.solve(weighted.T @ places + 1e-3 * np.eye(3), weighted.T @ offset)
        off = np.hypot(*(offset - places @ fitted).T)
        weight = best**2 / (1 + (off / 1.5) ** 4)
    # As many as the map can always be made to fit count for nothing.
    free = 4
    return float((best[off < 1].sum() - free) / (len(best) - free))
