"""What ``derm-rl reproduce`` shows while it works: a line per stage; and the memory it takes."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil


def own_cells(copy: Any) -> list[Any]:
    """Cells of an executed notebook that its source has too, so that their numbers agree."""
    added = {"injected-parameters", "papermill-error-cell-tag"}
    return [c for c in copy.cells if not added & set(c.metadata.get("tags", ()))]


class Status:
    """Set by the body of a ``with board.stage(…)`` block."""

    succeeded = False


class Board:
    """One line per stage: number, name, elapsed time, and the heading of the cell that runs."""

    def __init__(self, total: int) -> None:
        self.total, self.lock = total, threading.Lock()
        self.live = sys.stdout.isatty()

    def line(self, number: int, name: str, text: str, seconds: float | None = None) -> None:
        clock = "" if seconds is None else f"{int(seconds // 60):02d}:{int(seconds % 60):02d}  "
        with self.lock:
            start = "\r\033[K" if self.live else ""
            print(f"{start}[{number}/{self.total}] {name:30s} {clock}{text}"[:200], end="")
            running = self.live and text not in ("done", "up to date", "failed")
            print("" if running else "\n", end="", flush=True)

    def stage(self, number: int, name: str, copy: Path, source: Any) -> _Watch:
        return _Watch(self, number, name, copy, source)


class _Watch:
    """Follows the executed copy, which papermill saves after every cell."""

    def __init__(self, board: Board, number: int, name: str, copy: Path, source: Any) -> None:
        self.board, self.number, self.name, self.copy = board, number, name, copy
        self.source, self.status = source, Status()
        self.began, self.stop = time.time(), threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Status:
        self.copy.unlink(missing_ok=True)
        self.thread.start()
        return self.status

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        text = "done" if self.status.succeeded else "failed"
        self.board.line(self.number, self.name, text, time.time() - self.began)

    def _follow(self) -> None:
        every, shown = (1.0, "") if self.board.live else (60.0, "")
        while True:
            doing = self._doing()
            if self.board.live or doing != shown or not shown:
                self.board.line(self.number, self.name, doing, time.time() - self.began)
            shown = doing
            if self.stop.wait(every):
                return

    def _doing(self) -> str:
        """Number and heading of the running cell."""
        cells = self.source.cells
        with contextlib.suppress(Exception):  # not written yet, or being replaced
            cells = own_cells(nbformat.read(self.copy, 4))
        heading = ""
        for number, cell in enumerate(cells, start=1):
            if cell.cell_type == "markdown":
                titles = [x for x in cell.source.splitlines() if x.startswith("#")]
                heading = titles[-1].lstrip("# ") if titles else heading
            elif cell.metadata.get("papermill", {}).get("status") in (None, "pending", "running"):
                return f"cell {number}/{len(cells)}: {heading}"
        return f"cell {len(cells)}/{len(cells)}: {heading}"


class PeakMemory:
    """Largest resident memory of this process and its children, in bytes, sampled twice a second.

    Unique memory would be fairer to shared pages, but reading it is slow; this is an upper bound.
    """

    def __enter__(self) -> PeakMemory:
        self.peak, self.stop = 0, threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self.stop.wait(0.5):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)
