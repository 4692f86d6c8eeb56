"""Every kind of bad input: one sentence with the way out, an exit code, no run, and a registry left as it was."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

import mlflow
import numpy as np
import pytest
import torch
import toy
import yaml
from mlflow.models import infer_signature
from PIL import Image
from servers import free_port
from sklearn.dummy import DummyClassifier
from stores import DATA, Store, copied, reset_mlflow
from torch import nn

from mlflow_unlearn.cli import Terminated
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.engine import hardware

TESTS = Path(__file__).parents[1]
UNLEARN = ("unlearn", "--model-uri", "models:/clf/1")
SOME = ("--forget", "random:20%")
FOREIGN = ("--data", "digits,split=drawn", "--transform", "none", "--forget", "random:5%")
"""For a version without a record of ours."""


class Softmax(toy.Net):
    def forward(self, images):
        return super().forward(images).softmax(dim=1)


class Tuple(toy.Net):
    def forward(self, images):
        return super().forward(images), images


class Map(toy.Net):
    def forward(self, images):
        return super().forward(images)[:, :, None, None]


class Leaves(toy.Net):
    """Ends the process when it is trained, or at once; and says so where results stand."""

    at_once = False

    def forward(self, images):
        print("leaving")
        if self.training or self.at_once:
            sys.exit(0)
        return super().forward(images)


class Explodes(toy.Net):
    """Fine until it is trained."""

    def forward(self, images):
        return super().forward(images) * (torch.nan if self.training else 1)


@pytest.fixture
def refuse(store, cli):
    """Run a command that must fail; everything that holds for each of them is checked here.

    What can be found out without work makes no run; with ``makes_run`` it has one, which is FAILED; None: it may have.
    """

    def check(*arguments, says=(), code=2, makes_run=False):
        before, known = store.everything_registered(), {run.info.run_id for run in store.runs()}
        outcome = cli(*arguments)
        assert outcome.code == code, outcome.err
        assert "Traceback" not in outcome.err
        # Notes may stand above; nothing may stand below.
        sentence = ("\n" + outcome.err).rpartition("\nError: ")[2].rstrip("\n")
        assert "\n" not in sentence
        for fragment in [says] if isinstance(says, str) else says:
            assert fragment in sentence
        assert store.everything_registered() == before
        runs = [run for run in store.runs() if run.info.run_id not in known]
        assert len(runs) == makes_run or makes_run is None
        for run in runs:
            assert (run.info.status, run.data.tags["unlearn.error"]) == ("FAILED", sentence)

    return check


@pytest.fixture
def pending(store, cli) -> str:
    """A filed request; its id."""
    filed = cli("request", "--model-uri", "models:/clf/1", *SOME)
    assert filed.code == 0, filed.err
    (request_id,) = store.requests()
    return request_id


def add(module: nn.Module, name: str = "foreign", **options) -> str:
    """Register a module as other tools do, without any record of ours; its URI."""
    options = {"serialization_format": "pickle", "pip_requirements": ["torch"], **options}
    with mlflow.start_run():
        info = mlflow.pytorch.log_model(module, name="model", **options)
    return f"models:/{name}/{mlflow.register_model(info.model_uri, name).version}"


def stored(module: nn.Module, folder: Path) -> tuple[str, Path, dict]:
    """A version of another tool whose files are below ``folder``: URI, its folder, and what its MLmodel says."""
    experiment = mlflow.MlflowClient().create_experiment("theirs", (folder / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment):
        info = mlflow.pytorch.log_model(
            module, name="model", serialization_format="pickle", pip_requirements=["torch"], code_paths=None
        )
    uri = f"models:/foreign/{mlflow.register_model(info.model_uri, 'foreign').version}"
    path = Path(mlflow.MlflowClient().get_logged_model(info.model_id).artifact_location.removeprefix("file://"))
    return uri, path, yaml.safe_load((path / "MLmodel").read_text())


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def images(folder: Path, parts: dict[str, str], count: int = 4) -> Path:
    """A folder source: part → its classes, a letter each."""
    for part, classes in parts.items():
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), color=60 * i).save(folder / part / name / f"{i}.png")
    return folder


# --- usage errors: no run ------------------------------------------------------------------------------------------

TRAIN = ("train", "--data", "digits", "--name", "new")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*TRAIN, "--epochs", "0"), ["--epochs 0", "greater than or equal to 1"]),
        ((*TRAIN, "--epochs", "many"), ["--epochs", "'many' is not a valid integer"]),
        ((*TRAIN, "--lr", "-1"), ["--lr -1", "greater than 0"]),
        ((*TRAIN, "--lr", "nan"), ["--lr nan", "finite"]),
        ((*TRAIN, "--seed", "-1"), ["--seed -1", "greater than or equal to 0"]),
        ((*TRAIN, "--seed", "9" * 30), ["--seed 999", "less than or equal to 4294967295"]),
        ((*TRAIN, "--lerning-rate", "1"), ["--lerning-rate"]),
        ((*TRAIN, "--augment", "flip"), ["--augment", "'flip' is not one of 'none', 'crop-flip'"]),
        (("train", "--name", "new"), ["--data"]),
        (("unlearn", *SOME), ["--model-uri"]),
        ((*UNLEARN, *SOME, "--seed", "-1"), ["--seed -1", "greater than or equal to 0"]),
        ((*UNLEARN, *SOME, "--alhpa", "3"), ["--alhpa"]),
        ((*UNLEARN, *SOME, "--force", "perhaps"), ["--force", "'perhaps' is not a valid boolean"]),
        (
            (*UNLEARN, *SOME, "--precision", "fp8"),
            ["--precision", "'fp8' is not one of 'fp32', 'tf32', 'bf16', 'auto'"],
        ),
        (("tune", "--model-uri", "models:/clf/1", "--n-trials", "0"), ["--n-trials 0", "greater than or equal to 1"]),
        ((*UNLEARN, *SOME, "--processes", "0"), ["--processes 0", "greater than or equal to 1"]),
        ((*UNLEARN, *SOME, "--num-workers", "many"), ["--num-workers many", "valid integer"]),
        (("forget",), ["No such command 'forget'"]),
    ],
)
def test_usage(refuse, arguments, says):
    refuse(*arguments, says=says)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("digit", ["unknown data source 'digit'", "did you mean 'digits'?"]),
        ("", ["unknown data source ''", "valid values: 'digits'"]),
        ("digits,sede=1", ["unknown option 'sede'", "did you mean 'seed'?"]),
        ("digits,train=200%", ["train=200%", "up to 100%"]),
        ("folder:nowhere", ["nowhere", "give the path of a folder of images"]),
        ("csv:twice.csv", ["ids that occur twice: 'x'", "give each sample an id of its own"]),
    ],
)
def test_data_sources(store, refuse, spec, says):
    images(store.folder, {"all": "ab"})
    rows = [f"all/{name}/{i}.png,{name},{'x' if i < 2 else f'{name}{i}'}" for name in "ab" for i in range(4)]
    write(store.folder, {"twice.csv": "\n".join(["path,label,id", *rows])})
    refuse("data", "--data", spec, says=says)
    refuse("train", "--data", spec, "--name", "new", says=says)


# --- which version -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("models:/clff/1", ["no registered model 'clff'", "did you mean 'clf'?", "registered are: clf"]),
        ("models:/clf/7", ["'clf' has no version '7'", "its versions are: 1"]),
        ("models:/clf/" + "9" * 5000, ["'clf' has no version '999", "its versions are: 1"]),
        ("models:/clf/١", ["'clf' has no version '١'", "its versions are: 1"]),
        ("models:/clf", ["'clf' needs a version or an alias", "its versions are: 1"]),
        ("models:/clf@prod", ["'clf' has no alias 'prod'", "its aliases are: good (version 1)"]),
        ("models/clf/1", ["'models/clf/1' is not a model URI", "write models:/NAME/VERSION"]),
        ("models:/a/b/c", ["'models:/a/b/c' is not a model URI", "write models:/NAME/VERSION"]),
        ("", ["'' is not a model URI", "write models:/NAME/VERSION"]),
        ("models:/Ünïcode 🙂'/1", ['no registered model "Ünïcode 🙂\'"', "registered are: clf"]),
        ("runs:/" + "0" * 32 + "/model", ["runs:/" + "0" * 32 + "/model cannot be read", "or the URI is wrong"]),
        ("models:/m-" + "0" * 32, ["models:/m-" + "0" * 32 + " cannot be read", "or the URI is wrong"]),
    ],
)
def test_versions_that_do_not_exist(store, refuse, uri, says):
    store.client.set_registered_model_alias("clf", "good", "1")
    refuse("unlearn", "--model-uri", uri, *SOME, says=says)


def test_a_name_that_does_not_exist_says_in_which_store(store, refuse):
    """The usual reason is the wrong store."""
    says = f"there is no registered model 'clff' in {store.uri}: did you mean 'clf'?"
    refuse("unlearn", "--model-uri", "models:/clff/1", *SOME, says=says)


def test_deleted_artifacts(refuse):
    uri = add(toy.net())
    model = mlflow.get_logged_model(mlflow.models.get_model_info(uri).model_id)
    shutil.rmtree(urlparse(model.artifact_location).path)
    refuse("unlearn", "--model-uri", uri, *FOREIGN, says=[f"the files of {uri} cannot be read", "deleted or moved"])


@pytest.mark.slow
def test_another_flavor(refuse):
    with mlflow.start_run():
        model = DummyClassifier().fit([[0], [1]], [0, 1])
        info = mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
    mlflow.register_model(info.model_uri, "dummy")
    says = ["models:/dummy/1 is not a PyTorch model", "sklearn", "only the pytorch flavor"]
    refuse("unlearn", "--model-uri", "models:/dummy/1", *FOREIGN, says=says)


def test_a_record_that_we_cannot_read(refuse):
    uri = add(toy.net(), metadata={"mlflow_unlearn": {"schema_version": 99}})
    refuse("unlearn", "--model-uri", uri, *FOREIGN, says=[f"the record of {uri} cannot be read", "newer release"])


def test_a_request_tag_that_was_edited(store, refuse):
    store.client.set_model_version_tag("clf", "1", "unlearn.request.0123456789ab", "pending soon")
    refuse(*UNLEARN, says=["unlearn.request.0123456789ab = 'pending soon'", "file it again"])


# --- what its files name -------------------------------------------------------------------------------------------


def named(**flavor: str):
    """Another path in the MLmodel of the PyTorch flavor."""

    def edit(model: dict, folder: Path) -> None:
        model["flavors"]["pytorch"] |= flavor

    return edit


def extra_file(model: dict, folder: Path) -> None:
    model["flavors"]["pytorch"]["extra_files"] = [{"path": "extra_files/../../private"}]


def example_path(model: dict, folder: Path) -> None:
    model["saved_input_example_info"] = {"artifact_path": "../../private/key.json", "type": "ndarray"}


def example_text(model: dict, folder: Path) -> None:
    (folder / "input_example.json").write_text(f'"{folder.parents[1]}/private/key.json"')
    model["saved_input_example_info"] = {"artifact_path": "input_example.json", "type": "ndarray"}


def requirement(*lines: str):
    def edit(model: dict, folder: Path) -> None:
        (folder / "conda.yaml").unlink()
        (folder / "requirements.txt").write_text("\n".join(lines).format(private=folder.parents[1] / "private"))

    return edit


def environment(text: str):
    def edit(model: dict, folder: Path) -> None:
        (folder / "conda.yaml").write_text(text.format(private=folder.parents[1] / "private"))

    return edit


def nested(model: dict, folder: Path) -> None:
    requirement("torch", "-c constraints.txt")(model, folder)
    (folder / "constraints.txt").write_text(f"-r {folder.parents[1]}/private/key.json\n")


def linked(model: dict, folder: Path) -> None:
    (folder / "extra_files").mkdir()
    (folder / "extra_files" / "notes.txt").symlink_to(folder.parents[1] / "private" / "key.json")


def link(name: str, target: str):
    """A symbolic link in the model's folder to files of the machine."""

    def edit(model: dict, folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(folder.parents[1] / "private" / target)
        model["flavors"]["pytorch"] |= {"code": "code"} if name.startswith("code") else {}

    return edit


def encoded(model: dict, folder: Path) -> None:
    (folder / "extra_files").mkdir()
    (folder / "extra_files" / "..%2F..%2F..%2Fprivate%2Fkey.json").write_text("")


OUT, EXAMPLE, CONDA = "out of its own folder", "the input example of", "is not an environment"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        pytest.param(named(code="../../private"), ["'../../private'", OUT], id="code"),
        pytest.param(named(code="/etc/ssl"), ["'/etc/ssl'", OUT], id="code, absolute"),
        pytest.param(named(code="."), ["'.'", OUT], id="code, itself"),
        pytest.param(named(code="code\0"), ["'code\\x00'", OUT], id="code, no name"),
        pytest.param(named(model_data="../../private/data"), ["'../../private/data'", OUT], id="model_data"),
        pytest.param(named(extra_files="notes"), "the MLmodel of", id="extra_files, a text"),
        pytest.param(extra_file, ["'extra_files/../../private'", OUT], id="extra_files"),
        pytest.param(example_path, ["'../../private/key.json'", OUT], id="example"),
        pytest.param(example_text, [EXAMPLE, "private/key.json"], id="example, a text"),
        pytest.param(requirement("torch", "-r {private}/key.json"), ["private/key.json'", OUT], id="-r"),
        pytest.param(requirement("-\\", "-constraint {private}/key.json"), ["private/key.json'", OUT], id="continued"),
        pytest.param(nested, "may not name further files", id="nested"),
        pytest.param(requirement("-\\ \\", "#", "r {private}/key.json"), "ends in a backslash", id="continued later"),
        pytest.param(environment("{private}/key.json"), CONDA, id="conda, a text"),
        pytest.param(environment("dependencies: [pip: {private}/key.json]"), CONDA, id="pip, a text"),
        pytest.param(environment("dependencies: ["), CONDA, id="conda, no YAML"),
        pytest.param(
            environment('dependencies: [pip: [torch, "-r {private}/key.json"]]'), ["private/key.json'", OUT], id="conda"
        ),
        pytest.param(linked, "cannot be read", id="link"),
        pytest.param(link("code/key.py", "key.json"), "cannot be read", id="link in code"),
        pytest.param(link("code/keys", "."), "cannot be read", id="folder in code", marks=pytest.mark.slow),
        pytest.param(link("data/more", "."), "cannot be read", id="folder in data", marks=pytest.mark.slow),
        pytest.param(link("more.yaml", "key.json"), "cannot be read", id="link at the top", marks=pytest.mark.slow),
        pytest.param(encoded, "cannot be read", id="encoded"),
    ],
)
def test_files_that_are_not_its_own(refuse, known, tmp_path, edit, says):
    """A version's files name this machine's own, which would go into the next version for everybody to read."""
    uri, folder, model = stored(toy.original(), tmp_path)
    (folder.parents[1] / "private" / "data").mkdir(parents=True)
    (folder.parents[1] / "private" / "key.json").write_text("[[[[0.5]]]]")
    edit(model, folder)
    (folder / "MLmodel").write_text(yaml.safe_dump(model))
    refuse("unlearn", "--model-uri", uri, *FOREIGN[:-1], known, "--params", '{"epochs": 1}', says=says, makes_run=None)


