"""Run the notebooks of a preset in order, each only if something it depends on has changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from rich.console import Console
from rich.table import Table

from derm_rl import dependencies, paths, provenance
from derm_rl.config import STAGES, Config
from derm_rl.data import NOTES
from derm_rl.execute import PARAMETERS, Papermill, ReproduceError, check_parameters
from derm_rl.io import read_json, write_json
from derm_rl.progress import Board, PeakMemory


@dataclass(frozen=True)
class Stage:
    """A notebook and the stages whose results it reads."""

    name: str
    needs: tuple[str, ...] = ()


PIPELINE = (
    Stage("01_data"),
    Stage("02_reward_classifier", ("01_data",)),
    Stage("03_finetune_stable_diffusion", ("01_data",)),
    Stage("04_ddpo", ("01_data", "02_reward_classifier", "03_finetune_stable_diffusion")),
    Stage("05_alignment", ("02_reward_classifier", "03_finetune_stable_diffusion", "04_ddpo")),
    Stage("09_image_text_pairs"),
    Stage("10_review_and_release", ("09_image_text_pairs",)),
)


def run(
    config: Config,
    only: str | None = None,
    start: str | None = None,
    until: str | None = None,
    jobs: int = 1,
    stages: Sequence[Stage] = PIPELINE,
    notebooks: Path | None = None,
) -> list[str]:
    """Bring every stage of a preset up to date; return the names of those that ran.

    Args:
        only: run this stage, whatever its state, and no other.
        start: rerun this stage and all after it, whatever their state.
        until: stop after this stage.
        jobs: stages to run at once where they do not need each other.

    Raises:
        ReproduceError: a stage is not known, its notebook is not usable, or it failed.
    """
    notebooks = notebooks or paths.NOTEBOOKS
    runner = _Runner(config, stages, notebooks, jobs)
    forced = _forced(stages, only, start)
    names = [s.name for s in stages]
    last = names.index(_named(until, names)) + 1 if until else None
    selected = [s for s in stages[:last] if only is None or s.name in forced]
    for stage in selected:
        check_parameters(notebooks / f"{stage.name}.ipynb")
    if only:
        for upstream in selected[0].needs:
            config.require(upstream)
    runner.run(selected, forced)
    if not runner.ran:
        print(f"preset {config.name}: everything is up to date, nothing was done")
    runner.finish()
    return runner.ran


def _forced(stages: Sequence[Stage], only: str | None, start: str | None) -> set[str]:
    names = [s.name for s in stages]
    if only and start:
        raise ReproduceError("--only and --from exclude each other")
    if only:
        return {_named(only, names)}
    return set(names[names.index(_named(start, names)) :]) if start else set()


def _named(text: str, names: Sequence[str]) -> str:
    """A stage by its number ("3", "03") or whole name."""
    for name in names:
        if text in (name, name[:2]) or text.zfill(2) == name[:2]:
            return name
    raise ReproduceError(f"unknown stage {text!r}; stages are {', '.join(names)}")


class _Runner:
    """State of one call of :func:`run`."""

    def __init__(self, config: Config, stages: Sequence[Stage], notebooks: Path, jobs: int) -> None:
        self.config, self.stages, self.notebooks, self.jobs = config, stages, notebooks, jobs
        self.copies = paths.RUNS / config.name / ("notebooks" + config.suffix())
        self.keys: dict[str, str] = {}
        self.ran: list[str] = []
        self.papermill = Papermill(jobs)
        self.board = Board(len(stages))

    def run(self, selected: Sequence[Stage], forced: set[str]) -> None:
        waiting, names = list(selected), {s.name for s in selected}
        done = {s.name for s in self.stages} - names
        running: dict[Any, Stage] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while waiting or running:
                    self._start_ready(pool, waiting, running, done, forced)
                    if running:
                        finished, _ = wait(running, return_when=FIRST_COMPLETED)
                        for future in finished:
                            done.add(running.pop(future).name)
                            future.result()
            except KeyboardInterrupt:  # leaving the pool would wait for the running notebooks
                self.papermill.stop()
                raise

    def _start_ready(
        self,
        pool: ThreadPoolExecutor,
        waiting: list[Stage],
        running: dict[Any, Stage],
        done: set[str],
        forced: set[str],
    ) -> None:
        """Start what has all it needs and is not up to date, as many as may run at once."""
        for stage in [s for s in waiting if set(s.needs) <= done]:
            if len(running) >= self.jobs:
                break
            waiting.remove(stage)
            if stage.name not in forced and self._fresh(stage):
                self.board.line(self._number(stage), stage.name, "up to date")
                done.add(stage.name)
            else:
                running[pool.submit(self._execute, stage)] = stage

    def _number(self, stage: Stage) -> int:
        return [s.name for s in self.stages].index(stage.name) + 1

    def key(self, stage: Stage) -> str:
        """Hash of all that the result of a stage depends on."""
        if stage.name not in self.keys:
            notebook = nbformat.read(self.notebooks / f"{stage.name}.ipynb", 4)
            cells = [c.source for c in notebook.cells if c.cell_type == "code"]
            config, by_name = self.config, {s.name: s for s in self.stages}
            reads = STAGES.get(stage.name, ())
            models = [config.pipeline.base] if "pipeline" in reads else []
            if "classifier" in reads:
                backbones = (config.classifier.reward, config.classifier.judge)
                models += [b.pretrained for b in backbones if b.pretrained]
            folders = {name: paths.model_folder(name) for name in models}
            reads_data = config.data_root is not None and not stage.needs
            reviews = config.reviews_dir if "release" in reads else None
            lock = paths.ROOT / "requirements.lock"
            self.keys[stage.name] = dependencies.digest(
                {
                    "cells": cells,
                    "modules": dependencies.import_closure(
                        map(dependencies.plain_python, cells), paths.ROOT
                    ),
                    "settings": config.subset(stage.name) if stage.name in STAGES else {},
                    "upstream": [self.key(by_name[n]) for n in stage.needs],
                    "lock": dependencies.file_hash(lock) if lock.is_file() else None,
                    "data": dependencies.fingerprint(config.data_root) if reads_data else None,
                    "models": {n: dependencies.files_under(f) for n, f in folders.items() if f},
                    "reviews": dependencies.files_under(reviews) if reviews else None,
                }
            )
        return self.keys[stage.name]

    def _stamp(self, stage: Stage) -> Path:
        return self.config.stage_dir(stage.name) / "reproduced.json"

    def _fresh(self, stage: Stage) -> bool:
        stamp = self._stamp(stage)
        if not stamp.is_file():
            return False
        old = read_json(stamp)
        if old["key"] != self.key(stage):
            return False
        figures = self.config.figures_dir
        return old["outputs"] == _outputs(stamp.parent) and all(
            (figures / name).is_file() and dependencies.file_hash(figures / name) == found
            for name, found in old["figures"].items()
        )

    def _execute(self, stage: Stage) -> None:
        self._stamp(stage).unlink(missing_ok=True)
        began, key, before = time.time(), self.key(stage), self._figure_times()
        copy = self.copies / f"{stage.name}.ipynb"
        copy.parent.mkdir(parents=True, exist_ok=True)
        config = self.config
        source = nbformat.read(self.notebooks / f"{stage.name}.ipynb", 4)
        with (
            PeakMemory() as memory,
            self.board.stage(self._number(stage), stage.name, copy, source) as status,
        ):
            self.papermill.execute(
                self.notebooks / f"{stage.name}.ipynb", copy, _parameters(config)
            )
            status.succeeded = True
        figures = {
            name: dependencies.file_hash(config.figures_dir / name)
            for name, changed in self._figure_times().items()
            if changed != before.get(name)
        }
        stamp = self._stamp(stage)
        write_json(
            stamp,
            {
                "key": key,
                "outputs": _outputs(stamp.parent),
                "figures": figures,
                "minutes": round((time.time() - began) / 60, 3),
                "peak_memory_gb": round(memory.peak / 1e9, 3),
            },
        )
        self.ran.append(stage.name)

    def _figure_times(self) -> dict[str, int]:
        """When each figure and table was written: what differs after a stage, the stage made."""
        folder = self.config.figures_dir
        files = sorted(folder.glob("[!.]*")) if folder.is_dir() else []
        return {
            p.name: p.stat().st_mtime_ns for p in files if p.is_file() and p.name != "metrics.json"
        }

    def finish(self) -> None:
        """Merge the metrics of all stages into ``metrics.json`` and print the headline ones."""
        merged: dict[str, Any] = {}
        minutes, peak, complete = 0.0, 0.0, True
        for stage in self.stages:
            folder = self.config.stage_dir(stage.name)
            if (folder / "metrics.json").is_file():
                merged |= read_json(folder / "metrics.json")
            if (folder / "reproduced.json").is_file():
                old = read_json(folder / "reproduced.json")
                minutes, peak = minutes + old["minutes"], max(peak, old["peak_memory_gb"])
            else:
                complete = False
        if complete:  # the sum over stages, whichever call ran them
            merged["reproduce.minutes"] = provenance.metric(self.config, minutes)
            merged["reproduce.peak_memory_gb"] = provenance.metric(self.config, peak)
        file = self.config.figures_dir / "metrics.json"
        if not complete and file.is_file():  # numbers of stages not run here stay, as figures do
            merged = read_json(file) | merged
        if merged and (self.ran or _stale(file, merged)):
            write_json(file, merged)
        self._notes()
        _headline(merged)

    def _notes(self) -> None:
        """Print what the published tables lack, which their stages found."""
        for stage in self.stages:
            file = self.config.stage_dir(stage.name) / NOTES
            for note in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
                print(f"{stage.name}: {note}")


def _stale(file: Path, merged: dict[str, Any]) -> bool:
    """Whether a file is not there or holds other numbers: a call was killed before writing it."""
    old = read_json(file) if file.is_file() else {}
    return {k: m["value"] for k, m in old.items()} != {k: m["value"] for k, m in merged.items()}


def _parameters(config: Config) -> dict[str, Any]:
    root = str(config.data_root) if config.data_root else ""
    return dict(zip(PARAMETERS, (config.name, list(config.overrides), root), strict=True))


def _outputs(folder: Path) -> dict[str, str]:
    return dependencies.files_under(folder, exclude=("reproduced.json",))


def _headline(metrics: dict[str, Any]) -> None:
    names = [n for n in metrics if n.endswith((".gain", ".stage1", ".rl", ".min", "_kept"))]
    names = [n for n in names if n.count(".") == 2 or n.endswith(("min", "_kept"))]
    names += [n for n in metrics if n.startswith(("captions.", "reproduce."))]
    if not names:
        return
    table = Table("metric", "value", "95 % interval", box=None, pad_edge=False)
    for name in names:
        m = metrics[name]
        bounds = "" if m["low"] is None else f"{m['low']:.3f} to {m['high']:.3f}"
        table.add_row(name, "none" if m["value"] is None else f"{m['value']:.3f}", bounds)
    Console().print(table)
