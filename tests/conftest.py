"""Shared fixtures: real images where there are any, a tiny pipeline, folders of a test's own."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing may need a download
os.environ.setdefault("MPLBACKEND", "Agg")

import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from derm_rl import paths


@pytest.fixture
def ham10000_root() -> Path:
    """HAM10000 with annotations: $DERM_RL_HAM10000, or shared/data/ham10000 beside the checkout."""
    default = paths.ROOT.parent / "shared" / "data" / "ham10000"
    root = Path(os.environ.get("DERM_RL_HAM10000", default))
    if not (root / "HAM10000_metadata.csv").is_file():
        pytest.skip(f"no HAM10000 in {root}; name its folder in DERM_RL_HAM10000")
    return root


@contextmanager
def no_descriptors():
    """Within it, every descriptor that this process may have is in use: nothing can be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # descriptors are given from the lowest free one on
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to compare."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Results of this test alone."""
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    return tmp_path / "runs"


TINY_UNET = {
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "attention_head_dim": 2,
}


@pytest.fixture(scope="session")
def tiny_images() -> np.ndarray:
    """32 phantom images (32, 16, 16, 3) uint8."""
    from derm_rl.data import phantom, phantom_scene

    addresses = phantom.table(32, 5, dict.fromkeys(phantom_scene.PAPER_PREVALENCE, 0.5))[
        "path"
    ].tolist()
    return np.stack([phantom.render_path(a, 16) for a in addresses])


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory, tiny_images) -> Path:
    """An untrained pipeline for 16 px images, as a diffusers folder."""
    from derm_rl import pipeline, prompts

    texts = [prompts.render(f) for f in prompts.all_prompts()]
    pipe = pipeline.build(
        tiny_images, texts, patch_size=4, latent_channels=8, whitening=0.5, unet=TINY_UNET,
        text_width=16, text_layers=1,
    )  # fmt: skip
    return pipeline.save(pipe, tmp_path_factory.mktemp("tiny") / "pipeline")