@pytest.mark.slow
def test_constraints_of_its_own(store, cli, known, tmp_path):
    """They are beside the requirements, and not in the folder where the command is started."""
    uri, folder, _ = stored(toy.original(), tmp_path)
    (folder / "conda.yaml").write_text("dependencies: [python=3.11, pip: [torch, numpy, -c constraints.txt]]")
    (folder / "constraints.txt").write_text("numpy<99  # for ever\n")
    done = cli("unlearn", "--model-uri", uri, *FOREIGN[:-1], known, "--params", '{"epochs": 1}')
    assert done.code == 0, done.err
    new = Path(mlflow.artifacts.download_artifacts("models:/foreign/2"))
    assert "numpy<99" in (new / "constraints.txt").read_text()
    assert "-c constraints.txt" in (new / "requirements.txt").read_text()


# --- what the model is ---------------------------------------------------------------------------------------------


def test_pt2_without_an_architecture(refuse):
    example = np.zeros((2, 1, 8, 8), dtype=np.float32)
    uri = add(toy.net().eval(), serialization_format="pt2", input_example=example)
    refuse("unlearn", "--model-uri", uri, *FOREIGN, says=["does not record its architecture", "timm:NAME"])


def test_an_architecture_that_does_not_fit(refuse):
    says = ["do not fit architecture 'torchvision:resnet18'", "conv1.weight is missing", "; ", " more: give the archi"]
    refuse(*UNLEARN, *SOME, "--architecture", "torchvision:resnet18", says=says)


