"""Which lists of training ids name which samples: read once, kept as sorted hashes that can be made again.

A file in SQLite beside the cache of arrays. It has no id, but the first 64 bits of their hashes: of a thousand ids in
fifty lists of 100,000 one is found that is not there with a probability of 3 · 10⁻¹⁰.
"""

import hashlib
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlflow_unlearn import cache
from mlflow_unlearn.console import first_line, note
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError

FILE = "manifests.sqlite"
PATIENCE = 30.0
"""Seconds to wait for another command that writes."""

_TABLES = """
CREATE TABLE IF NOT EXISTS trained (key TEXT PRIMARY KEY, samples INTEGER, crc INTEGER, hashes BLOB);
CREATE TABLE IF NOT EXISTS read_files (
    model TEXT PRIMARY KEY, digest TEXT, salt TEXT, source TEXT, source_sha256 TEXT
);
"""

Hashes = NDArray[np.uint64]
T = TypeVar("T")
_SHA256 = re.compile("[0-9a-f]{64}")


class Read(NamedTuple):
    """What a model's own files say.

    Attributes:
        digest: of its list; None where it has none.
        salt: of the hashed ids in it.
        source: spec of its data source, where that is recorded.
        source_sha256: of its samples, likewise.
    """

    digest: str | None
    salt: str | None = None
    source: str | None = None
    source_sha256: str | None = None


class ManifestIndex:
    """Lists by their digest. Whatever happens to its file, it can be deleted: it is filled again."""

    def __init__(self, database: sqlite3.Connection) -> None:
        """Use `opened`."""
        self._database = database

    def samples(self, key: str) -> int | None:
        """How many a list names, by its `Manifest.list_key`; None where it was not read yet."""
        found = self._database.execute("SELECT samples FROM trained WHERE key = ?", (key,)).fetchone()
        return None if found is None else int(found[0])

    def add(self, manifest: Manifest) -> None:
        """Keep a list.

        Raises:
            UnlearnError: its ids are hashed in another way than ours.
        """
        hashed = manifest.salt is not None
        if hashed and not all(map(_SHA256.fullmatch, manifest.ids)):
            raise UnlearnError("its ids are not hashed by SHA-256 with a salt, as those of this tool are")
        hashes = np.sort(_hashes(manifest.ids, hashed=hashed)).tobytes()
        row = (manifest.list_key, len(manifest.ids), zlib.crc32(hashes), hashes)
        self._write("INSERT OR REPLACE INTO trained VALUES (?, ?, ?, ?)", row)

    def counts(self, key: str, wanted: Iterable[Hashes]) -> list[int]:
        """How many of some samples a list names, for each of several such sets.

        Args:
            key: of a list that is there.
            wanted: `keys_of` the samples, with the list's salt.

        Raises:
            sqlite3.DatabaseError: what is kept of it is damaged.
        """
        found = self._database.execute("SELECT crc, hashes FROM trained WHERE key = ?", (key,)).fetchone()
        if found is None or found[0] != zlib.crc32(blob := found[1]):  # it would be taken for one that names none
            raise sqlite3.DatabaseError("a list in it is not what was written")
        hashes = np.frombuffer(blob, np.uint64)
        if not len(hashes):
            return [0 for _ in wanted]
        last = len(hashes) - 1
        return [int((hashes[np.minimum(np.searchsorted(hashes, keys), last)] == keys).sum()) for keys in wanted]

    def read(self, model: str) -> Read | None:
        """What was read of a model before; None where it was not."""
        row = self._database.execute(
            "SELECT digest, salt, source, source_sha256 FROM read_files WHERE model = ?", (model,)
        ).fetchone()
        return None if row is None else Read(*row)

    def remember(self, model: str, found: Read) -> None:
        """Keep what was read of a model."""
        self._write("INSERT OR REPLACE INTO read_files VALUES (?, ?, ?, ?, ?)", (model, *found))

    def _write(self, statement: str, row: tuple[object, ...]) -> None:
        try:
            with self._database:
                self._database.execute(statement, row)
        except sqlite3.Error as error:  # a full disk: what is there is of use, the rest goes on in memory
            note(f"Note: the index of training lists cannot be written ({first_line(error)}): it is kept in memory.")
            memory = _with_tables(":memory:")
            for line in self._database.iterdump():
                if line.startswith("INSERT"):
                    memory.execute(line)
            self._database.close()
            self._database = memory
            with memory:
                memory.execute(statement, row)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()


def keys_of(samples: Manifest, salt: str | None) -> Hashes | None:
    """The samples as a list with this salt has them, once each; None where they are hashed with another one."""
    if samples.salt is not None:
        # What was hashed otherwise is in no list of ours.
        ids = filter(_SHA256.fullmatch, samples.ids)
        return np.unique(_hashes(ids, hashed=True)) if samples.salt == salt else None
    stored = Manifest((), salt)
    return np.unique(_hashes(map(stored.key, samples.ids), hashed=salt is not None))


def _hashes(ids: Iterable[str], *, hashed: bool) -> Hashes:
    """The first 64 bits of the SHA-256 of each id: ``[N]``."""
    digests = bytes.fromhex("".join(ids)) if hashed else b"".join(hashlib.sha256(i.encode()).digest() for i in ids)
    return np.frombuffer(digests, ">u8")[::4].astype(np.uint64)


def with_index(work: Callable[[ManifestIndex], T]) -> T:
    """What comes of some work with the index of this user; from the start, where the index turns out to be damaged."""
    try:
        with opened() as index:
            return work(index)
    except sqlite3.OperationalError as error:  # locked for long, or the disk fails
        note(f"Note: the index of training lists cannot be used ({first_line(error)}): they are read again.")
        with closing(ManifestIndex(_with_tables(":memory:"))) as index:
            return work(index)
    except sqlite3.DatabaseError as error:
        note(f"Note: the index of training lists is damaged ({first_line(error)}): it is made again.")
        with suppress(OSError):
            (cache.folder() / FILE).unlink()
        with opened() as index:
            return work(index)


@contextmanager
def opened() -> Iterator[ManifestIndex]:
    """The index of this user; in memory where the cache is off, or its folder cannot be written."""
    with closing(ManifestIndex(_database())) as index:
        yield index


def _database() -> sqlite3.Connection:
    path = cache.folder() / FILE
    if cache.off():
        return _with_tables(":memory:")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _with_tables(path)
    except sqlite3.OperationalError as error:  # read-only, full, or locked for long
        reason = error
    except sqlite3.DatabaseError:  # not a database any more: a cache
        with suppress(OSError, sqlite3.Error):
            path.unlink()
            return _with_tables(path)
        reason = sqlite3.OperationalError("it is damaged")
    except OSError as error:
        reason = sqlite3.OperationalError(str(error))
    note(f"Note: the index of training lists {path} cannot be used ({first_line(reason)}): they are read again.")
    return _with_tables(":memory:")


def _with_tables(path: Path | str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=PATIENCE)
    try:
        database.executescript(_TABLES)
    except BaseException:
        database.close()
        raise
    return database
