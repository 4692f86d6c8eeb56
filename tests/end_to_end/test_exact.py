"""Exact unlearning through the whole path: of one sample, one subject and ten, on digits and on Fashion-MNIST."""

import gzip
import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from stores import call, copied

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.placement import placements

FASHION = Path("/usr/share/datasets/fashion-mnist")
OPTIONS = (
    *("--architecture", "toy:of_any_size", "--transform", "none", "--epochs", "10", "--batch-size", "16"),
    *("--ensemble", "4", "--slices", "4", "--group", "subject"),
)
TRAINED, SUBJECTS = 1200, 60


def images_of(name):
    if name == "digits":
        data = load_digits()
        return np.uint8(data.images * 15), data.target
    if not FASHION.exists():
        pytest.skip("install the Debian package dataset-fashion-mnist")
    images, labels = (gzip.open(FASHION / f"train-{kind}-ubyte.gz").read() for kind in ("images-idx3", "labels-idx1"))
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


@pytest.fixture(scope="module", params=["digits", "fashion"])
def trained(request, blank, tmp_path_factory):
    """An ensemble of four shards with four slices, by subject; and the spec of its data."""
    folder = tmp_path_factory.mktemp(request.param)
    images, labels = images_of(request.param)
    lines = ["path,label,split,subject"]
    for number in range(TRAINED + 500):
        Image.fromarray(images[number]).save(folder / f"{number}.png")
        split = "train" if number < TRAINED else "val" if number < TRAINED + 200 else "test"
        lines.append(f"{number}.png,{labels[number]},{split},s{number % SUBJECTS}")
    (folder / "list.csv").write_text("\n".join(lines))
    source = f"csv:{folder / 'list.csv'}"
    with copied(blank, folder / "store") as store:
        done = call("train", "--data", source, "--name", "clf", *OPTIONS)
        assert done.code == 0, done.err
        yield store, source


@pytest.mark.slow
@pytest.mark.parametrize("forget", ["random:1,seed=5", "group:subject=s17", "random:10,seed=2"])
def test_the_weights_are_those_of_training_without_the_samples(trained, forget):
    store, source = trained
    filed = call("request", "--model-uri", "models:/clf/1", "--forget", forget, "--format", "json")
    assert filed.code == 0, filed.err
    [request_id] = [key for key, (state, _) in store.requests().items() if state == "pending"]
    # By name: else those of the tests before would be fulfilled again.
    asked = ("unlearn", "--model-uri", "models:/clf/1", "--forget", f"request:{request_id}", "--format", "json")
    planned = call(*asked, "--plan", "true", "--claim", "exact")
    assert planned.code == 0, planned.err
    plan = json.loads(planned.out)["result"]
    assert plan["recommended"] == "shards"
    [why] = [way["why"] for way in plan["ways"] if way["kind"] == "shards"]
    done = call(*asked, "--method", "exact")
    assert done.code == 0, done.err
    registered = json.loads(done.out)["result"]["registered"]

    gold = call("train", "--data", source, "--name", "gold", *OPTIONS, "--exclude", request_id, "--format", "json")
    assert gold.code == 0, gold.err
    assert registered["weights_sha256"] == json.loads(gold.out)["result"]["registered"]["weights_sha256"]

    exactness = mlflow.artifacts.load_dict(f"{registered['uri']}/evidence/evidence.json")["exactness"]
    assert f"in {exactness['steps']} of {exactness['steps_from_scratch']} steps" in why
    train = load_source(source).train
    manifest = mlflow.artifacts.load_text(f"runs:/{store.requests()[request_id][1]['run_id']}/request/manifest.csv")
    forgotten = set(manifest.split()) - {"id"}
    keys = [subject for i, subject in zip(train.ids, train.groups["subject"], strict=True) if i in forgotten]
    placed = placements(keys, 4, 4)
    predicted = {str(shard): int(placed.slice_[placed.shard == shard].min()) for shard in placed.shard}
    assert exactness["retrained"] == predicted and exactness["kind"] == "exact"
    verified = call("verify", "--model-uri", registered["uri"])
    assert verified.code == 0, verified.out