def test_an_architecture_that_does_not_exist(refuse):
    says = ["'resnet81'", "did you mean 'resnet18'?"]
    refuse(*UNLEARN, *SOME, "--architecture", "resnet81", says=says)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (toy.Net(classes=7), ["has 7 outputs", "the data has 10 classes"]),
        (Softmax(), ["returns probabilities", "register the model without its softmax"]),
        (Tuple(), ["the model returns a tuple", "wrap it in a module that returns the logits alone"]),
        (Map(), ["a tensor of shape [8, 10, 1, 1]", "not logits [N, K]"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 10)), ["cannot read images [1, 8, 8]", "give another --transform"]),
        (nn.Sequential(nn.Flatten()), ["foreign/1 has no parameters", "choose another version"]),
    ],
    ids=["classes", "softmax", "tuple", "ndim", "input", "parameters"],
)
def test_outputs_that_are_no_logits(refuse, module, says):
    uri = add(module)
    refuse("unlearn", "--model-uri", uri, *FOREIGN, says=says)
    if isinstance(module, Softmax):
        refuse("evaluate", "--model-uri", uri, *FOREIGN, says=says)
        refuse(*UNLEARN, *SOME, "--gold-uri", uri, says=says)


def test_weights_that_are_not_finite(refuse):
    module = toy.net()
    module[6].bias.data[3] = torch.nan
    uri = add(module)
    says = [f"the weights of {uri} are not finite", "6.bias", "choose another version"]
    refuse("unlearn", "--model-uri", uri, *FOREIGN, says=says)


