"""Group commit: answers and claims that arrive together go into the ledger in one transaction.

One thread writes, so the event loop never waits for SQLite, and while it writes one transaction the
next one gathers. Whoever awaits is told when the commit is done, not before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from derm_rl.captions.ledger import Ledger
from derm_rl.captions.schema import Reply


class Committer:
    """``async with Committer(ledger, teacher_name)``; at its end all claims are released."""

    def __init__(self, ledger: Ledger, teacher: str) -> None:
        self.ledger, self.teacher = ledger, teacher
        self._queue: asyncio.Queue[tuple[str, Reply | None, asyncio.Future]] = asyncio.Queue()

    async def claim(self, name: str) -> Reply | bool:
        """As :meth:`Ledger.claim`."""
        return await self._submit(name, None)

    async def store(self, name: str, reply: Reply) -> None:
        """As :meth:`Ledger.store`; returns when it is committed."""
        await self._submit(name, reply)

    async def release(self, name: str) -> None:
        """Give up the claim of a key."""
        await self._write(self.ledger.release, [name])

    async def __aenter__(self) -> Committer:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._tasks = [asyncio.create_task(self._commit()), asyncio.create_task(self._renew())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown()
        self.ledger.release()

    async def _submit(self, name: str, reply: Reply | None) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((name, reply, future))
        return await future

    async def _write(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _commit(self) -> None:
        """One transaction for all that has come in since the last one began."""
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            claims = [op for op in batch if op[1] is None]
            stores = [op for op in batch if op[1] is not None]
            try:
                results = await self._write(
                    self.ledger.exchange,
                    [name for name, _, _ in claims],
                    [(name, self.teacher, reply) for name, reply, _ in stores],
                )
            except Exception as error:
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            outcomes = zip([*claims, *stores], [*results, *[None] * len(stores)], strict=True)
            for (_, _, future), outcome in outcomes:
                if not future.done():
                    future.set_result(outcome)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.ledger.claim_seconds / 3)
            await self._write(self.ledger.renew)
