"""The ledger: what every teacher answered, once per request, in one SQLite file.

A row is found by :func:`key`, a hash of all that can change the answer, so a new prompt, schema,
teacher or setting never meets an old answer, and the same request is never paid for twice.
``failed`` (retries exhausted) is the one status that may be asked again; every other is final.

Any number of threads and processes on one machine may share a file (WAL; a file on a network drive
is not safe, there :func:`merge` joins one shard per machine). A request is asked by the worker that
claimed its key. A claim ends with the answer, with its worker's process, or, where that cannot be
seen, when it has not been renewed for ``claim_seconds``.

A commit survives the death of the process at any moment. It is not flushed to the disk each time
(``synchronous=NORMAL``): a power cut may take the last commits with it, but never damages the file.

:mod:`derm_rl.captions.ledger_rows` says how hostile text is held.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from derm_rl.captions.ledger_rows import (
    COLUMNS,
    STATUSES,
    Entry,
    LedgerError,
    better,
    from_row,
    key,
    to_row,
)
from derm_rl.captions.schema import Reply

__all__ = ["Entry", "Ledger", "LedgerError", "key", "merge"]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, teacher TEXT NOT NULL, status TEXT NOT NULL, answer TEXT, raw TEXT,
    reason TEXT, input_tokens INTEGER, output_tokens INTEGER, cost REAL, latency REAL,
    attempts TEXT NOT NULL, finished REAL NOT NULL);
CREATE TABLE IF NOT EXISTS claims (
    key TEXT PRIMARY KEY, owner TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
    born REAL NOT NULL, until REAL NOT NULL);
CREATE INDEX IF NOT EXISTS claims_of_owner ON claims (owner);
"""
_SELECT = f"SELECT {','.join(COLUMNS)} FROM replies"
_VERSION = 1  # PRAGMA user_version
_BLOCK = 2000  # rows a transaction, and keys a query
_LOCK_SECONDS = 60


