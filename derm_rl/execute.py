"""Execution of one notebook by papermill, in a process of its own."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import psutil

from derm_rl import paths
from derm_rl.masking import guard, mask
from derm_rl.progress import own_cells

PARAMETERS = ("preset", "overrides", "data_root")


class ReproduceError(RuntimeError):
    """A run that cannot start or has failed; the message says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


def check_parameters(notebook: Path) -> None:
    """Papermill only warns of an unknown parameter, and then runs with the defaults.

    It does not see all that are there, either: a value with "=" in it hides one.
    """
    if not notebook.is_file():
        raise ReproduceError(f"notebook {notebook} is missing")
    cells = nbformat.read(notebook, 4).cells
    found: set[str] = set()
    for cell in (c for c in cells if "parameters" in c.metadata.get("tags", ())):
        try:
            lines = ast.parse(cell.source).body
        except SyntaxError as error:
            raise ReproduceError(
                f"{notebook.name}: its cell tagged 'parameters': {error}"
            ) from None
        found |= {t.id for a in lines if isinstance(a, ast.Assign) for t in a.targets}
    if found != set(PARAMETERS):
        raise ReproduceError(
            f"{notebook.name}: its cell tagged 'parameters' must define exactly "
            f"{', '.join(PARAMETERS)}; it defines {', '.join(sorted(found)) or 'nothing'}"
        )


class Papermill:
    """Runs notebooks, ``jobs`` of them at once at most, and can end those that are running."""

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs
        self.processes: list[subprocess.Popen[str]] = []

    def execute(
        self,
        notebook: Path,
        copy: Path,
        parameters: Mapping[str, Any],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Execute ``notebook`` with ``parameters`` into ``copy``; its memory is given back.

        Args:
            variables: of its environment, beside ours.

        Raises:
            ReproduceError: names the cell and the error.
        """
        environment = os.environ | {"DERM_RL_RUNS": str(paths.RUNS), "PYTHONWARNINGS": "ignore"}
        environment |= variables or {}
        if self.jobs > 1:
            threads = max(1, (os.cpu_count() or 1) // self.jobs)
            environment |= {"OMP_NUM_THREADS": str(threads)}
        command = [
            *(sys.executable, "-m", "derm_rl.execute"),
            *(str(notebook), str(copy), json.dumps(dict(parameters))),
        ]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        stderr = process.communicate()[1]
        self.processes.remove(process)
        if process.returncode:
            raise ReproduceError(_failure(notebook.stem, copy, stderr))

    def stop(self) -> None:
        """End the running notebooks with their kernels, which papermill starts apart from us."""
        for process in list(self.processes):
            _kill(process.pid)


def _kill(pid: int) -> None:
    """End a process and all it has started; itself last, should it be this one."""
    with contextlib.suppress(psutil.Error):
        tree = psutil.Process(pid)
        for member in [*tree.children(recursive=True), tree]:
            with contextlib.suppress(psutil.Error):
                member.kill()


def _end_with(parent: int) -> None:
    """End with whoever started this: a runner killed outright (out of memory) cannot tell anyone.

    Its kernel would go on writing into the folder that the next call writes into.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    _kill(os.getpid())


def _failure(stage: str, copy: Path, stderr: str) -> str:
    """Which notebook and cell failed, with what, and where to look."""
    if copy.is_file():
        for number, cell in enumerate(own_cells(nbformat.read(copy, 4)), start=1):
            for output in cell.get("outputs", ()):
                if output.output_type == "error":
                    first = next((x for x in cell.source.splitlines() if x.strip()), "")
                    return (
                        f"{stage}.ipynb failed in cell {number} ({first.strip()}):\n"
                        f"  {output.ename}: {output.evalue}\n  executed copy: {copy}"
                    )
    return f"{stage}.ipynb could not be executed: {mask(stderr.strip())[-1500:]}\n  copy: {copy}"


def main() -> None:
    """``python -m derm_rl.execute NOTEBOOK COPY PARAMETERS``, the last as JSON.

    Not papermill's own command, which cannot be told to keep only the last state of a progress bar:
    an executed copy would show each tick as a line.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    import papermill
    from papermill.iorw import LocalHandler, papermill_io

    class Masked(LocalHandler):
        """What an executed notebook shows was masked by its kernel; here the file as a whole."""

        def write(self, content: str, path: str) -> None:
            super().write(mask(content), path)

    guard()
    notebook, copy, parameters = sys.argv[1:]
    papermill_io.register(copy, Masked())
    papermill.execute_notebook(
        notebook, copy, json.loads(parameters), kernel_name="python3",
        cwd=str(Path(notebook).parent), progress_bar=False, log_output=False,
        coalesce_streams=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
