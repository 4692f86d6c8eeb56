"""Versions that keep what they were trained by, and what each of them was trained on."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from stores import Store, call

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.registry import checkpoints
from mlflow_unlearn.registry.checkpoints import store_checkpoint
from mlflow_unlearn.registry.versions import Record

EARLY, LATER = "digits,train=15%", "digits,train=25%"
RECIPE = ("--architecture", "toy:trainable", "--epochs", "8", "--batch-size", "32")
KEEP = ("--keep-checkpoints", "3")


def train(data: str, *more: object, name: str = "clf", seed: int = 5) -> None:
    done = call("train", "--data", data, *RECIPE, "--name", name, "--seed", str(seed), *more)
    assert done.code == 0, done.err


def record(version: str, name: str = "clf") -> Record:
    return Record.model_validate(mlflow.models.get_model_info(f"models:/{name}/{version}").metadata["mlflow_unlearn"])


def digest(store: Store, version: str, name: str = "clf") -> str:
    return store.tags(version, name)["unlearn.weights_sha256"]


def late_ids(count: int) -> list[str]:
    """Of the samples that came later."""
    early = {*load_source(EARLY).train.ids}
    return [i for i in load_source(LATER).train.ids if i not in early][:count]


def early_ids(count: int) -> list[str]:
    return list(load_source(EARLY).train.ids[:count])


def listed(folder: Path, ids: list[str]) -> str:
    """A file of ids."""
    file = folder / f"ids-{len(ids)}.txt"
    file.write_text("\n".join(ids))
    return str(file)


def killed_at_the_second_checkpoint(command: Callable[[], object]) -> None:
    """A command in a process of its own, which dies once that is stored."""
    child = os.fork()
    if not child:
        number = iter((1, 2))

        def store(*arguments, **named):
            kept = store_checkpoint(*arguments, **named)
            if next(number) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return kept

        checkpoints.store_checkpoint = store
        command()
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def checkpoint_file(kept) -> Path:
    return Path(mlflow.get_run(kept.run_id).info.artifact_uri.removeprefix("file://")) / kept.path


def csv_of_digits(folder) -> str:
    """Digits of twelve subjects, as image files with a table."""
    folder.mkdir()
    data = load_digits()
    lines = ["path,label,split,subject"]
    for number in range(600):
        image = Image.fromarray(np.uint8(data.images[number] * 15))
        image.save(folder / f"{number}.png")
        split = "train" if number < 400 else "val" if number < 500 else "test"
        lines.append(f"{number}.png,{data.target[number]},{split},s{number % 12}")
    (folder / "list.csv").write_text("\n".join(lines))
    return f"csv:{folder / 'list.csv'}"
