"""Run the notebooks of a preset in order, each only if something it depends on has changed.

What a notebook draws is part of its stage's result (``figures/`` in its folder) and is copied to
the figures of the preset from there. So a run with other settings shares the finished stages that
do not read them, figures and all, and a lost figure needs no run. One that is no longer drawn is
removed there: the stamp of a stage names all that it ever drew.
"""

from __future__ import annotations

import shutil
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
from derm_rl.config import FIGURES_OF_STAGE, STAGES, Config
from derm_rl.data import NOTES
from derm_rl.execute import PARAMETERS, Papermill, ReproduceError, check_parameters
from derm_rl.io import atomic_path, read_json, write_json
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
    Stage("06_quality", ("02_reward_classifier", "05_alignment")),
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
        start: rerun this stage and all after it, whatever their state; of those before it, only
            what these need is brought up to date.
        until: stop after this stage.
        jobs: stages to run at once where they do not need each other.

    Raises:
        ReproduceError: a stage is not known, its notebook is not usable, or it failed.
    """
    notebooks = notebooks or paths.NOTEBOOKS
    runner = _Runner(config, stages, notebooks, jobs)
    selected, forced = _selected(stages, only, start, until)
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


def _selected(
    stages: Sequence[Stage], only: str | None, start: str | None, until: str | None
) -> tuple[list[Stage], set[str]]:
    """The stages to bring up to date, in order, and which of them whatever their state."""
    if only and (start or until):
        raise ReproduceError("--only excludes --from and --until")
    names = [s.name for s in stages]
    first = names.index(_named(only or start, names)) if only or start else 0
    last = names.index(_named(only or until, names)) if only or until else len(names) - 1
    if first > last:
        raise ReproduceError(f"nothing to run: {names[last]} comes before {names[first]}")
    wanted = set(names[first : last + 1])
    forced = set(wanted) if only or start else set()
    if not only:
        for stage in reversed(stages):  # what a stage needs comes before it
            wanted |= set(stage.needs) if stage.name in wanted else set()
    return [s for s in stages if s.name in wanted], forced


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
        self.fresh: dict[str, bool] = {}
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
        for stage in list(waiting):
            if len(running) >= self.jobs:
                break
            if not set(stage.needs) <= done:
                continue
            waiting.remove(stage)
            if stage.name not in forced and self._fresh(stage):
                self._publish(stage)
                self.board.line(self._number(stage), stage.name, "up to date")
                done.add(stage.name)
            else:
                running[pool.submit(self._execute, stage)] = stage

    def _number(self, stage: Stage) -> int:
        return [s.name for s in self.stages].index(stage.name) + 1

    def key(self, stage: Stage) -> str:
        """Hash of all that the result of a stage depends on; once those before it have run."""
        if stage.name not in self.keys:
            notebook = nbformat.read(self.notebooks / f"{stage.name}.ipynb", 4)
            # Its parameters are given anew: what stands there is for reading by hand.
            cells = [
                c.source
                for c in notebook.cells
                if c.cell_type == "code" and "parameters" not in c.metadata.get("tags", ())
            ]
            config, by_name = self.config, {s.name: s for s in self.stages}
            reads = STAGES.get(stage.name, ())
            models = [config.pipeline.base] if "pipeline" in reads else []
            if "classifier" in reads:
                backbones = (config.classifier.reward, config.classifier.judge)
                models += [b.pretrained for b in backbones if b.pretrained]
            folders = {name: paths.model_folder(name) for name in models}
            reviews = config.reviews_dir if "release" in reads else None
            self.keys[stage.name] = dependencies.digest(
                {
                    "cells": cells,
                    "modules": dependencies.import_closure(
                        map(dependencies.plain_python, cells), dependencies.SOURCES
                    ),
                    "settings": config.subset(stage.name) if stage.name in STAGES else {},
                    "upstream": [self._found(by_name[n]) for n in stage.needs],
                    "lock": dependencies.lock(),
                    "data": [dependencies.fingerprint(f) for f in self._data(stage, reads)],
                    "models": {n: dependencies.files_under(f) for n, f in folders.items() if f},
                    "reviews": _verdicts(reviews) if reviews else None,
                }
            )
        return self.keys[stage.name]

    def _found(self, stage: Stage) -> str:
        """What a stage leaves to those after it: what it should, or, run alone, what is there."""
        if self._fresh(stage):
            return self.key(stage)
        return dependencies.digest(_outputs(self.config.stage_dir(stage.name)))

    def _data(self, stage: Stage, reads: Sequence[str]) -> list[Path]:
        """Folders of images that a stage reads itself."""
        if stage.needs:
            return []
        root, found = self.config.data_root, []
        if "captions" in reads:
            from derm_rl.captions.sources import folder_of

            found = [folder_of(self.config, name) for name in self.config.captions.sources]
        found = [f for f in found if f and not (root and f.is_relative_to(root))]
        return [f for f in (root, *found) if f and f.is_dir()]

    def _stamp(self, stage: Stage) -> Path:
        return self.config.stage_dir(stage.name) / "reproduced.json"

    def _stamped(self, stage: Stage) -> dict[str, Any]:
        """What the stamp says, also of a stage that has been begun and not finished."""
        try:
            old = read_json(self._stamp(stage))
        except (FileNotFoundError, ValueError):
            return {}
        return old if isinstance(old, dict) else {}

    def _read_stamp(self, stage: Stage) -> dict[str, Any] | None:
        old = self._stamped(stage)
        return old if {"key", "outputs", "minutes", "peak_memory_gb"} <= set(old) else None

    def _ever_drawn(self, stage: Stage) -> set[str]:
        """Names of all figures that a stage has ever drawn, as far as its stamp knows."""
        old, place = self._stamped(stage), "figures/"
        now = (n.removeprefix(place) for n in old.get("outputs", ()) if n.startswith(place))
        return {*old.get("figures", ()), *now}

    def _fresh(self, stage: Stage) -> bool:
        if stage.name not in self.fresh:
            old, folder = self._read_stamp(stage), self._stamp(stage).parent
            self.fresh[stage.name] = (
                old is not None
                and old["key"] == self.key(stage)
                and old["outputs"] == _outputs(folder)
            )
        return self.fresh[stage.name]

    def _publish(self, stage: Stage) -> None:
        """Make the figures of a finished stage those of the preset, where they differ."""
        for name in self._ever_drawn(stage):
            of_stages = (self._stamp(s).parent / "figures" / name for s in self.stages)
            if not any(file.is_file() for file in of_stages):  # another one may draw it now
                (self.config.figures_dir / name).unlink(missing_ok=True)
        drawn = self._stamp(stage).parent / "figures"
        for file in dependencies.files_in(drawn):
            target = self.config.figures_dir / file.relative_to(drawn)
            if target.is_file() and dependencies.file_hash(target) == dependencies.file_hash(file):
                continue
            with atomic_path(target) as temporary:
                shutil.copyfile(file, temporary)

    def _execute(self, stage: Stage) -> None:
        began, key, stamp = time.time(), self.key(stage), self._stamp(stage)
        ever_drawn = sorted(self._ever_drawn(stage))
        write_json(stamp, {"figures": ever_drawn})  # of no finished stage, whatever happens now
        figures = stamp.parent / "figures"
        if figures.is_dir():
            shutil.rmtree(figures)
        copy = self.copies / f"{stage.name}.ipynb"
        copy.parent.mkdir(parents=True, exist_ok=True)
        source = nbformat.read(self.notebooks / f"{stage.name}.ipynb", 4)
        with (
            PeakMemory() as memory,
            self.board.stage(self._number(stage), stage.name, copy, source) as status,
        ):
            self.papermill.execute(
                self.notebooks / f"{stage.name}.ipynb",
                copy,
                _parameters(self.config),
                {FIGURES_OF_STAGE: str(figures)},
            )
            status.succeeded = True
        write_json(
            stamp,
            {
                "key": key,
                "figures": ever_drawn,
                "outputs": _outputs(stamp.parent),
                "minutes": round((time.time() - began) / 60, 3),
                "peak_memory_gb": round(memory.peak / 1e9, 3),
            },
        )
        self._publish(stage)
        self.fresh[stage.name] = True
        self.ran.append(stage.name)

    def finish(self) -> None:
        """Merge the metrics of all stages into ``metrics.json`` and print the headline ones."""
        from derm_rl.evaluation import audit

        merged: dict[str, Any] = {}
        minutes, peak, complete = 0.0, 0.0, True
        for stage in self.stages:
            folder = self.config.stage_dir(stage.name)
            if (folder / "metrics.json").is_file():
                merged |= read_json(folder / "metrics.json")
            if old := self._read_stamp(stage):
                minutes, peak = minutes + old["minutes"], max(peak, old["peak_memory_gb"])
            else:
                complete = False
        merged |= audit.metrics(self.config)  # readers look when the stages are done
        if complete:  # the sum over stages, whichever call ran them
            merged["reproduce.minutes"] = provenance.metric(self.config, minutes)
            merged["reproduce.peak_memory_gb"] = provenance.metric(self.config, peak)
        file = self.config.figures_dir / "metrics.json"
        if not complete and file.is_file():  # numbers of stages not run here stay, as figures do
            # But not what readers said: of these images they may have seen none.
            old = {k: v for k, v in read_json(file).items() if not k.startswith("panel.audit.")}
            merged = old | merged
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


def _verdicts(folder: Path) -> dict[str, str]:
    """Files of verdicts; what a reader is still typing is none."""
    files = dependencies.files_under(folder)
    return {
        name: found for name, found in files.items() if not Path(name).name.startswith("draft-")
    }


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
