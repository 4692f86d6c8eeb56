"""The README's way for a class of one's own: logged by plain MLflow, images in a table, each command as typed there."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from servers import free_port, stop
from sklearn.datasets import load_digits

README = Path(__file__).parents[2] / "README.md"
MY_CNN = """
import torch
from torch import nn


class MyCnn(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Linear(128, num_classes)

    def forward(self, images):
        return self.head(self.body(images))
"""
TRAIN = """
import numpy, torch
from my_cnn import MyCnn

images, labels = torch.from_numpy(numpy.load("images.npy")), torch.from_numpy(numpy.load("labels.npy"))
torch.manual_seed(0)
model = MyCnn()
optimizer = torch.optim.Adam(model.parameters(), 0.01)
for _ in range(100):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
torch.save(model.state_dict(), "my_cnn.pt")
"""


@pytest.fixture
def desk(empty_store, monkeypatch):
    """A folder with the class, its weights, PNG files and their table; `mlflow` and `mlflow-unlearn` on the path."""
    digits, folder = load_digits(), empty_store.folder
    (folder / "png").mkdir()
    pixels = np.rint(digits.images[:600] * 255 / 16).astype(np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "png" / f"{number}.png")
    numbers = range(600)
    pd.DataFrame(
        {
            "picture": [f"png/{n}.png" for n in numbers],
            "kind": [f"kind {digits.target[n]}" for n in numbers],
            "customer": [str(n % 30) for n in numbers],
            "split": ["train" if n < 300 else "test" for n in numbers],
        }
    ).to_csv(folder / "list.csv", index=False)
    np.save(folder / "images.npy", pixels[:300, None].astype(np.float32) / 255)
    np.save(folder / "labels.npy", digits.target[:300])
    (folder / "my_cnn.py").write_text(MY_CNN)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "mlflow-unlearn").write_text(f'#!/bin/sh\nexec {sys.executable} -m mlflow_unlearn "$@"\n')
    (bin_folder / "mlflow").write_text(f'#!/bin/sh\nexec {sys.executable} -m mlflow "$@"\n')
    for program in bin_folder.iterdir():
        program.chmod(0o755)
    path = os.pathsep.join([str(bin_folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    python(TRAIN)
    return empty_store


def python(text: str) -> None:
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def section() -> tuple[str, list[str]]:
    """The Python block of the README's section, and its commands."""
    text = README.read_text(encoding="utf-8").partition("### Your own model\n")[2].partition("\n### ")[0]
    blocks = dict(re.findall(r"```(python|sh)\n(.*?)```", text, re.S))
    return blocks["python"], blocks["sh"].strip().splitlines()


@pytest.mark.slow
def test_the_whole_way_as_typed(desk):
    logging, commands = section()
    export, request, *others, serve = commands
    assert export == "export PYTHONPATH=." and serve.startswith("mlflow models serve ")
    os.environ["PYTHONPATH"] = f".{os.pathsep}{os.environ['PYTHONPATH']}"  # `desk` puts it back
    python(logging)
    # Nothing given: one sentence names everything, and what it names is what the next command gives.
    bare = subprocess.run(shlex.split(request.partition(" --data ")[0]), capture_output=True, text=True)
    assert bare.returncode == 2
    options = re.search(r"For example: (.*)", bare.stderr)[1]
    assert {word for word in shlex.split(options) if word.startswith("--")} == {
        word for word in shlex.split(request) if word.startswith("--")
    }
    for command in (request, *others):
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "lacks" not in done.stderr
    tags = desk.tags("2", "parts")
    [(request_id, (state, details))] = desk.requests("1", "parts").items()
    assert (tags["unlearn.request_ids"], state, details["by"]) == (request_id, "done", ["models:/parts/2"])
    images = np.load("images.npy")[:3]
    assert served(serve, images).shape == (3, 10)


def served(command: str, images: np.ndarray) -> np.ndarray:
    """What the service answers, started as typed but for its port, where the class is not."""
    port = free_port()
    environment = os.environ | {"PYTHONPATH": ""}
    with open("serve.log", "w") as log:
        process = subprocess.Popen(
            command.replace("5001", str(port)),
            shell=True, cwd="state", env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    question = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps({"inputs": images.tolist()}).encode(),
        {"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + 120
    try:
        while True:
            try:
                with urllib.request.urlopen(question, timeout=20) as answer:
                    return np.array(json.load(answer)["predictions"])
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(Path("serve.log").read_text()[-2000:])
                time.sleep(0.5)
    finally:
        stop(process)


@pytest.mark.nightly
def test_what_a_request_is_told_is_used_without_asking(desk, cli, monkeypatch, tmp_path):
    """Asked for once, kept, used; a wrong value is refused before anything is kept."""
    monkeypatch.syspath_prepend(str(desk.folder))
    monkeypatch.delitem(sys.modules, "my_cnn", raising=False)
    python_path = os.environ["PYTHONPATH"]
    monkeypatch.setenv("PYTHONPATH", f"{desk.folder}{os.pathsep}{python_path}")
    python(section()[0])
    ask = ("request", "--model-uri", "models:/parts/1", "--forget", "group:customer=17")
    data = ("--data", "csv:list.csv,file=picture,label=kind")
    for wrong, says in (
        (("--transform", "imagnet"), "did you mean 'imagenet'"),
        (("--architecture", "my_cnn:YourCnn"), "my_cnn"),
        (("--classes", "a,b"), "do not name the same 10 classes"),
    ):
        refused = cli(*ask, *data, *wrong)
        assert refused.code == 2 and says in refused.err
    assert not {"unlearn.inputs"} & desk.tags("1", "parts").keys() and desk.requests("1", "parts") == {}
    filed = cli(*ask, *data)
    assert filed.code == 0 and "to be unlearned, models:/parts/1 lacks its architecture" in filed.err
    order = ",".join(f"kind {n}" for n in range(10))
    again = cli(*ask, "--transform", "none", "--architecture", "my_cnn:MyCnn", "--classes", order)
    assert again.code == 0 and "was filed before and is pending" in again.out and "lacks" not in again.err
    assert json.loads(desk.tags("1", "parts")["unlearn.inputs"]) == {
        "data": f"csv:{desk.folder / 'list.csv'},file=picture,label=kind",
        "architecture": "my_cnn:MyCnn",
        "transform": "none",
        "classes": order.split(","),
    }
    monkeypatch.chdir(tmp_path)
    done = cli("unlearn", "--model-uri", "models:/parts/1", "--params", '{"epochs": 1}')
    assert done.code == 0, done.err
    assert "is read as a request was told: --data csv:" in done.err and "order is assumed" not in done.err
    measured = cli("evaluate", "--model-uri", "models:/parts/1", "--forget", "random:5")
    assert measured.code == 0, measured.err
    forbidden = cli("evaluate", "--model-uri", "models:/parts/1", "--forget", "random:5", "--no-code", "true")
    assert forbidden.code == 3 and "its architecture is the function my_cnn:MyCnn" in forbidden.err
    # On a machine where nobody has named them, a tag alone runs no function and reads no file.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    elsewhere = cli("unlearn", "--model-uri", "models:/parts/1", "--forget", "random:5")
    assert (
        elsewhere.code == 2
        and "and my_cnn:MyCnn of its tag is code or a file, used only where you name it" in elsewhere.err
    )
    assert elsewhere.err.rstrip().endswith(" --architecture my_cnn:MyCnn") and " --data csv:" in elsewhere.err
    assert torch.load(desk.folder / "my_cnn.pt")["head.bias"].shape == (10,)
