"""`data`: what a data source contains."""

from mlflow_unlearn import config
from mlflow_unlearn.console import first_line
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.report import table


def data(options: config.Data) -> None:
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
        print(f"Wrote the ids of all splits to {options.ids}: a forget set takes rows with split train.")
