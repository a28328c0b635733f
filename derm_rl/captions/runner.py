"""Ask a teacher everything, once: concurrency, retries, budget, interruption; answers in a ledger.

    summary = ask_all(teacher, requests, Ledger("runs/…/ledger.sqlite"), budget=20)
    for request, key, reply in replay(teacher, requests, ledger): …

An answer counts only once it is committed. Answers that arrive together are committed together by
one thread, so a kill loses those of the last few milliseconds and what was in flight: these, and
only these, are asked again by the next run.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

from derm_rl.captions.commit import Committer
from derm_rl.captions.conversations import (
    Conversation,
    Estimate,
    Turn,
    estimate,
    next_request,
    replay,
    turns_of,
)
from derm_rl.captions.ledger import Ledger, key
from derm_rl.captions.ledger_rows import STATUSES, checked
from derm_rl.captions.pace import Pace, TransientError, backoff
from derm_rl.captions.schema import Reply, Request, Teacher

__all__ = ["Estimate", "Summary", "TransientError", "ask_all", "estimate", "replay"]

Callback = Callable[[Request, str, Reply], None]

# Conversations begun, per call in flight: those that wait for a retry do not hold up the others.
_OPEN = 4


@dataclass
class Summary:
    """What a run did. ``asked`` = the sum of ``statuses``; cost in US dollars."""

    asked: int = 0
    reused: int = 0  # found answered in the ledger
    skipped: int = 0  # later turns of conversations of which a turn has no answer
    statuses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    reasons: Counter[str] = field(default_factory=Counter)  # why, of those that are not ok
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    stopped: str | None = None  # "budget", "interrupted", or None: all was asked

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {name}" for name, n in self.statuses.items() if n) or "none"
        ends = {
            "budget": "; stopped: the budget is spent, run again with more to go on",
            "interrupted": "; interrupted: run again to go on",
        }
        why = "".join(f"; {n} times: {reason}" for reason, n in self.reasons.most_common(2))
        return (
            f"asked {self.asked} ({counts}), reused {self.reused}, skipped {self.skipped}, "
            f"{self.retries} retries, {self.input_tokens} + {self.output_tokens} tokens, "
            f"${self.cost:.4f}, {self.seconds:.0f} s{ends.get(self.stopped, '')}{why}"
        )


def ask_all(
    teacher: Teacher,
    requests: Iterable[Conversation],
    ledger: Ledger,
    *,
    concurrency: int = 64,
    requests_per_minute: float | None = None,
    budget: float | None = None,
    timeout: float = 60.0,
    attempts: int = 6,
    progress: bool = True,
    callback: Callback | None = None,
) -> Summary:
    """Ask all that the ledger has no final answer to; blocks, also inside a running event loop.

    Args:
        requests: requests and conversations; consumed as they are needed.
        concurrency: calls in flight at most.
        budget: US dollars that this run may cost. No call is started that would exceed it at the
            mean cost so far; those in flight finish and are stored.
        timeout: seconds for one ``teacher.ask``, its repairs included.
        attempts: calls at most for one request; then it is stored as ``failed``.
        callback: called with request, key and reply for each answer, new or known (from a thread).

    Ctrl-C starts no further call, waits for those in flight and stores them; a second one does not
    wait. An exception of the teacher other than :class:`TransientError` (a wrong key, a bug) stops
    in the same way and is then raised.
    """
    if attempts < 1 or timeout <= 0:
        raise ValueError(f"expected attempts >= 1 and timeout > 0, got {attempts} and {timeout}")
    if budget is not None and budget < 0:
        raise ValueError(f"budget must not be negative, got {budget}")
    run = _Run(teacher, ledger, budget, timeout, attempts, callback)
    # A thread of its own: an event loop may be running here already (Jupyter), and Ctrl-C reaches
    # the main thread alone.
    with ThreadPoolExecutor(1, thread_name_prefix="ask_all") as thread:
        job = thread.submit(
            lambda: asyncio.run(run.main(requests, concurrency, requests_per_minute, progress))
        )
        while True:
            try:
                return job.result()
            except KeyboardInterrupt:
                run.interrupt()


class _Stopped(Exception):
    """No further call is to be made."""


class _Run:
    """The state of one :func:`ask_all`."""

    def __init__(
        self,
        teacher: Teacher,
        ledger: Ledger,
        budget: float | None,
        timeout: float,
        attempts: int,
        callback: Callback | None,
    ) -> None:
        self.teacher, self.ledger, self.budget = teacher, ledger, budget
        self.timeout, self.attempts, self.callback = timeout, attempts, callback
        self.summary, self.error = Summary(), None
        self._started, self._interrupts = threading.Event(), 0

    def interrupt(self) -> None:
        """From another thread: stop cleanly; the second time, at once."""
        self._started.wait(5)
        self._interrupts += 1
        action = (lambda: self.stop("interrupted")) if self._interrupts == 1 else self.task.cancel
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            self.loop.call_soon_threadsafe(action)

    def stop(self, reason: str) -> None:
        self.summary.stopped = self.summary.stopped or reason
        self.stopping.set()

    def fail(self, error: Exception) -> None:
        """Stop, and raise the first such error when all is stored."""
        self.error = self.error or error
        self.stop("error")

    async def main(
        self,
        requests: Iterable[Conversation],
        concurrency: int,
        requests_per_minute: float | None,
        progress: bool,
    ) -> Summary:
        from tqdm import tqdm

        began = time.monotonic()
        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        self.pace, self.stopping = (
            Pace(concurrency, requests_per_minute, self._sleep),
            asyncio.Event(),
        )
        total = len(requests) if hasattr(requests, "__len__") else None
        self.bar = tqdm(
            total=total, desc=self.teacher.name, unit="", mininterval=1, disable=not progress
        )
        self._started.set()
        try:
            async with Committer(self.ledger, self.teacher.name) as self.committer:
                if prepare := getattr(self.teacher, "aopen", None):
                    await prepare()
                await self._feed(iter(requests), _OPEN * concurrency)
        finally:
            self.bar.close()
            if close := getattr(self.teacher, "aclose", None):
                await close()
        if self.error is not None:
            raise self.error
        self.summary.seconds = time.monotonic() - began
        return self.summary

    async def _feed(self, requests: Iterator[Conversation], limit: int) -> None:
        """Keep up to ``limit`` conversations going until all are done or the run stops."""
        going: set[asyncio.Task] = set()
        stopping = asyncio.create_task(self.stopping.wait())
        try:
            while not self.stopping.is_set():
                room = min(16, limit - len(going))
                try:  # in a thread, as taking the next may mean to read and encode an image
                    new = await asyncio.to_thread(lambda n: list(islice(requests, n)), room)
                except Exception as error:
                    self.fail(error)
                    break
                going |= {asyncio.create_task(self._conversation(turns_of(c))) for c in new}
                if len(new) < room:
                    break
                while len(going) >= limit and not self.stopping.is_set():
                    done, _ = await asyncio.wait(
                        {*going, stopping}, return_when=asyncio.FIRST_COMPLETED
                    )
                    going -= done
                going = {task for task in going if not task.done()}
            await asyncio.gather(*going)
        finally:
            stopping.cancel()
            for task in going:
                task.cancel()
            await asyncio.gather(*going, return_exceptions=True)

    async def _conversation(self, turns: Sequence[Turn]) -> None:
        done: list[tuple[Request, Reply]] = []
        try:
            while (request := next_request(turns, done)) is not None:
                name = key(request, self.teacher)
                done.append((request, await self._answer(name, request)))
                if self.callback:
                    self.callback(request, name, done[-1][1])
        except _Stopped:
            return
        except Exception as error:
            self.fail(error)
            return
        if done and done[-1][1].answer is None:
            self.summary.skipped += len(turns) - len(done)
        self.bar.update()

    async def _answer(self, name: str, request: Request) -> Reply:
        """The final reply, from the ledger or the teacher; committed when this returns."""
        while (mine := await self.committer.claim(name)) is False:  # another worker is asking it
            await self._sleep(0.25)
        if isinstance(mine, Reply):
            self.summary.reused += 1
            return mine
        try:
            reply = checked(await self._ask(request), f"{self.teacher.name}, {name}")
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, _Stopped):
                self.fail(error)  # before the loop gets to start the next call
            await self.committer.release(name)
            raise
        await self.committer.store(name, reply)
        self.summary.asked += 1
        self.summary.statuses[reply.status] += 1
        if reply.status != "ok":
            self.summary.reasons[f"{reply.status}, {reply.reason[:120]}"] += 1
        self.bar.set_postfix(cost=f"${self.summary.cost:.2f}", refresh=False)
        return reply

    async def _ask(self, request: Request) -> Reply:
        """Ask until there is a reply or the attempts are used up."""
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        began: list[float] = []
        failures: list[TransientError] = []

        async def once() -> Reply:
            async with self.pace:
                self._may_start()
                began.append(time.time())
                try:
                    reply = await self._call(request)
                except TransientError as error:
                    failures.append(error)
                    self.pace.report(error)
                    self._account(error)
                    raise
                self.pace.report()
                self._account(reply)
            return replace(
                reply,
                attempts=(*began[:-1], *(reply.attempts or began[-1:])),
                latency=reply.latency or time.time() - began[-1],
            )

        retrying = AsyncRetrying(
            sleep=self._sleep,
            stop=stop_after_attempt(self.attempts),
            wait=lambda state: backoff(state.attempt_number, state.outcome.exception()),
            retry=retry_if_exception_type(TransientError),
            reraise=True,
        )
        try:
            reply = await retrying(once)
        except TransientError as error:
            reply = Reply("failed", None, "", error.reason, attempts=tuple(began))
        self.summary.retries += len(began) - 1
        return replace(
            reply,
            input_tokens=reply.input_tokens + sum(e.input_tokens for e in failures),
            output_tokens=reply.output_tokens + sum(e.output_tokens for e in failures),
            cost=reply.cost + sum(e.cost for e in failures),
        )

    async def _call(self, request: Request) -> Reply:
        try:
            async with asyncio.timeout(self.timeout):
                return await self.teacher.ask(request)
        except TimeoutError:
            raise TransientError(f"no reply within {self.timeout:g} s") from None

    def _may_start(self) -> None:
        if self.stopping.is_set():
            raise _Stopped
        if self.budget is not None:
            spent = self.summary.cost
            expected = spent + spent / max(1, self.summary.asked) * self.pace.in_flight
            if spent >= self.budget or expected > self.budget:
                self.stop("budget")
                raise _Stopped

    def _account(self, spent: Reply | TransientError) -> None:
        self.summary.input_tokens += spent.input_tokens
        self.summary.output_tokens += spent.output_tokens
        self.summary.cost += spent.cost

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the moment at which the run stops."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return
        raise _Stopped
