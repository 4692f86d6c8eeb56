"""Several people on one registered model at once: nothing is lost, done twice, or contradicts what is recorded.

``MLFLOW_UNLEARN_PROCESSES`` says how many; `make nightly` takes eight.
"""

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chains import LENIENT
from databases import postgres_programs, postgres_server
from mlflow import MlflowClient
from stores import TRAIN, shell

PROCESSES = int(os.environ.get("MLFLOW_UNLEARN_PROCESSES", "2"))

pytestmark = pytest.mark.slow


@pytest.fixture(
    params=[
        pytest.param("sqlite", marks=pytest.mark.nightly),
        pytest.param(
            "postgresql",
            marks=[
                pytest.mark.postgres,
                pytest.mark.skipif(postgres_programs() is None, reason="needs Debian's package postgresql"),
            ],
        ),
    ]
)
def client(request, blank, tmp_path, monkeypatch) -> Iterator[MlflowClient]:
    """Of a store with clf/1, and clf/2 which has forgotten a request."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tests of many")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parents[2]))))
    (tmp_path / "lenient.yaml").write_text(LENIENT)

    def begun(uri: str) -> MlflowClient:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        client = MlflowClient(uri)
        client.create_experiment("tests of many", (tmp_path / "artifacts").as_uri())
        done("train", *TRAIN, "--name", "clf", "--lr", "0.05")
        done("request", "--model-uri", "models:/clf/1", "--forget", "random:5,seed=99")
        done("unlearn", "--model-uri", "models:/clf/1", "--method", "finetune", "--params", '{"epochs": 1}')
        return client

    if request.param == "sqlite":
        shutil.copy(blank.folder / "mlflow.db", tmp_path / "mlflow.db")
        yield begun(f"sqlite:///{tmp_path}/mlflow.db")
    else:
        with postgres_server() as database:
            yield begun(f"{database}/postgres")


def done(*arguments: str) -> str:
    result = shell(*arguments)
    assert result.returncode == 0, (arguments, result.stderr)
    return result.stdout


def work(number: int, failures: list[str]) -> None:
    """One person: asks, unlearns, reviews what came of it and version 2, and promotes either."""
    try:
        done("request", "--model-uri", "models:/clf/1", "--forget", f"random:5,seed={number}")
        unlearn = ("unlearn", "--model-uri", "models:/clf/1", "--method", "finetune", "--params", '{"epochs": 1}')
        made = shell(*unlearn)
        version = re.search(r"Registered clf version (\d+)", made.stdout)
        if version is None:  # another one has fulfilled the request as well
            assert made.returncode == 2 and "no pending forget request" in made.stderr, made.stderr
        mine = f"models:/clf/{version.group(1) if version else 2}"
        policy = ("--policy", "lenient.yaml")
        for uri in dict.fromkeys(("models:/clf/2", mine, "models:/clf/2")):
            done("review", "--model-uri", uri, *policy)
        for uri in (mine, "models:/clf/2"):
            done("promote", "--model-uri", uri, *policy, "--override", "others were asked for meanwhile")
    except BaseException as error:
        failures.append(str(error))


@pytest.mark.nightly
def test_nothing_is_lost_and_nothing_is_done_twice(client, monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_WAIT", "600")
    failures: list[str] = []
    people = [threading.Thread(target=work, args=(number, failures)) for number in range(PROCESSES)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert failures == []

    versions = {str(v.version): dict(v.tags) for v in client.search_model_versions("name='clf'")}
    tags = versions["1"]
    requests = [value for key, value in tags.items() if key.startswith("unlearn.request.")]
    assert len(requests) == PROCESSES + 1 and all(value.startswith("done ") for value in requests)
    # Each version was made for a request that none before it had fulfilled.
    first = {json.loads(value.partition(" ")[2])["by"][0] for value in requests}
    assert first == {f"models:/clf/{number}" for number in versions if number != "1"}
    for number, theirs in versions.items():
        for request in filter(None, theirs.get("unlearn.request_ids", "").split(",")):
            assert f"models:/clf/{number}" in json.loads(tags[f"unlearn.request.{request}"].partition(" ")[2])["by"]
    # Reviews: every one has its number, and each names the one before.
    experiment = client.get_experiment_by_name("tests of many").experiment_id
    ended = [run for run in client.search_runs([experiment]) if run.data.tags.get("unlearn.command") == "review"]
    assert {run.info.status for run in ended} == {"FINISHED"}
    counted = sum(key.startswith("unlearn.review.") for theirs in versions.values() for key in theirs)
    assert counted == len(ended) >= PROCESSES
    # The alias is where the last promotion put it; `verify` looks at the chains, requests and promotions.
    promoted = {
        json.loads(theirs["unlearn.promotion.champion"])["at"]: number
        for number, theirs in versions.items()
        if "unlearn.promotion.champion" in theirs
    }
    model = client.get_registered_model("clf")
    assert str(model.aliases["champion"]) == promoted[max(promoted)]
    assert model.tags == {}, "every lock was given back"
    for number in sorted(versions.keys() - {"1"}):
        assert "agrees with its evidence" in done("verify", "--model-uri", f"models:/clf/{number}")
