"""How many requests a command makes: on a server that checks a password's hash each time, they are what takes long."""

import os
import time
from pathlib import Path

import pytest
from chains import LENIENT
from servers import mlflow_server
from stores import DATA, shell

MOST = {
    "train": 45,
    "request": 40,
    "unlearn": 157,
    "review": 83,
    "promote": 93,
    "verify": 73,
    "exposure": 37,
    "retire": 106,
}
"""As it was before the registry had locks and reviews a chain, with this history; `retire` asks for every folder."""


@pytest.mark.nightly
def test_no_command_makes_more_requests_than_it_did(tmp_path):
    (tmp_path / "lenient.yaml").write_text(LENIENT)
    unlearn = ("--method", "finetune", "--params", '{"epochs": 1}')
    policy = ("--policy", "lenient.yaml")
    commands = [
        ("train", "--data", DATA, "--name", "clf", "--architecture", "toy:trainable", "--epochs", "5"),
        ("request", "--model-uri", "models:/clf/1", "--forget", "random:20"),
        ("unlearn", "--model-uri", "models:/clf/1", *unlearn),
        ("request", "--model-uri", "models:/clf/2", "--forget", "random:20,seed=2"),
        ("unlearn", "--model-uri", "models:/clf/2", *unlearn),
        ("review", "--model-uri", "models:/clf/3", *policy),
        ("promote", "--model-uri", "models:/clf/3", *policy),
        ("verify", "--model-uri", "models:/clf/3"),
        ("exposure", "--model-uri", "models:/clf/3"),
        ("retire", "--model-uri", "models:/clf/1", "--yes", "true"),
    ]
    log, made = tmp_path / "server.log", {}
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", "--uvicorn-opts", "--log-level info") as uri:
        here = Path(__file__).parents[1]
        paths = os.pathsep.join(map(str, (here, here.parent)))
        environment = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": "counted", "PYTHONPATH": paths}

        def requests() -> int:
            time.sleep(0.5)  # the last lines are on their way
            return sum("/mlflow" in line for line in log.read_text().splitlines() if '" 2' in line or '" 4' in line)

        for command in commands:
            before = requests()
            done = shell(*command, env=environment, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            made[command[0]] = requests() - before  # of two, the second one, which has the longer history
    assert all(count > 10 for count in made.values()), made
    assert {name: count for name, count in made.items() if count > MOST[name]} == {}, made
