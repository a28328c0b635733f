"""pyproject.toml, requirements.lock and environment.yml name the same packages and versions."""

import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from derm_rl.paths import ROOT

CONDA_NAMES = {"pytorch": "torch"}


def _direct() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + extras["imagenet"] + extras["notebooks"] + extras["test"]
    return {canonicalize_name(Requirement(x).name): Requirement(x) for x in lines}


def _lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "every line of the lock is name==version"
    return {canonicalize_name(name): version for name, version in pairs}


def _conda() -> dict[str, tuple[str, str]]:
    """Version and comment of each package that environment.yml names."""
    found = {}
    for line in (ROOT / "environment.yml").read_text().splitlines():
        text, _, comment = line.partition("#")
        name, _, version = text.strip().removeprefix("- ").replace("==", "=").partition("=")
        if version:
            name = CONDA_NAMES.get(name.strip(), name.strip())
            found[canonicalize_name(name)] = (version.strip(), comment.strip())
    return found


def test_the_lock_has_every_direct_dependency_within_its_range():
    lock = _lock()
    for name, requirement in _direct().items():
        assert name in lock, f"{name} is in pyproject.toml but not in requirements.lock"
        assert requirement.specifier.contains(lock[name]), f"{requirement}: lock has {lock[name]}"
    assert lock["torch"] == "2.13.0"
    assert "torchvision" not in lock


def test_conda_users_get_the_same_versions_and_are_told_where_each_is_used():
    lock, conda = _lock(), _conda()
    assert set(_direct()) <= set(conda)
    for name, (version, comment) in conda.items():
        if name == "python":
            continue
        assert version == lock[name], f"environment.yml: {name}={version}, lock: {lock[name]}"
        assert comment, f"environment.yml: {name} has no comment"
