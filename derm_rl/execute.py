"""Execution of one notebook by papermill, in a process of its own."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import psutil

from derm_rl import paths
from derm_rl.errors import Mendable, full_disk, nearly_full
from derm_rl.masking import guard, mask
from derm_rl.progress import own_cells

PARAMETERS = ("preset", "overrides", "data_root")
MARK = "DERM_RL_NOTEBOOK"  # in the environment of a notebook's processes: they are found by it
KERNEL_DIED = 3  # exit status of this module


class ReproduceError(Mendable, RuntimeError):
    """A run that cannot start or has failed; the message says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


def check_parameters(notebook: Path) -> None:
    """Papermill only warns of an unknown parameter, and then runs with the defaults.

    It does not see all that are there, either: a value with "=" in it hides one.
    """
    if not notebook.is_file():
        raise ReproduceError(f"notebook {notebook} is missing")
    try:
        cells = nbformat.read(notebook, 4).cells
    except Exception as error:  # of JSON, of the notebook's format
        said = " ".join(str(error).split())[:200]
        raise ReproduceError(f"{notebook}: not a notebook that can be read ({said})") from error
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
        self.processes: dict[str, psutil.Process] = {}  # by mark

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
        mark = uuid.uuid4().hex
        environment = os.environ | {"DERM_RL_RUNS": str(paths.RUNS), "PYTHONWARNINGS": "ignore"}
        environment |= {MARK: mark} | dict(variables or {})
        if self.jobs > 1:
            threads = max(1, (os.cpu_count() or 1) // self.jobs)
            environment |= {"OMP_NUM_THREADS": str(threads)}
        command = [
            *(sys.executable, "-m", "derm_rl.execute"),
            *(str(notebook), str(copy), json.dumps(dict(parameters))),
        ]
        # Not a pipe: it ends with the last process that holds it, and workers outlive a killed
        # kernel by minutes.
        with tempfile.TemporaryFile() as stderr:
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr
            )
            self.processes[mark] = psutil.Process(process.pid)
            try:
                status = process.wait()
            finally:
                _kill(self.processes.pop(mark), mark)
            stderr.seek(0)
            said = stderr.read().decode(errors="replace")
        if status:
            raise ReproduceError(_failure(notebook.stem, copy, said, status))

    def stop(self) -> None:
        """End the running notebooks with their kernels, which papermill starts apart from us."""
        for mark, process in list(self.processes.items()):
            _kill(process, mark)


def _kill(process: psutil.Process, mark: str) -> None:
    """End a process and all it has started, also what it no longer is the parent of; it last.

    Not by its number: the system gives that to another process once it has ended.
    """
    for _ in range(10):  # what ends may just have started another
        others = (p for p in psutil.process_iter() if p != process)
        family = [p for p in others if _belongs(p, process, mark)]
        for member in family:
            with contextlib.suppress(psutil.Error):
                member.kill()
        if not psutil.wait_procs(family, timeout=1)[0]:
            break
    with contextlib.suppress(psutil.Error):
        process.kill()


def _belongs(member: psutil.Process, process: psutil.Process, mark: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        if member.status() == psutil.STATUS_ZOMBIE:
            return False
        return member.environ().get(MARK) == mark or process in member.parents()
    return False


def _end_with(parent: int) -> None:
    """End with whoever started this: a runner killed outright (out of memory) cannot tell anyone.

    Its kernel would go on writing into the folder that the next call writes into.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    _kill(psutil.Process(), os.environ[MARK])


def _failure(stage: str, copy: Path, stderr: str, status: int) -> str:
    """Which notebook and cell failed, with what, and where to look."""
    cells = []
    with contextlib.suppress(Exception):  # the copy is not there, or only a part of it
        cells = own_cells(nbformat.read(copy, 4))
    last = None
    for number, cell in enumerate(cells, start=1):
        first = next((x.strip() for x in cell.source.splitlines() if x.strip()), "")
        where = f"{stage}.ipynb failed in cell {number} ({first})"
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                return f"{where}:\n  {output.ename}: {output.evalue}\n  executed copy: {copy}"
        if cell.metadata.get("papermill", {}).get("start_time"):
            last = where
    if nearly_full(copy):
        reason = full_disk(copy)
    elif status == KERNEL_DIED or status < 0:
        memory = psutil.virtual_memory()
        reason = (
            "its process was killed, most likely by the system because memory ran out "
            f"({memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB are free now); choose "
            "smaller batches or images, or fewer --jobs, and run the same again"
        )
    else:
        reason = mask(stderr.strip())[-1500:]
    return f"{last or f'{stage}.ipynb could not be executed'}: {reason}\n  copy: {copy}"


def main() -> None:
    """``python -m derm_rl.execute NOTEBOOK COPY PARAMETERS``, the last as JSON.

    Not papermill's own command, which cannot be told to keep only the last state of a progress bar:
    an executed copy would show each tick as a line.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.iorw import LocalHandler, papermill_io

    class Masked(LocalHandler):
        """What an executed notebook shows was masked by its kernel; here the file as a whole."""

        def write(self, content: str, path: str) -> None:
            super().write(mask(content), path)

    guard()
    notebook, copy, parameters = sys.argv[1:]
    papermill_io.register(copy, Masked())
    try:
        papermill.execute_notebook(
            notebook, copy, json.loads(parameters), kernel_name="python3",
            cwd=str(Path(notebook).parent), progress_bar=False, log_output=False,
            coalesce_streams=True,
        )  # fmt: skip
    except DeadKernelError:
        sys.exit(KERNEL_DIED)


if __name__ == "__main__":
    main()