@pytest.fixture
def known(store) -> str:
    """A list of ids that `toy.original` has learned, all of them in the source's training part."""
    training = set(load_source("digits").train.ids)
    write(store.folder, {"known.txt": "\n".join({f"digits/{i}" for i in range(100)} & training)})
    return "known.txt"


@pytest.mark.slow
def test_a_loss_that_is_not_finite(store, refuse, cli, known):
    module = Explodes()
    module.load_state_dict(toy.original().state_dict())
    uri = add(module)
    assert cli("request", "--model-uri", uri, "--data", "digits,split=drawn", "--forget", known).code == 0
    says = ["the loss became nan in epoch 1, step 1", "lr 0.1", "try a smaller lr, say 0.01"]
    data = ("--data", "digits,split=drawn", "--transform", "none")
    refuse("unlearn", "--model-uri", uri, *data, "--params", '{"lr": 0.1}', says=says, makes_run=True)
    assert [state for state, _ in store.requests("1", "foreign").values()] == ["pending"]


# --- your own code ----------------------------------------------------------------------------------------

CODE = """
import sys
import torch
from mlflow_unlearn import Splits
from torch import nn
from torch.utils.data import TensorDataset

def fails(image):
    raise ValueError("no such colour")

def leaves(image):
    sys.exit(0)

def coloured(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))

def empty():
    return nn.Flatten()

class Lost(TensorDataset):
    def __getitem__(self, index):
        raise LookupError("the drive is not mounted")

def unreadable():
    tensors = torch.zeros(20, 1, 8, 8), torch.arange(20) % 10
    return Splits(*(Lost(*tensors) for _ in range(4)))

"""
NEW = ("train", "--epochs", "1", "--name", "new", "--data")
ARCHITECTURE = (*NEW, DATA, "--architecture")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*UNLEARN, *SOME, "--transform", "python:own:fails"), "'own:fails' failed (ValueError: no such colour): corr"),
        ((*UNLEARN, *SOME, "--transform", "python:own:leaves"), "'own:leaves' called sys.exit(0), which would have"),
        ((*NEW, DATA, "--transform", "python:own:fails"), "'own:fails' failed (ValueError: no such colour): correct"),
        ((*NEW, "python:own:unreadable"), "reading the data failed (LookupError: the drive is not mounted): correct"),
        ((*ARCHITECTURE, "own:empty"), "own:empty returns has no parameters, so it learns nothing: choose another"),
        ((*ARCHITECTURE, "own:coloured"), "own:coloured cannot read images [1, 8, 8]"),
    ],
)
def test_code_that_fails(store, refuse, monkeypatch, arguments, says):
    write(store.folder, {"own.py": CODE})
    monkeypatch.delitem(sys.modules, "own", raising=False)
    refuse(*arguments, says=says)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_model_that_ends_the_process(store, cli, known, at_once):
    module = Leaves()
    module.load_state_dict(toy.original().state_dict())
    module.at_once = at_once
    uri = add(module)
    before = store.everything_registered()
    done = cli("unlearn", "--model-uri", uri, *FOREIGN[:-1], known, "--params", '{"epochs": 1}')
    assert done.code == 2 and done.out == ""
    name = uri if at_once else "the model, its data or the method"
    sentence = f"{name} called sys.exit(0), which would have ended the command: raise an error there instead"
    assert done.err.endswith(f"leaving\nError: {sentence}\n")
    run = store.runs()[0]
    if at_once:
        assert "unlearn.command" not in run.data.tags, "while it is opened there is no run of ours"
    else:
        assert (run.info.status, run.data.tags["unlearn.error"]) == ("FAILED", sentence)
    # Its request is filed before the first pass, and is still to be fulfilled.
    assert store.everything_registered() == before or [*store.requests("1", "foreign").values()][0][0] == "pending"


