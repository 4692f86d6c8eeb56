"""What earlier steps forgot stays forgotten."""

from pathlib import Path

import mlflow
from chains import evidence_of, folder_of
from stores import call

from mlflow_unlearn.data.manifest import Manifest


def test_retaining_what_was_forgotten_is_refused(chain):
    """Somebody puts a sample back into the training manifest of version 3."""
    path = folder_of("3") / "extra_files" / "training_manifest.csv"
    before = path.read_text()
    request = evidence_of("3").requests[0]
    stored = Path(mlflow.artifacts.download_artifacts(run_id=request.run_id, artifact_path="request/manifest.csv"))
    forgotten = Manifest.from_csv(stored).ids[0]
    try:
        path.write_text(before + Manifest.from_csv(path).key(forgotten) + "\n")
        refused = call("unlearn", "--model-uri", "models:/clf/3", "--forget", "random:5")
        assert refused.code == 2
        assert f"1 samples that request {request.id} had models:/clf/2 forget" in refused.err
        checked = call("verify", "--model-uri", "models:/clf/3")
        assert checked.code == 3 and "are in the training manifest" in checked.err
    finally:
        path.write_text(before)
    assert chain.versions() == ["1", "2", "3", "4"]
