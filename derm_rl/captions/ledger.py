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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from derm_rl.errors import DiskFull, full_disk, nearly_full, says_full

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
_LOCK_SECONDS = 15  # a transaction takes milliseconds: who holds the file for longer keeps it


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


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What SQLite refuses, as an error that names the file and what to do.

    Raises:
        LedgerError, DiskFull: instead of SQLite's own.
    """
    try:
        yield
    except sqlite3.Error as error:
        said = str(error)
        if says_full(error) or ("disk I/O" in said and nearly_full(path)):
            raise DiskFull(full_disk(path)) from error
        if "locked" in said or "busy" in said:
            holders = ", ".join(_holders(path)) or "a process that cannot be seen from here"
            raise LedgerError(
                f"{path}: still locked after {_LOCK_SECONDS} s by {holders}; wait for it or end "
                "it, then run the same again"
            ) from error
        if path.is_dir():
            said = "it is a folder"
        elif isinstance(error, sqlite3.OperationalError) and "no such" not in said:
            raise LedgerError(
                f"{path}: cannot be opened or written ({said}); get the right to the file and its "
                "folder"
            ) from error
        raise LedgerError(f"{path}: not a ledger ({said}); move it away") from error


def _holders(path: Path) -> list[str]:
    """Processes that hold a lock on a database or its companions, as far as Linux tells."""
    import psutil

    files = [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")]
    inodes = {str(file.stat().st_ino) for file in files if file.exists()}
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return []
    # "1: POSIX ADVISORY WRITE 1234 08:01:5678 0 EOF"; "->" marks one that waits. Whoever has the
    # file open holds a lock for reading.
    mine = [x for x in locks if "->" not in x and x[5].rpartition(":")[2] in inodes]
    writes = [x for x in mine if x[3] == "WRITE"] or mine
    found = []
    for pid in sorted({int(x[4]) for x in writes}):
        try:
            command = " ".join(psutil.Process(pid).cmdline())[:80]
        except psutil.Error:
            command = "which has ended or is another user's"
        found.append(f"process {pid} ({command})")
    return found


class Ledger:
    """An open ledger; creates the file. One may be shared by threads, or each open its own.

    Raises:
        LedgerError: the file is not a ledger, is one of a newer version, or stays locked; every
            method may raise it, too.
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
        with explained(self.path):
            self._db = sqlite3.connect(
                self.path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._check()
            except BaseException:
                self._db.close()
                raise

    def _check(self) -> None:
        """Refuse what is not ours before anything is written to it, its journal's mode included."""
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        tables = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master")}
        columns = {row[1] for row in self._db.execute("PRAGMA table_info(replies)")}
        if (tables or version) and not columns.issuperset(COLUMNS):
            raise LedgerError(
                f"{self.path}: a database, but not a ledger; found tables "
                f"{', '.join(sorted(tables)) or 'none'}; move it away"
            )
        if version > _VERSION:
            raise LedgerError(
                f"{self.path}: ledger version {version}, newer than this program's {_VERSION}; "
                "update the program"
            )
        _use_wal(self._db)
        self._db.execute("PRAGMA synchronous=NORMAL")
        if version < _VERSION:
            self._create()

    def _create(self) -> None:
        with self._transaction() as db:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version={_VERSION}")

    def _connection(self) -> sqlite3.Connection:
        if os.getpid() != self._pid:  # after a fork: SQLite connections must not be carried over
            self._open()
        return self._db

    def _transaction(self) -> _Transaction:
        return _Transaction(self._connection(), self._lock, self.path)

    def _rows(self, query: str, values: Sequence[str] = ()) -> list[tuple]:
        with self._lock, explained(self.path):
            return self._connection().execute(query, values).fetchall()

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
            found |= {row[0]: from_row(row) for row in self._rows(query, block)}
        return found

    def __iter__(self) -> Iterator[Entry]:
        """All rows by key, in blocks: the table need not fit into memory."""
        last = ""
        query = f"{_SELECT} WHERE key > ? ORDER BY key LIMIT {_BLOCK}"
        while True:
            rows = self._rows(query, (last,))
            if not rows:
                return
            yield from map(from_row, rows)
            last = rows[-1][0]

    def __len__(self) -> int:
        return self._rows("SELECT count(*) FROM replies")[0][0]

    def counts(self) -> dict[str, int]:
        """Number of rows of each of STATUSES."""
        found = dict(self._rows("SELECT status, count(*) FROM replies GROUP BY status"))
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

    def __init__(self, db: sqlite3.Connection, lock: threading.RLock, path: Path) -> None:
        self.db, self.lock, self.path = db, lock, path

    def __enter__(self) -> sqlite3.Connection:
        self.lock.acquire()
        try:
            with explained(self.path):
                self.db.execute("BEGIN IMMEDIATE")
        except BaseException:
            self.lock.release()
            raise
        return self.db

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        try:
            with explained(self.path):
                if kind is None:
                    self.db.execute("COMMIT")
                elif self.db.in_transaction:  # SQLite has ended it itself where the disk is full
                    self.db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise error
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