def test_what_a_model_prints_is_not_a_result(store, cli, known):
    module = Leaves()
    module.load_state_dict(toy.original().state_dict())
    done = cli("evaluate", "--model-uri", add(module), *FOREIGN[:-1], known)
    assert done.code == 0 and "leaving\n" in done.err
    assert "Measured models:/foreign/1" in done.out and "leaving" not in done.out


def test_a_model_of_colours_on_grey_images(refuse):
    uri = add(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10)))
    says = [f"{uri} cannot read images [1, 8, 8]", "give another --transform (with none, grey images have one channel)"]
    refuse("unlearn", "--model-uri", uri, *FOREIGN, says=says)


# --- what its data are ---------------------------------------------------------------------------------------------


def test_nothing_recorded_and_nothing_given(refuse):
    uri = add(toy.original())
    all_of_it = [
        f"{uri} does not record its data source and its input transform",
        "give --data csv:",
        "--transform none",
    ]
    for command in ("unlearn", "request", "evaluate", "compare"):
        pasted = f"For example: mlflow-unlearn {command}"
        refuse(command, "--model-uri", uri, *SOME, says=[*all_of_it, pasted, "--data csv:LIST.csv --transform none"])
    says = [f"{uri} does not record its input transform", "give --transform none"]
    refuse("unlearn", "--model-uri", uri, *SOME, "--data", "digits", says=says)


ORDER = ",".join("1234567890")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--transform", "imagnet"], ["unknown transform 'imagnet'", "did you mean 'imagenet'?"]),
        (["--transform", "python:nowhere:f"], ["'nowhere:f'", "importing 'nowhere' failed"]),
        (["--transform", "timm"], ["--transform timm needs a timm model", "use --transform imagenet or none"]),
        (["--classes", "a,b"], ["--classes and the data do not name the same 10 classes", "the data has 0, 1"]),
        (["--classes", ORDER + ",1"], ["--classes and the data do not name the same 10 classes", "differs: 1"]),
        (
            ["--classes", "nowhere.txt"],
            ["--classes and the data do not name the same", "differs: nowhere.txt, 0, 1", "or a file with one a line"],
        ),
        (["--classes", "latin.txt"], ["the classes file 'latin.txt' cannot be read", "save it as UTF-8"]),
        (["--classes", ",".join(["n01443537"] * 200)], ["do not name the same 10 classes"]),
        (["--classes", ORDER], ["an accuracy of 0.", "below 0.200", "--transform or --classes, or --force"]),
        (["--data", "folder:few"], ["was trained on the classes 0, 1", "'folder:few' has a, b", "or --classes"]),
    ],
)
def test_reading(store, refuse, options, says):
    (store.folder / "latin.txt").write_bytes("één\n".encode("latin-1"))
    images(store.folder / "few", {"train": "ab", "test": "ab"})
    refuse(*UNLEARN, *SOME, *options, says=says, makes_run="an accuracy of 0." in says)


def test_force_goes_on(store, cli):
    done = cli("evaluate", "--model-uri", "models:/clf/1", *SOME, "--classes", ORDER, "--force", "true")
    assert done.code == 0, done.err
    assert store.runs()[0].data.metrics["original.acc_retain"] < 0.2


READY = """
import toy


def splits():
    return toy.splits()
"""


def test_classes_of_ready_tensors_cannot_be_renumbered(store, refuse, cli):
    """A python: source gives labels as the model's outputs; another order would be silently ignored."""
    write(store.folder, {"ready_made.py": READY})
    uri = add(toy.original())
    arguments = ("--model-uri", uri, "--data", "python:ready_made:splits", "--forget", "group:split=forget")
    says = ["classes of a python: source can't be renumbered", "return the model's output indices"]
    refuse("unlearn", *arguments, "--classes", ",".join("9876543210"), says=says)
    assert cli("evaluate", *arguments, "--classes", ",".join("0123456789")).code == 0


def test_a_signature_of_another_shape(refuse):
    """The new version would be registered under a signature that it was never used with."""
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    signature = infer_signature(np.zeros((2, 1, 28, 28), np.float32), np.zeros((2, 10), np.float32))
    uri = add(module, signature=signature)
    says = [f"{uri} takes images [1, 28, 28] by its signature", "the transform (none) makes [1, 8, 8]"]
    refuse("unlearn", "--model-uri", uri, *FOREIGN, "--force", says=[*says, "give another --transform"])


def test_data_that_it_was_not_trained_on(store, refuse):
    parts = {"train": "0123456789", "test": "0123456789"}
    folder = images(store.folder / "other", parts)
    says = ["none of the 270 samples that models:/clf/1 was trained on", "give the data that it was trained on"]
    refuse(*UNLEARN, *SOME, "--data", f"folder:{folder}", says=says)


def test_a_class_without_test_images(store, refuse):
    images(store.folder / "half", {"train": "ab", "test": "a"})
    images(store.folder / "val", {"train": "ab", "val": "ab", "test": "a"})
    says = ["no test sample of the classes 'b'", "add some"]
    for folder in ("half", "val"):
        refuse("train", "--data", f"folder:{folder}", "--name", "new", says=says)


def test_an_image_that_cannot_be_decoded(store, refuse):
    folder = images(store.folder / "cut", {"train": "ab", "test": "ab"})
    picture = folder / "train/b/2.png"
    picture.write_bytes(picture.read_bytes()[:40])
    says = ["can't decode the image 'train/b/2.png'", "replace the file"]
    refuse("train", "--data", "folder:cut", "--name", "new", "--architecture", "toy:trainable", says=says)


def test_tf32_is_asked_of_a_cpu(refuse):
    refuse(*UNLEARN, *SOME, "--device", "cpu", "--precision", "tf32", says=["--precision tf32 needs TF32, which"])


