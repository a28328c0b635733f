"""How fast a server may be asked: calls in flight, calls a minute, and what it says of its limits.

A refused call (429) is part of life: some servers refuse at random, and that is no reason to slow
down. Only when a good share of the latest calls was refused are calls spaced, at most once a second
anew, to a little less than what the server accepted in the last second; each success lets the rate
grow again (additive increase, multiplicative decrease: Chiu and Jain, 1989).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

from derm_rl.masking import mask

MAX_WAIT = 900.0  # seconds; a server that asks for more is asked again earlier
_TOO_MANY = 0.2  # share of refused calls above which fewer are made
_MEMORY = 32  # calls over which that share is averaged
_SLOWEST = 1 / 60  # calls a second, whatever is refused


class TransientError(Exception):
    """A call that may succeed if made again: refused, timed out, or the connection broke.

    Raised by a teacher's ``ask``; the runner asks again. ``throttled``: the server wants fewer
    calls. ``pause_all``: ``retry_after`` (seconds) holds for every request, not for this one alone.
    Tokens and cost: what was spent before the error, so that the accounts stay right.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry_after: float | None = None,
        throttled: bool = False,
        pause_all: bool = False,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cost: float = 0.0,
    ) -> None:
        reason = mask(reason)
        super().__init__(reason)
        self.reason, self.retry_after = reason, retry_after
        self.throttled, self.pause_all = throttled, pause_all
        self.input_tokens, self.output_tokens, self.cost = input_tokens, output_tokens, cost


def backoff(attempt: int, error: BaseException | None = None, base: float = 0.5) -> float:
    """Seconds to wait after attempt number ``attempt`` (from 1) failed, jitter included.

    As long as the server asks, a little spread, or else uniform below base · 2^attempt, at most a
    minute: full jitter keeps those that failed together from coming back together.
    """
    asked = getattr(error, "retry_after", None)
    if asked is not None and not math.isnan(asked):
        asked = min(max(asked, 0.0), MAX_WAIT)
        return asked + random.uniform(0, 0.1 * asked + 0.05)
    return random.uniform(0, min(60.0, base * 2**attempt))


class Pace:
    """``async with pace:`` around each call; :meth:`report` after it."""

    def __init__(
        self,
        concurrency: int,
        requests_per_minute: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        if requests_per_minute is not None and requests_per_minute <= 0:
            raise ValueError(f"requests_per_minute must be positive, got {requests_per_minute}")
        self.most = requests_per_minute / 60 if requests_per_minute else math.inf
        self.rate = self.most  # calls a second
        self.in_flight, self.refused = 0, 0.0
        self._free, self._sleep = asyncio.Semaphore(concurrency), sleep
        self._next = self._paused_until = self._lowered = 0.0
        self._starts: deque[float] = deque()  # in the last second, less one for each refusal

    async def __aenter__(self) -> Pace:
        await self._free.acquire()
        self.in_flight += 1
        try:
            start = max(time.monotonic(), self._next, self._paused_until)
            self._next = start + 1 / self.rate
            while (left := max(start, self._paused_until) - time.monotonic()) > 0:
                await self._sleep(left)
        except BaseException:
            await self.__aexit__()
            raise
        self._starts.append(time.monotonic())
        self._forget()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.in_flight -= 1
        self._free.release()

    def report(self, error: TransientError | None = None) -> None:
        """Learn from a finished call."""
        throttled = error is not None and error.throttled
        self.refused += (throttled - self.refused) / _MEMORY
        if error is None:
            self.rate = min(self.most, self.rate + min(1 / self.rate, 0.05))
        if not throttled:
            return
        now = time.monotonic()
        if error.pause_all and error.retry_after and not math.isnan(error.retry_after):
            self._paused_until = max(self._paused_until, now + min(error.retry_after, MAX_WAIT))
        if self._starts:
            self._starts.pop()
        if self.refused > _TOO_MANY and now - self._lowered > 1:
            self._forget()
            accepted = len(self._starts)
            rate = 0.9 * accepted if accepted > 2 else 0.5 * min(self.rate, 2.0)
            self.rate, self._lowered = max(_SLOWEST, min(self.rate, rate)), now
            self.refused = 0.0  # judged anew at the new rate

    def _forget(self) -> None:
        while self._starts and self._starts[0] < time.monotonic() - 1:
            self._starts.popleft()
