"""Splits as dataset inputs of a run."""

import threading
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest

from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.registry.dataset_inputs import ManifestSource, log_manifests


def test_a_source_is_stored_by_its_spec():
    source = ManifestSource.from_dict(ManifestSource("digits").to_dict())
    assert source.to_dict() == {"spec": "digits"}
    assert len(source.load().train) > 0


@pytest.mark.slow
def test_sets_logged_by_many_at_once(store):
    """MLflow looks for a set's row and then inserts it: with eight runs at that, every insertion but one fails."""
    together = threading.Barrier(8)

    def log(sets: dict[str, Manifest]) -> set[str]:
        with mlflow.start_run() as run:
            together.wait(60)
            log_manifests("digits", sets)
        inputs = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
        return {f"{i.dataset.name} {i.dataset.digest}" for i in inputs}

    for turn in range(4):
        with ThreadPoolExecutor(8) as pool:
            sets = {"forget": Manifest((f"a{turn}",)), "retain": Manifest((f"b{turn}", f"c{turn}"))}
            logged = list(pool.map(log, [sets] * 8))
        digests = {split: manifest.digest[:36] for split, manifest in sets.items()}
        assert logged == [{f"forget (1 samples) {digests['forget']}", f"retain (2 samples) {digests['retain']}"}] * 8
