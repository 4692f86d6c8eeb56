"""The sets of a run as MLflow's dataset inputs, and the source model as its model input."""

from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LoggedModelInput
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_unlearn.data.manifest import Manifest


class ManifestSource(DatasetSource):  # type: ignore[misc]
    """Names a data source in MLflow's dataset inputs; it is never loaded from there."""

    def __init__(self, spec: str) -> None:
        """Keep the source's spec string."""
        self._spec = spec

    @staticmethod
    def _get_source_type() -> str:
        return "mlflow_unlearn"

    def load(self) -> Any:
        """The source itself, by its spec."""
        from mlflow_unlearn.data.loaders import load_source

        return load_source(self._spec)

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> "ManifestSource":
        raise NotImplementedError("a manifest is logged by mlflow-unlearn, never resolved from a raw source")

    def to_dict(self) -> dict[str, Any]:
        """What MLflow stores."""
        return {"spec": self._spec}

    @classmethod
    def from_dict(cls, source_dict: Mapping[str, Any]) -> "ManifestSource":
        """The inverse of `to_dict`."""
        return cls(source_dict["spec"])


def log_manifests(spec: str, splits: Mapping[str, Manifest]) -> None:
    """Log splits as dataset inputs: context ``forget``, ``retain``, … with digest and size, never with the ids."""
    datasets = [
        MetaDataset(ManifestSource(spec), name=f"{split} ({len(manifest.ids)} samples)", digest=manifest.digest[:36])
        for split, manifest in splits.items()
    ]
    for last in (False, False, True):
        try:
            mlflow.log_inputs(datasets, contexts=list(splits), tags_list=[None] * len(datasets))
            return
        except MlflowException:
            # MLflow stores one row for each set of an experiment, and looks before it inserts: where another command
            # does so at the same moment, the insertion fails, and the row is there the next time.
            if last:
                raise


def log_source_model(client: MlflowClient, run_id: str, model_id: str | None) -> None:
    """The source version's LoggedModel as an input of the run: the first of three places of lineage."""
    if model_id is not None:
        client.log_inputs(run_id, models=[LoggedModelInput(model_id=model_id)])
