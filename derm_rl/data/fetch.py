"""Downloads of open-access sources: a registry of addresses and checksums, fetched with pooch.

A set is resumed file by file: what is there and has the right checksum is not fetched again. A file
is given its name only after its checksum was found right.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from derm_rl.data.open_access.sources import SOURCES, Source, find
from derm_rl.errors import FileError, Mendable
from derm_rl.io import read_yaml
from derm_rl.prompts import near

REGISTRY = Path(__file__).with_name("open_access") / "registry.yaml"
TIMEOUT = 60  # seconds without a byte
TRIES = 4  # of a connection that fails; a wrong checksum is not tried again
_WAIT = 1.0  # seconds before the second try, doubled before each further one


class FetchError(Mendable, RuntimeError):
    """A file or registry that cannot be used; the message names it and says what to do."""


class Remote(BaseModel):
    """Where a file is, and what it must be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str = Field(pattern=r"^https?://[^\s/]+/?\S*$")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]


class Listing(BaseModel):
    """What the registry says of one source."""

    model_config = ConfigDict(extra="forbid", strict=True)

    files: dict[str, Remote] = {}
    obtain: list[str] = []
    title: str | None = None
    licence: str | None = None
    attribution: str | None = None

    @field_validator("files")
    @classmethod
    def _paths(cls, files: dict[str, Remote]) -> dict[str, Remote]:
        for name in files:
            check_name(name)
        lower = [name.lower() for name in files]  # one file, where case does not count
        for name in lower:
            if lower.count(name) > 1 or any(other.startswith(f"{name}/") for other in lower):
                raise ValueError(f"{name!r} is there twice, or is also the folder of another file")
        return files


def check_name(name: str) -> None:
    """Refuse a name of a file that could lead out of its folder.

    Raises:
        ValueError: the name is not a plain relative path.
    """
    parts = name.split("/")
    plain = not re.search(r'[\\:*?"<>|\x00-\x1f\x7f]', name)
    good = all(p not in ("", ".", "..") and p == p.strip() and not p.endswith(".") for p in parts)
    if not plain or not good or PurePosixPath(name).is_absolute() or name.startswith("~"):
        raise ValueError(
            f"{name!r} is no safe name for a file: expected a path inside the folder, "
            "such as images/part_1.zip"
        )


def read_registry(file: str | Path = REGISTRY) -> dict[str, Listing]:
    """Listings by name of their source; names as in ``SOURCES`` where they mean one of these.

    Raises:
        FetchError: not a registry; names the file, the source and the key.
    """
    try:
        raw = read_yaml(file)
    except FileError as error:
        said = str(error).removeprefix(f"{file}: ")
        raise FetchError(f"{file}: not a registry that can be read ({said})") from error
    if not isinstance(raw, Mapping) or not all(isinstance(k, str) for k in raw):
        raise FetchError(f"{file}: expected names of sources, each with files: {{path: …}}")
    listings = {}
    for name, entry in raw.items():
        try:
            listings[_key(name)] = Listing.model_validate(entry)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ": ".join([name, *map(str, first["loc"])])
            got = repr(first.get("input"))[:100]
            raise FetchError(f"{file}: {place}: {first['msg']}; got {got}") from None
    return listings


def _key(name: str) -> str:
    try:
        return find(name).name
    except ValueError:
        return name.strip()


def select(name: str, registry: Mapping[str, Listing]) -> tuple[Source, Listing]:
    """The source of a name and its listing; from a registry of one's own it may be a new one.

    Raises:
        FetchError: neither knows it, or a new one has no licence.
    """
    key = _key(name)
    listing = registry.get(key)
    if key in SOURCES:
        return SOURCES[key], listing or Listing()
    if listing is None:
        raise FetchError(f"unknown source {name!r}{near(key, {**SOURCES, **registry})}")
    if not listing.licence:
        raise FetchError(f"source {key!r} of the registry: key 'licence' is missing")
    title, said = listing.title or key, listing.attribution or ""
    return Source(key, title, None, listing.licence, said, "", (), None), listing