def test_bf16_is_asked_of_a_device_without_it(refuse, monkeypatch):
    monkeypatch.setattr(hardware, "has_bfloat16", lambda device: False)
    refuse(*UNLEARN, *SOME, "--precision", "bf16", says=["--precision bf16 needs bfloat16, which"])


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.machine("no CUDA")), "gpu", "meta"])
def test_a_device_that_is_not_there(refuse, device):
    refuse(*UNLEARN, *SOME, "--device", device, says=[f"device '{device}' cannot be used here", "use 'auto' or 'cpu'"])


# --- what to forget ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def id_files() -> dict[str, str]:
    source = load_source(DATA)
    train, val, test = list(source.train.ids), source.val.ids[0], source.test.ids[0]
    return {
        "unknown.txt": "\n".join(train[:2] + [f"digits/x{i}" for i in range(12)]),
        "held-out.txt": "\n".join([train[0], val, test]),
        "empty.txt": "\n\n",
        "everything.txt": "\n".join(train),
        "no-id.csv": "name,label\ndigits/1,1\n",
        "broken.csv": 'id\n"digits/1\n',
    }


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("unknown.txt", ["'unknown.txt' names ids that the data source doesn't have", "'digits/x0', ", "(12 in all)"]),
        ("held-out.txt", ["'held-out.txt' names validation or test samples", "'digits/"]),
        ("empty.txt", ["'empty.txt' names no sample", "nothing to forget"]),
        ("everything.txt", ["'everything.txt' names all 270 training samples", "delete the model instead"]),
        ("no-id.csv", ["has no column 'id'", "'name', 'label'"]),
        ("broken.csv", ["can't read the list of ids 'broken.csv'"]),
        (".", ["no forget set '.'", "give a file of ids, random:10%"]),
        ("nowhere.txt", ["no forget set 'nowhere.txt'", "give a file of ids, random:10%"]),
        ("n" * 5000, ["File name too long", "'nnn"]),
        ("", ["no forget set '.'", "give a file of ids, random:10%"]),
        ("random:200%", ["'random:200%' asks for 540 of 270", "ask for fewer"]),
        ("random:0", ["'random:0' names no sample", "nothing to forget"]),
        ("random:-5", ["'random:-5' is not a random forget set", "write random:10%"]),
        ("class:unknown", ["unknown class 'unknown'", "valid values: '0', '1'"]),
        ("group:family=1", ["unknown group column 'family'", "the source has none"]),
        ("request:0123456789ab", ["no forget request '0123456789ab'", "file it with `request`"]),
        ("request:five", ["'five' is not a request id", "12 hexadecimal digits"]),
    ],
)
def test_forget_sets(store, refuse, id_files, spec, says):
    write(store.folder, id_files)
    refuse("request", "--model-uri", "models:/clf/1", "--forget", spec, says=says)


@pytest.mark.parametrize("spec", ["unknown.txt", "everything.txt", "random:200%", "request:0123456789ab"])
def test_forget_sets_at_unlearning(store, refuse, id_files, spec):
    write(store.folder, id_files)
    refuse(*UNLEARN, "--forget", spec, says=spec.removeprefix("request:"))


def test_unknown_request_to_exclude(refuse):
    says = ["no forget request '0123456789ab'", "file it with `request`"]
    refuse("train", "--data", DATA, "--name", "gold", "--exclude", "0123456789ab", says=says)


def test_nothing_is_named(store, refuse):
    refuse(*UNLEARN, says=["models:/clf/1 has no pending forget request", "file one with `request`, or give --forget"])
    refuse("tune", "--model-uri", "models:/clf/1", says=["models:/clf/1 has no pending forget request"])
    says = ["models:/clf/1 has carried out no forget request and none is pending", "give --forget"]
    refuse("evaluate", "--model-uri", "models:/clf/1", says=says)


def test_models_that_are_not_registered(store, refuse):
    uri = f"runs:/{store.client.get_model_version('clf', '1').run_id}/model"
    says = [
        f"{uri} is not a registered version and cannot carry a request",
        "or name the samples to `unlearn` with --forget",
    ]
    refuse("request", "--model-uri", uri, *SOME, says=says)
    refuse("unlearn", "--model-uri", uri, says=[f"{uri} is not a registered version", "give --forget"])
    refuse("unlearn", "--model-uri", uri, *SOME, says=["registered version", "give --register-as"])


