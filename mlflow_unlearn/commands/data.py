"""`data`: what a data source contains."""

from typing import Any

from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import first_line, say
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.report import table
from mlflow_unlearn.spelling import command_line


class DataResult(CommandResult):
    """What a source contains."""

    spec: str
    split: str = Field(description="Who decided what is trained on, in words.")
    sha256: str = Field(description="Over ids, labels and splits.")
    samples: dict[str, dict[str, int]] = Field(description="Split → class → number of samples.")
    ids_sha256: dict[str, str] = Field(description="Split → digest of its ids.")
    groups: dict[str, int] = Field(description="Group column → how many values it has among the training samples.")

    def next_step(self, options: Any) -> str | None:
        """To train on it."""
        return command_line("train", "--data", options.data, "--name", "clf")


def data(options: config.Data) -> DataResult:
    """Print counts by split and class, and digests.

    Raises:
        UnlearnError: the source cannot be read, or the list of ids not be written.
    """
    source = load_source(options.data)
    if options.ids is not None:
        try:
            source.listing().to_csv(options.ids, index=False)
        except OSError as error:
            raise UnlearnError(
                f"the list of ids cannot be written to {options.ids!r} ({error.strerror or first_line(error)})"
            ) from error
    table.show_source(source)
    if options.ids is not None:
        say(f"Wrote the ids of all splits to {options.ids}: a forget set takes rows with split train.")
    splits = {"train": source.train, "val": source.val, "test": source.test}
    return DataResult(
        spec=source.spec,
        split=source.split,
        sha256=source.digest,
        samples={
            name: {label: int((split.labels == index).sum()) for index, label in enumerate(source.classes)}
            for name, split in splits.items()
        },
        ids_sha256={name: Manifest(split.ids).digest for name, split in splits.items()},
        groups={column: len(set(values)) for column, values in source.train.groups.items()},
    )