def terms(source: Source) -> str:
    """Licence and attribution, as shown before a download."""
    facts = {
        "licence": source.licence,
        "attribution": source.attribution,
        "page": source.url,
        "note": source.note,
    }
    return "\n".join([source.title, *(f"  {k:12s} {v}" for k, v in facts.items() if v)])


def instructions(source: Source, listing: Listing, folder: Path) -> str:
    """What to get from where, and which files belong into ``folder``."""
    steps = [f"  {i}. {' '.join(s.split())}" for i, s in enumerate(listing.obtain, start=1)]
    places = [f"  - {line}" for line in source.layout]
    return "\n".join(
        [
            f"{source.title} cannot be downloaded by this command: no checked addresses are known.",
            *([f"Get it from {source.url}:"] if source.url else []),
            *steps,
            f"Put into {folder}:",
            *places,
            "If you or a mirror publish these files, name a registry of them: --registry FILE.",
        ]
    )


def fetch(listing: Listing, folder: str | Path, progress: bool = True) -> dict[str, str]:
    """Download the files of a listing into ``folder``; "there" or "fetched" for each.

    A file that is there with another checksum is replaced once the right one has come.

    Raises:
        FetchError: a file cannot be had, has another checksum than the registry says, or would lie
            outside of ``folder``. Files before it stay; the same call goes on from there.
    """
    root = Path(folder).resolve()
    root.mkdir(parents=True, exist_ok=True)
    done: dict[str, str] = {}
    for name, remote in listing.files.items():
        check_name(name)
        target = root / name
        if not target.resolve().is_relative_to(root):
            raise FetchError(f"{name}: {target} leads out of {root}; remove the link")
        done[name] = _fetch_one(name, remote, target, progress)
    return done


def _fetch_one(name: str, remote: Remote, target: Path, progress: bool) -> str:
    import pooch
    import requests
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    expected = remote.sha256.lower()
    if target.is_file() and pooch.file_hash(str(target)) == expected:
        return "there"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in Retrying(
            stop=stop_after_attempt(TRIES),
            wait=wait_exponential_jitter(initial=_WAIT, max=30),
            retry=retry_if_exception(_passing),
            reraise=True,
        ):
            with attempt, _downloader(name, progress) as downloader, _silent():
                pooch.retrieve(
                    remote.url, f"sha256:{expected}", fname=target.name, path=target.parent,
                    downloader=downloader,
                )  # fmt: skip
    except requests.RequestException as error:  # before ValueError, which some of them are too
        raise FetchError(f"{name}: {remote.url} cannot be had ({error})") from error
    except ValueError as error:
        found = re.search(r"but got ([0-9a-f]+)", str(error))
        if not found:
            raise FetchError(f"{name}: {error}") from error
        raise FetchError(
            f"{name}: wrong checksum of {remote.url}: expected sha256 {expected}, found "
            f"{found[1]}; nothing was kept. Try again; if it stays, the file is not the one "
            "that the registry means"
        ) from error
    except OSError as error:
        raise FetchError(f"{name}: cannot be written to {target} ({error})") from error
    _make_readable(target)
    return "fetched"


def _passing(error: BaseException) -> bool:
    """Whether another try may help: a lost connection, a server that is busy."""
    import requests

    if isinstance(error, requests.HTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    kinds = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, kinds)


@contextmanager
def _downloader(name: str, progress: bool) -> Any:
    import pooch
    from tqdm import tqdm

    # Never packed on the way: the checksum is of the file as it is stored.
    options = {"timeout": TIMEOUT, "headers": {"Accept-Encoding": "identity"}}
    with tqdm(
        total=1, desc=name, unit="B", unit_scale=True, mininterval=0.5, disable=not progress
    ) as bar:
        yield pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, **options)


@contextmanager
def _silent() -> Any:
    """Without pooch's own messages: ours name the file within its set."""
    import pooch

    logger = pooch.get_logger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _make_readable(path: Path) -> None:
    """As any other file: pooch makes them private."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