def test_gold_that_knows_the_forget_set(refuse):
    says = ["models:/clf/1 was trained on 54 samples that are to be forgotten", "train one with --exclude"]
    refuse(*UNLEARN, *SOME, "--gold-uri", "models:/clf/1", says=says)


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ('{"alpha": 0}', ["alpha = 0", "greater than 0"]),
        ('{"alpha": NaN}', ["alpha = nan", "finite number"]),
        ('{"lr": 2}', ["lr = 2", "less than or equal to 1"]),
        ('{"lr": "fast"}', ["lr = 'fast'", "valid number"]),
        ('{"epochs": 0}', ["epochs = 0", "greater than or equal to 1"]),
        ('{"epochs": 1e300}', ["epochs = 1e+300", "integer"]),
        ('{"epochs": ' + "9" * 5000 + "}", ["params cannot be parsed", "digits"]),
        ('{"batch_size": 1}', ["batch_size = 1", "greater than or equal to 2"]),
        ('{"alhpa": 3}', ["unknown hyperparameter 'alhpa'", "did you mean 'alpha'?"]),
        ('{"": 3}', ["unknown hyperparameter ''", "valid values: a_u"]),
        ('{"alpha": 3', ["params cannot be parsed"]),
        ("[]", ["'[]' is neither NAME=VALUE, a JSON object nor a YAML file"]),
        (
            "nowhere.yaml",
            ["--params nowhere.yaml is neither NAME=VALUE, a JSON object nor a YAML file", "No such file"],
        ),
        (".", ["--params . is neither NAME=VALUE, a JSON object nor a YAML file", "Is a directory"]),
        ("range.yaml", ["alpha = -1", "greater than 0"]),
        ("misspelt.yaml", ["unknown hyperparameter 'alhpa'", "did you mean 'alpha'?"]),
        ("broken.yaml", ["params file 'broken.yaml' cannot be parsed"]),
        ("list.yaml", ["params file 'list.yaml' holds a list, not names with values"]),
        ("empty.yaml", ["params file 'empty.yaml' holds nothing", "such as alpha: 2"]),
        ("latin.yaml", ["params file 'latin.yaml' cannot be parsed", "'utf-8' codec"]),
    ],
)
def test_hyperparameters(store, refuse, params, says):
    files = {"range": "alpha: -1", "misspelt": "alhpa: 3", "broken": "alpha: [1", "list": "- 1", "empty": ""}
    write(store.folder, {f"{name}.yaml": text for name, text in files.items()})
    (store.folder / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    refuse(*UNLEARN, *SOME, "--params", params, says=says)


def test_unknown_method(refuse):
    refuse(*UNLEARN, *SOME, "--method", "lotos", says=["unknown method 'lotos'", "nearest first, are lotus"])


def test_names_that_the_registry_refuses(refuse):
    refuse(*UNLEARN, *SOME, "--register-as", "a/b", says=["is not a name for a registered model", "cannot contain"])
    refuse("tune", *UNLEARN[1:], *SOME, "--register-as", "a/b", says="'a/b' is not a name for a registered model")
    refuse("train", "--data", "digits", "--name", "a:b", says=["'a:b' is not a name for a registered model"])
    refuse("train", "--data", "digits", "--name", "", says=["'' is not a name for a registered model"])


@pytest.mark.parametrize("name", ["a@b", "a" * 257])
def test_names_that_no_uri_finds_again(refuse, name):
    """MLflow registers them, and reads models:/NAME/VERSION as something else, or the database cuts them."""
    refuse("train", "--data", "digits", "--name", name, says=["is not a name for a registered model", "it"])


def test_storages_of_studies(store, refuse):
    tune = ("tune", *UNLEARN[1:], *SOME, "--n-trials", "1", "--storage")
    refuse(*tune, "sqlite:///mlflow.db", says=["is a database of MLflow's", "e.g. sqlite:///optuna.db"])
    refuse(*tune, "sqlite:////nowhere/optuna.db", says=["--storage sqlite:////nowhere", "cannot be opened"])
    refuse(*tune, "optuna.db", says=["--storage optuna.db is not a database URL"])


# --- nothing to unlearn --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ignorant(template, tmp_path_factory) -> tuple[Store, str]:
    """A version that knows 200 digits, and a list of training ids that it gets wrong."""
    source = load_source("digits")
    pixels = np.stack([np.asarray(source.train.images[i]) for i in range(len(source.train))])
    labelled = torch.utils.data.TensorDataset(torch.from_numpy(pixels)[:, None] / 255)
    right = toy.logits(toy.original(), labelled).argmax(1).numpy() == source.train.labels
    with copied(template, tmp_path_factory.mktemp("ignorant")) as store:
        add(toy.original(), "ignorant")
    return store, "\n".join(i for i, known in zip(source.train.ids, right, strict=True) if not known)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["unlearn", "tune"])
def test_nothing_to_unlearn(ignorant, store, refuse, cli, command):
    made, wrong = ignorant
    shutil.copy(made.folder / "mlflow.db", store.folder / "mlflow.db")
    write(store.folder, {"wrong.txt": wrong})
    version = ("--model-uri", "models:/ignorant/1", "--data", "digits,split=drawn")
    assert cli("request", *version, "--forget", "wrong.txt").code == 0
    # `refuse` sees one new run: `tune` has begun no trial.
    says = ["nothing to unlearn", "no better than unseen ones (acc_forget 0.0000, A_u 0.7", "mia_auc 0."]
    refuse(command, *version, "--transform", "none", says=says, code=3, makes_run=True)
    assert [state for state, _ in store.requests("1", "ignorant").values()] == ["pending"]
    assert store.versions("ignorant") == ["1"]


@pytest.mark.slow
@pytest.mark.parametrize(("methods", "trials"), [("finetune,lotus", 1), ("lotus", 0)])
def test_a_study_is_refused_by_the_methods_it_is_about(ignorant, store, cli, methods, trials):
    """Fine-tuning has no rule that stops it before the first pass, and LoTUS's is about LoTUS alone."""
    made, wrong = ignorant
    shutil.copy(made.folder / "mlflow.db", store.folder / "mlflow.db")
    write(store.folder, {"wrong.txt": wrong})
    version = ("--model-uri", "models:/ignorant/1", "--data", "digits,split=drawn", "--transform", "none")
    done = cli("tune", *version, "--forget", "wrong.txt", "--methods", methods, "--n-trials", "1", "--register", "none")
    begun = [run for run in store.runs() if "unlearn.trial" in run.data.tags]
    assert ("nothing to unlearn" in done.err, len(begun)) == (not trials, trials)


# --- the store -----------------------------------------------------------------------------------------------------


def test_unreachable_server(cli, monkeypatch, store):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    outcome = cli(*UNLEARN, *SOME)
    assert outcome.code == 2
    assert f"the tracking store http://127.0.0.1:{port} cannot be reached" in outcome.err
    assert "set MLFLOW_TRACKING_URI to one that runs" in outcome.err
    assert "Traceback" not in outcome.err


