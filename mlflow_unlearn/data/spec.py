"""The text that names a data source, and the options behind it."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from mlflow_unlearn.errors import UnlearnError, did_you_mean
from mlflow_unlearn.parsing import whole_number

CSV_COLUMNS = {"file": "path", "label": "label", "id": "id"}
"""Options of ``csv:`` that name the columns of the files, the labels and the ids, and their usual names."""
DRAWN = "drawn"
"""``split=drawn``: the model was trained on just what this tool draws."""


class SpecOptions(NamedTuple):
    """What stands behind the body of a spec.

    Attributes:
        body: the source alone, with the columns of a table that it names.
        recorded: the options as a text for later commands in other folders.
        seed: of every random split.
        fraction: of the training data.
        split: a file that lists what is trained on, or `DRAWN`.
    """

    body: str
    recorded: str
    seed: int
    fraction: float | None
    split: str

    @property
    def listed(self) -> Path | None:
        """The file of ids that ``split`` names."""
        return resolved(self.split) if self.split not in ("", DRAWN) else None


def parse_options(spec: str) -> SpecOptions:
    """Take ``,key=value`` off the end of a spec; a comma before anything else belongs to a path.

    Raises:
        UnlearnError: an option is unknown, stands twice, or has no such value.
    """
    columns = CSV_COLUMNS if spec.startswith("csv:") else {}
    options: dict[str, str | None] = dict.fromkeys(("seed", "train", "split", *columns))
    body, behind = spec, ""
    while match := re.search(r",\s*(?:(split)=([^,]*)|([A-Za-z_]\w*)=([^,/]*))$", body):
        key, value = (match[1], match[2]) if match[1] else (match[3], match[4])
        if key not in options:
            raise UnlearnError(f"unknown option {key!r} in {spec!r}: {did_you_mean(key, options)}")
        if options[key] is not None:
            raise UnlearnError(f"{spec!r} gives {key}= twice: leave out one of them")
        options[key], body = value.strip(), body[: match.start()]
        if key not in columns:
            behind = match[0] + behind
        elif not options[key]:
            raise UnlearnError(f"{key}= in {spec!r} names no column: write ,{key}=NAME, or leave it out")
    # They are a part of what the source is, and not of how it is split.
    body += "".join(f",{key}={options[key]}" for key in columns if options[key] not in (None, columns[key]))
    seed, train, split = (options["seed"] or "", options["train"], options["split"] or "")
    if (number := whole_number(seed or "0")) is None or (options["seed"] is not None and not seed):
        raise UnlearnError(f"seed={seed} in {spec!r} is not a seed: write a whole number from 0")
    found = SpecOptions(body, behind, number, _fraction(train, spec) if train else None, split)
    if found.listed is None:
        return found
    if train:
        raise UnlearnError(f"{spec!r} has train= and a list of what is trained on: leave out one of them")
    return found._replace(recorded=found.recorded.replace(f"split={split}", f"split={found.listed}"))


def _fraction(text: str, spec: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%?)", text)
    fraction = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < fraction <= 1:
        raise UnlearnError(
            f"train={text} in {spec!r} is not a fraction: write one like 20% or 0.2, above 0 and up to 100%"
        )
    return fraction


def without_options(spec: str) -> str:
    """The source alone, however it is split: a spec without ``,seed=``, ``,train=`` and ``,split=``.

    >>> without_options("digits,seed=1,train=20%")
    'digits'
    """
    return parse_options(spec).body


def table_columns(text: str) -> tuple[str, dict[str, str]]:
    """The path of a table, and the names of its columns by what they are: of what stands behind ``csv:``.

    >>> table_columns("a.csv,label=class")
    ('a.csv', {'file': 'path', 'label': 'class', 'id': 'id'})
    """
    given: dict[str, str] = {}
    while match := re.search(rf",({'|'.join(CSV_COLUMNS)})=([^,/]*)$", text):
        given[match[1]], text = match[2], text[: match.start()]
    return text, CSV_COLUMNS | given


def resolved(path: str) -> Path:
    """A path that users have written, made absolute."""
    return Path(os.path.abspath(os.path.expanduser(path)))
