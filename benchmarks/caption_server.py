"""Throughput against a server that fails in every way, and whether an answer is ever asked twice.

    python benchmarks/caption_server.py                    20 % faults, 64 in flight, two minutes

The server (``tests/fault_server.py``, a process of its own) answers a fifth of the calls with 429,
500, a hang, a dropped or half-sent reply, a cut or blocked answer, or half a JSON object.

``faulty_server_throughput`` is what was achieved over what the server allows. A server with L calls
in flight gives L slot-seconds a second. A reply occupies a slot for its service time, faulty or
not; a hang occupies it until the client's time-out; a 429 costs nothing. All calls that the
requests needed, those that failed and were made again included, took B slot-seconds, so N requests
could have been done in B / L seconds at best. They took T:

    faulty_server_throughput = (N / T) / (N / (B / L)) = B / (L · T)

T includes the slow end, where the last retries run alone, the ledger, and the time the client
computes. Calls made though the answer had been sent do not count in B.

``asked_twice`` counts such calls, in the run and in a second one over the same ledger.
``wrong_status`` counts requests whose status is not what the server's last reply means.

``local_*``: what the path itself costs (key, claim, ask, commit, then replay), with a teacher that
answers at once: processor time a request, and peak memory after a fifth of the requests and after
all of them, which must be about the same.
Writes ``benchmarks/results/caption_server.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

from derm_rl import provenance
from derm_rl.captions.ledger import Ledger
from derm_rl.captions.providers import ProviderTeacher
from derm_rl.captions.runner import ask_all, replay
from derm_rl.captions.schema import Answer, Finding, Prompt, Reply, Request
from derm_rl.io import write_json

RESULTS = Path(__file__).parent / "results"
SERVER = Path(__file__).parents[1] / "tests" / "fault_server.py"
BARS = {"faulty_server_throughput": 0.9, "asked_twice": 0, "local_ms_per_request": 4}


@contextmanager
def server(share: float, service: float, seed: int) -> Iterator[str]:
    """A fault server in a process of its own; yields its address."""
    options = {"--share": share, "--service": service, "--seed": seed}
    command = [sys.executable, str(SERVER), *(str(x) for pair in options.items() for x in pair)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def _fault_server() -> ModuleType:
    """The server's module, which is not in a package."""
    spec = importlib.util.spec_from_file_location("fault_server", SERVER)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def fetch(url: str, what: str) -> Any:
    with urllib.request.urlopen(f"{url}/{what}", timeout=30) as reply:
        return json.load(reply)


def measure(
    count: int = 6000,
    share: float = 0.2,
    concurrency: int = 64,
    service: float = 1.0,
    timeout: float = 4.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Ask ``count`` questions; the numbers of the module's docstring and what they rest on."""
    faults = _fault_server()

    def requests() -> Iterator[Request]:
        return map(faults.question, range(count))

    with server(share, service, seed) as url, tempfile.TemporaryDirectory() as folder:
        teacher = ProviderTeacher("test:model", base_url=url, price=(0.1, 0.4))
        with Ledger(Path(folder) / "ledger.sqlite") as ledger:
            began, computed = time.monotonic(), time.process_time()
            summary = ask_all(
                teacher,
                map(faults.question, range(count)),
                ledger,
                concurrency=concurrency,
                timeout=timeout,
            )
            seconds, cpu = time.monotonic() - began, time.process_time() - computed
            stats = fetch(url, "stats")
            again = ask_all(teacher, requests(), ledger, timeout=timeout, progress=False)
            stats_again, met = fetch(url, "stats"), fetch(url, "logs")
            wrong = [
                request.question.text
                for request, _, reply in replay(teacher, requests(), ledger)
                if reply is None
                or reply.status != faults.expected_status(met[request.question.text])
            ]
    busy = stats["service_seconds"] + stats["served"].get("timeout", 0) * timeout
    return {
        "faulty_server_throughput": busy / (concurrency * seconds),
        "asked_twice": stats_again["asked_twice"],
        "wrong_status": len(wrong),
        "answers_per_second": summary.asked / seconds,
        "allowed_per_second": summary.asked * concurrency / busy,
        "seconds": seconds,
        "cpu_seconds_per_call": cpu / stats["calls"],
        "calls": stats["calls"],
        "calls_second_run": stats_again["calls"] - stats["calls"],
        "reused_second_run": again.reused,
        "most_in_flight": stats["most_in_flight"],
        "served": stats["served"],
        "statuses": summary.statuses,
        "settings": {
            "requests": count, "share": share, "concurrency": concurrency,
            "service_seconds": service, "timeout_seconds": timeout, "seed": seed,
        },
    }  # fmt: skip


class Instant:
    """A teacher that answers at once, at the length of a real answer."""

    name, settings = "instant", {"version": 1}

    async def ask(self, request: Request) -> Reply:
        found = {"value": "light brown and dark brown", "evidence": "two clusters in the lesion"}
        finding = Finding(name="colours", box=(0.1, 0.2, 0.8, 0.9), **found)
        text = "The lesion is symmetric in both axes. " * 10 + request.question.text
        answer = Answer(answer=text, findings=[finding] * 5, confidence=0.5, abstained=False)
        return Reply("ok", answer, answer.model_dump_json())


def local(count: int = 20_000, image_bytes: int = 8_000) -> dict[str, float]:
    """What ``count`` requests, in conversations of two turns, cost beside the teacher."""
    question = _fault_server().question

    def conversations(pairs: int) -> Iterator[list[Request]]:
        first = question(0)
        for number in range(pairs):
            image = number.to_bytes(8, "big") * (image_bytes // 8)
            turns = [Prompt("You describe skin. " * 20, f"Turn {t} of {number}?") for t in (0, 1)]
            yield [replace(first, prompt=prompt, image=image) for prompt in turns]

    peaks, spent = [], {}
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
        for pairs in (count // 10, count // 2):  # the first fifth is reused by the second run
            began = time.process_time()
            asked = ask_all(Instant(), conversations(pairs), ledger, progress=False).asked
            spent["ask"] = (time.process_time() - began) / asked
            peaks.append(_peak_gb())
        began = time.process_time()
        found = sum(1 for _ in replay(Instant(), conversations(count // 2), ledger))
        spent["replay"] = (time.process_time() - began) / found
    return {
        "local_ms_per_request": 1000 * sum(spent.values()),
        "local_peak_gb_fifth": peaks[0],
        "local_peak_gb": _peak_gb(),
    }


def _peak_gb() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--service", type=float, default=1.0, help="mean seconds of a reply")
    parser.add_argument("--timeout", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    result = {**local(), **measure(**options)}  # in this order: a peak remembers what was before
    write_json(
        RESULTS / "caption_server.json",
        {**result, "commit": provenance.commit(), "date": date.today().isoformat(), "bars": BARS},
    )
    for name, value in result.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{name:26s} {shown}{f'   bar: {BARS[name]}' if name in BARS else ''}")


if __name__ == "__main__":
    main()
