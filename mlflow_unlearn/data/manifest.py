"""Lists of sample ids: what was trained on, what is to be forgotten."""

import csv
import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlflow_unlearn.errors import UnlearnError, shortlist

_SALT = "# salt="


@dataclass(frozen=True)
class Manifest:
    """Sample ids, plain, or hashed where there is a salt.

    Raises:
        UnlearnError: an id contains a line break.
    """

    ids: tuple[str, ...]
    salt: str | None = None

    def __post_init__(self) -> None:
        """Refuse what would make two manifests look alike."""
        if broken := [i for i in self.ids if "\n" in i or "\r" in i]:
            raise UnlearnError(f"ids with line breaks: {shortlist(broken)}: rename these samples")

    @classmethod
    def salt_of(cls, samples_digest: str) -> str:
        """The salt under which the ids of one source are hashed: of all its versions and requests the same.

        So that two lists of one source can be compared, and those of two sources have nothing in common.

        Args:
            samples_digest: of the source.
        """
        return hashlib.sha256(f"mlflow-unlearn ids\n{samples_digest}".encode()).hexdigest()[:32]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the sorted ids as they are stored, one a line."""
        return hashlib.sha256("\n".join(sorted(self.ids)).encode()).hexdigest()

    @property
    def list_key(self) -> str:
        """What tells it from every other list: the same hashes under another salt are other samples."""
        return list_key(self.digest, self.salt)

    def key(self, plain: str) -> str:
        r"""How a plain id is stored here: itself, or the hex SHA-256 of ``salt + "\n" + id``."""
        return plain if self.salt is None else hashlib.sha256(f"{self.salt}\n{plain}".encode()).hexdigest()

    def hashed(self, salt: str | None = None) -> "Manifest":
        r"""The same list with each id as hex SHA-256 of ``salt + "\n" + id``.

        This hides the names from a reader. It does not resist guessing: the salt is stored beside the hashes, so a
        reader with a list of candidates finds out which of them are in it.

        Args:
            salt: hexadecimal; 16 random bytes by default.

        Raises:
            UnlearnError: the ids are hashed already, or the salt isn't hexadecimal.
        """
        if self.salt is not None:
            raise UnlearnError("the manifest is hashed already: hash the plain one")
        empty = Manifest((), _checked(secrets.token_hex(16) if salt is None else salt))
        return Manifest(tuple(sorted(map(empty.key, self.ids))), empty.salt)

    def mask(self, ids: Iterable[str]) -> NDArray[np.bool_]:
        """Which of these plain ids are in the manifest: ``[N]``."""
        stored = set(self.ids)
        return np.array([self.key(i) in stored for i in ids], dtype=np.bool_)

    def to_csv(self, path: str | Path) -> None:
        """Write the sorted ids below the header ``id``, and ``# salt=…`` above it when hashed."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            if self.salt is not None:
                file.write(f"{_SALT}{self.salt}\n")
            csv.writer(file, lineterminator="\n").writerows([["id"], *([i] for i in sorted(self.ids))])

    @classmethod
    def from_csv(cls, path: str | Path) -> "Manifest":
        """Read a CSV with a column ``id``, as ``to_csv`` writes it or with more columns.

        Raises:
            UnlearnError: the file is missing or is not such a table.
        """
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                start = file.readline().strip()
                salt = _checked(start.removeprefix(_SALT)) if start.startswith(_SALT) else None
                if salt is None:
                    file.seek(0)
                rows = csv.reader(file, strict=True)
                header = next(rows, [])
                if "id" not in header:
                    raise UnlearnError(f"{str(path)!r} has no column 'id': its columns are {shortlist(header)}")
                column, ids = header.index("id"), []
                for row in filter(None, rows):
                    if not column < len(row) <= len(header):
                        raise UnlearnError(
                            f"line {rows.line_num} of {str(path)!r} has another number of fields than the header: "
                            "put ids with commas in double quotes"
                        )
                    if row[column].strip():
                        ids.append(row[column])
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UnlearnError(
                f"can't read the list of ids {str(path)!r} ({error}): give a CSV file in UTF-8"
            ) from error
        return cls(tuple(ids), salt)


def list_key(digest: str, salt: str | None) -> str:
    """`Manifest.list_key` of a list whose digest and salt are known."""
    return f"{digest} {salt or 'plain'}"


def _checked(salt: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]+", salt):
        raise UnlearnError(f"the salt {salt!r} is not hexadecimal: give digits and the letters a to f, or none")
    return salt