def test_an_unreachable_server_s_password(cli, monkeypatch, store):
    for user in ("me:secret", "me:se/secret"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{user}@127.0.0.1:{free_port()}")
        for debug in ((), ("--debug",)):
            outcome = cli("verify", "--model-uri", "models:/clf/1", *debug)
            assert outcome.code == 2 and "cannot be reached" in outcome.err
            assert "http://me:***@127.0.0.1" in outcome.err and "secret" not in outcome.err


def test_relative_uri(store, refuse, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    refuse("unlearn", "--model-uri", "models:/clf/7", says="its versions are: 1")
    assert os.environ["MLFLOW_TRACKING_URI"] == store.uri


def test_a_run_that_is_not_in_the_store(refuse, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    says = ["no run can be started", "0" * 32, "MLFLOW_RUN_ID is set", "give that an absolute tracking URI"]
    refuse(*UNLEARN, *SOME, says=says)
    refuse(*UNLEARN, *SOME, "--seed", "-1", says="--seed -1")


def test_the_run_of_a_project_gets_the_sentence_of_a_usage_error(store, cli, monkeypatch):
    run = store.client.create_run(store.client.get_experiment_by_name("tests").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    assert cli(*UNLEARN, *SOME, "--seed", "-1").code == 2
    assert "-P seed=-1" in store.client.get_run(run.info.run_id).data.tags["unlearn.error"]


def test_an_artifact_root_that_takes_nothing(store, refuse, monkeypatch):
    (store.folder / "file").write_text("")
    store.client.create_experiment("blocked", artifact_location=(store.folder / "file/artifacts").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "blocked")
    says = ["a file cannot be read or written", "Not a directory", "check space and permissions"]
    refuse(*UNLEARN, *SOME, says=says, makes_run=True)


# --- as processes of their own -------------------------------------------------------------------------------------


def start(*arguments: str, prepare=None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlflow_unlearn", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=prepare
    )


@pytest.mark.nightly
def test_full_disk(store, known):
    module = toy.original()
    # One number in a pickle, 8 MB in the weights file: the model can be read, and its successor not be written.
    module.register_buffer("table", torch.zeros(1).expand(2_000_000))
    uri = add(module)
    before = store.everything_registered()

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, 6_000_000))

    data = ("--data", "digits,split=drawn", "--transform", "none", "--forget", known)
    process = start("unlearn", "--model-uri", uri, *data, "--params", '{"epochs": 1}', prepare=prepare)
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    sentence = errors.rpartition("Error: ")[2].rstrip("\n")
    assert "File too large" in sentence
    assert "check space and permissions" in sentence
    assert "Traceback" not in errors
    run = store.runs()[0]
    assert (run.info.status, run.data.tags["unlearn.error"]) == ("FAILED", sentence)
    assert store.everything_registered() == before


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
)
def test_signals(store, pending, number, code, word):
    before, known = store.everything_registered(), len(store.runs())

    def prepare() -> None:
        # A shell's background job ignores Ctrl-C, and its children inherit that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = start(*UNLEARN, "--params", '{"epochs": 1000, "lr": 1e-9}', prepare=prepare)
    try:
        deadline = time.monotonic() + 120
        while len(store.runs()) == known or "acc_forget" not in store.runs()[0].data.metrics:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert errors.splitlines()[-1] == f"{word}: nothing was registered, requests stay as they were."
    assert "Traceback" not in errors
    run = store.runs()[0]
    assert (run.info.status, run.data.tags["unlearn.error"]) == ("KILLED", "stopped by a signal")
    assert store.everything_registered() == before
    assert store.requests()[pending][0] == "pending"


def test_a_signal_waits_for_the_end_of_a_transaction(cli):
    """During a commit it would leave the database locked: the run could not be ended, and would stay RUNNING."""
    before, done = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGALRM)}, []
    transaction = "signal.raise_signal(signal.SIGTERM); time.sleep(0.1); done.append(True)"
    try:
        assert cli("methods").code == 0  # the command line takes the signals
        with pytest.raises(Terminated):
            exec(transaction, {"__name__": "sqlalchemy.orm", "signal": signal, "time": time, "done": done})
            time.sleep(10)
    finally:
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)
    assert done


# --- tracebacks on request -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("unlearn", "--model-uri", "models:/nope/1"),
        (*UNLEARN, "--params", '{"alhpa": 3}'),
        ("train", "--data", "digits", "--name", "new", "--lr", "-1"),
        ("data", "--data", "digit"),
    ],
)
def test_debug_shows_the_traceback(store, cli, arguments):
    for debug, shown in (["--debug"], True), ([], False):
        outcome = cli(*arguments, *debug)
        assert outcome.code == 2
        assert ("Traceback (most recent call last)" in outcome.err) == shown
        assert "Error: " in outcome.err


@pytest.mark.parametrize(
    "uri", ["sqlit:////tmp/x.db", "{}/no-such-folder", "postgresql+nodriver://u:secret@127.0.0.1:1/x"]
)
@pytest.mark.parametrize("command", ["unlearn", "verify"])
def test_a_store_that_cannot_be_opened(cli, monkeypatch, tmp_path, uri, command):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(tmp_path))
    reset_mlflow()
    refused = cli(command, "--model-uri", "models:/clf/1")
    reset_mlflow()
    assert refused.code == 2
    assert "cannot be opened" in refused.err or "cannot be reached" in refused.err
    assert "Traceback" not in refused.err and "secret" not in refused.err
