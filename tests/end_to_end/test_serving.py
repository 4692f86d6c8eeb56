"""A new version is used where this package is not installed: as a torch module, as a pyfunc, and as a service."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from servers import free_port, stop
from stores import FORGET

from mlflow_unlearn.data.loaders import load_source

# Found on PYTHONPATH by every Python that starts below: the package is not there, as on a production machine.
BLOCK = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mlflow_unlearn", "toy"):
            raise ModuleNotFoundError(f"No module named {name!r} (it is not installed here)", name=name)


sys.meta_path.insert(0, Absent())
"""
LOAD = """
import sys
try:
    import mlflow_unlearn
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package is there")
import mlflow, numpy, torch
images = numpy.load("images.npy")
numpy.save("pyfunc.npy", mlflow.pyfunc.load_model(sys.argv[1]).predict(images))
with torch.no_grad():
    numpy.save("torch.npy", mlflow.pytorch.load_model(sys.argv[1])(torch.from_numpy(images)).numpy())
"""


@pytest.fixture
def elsewhere(store, cli, tmp_path):
    """Version 2, five images with the torch module's logits, and an environment without the package."""
    assert cli("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, "--params", '{"epochs": 1}').code == 0
    test = load_source("digits").test
    images = np.stack([np.asarray(test.images[i], np.float32) / 255 for i in range(5)])[:, None]
    with torch.no_grad():
        logits = mlflow.pytorch.load_model("models:/clf/2")(torch.from_numpy(images)).numpy()
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCK)
    np.save(folder / "images.npy", images)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return folder, images, logits, os.environ | {"PYTHONPATH": str(folder), "PATH": path}


@pytest.mark.nightly
def test_it_loads_without_the_package(elsewhere):
    folder, _, logits, environment = elsewhere
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, "models:/clf/2"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr
    for flavor in ("pyfunc", "torch"):
        assert np.abs(np.load(folder / f"{flavor}.npy") - logits).max() < 1e-5


@pytest.mark.nightly
def test_it_is_served_without_the_package(elsewhere):
    """`mlflow models serve`: /invocations agrees with the torch module."""
    folder, images, logits, environment = elsewhere
    port = free_port()
    log = open(folder / "serve.log", "w")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/clf/2"),
            *("--env-manager", "local", "-h", "127.0.0.1", "-p", str(port), "-w", "1"),
        ],
        cwd=folder,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"no service: {(folder / 'serve.log').read_text()}")
                time.sleep(0.5)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": images.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            served = np.array(json.loads(answer.read())["predictions"])
    finally:
        stop(process)
        log.close()
    assert served.shape == (5, 10)
    assert np.abs(served - logits).max() < 1e-5