def _use_wal(db: sqlite3.Connection) -> None:
    """Write-ahead logging; waits for others that open the same new file.

    The change of the journal's mode is the one statement for which SQLite does not wait by itself.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

    locked = retry_if_exception(
        lambda e: isinstance(e, sqlite3.OperationalError) and "locked" in str(e)
    )
    for attempt in Retrying(
        retry=locked, wait=wait_random(0, 0.1), stop=stop_after_delay(_LOCK_SECONDS), reraise=True
    ):
        with attempt:
            db.execute("PRAGMA journal_mode=WAL")


class Ledger:
    """An open ledger; creates the file. One may be shared by threads, or each open its own.

    Raises:
        LedgerError: the file is not a ledger, or one of a newer version.
    """

    def __init__(self, path: str | Path, claim_seconds: float = 120.0) -> None:
        if claim_seconds <= 0:
            raise ValueError(f"claim_seconds must be positive, got {claim_seconds}")
        self.path, self.claim_seconds = Path(path), claim_seconds
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._open()

    def _open(self) -> None:
        import psutil

        self.owner = uuid.uuid4().hex
        self._host = f"{socket.gethostname()}/{psutil.boot_time():.0f}"
        self._pid, self._born = os.getpid(), psutil.Process().create_time()
        self._db = sqlite3.connect(
            self.path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _use_wal(self._db)
            self._db.execute("PRAGMA synchronous=NORMAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise LedgerError(f"{self.path}: ledger version {version}, newer than this program")
            if version < _VERSION:
                self._create()
        except sqlite3.OperationalError as error:
            self._db.close()
            raise LedgerError(f"{self.path}: cannot be opened ({error}); is it in use?") from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise LedgerError(f"{self.path}: not a ledger ({error})") from error

    def _create(self) -> None:
        tables = {r[0] for r in self._db.execute("SELECT name FROM sqlite_master")}
        if tables and "replies" not in tables:
            raise LedgerError(f"{self.path}: a database, but not a ledger; found tables {tables}")
        with self._transaction() as db:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version={_VERSION}")

    def _connection(self) -> sqlite3.Connection:
        if os.getpid() != self._pid:  # after a fork: SQLite connections must not be carried over
            self._open()
        return self._db

    def _transaction(self) -> _Transaction:
        return _Transaction(self._connection(), self._lock)

    def close(self) -> None:
        """Release this worker's claims and close the file."""
        with self._lock:
            if os.getpid() == self._pid:
                self.release()
                self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------ reading

    def get(self, name: str) -> Reply | None:
        """The reply stored under a key, also a failed one; None if there is none."""
        found = self.get_many([name])
        return found[name].reply if found else None

    def get_many(self, names: Iterable[str]) -> dict[str, Entry]:
        """Rows of those keys that have one."""
        wanted, found = list(dict.fromkeys(names)), {}
        for start in range(0, len(wanted), _BLOCK):
            block = wanted[start : start + _BLOCK]
            marks = ",".join("?" * len(block))
            query = f"{_SELECT} WHERE key IN ({marks})"
            with self._lock:
                rows = self._connection().execute(query, block).fetchall()
            found |= {row[0]: from_row(row) for row in rows}
        return found

    def __iter__(self) -> Iterator[Entry]:
        """All rows by key, in blocks: the table need not fit into memory."""
        last = ""
        query = f"{_SELECT} WHERE key > ? ORDER BY key LIMIT {_BLOCK}"
        while True:
            with self._lock:
                rows = self._connection().execute(query, (last,)).fetchall()
            if not rows:
                return
            yield from map(from_row, rows)
            last = rows[-1][0]

    def __len__(self) -> int:
        with self._lock:
            return self._connection().execute("SELECT count(*) FROM replies").fetchone()[0]

    def counts(self) -> dict[str, int]:
        """Number of rows of each of STATUSES."""
        with self._lock:
            query = "SELECT status, count(*) FROM replies GROUP BY status"
            found = dict(self._connection().execute(query).fetchall())
        return {status: found.get(status, 0) for status in STATUSES}

    # ------------------------------------------------------------------------------ writing

    def exchange(
        self, claims: Iterable[str] = (), replies: Iterable[tuple[str, str, Reply]] = ()
    ) -> list[Reply | bool]:
        """Store ``replies`` (key, teacher's name, reply) and claim keys, in one transaction.

        Returns:
            for each of ``claims``: the reply if there is a final one, True if it is now the
            caller's to ask, False if it is being asked already.
        """
        now = time.time()
        entries = [Entry(name, teacher, reply, now) for name, teacher, reply in replies]
        with self._transaction() as db:
            self._put(db, entries)
            return [self._claim(db, name, now) for name in claims]

    def claim(self, name: str) -> Reply | bool:
        """:meth:`exchange` for one key to claim."""
        return self.exchange([name])[0]

    def store(self, name: str, teacher: str, reply: Reply) -> None:
        """:meth:`exchange` for one reply to store."""
        self.exchange(replies=[(name, teacher, reply)])

    def store_many(self, replies: Iterable[tuple[str, str, Reply]]) -> int:
        """Store any number of (key, teacher's name, reply) in large transactions; how many."""
        return self.put_many(Entry(n, teacher, r, time.time()) for n, teacher, r in replies)

    def put_many(self, entries: Iterable[Entry]) -> int:
        """Store rows as they are, times included, for instance another ledger's; how many."""
        count, block = 0, []
        for entry in entries:
            block.append(entry)
            if len(block) == _BLOCK:
                count += self._put_block(block)
                block = []
        return count + self._put_block(block)

    def _put_block(self, block: list[Entry]) -> int:
        with self._transaction() as db:
            self._put(db, block)
        return len(block)

    def _put(self, db: sqlite3.Connection, entries: list[Entry]) -> None:
        if not entries:
            return
        known = self.get_many(entry.key for entry in entries)
        for entry in entries:
            known[entry.key] = better(known[entry.key], entry) if entry.key in known else entry
        marks = ",".join("?" * len(COLUMNS))
        db.executemany(f"REPLACE INTO replies VALUES ({marks})", map(to_row, known.values()))
        db.executemany("DELETE FROM claims WHERE key = ?", ((name,) for name in known))

    def _claim(self, db: sqlite3.Connection, name: str, now: float) -> Reply | bool:
        query = f"{_SELECT} WHERE key = ? AND status != 'failed'"
        if row := db.execute(query, (name,)).fetchone():
            return from_row(row).reply
        query = "SELECT host, pid, born, until FROM claims WHERE key = ?"
        held = db.execute(query, (name,)).fetchone()
        if held and held[3] > now and not self._is_dead(*held[:3]):
            return False
        db.execute(
            "REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?)",
            (name, self.owner, self._host, self._pid, self._born, now + self.claim_seconds),
        )
        return True

    def _is_dead(self, host: str, pid: int, born: float) -> bool:
        """Whether a process of this machine is gone; of another machine that cannot be known."""
        if host != self._host:
            return False
        import psutil

        try:
            return abs(psutil.Process(pid).create_time() - born) > 1  # the number was given again
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def renew(self) -> None:
        """Prolong this worker's claims; to be called more often than every ``claim_seconds``."""
        with self._transaction() as db:
            until = time.time() + self.claim_seconds
            db.execute("UPDATE claims SET until = ? WHERE owner = ?", (until, self.owner))

    def release(self, names: Iterable[str] | None = None) -> None:
        """Give up this worker's claims, or those of the keys named."""
        with self._transaction() as db:
            if names is None:
                db.execute("DELETE FROM claims WHERE owner = ?", (self.owner,))
            else:
                pairs = [(name, self.owner) for name in names]
                db.executemany("DELETE FROM claims WHERE key = ? AND owner = ?", pairs)


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT: two writers queue at the start instead of failing at the end."""

    def __init__(self, db: sqlite3.Connection, lock: threading.RLock) -> None:
        self.db, self.lock = db, lock

    def __enter__(self) -> sqlite3.Connection:
        self.lock.acquire()
        try:
            self.db.execute("BEGIN IMMEDIATE")
        except BaseException:
            self.lock.release()
            raise
        return self.db

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.db.execute("COMMIT" if kind is None else "ROLLBACK")
        finally:
            self.lock.release()


def merge(into: str | Path, *others: str | Path) -> dict[str, int]:
    """Add the rows of other ledgers (shards of several machines); conflicts as :func:`better` says.

    Returns:
        the number of rows of each status afterwards.

    Raises:
        LedgerError: one of ``others`` is missing or not a ledger.
    """
    for other in others:
        if not Path(other).is_file():
            raise LedgerError(f"{other}: no such ledger")
    with Ledger(into) as ledger:
        for other in others:
            with Ledger(other) as shard:
                ledger.put_many(shard)
        return ledger.counts()
