"""`exposure`: where forgotten data still lives; it makes no run and changes nothing."""

import numpy as np
import pytest
from stores import call

from mlflow_unlearn import cache


@pytest.mark.slow
def test_every_version_with_its_aliases_and_endpoints(chain):
    chain.client.set_model_version_tag("clf", "1", "unlearn.endpoint.edge", "https://edge.example.com")
    before, runs = chain.everything_registered(), len(chain.runs())
    done = call("exposure", "--model-uri", "models:/clf/4")
    assert done.code == 0, done.err
    rows = {line.split("│")[1].strip(): line for line in done.out.splitlines() if line.startswith("│ models:/")}
    assert "contains" in rows["models:/clf/1"] and "edge" in rows["models:/clf/1"]
    assert "unlearned" in rows["models:/clf/4"]
    assert "Not seen from here: downloads, backups" in done.out
    assert (chain.everything_registered(), len(chain.runs())) == (before, runs)
    chain.client.delete_model_version_tag("clf", "1", "unlearn.endpoint.edge")


def test_checkpoints_of_commands_that_were_killed(chain, monkeypatch, tmp_path):
    """Of trainings that began with a holder, and of all that began with no version; `retire` deletes the former."""
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path))
    first, last = (chain.tags(version)["unlearn.weights_sha256"] for version in "14")
    # A shard's stage begins with weights of no version, and names the version that is unlearned.
    for command, weights, of in (
        ("unlearn", first, {}),
        ("train", "0", {}),
        ("unlearn", last, {}),
        ("unlearn", "1", {"of": first}),
    ):
        facts = {"command": command, "weights": weights}
        assert cache.write(cache.CHECKPOINTS, facts, {"state": np.zeros(1)}, **of)
    by_facts = {(facts["command"], facts["weights"]): str(path) for path, facts in cache.entries(cache.CHECKPOINTS)}
    done = call("exposure", "--model-uri", "models:/clf/4")
    assert done.code == 0, done.err
    listed = {path for path in by_facts.values() if path in done.out}
    begun = {by_facts["unlearn", first], by_facts["unlearn", "1"]}
    assert listed == begun | {by_facts["train", "0"]}
    plan = call("retire", "--model-uri", "models:/clf/1")
    assert {path for path in by_facts.values() if f"would delete {path}" in " ".join(plan.out.split())} == begun
