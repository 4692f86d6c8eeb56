"""Lists of ids that users write by hand: no torch, since whoever looks for samples need not read data."""

import csv
import os
from pathlib import Path

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError, shortlist
from mlflow_unlearn.parsing import LARGEST_LIST, read_text

_FORMS = "a file of ids, random:10%, random:500 (with ,seed=N and ,plain), request:ID, class:NAME or group:COLUMN=VALUE"


def listed_ids(spec: str) -> Manifest:
    """The ids in a file that a forget spec names, whatever source has them.

    Raises:
        UnlearnError: it is another spec, or the file lists none.
    """
    if spec.startswith("random:"):
        raise UnlearnError(f"{spec!r} draws different samples for every version: name the samples to look for")
    listed = read_ids(Path(os.path.expanduser(spec)))
    if not listed.ids:
        raise UnlearnError(f"{spec!r} lists no id: there is nothing to look for")
    return listed


def read_ids(path: Path, what: str = "forget set") -> Manifest:
    """A list of ids: one a line, or a CSV with a column ``id``, as a manifest has it.

    Raises:
        UnlearnError: there is no such file, or it is something else.
    """
    if not path.is_file():
        raise UnlearnError(f"no {what} {str(path)!r}: give {_FORMS if what == 'forget set' else 'a file of ids'}")
    try:
        text = read_text(path, LARGEST_LIST)
        lines = [line for line in text.split("\n") if line.strip()]
        start = lines[0] if lines else ""
        header = next(csv.reader([start]), [])
    except (OSError, ValueError, csv.Error) as error:
        raise UnlearnError(f"can't read the list of ids {str(path)!r} ({error}): save it as UTF-8 text") from error
    if start.startswith("# salt=") or "id" in header:
        return Manifest.from_csv(path)
    if path.suffix == ".csv" and len(header) > 1:
        raise UnlearnError(f"{str(path)!r} has no column 'id': its columns are {shortlist(header)}")
    return Manifest(tuple(lines))
