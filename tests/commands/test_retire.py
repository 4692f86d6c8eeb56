"""Where forgotten data still lives, and how it is removed: on a store whose artifacts are this test's own."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import mlflow
import pytest
from stores import DATA, Store, call, make_store, relocate, reset_mlflow, use

from mlflow_unlearn import cache
from mlflow_unlearn.commands import retire as command
from mlflow_unlearn.registry.lock import model_lock
from mlflow_unlearn.registry.versions import retired

QUICK = '{"epochs": 2, "lr": 0.003}'


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Store:
    """clf 1 → 2, and a copy of version 1 under another name. Made once, copied with its files by every test."""
    store = make_store(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        use(store, patch)
        patch.setenv("MLFLOW_UNLEARN_CACHE", str(store.folder / "cache"))
        trained = call(
            *("train", "--data", DATA, "--name", "clf", "--architecture", "toy:trainable"),
            *("--epochs", "20", "--lr", "0.05", "--batch-size", "32"),
        )
        assert trained.code == 0, trained.err
        assert call("request", "--model-uri", "models:/clf/1", "--forget", "random:20").code == 0
        done = call("unlearn", "--model-uri", "models:/clf/1", "--params", QUICK)
        assert done.code == 0, done.err
        store.client.copy_model_version("models:/clf/1", "elsewhere")
    reset_mlflow()
    return store


@pytest.fixture
def own(made, tmp_path, monkeypatch):
    """Artifacts and cache lie in the test's folder."""
    store = Store(tmp_path / "own")
    shutil.copytree(made.folder, store.folder)
    relocate(store.folder, str(made.folder))
    use(store, monkeypatch)
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(store.folder / "cache"))
    yield store
    reset_mlflow()


def weights_files(store) -> list[Path]:
    """Every file of the store with the bytes of version 1's weights."""
    original = hashlib.sha256(WEIGHTS["clf/1"]).hexdigest()
    files = [path for path in store.folder.rglob("*") if path.is_file()]
    return [path for path in files if hashlib.sha256(path.read_bytes()).hexdigest() == original]


WEIGHTS: dict[str, bytes] = {}


def test_exposure_and_retirement(own):
    folder = Path(mlflow.artifacts.download_artifacts("models:/clf/1/extra_files"))
    WEIGHTS["clf/1"] = (folder / "weights.safetensors").read_bytes()
    own.client.set_registered_model_alias("clf", "champion", "1")
    own.client.set_registered_model_alias("elsewhere", "old", "1")
    own.client.set_model_version_tag("elsewhere", "1", "unlearn.endpoint.edge", "https://edge.example.com")

    shown = call("exposure", "--model-uri", "models:/clf/2")
    assert shown.code == 0, shown.err
    rows = {line.split("│")[1].strip(): line for line in shown.out.splitlines() if line.startswith("│ models:/")}
    assert "contains" in rows["models:/clf/1"] and "champion" in rows["models:/clf/1"]
    assert "unlearned" in rows["models:/clf/2"]
    assert "contains" in rows["models:/elsewhere/1"] and "edge" in rows["models:/elsewhere/1"]
    entries = [path for path, facts in cache.entries("outputs")]
    assert entries and all(str(path) in shown.out.replace("\n", "") for path in entries)

    refused = call("retire", "--model-uri", "models:/clf/1", "--aliases", "elsewhere@old", "--yes", "true")
    assert refused.code == 3
    assert "clf@champion" in refused.err and "the endpoint edge" in refused.err
    own.client.set_registered_model_alias("clf", "champion", "2")
    own.client.delete_model_version_tag("elsewhere", "1", "unlearn.endpoint.edge")
    assert call("retire", "--model-uri", "models:/clf/1").code == 3  # the copy's alias is not named

    before = own.everything_registered()
    other = call("retire", "--model-uri", "models:/clf/1", "--aliases", "old")
    assert other.code == 2 and "clf@old does not point to models:/clf/1" in other.err  # the target's own name is meant
    planned = call("retire", "--model-uri", "models:/clf/1", "--aliases", "elsewhere@old")
    assert planned.code == 0, planned.err
    assert "would remove the alias elsewhere@old" in planned.out and "Nothing was done" in planned.out
    assert own.everything_registered() == before and len(weights_files(own)) >= 1

    named = ("--aliases", "elsewhere@old", "--reason", "replaced")
    done = call("retire", "--model-uri", "models:/clf/1", *named, "--yes", "true")
    assert done.code == 0, done.err
    assert weights_files(own) == []
    assert not any(path.exists() for path in entries)
    for uri in ("models:/clf/1", "models:/elsewhere/1"):
        with pytest.raises((mlflow.exceptions.MlflowException, OSError)):
            mlflow.pyfunc.load_model(uri)
    mark = json.loads(own.tags("1")["unlearn.retired"])
    assert mark["reason"] == "replaced"
    record = json.loads(mlflow.artifacts.load_text(f"runs:/{mark['run_id']}/evidence/retirement.json"))
    assert record["done"] and set(record["versions"]) == {"models:/clf/1", "models:/elsewhere/1"}
    assert [str(v) for v in own.client.get_registered_model("clf").aliases.values()] == ["2"]
    # What is left still works, and knows what became of its source.
    mlflow.pyfunc.load_model("models:/clf/2")
    checked = call("verify", "--model-uri", "models:/clf/2")
    assert re.search(r"it was retired by \S+", " ".join(checked.out.split()))
    measured = call("verify", "--model-uri", "models:/clf/2", "--recompute", "true")
    assert "metrics" not in measured.err
    assert re.search(r"metrics of original.*not checked", measured.out)
    assert re.search(r"metrics of unlearned.*same", measured.out)
    used = call("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:5")
    assert used.code == 2 and "the files of models:/clf/1 are gone, it was retired by" in used.err
    again = call("retire", "--model-uri", "models:/clf/1", "--yes", "true")
    assert again.code == 2 and "was retired by" in again.err and "replaced; there is nothing left" in again.err
    shown = call("exposure", "--model-uri", "models:/clf/2")
    assert "contains" not in shown.out and "retired" in shown.out


def test_nothing_to_be_forgotten(own):
    own.client.copy_model_version("models:/clf/2", "plain")
    for key in own.tags("1", "plain"):
        own.client.delete_model_version_tag("plain", "1", key)
    refused = call("exposure", "--model-uri", "models:/plain/1")
    assert refused.code == 2 and "has no forget request" in refused.err


def test_interrupted_and_started_again(own):
    """Marked and its LoggedModel deleted, but the files are still there: the same command finishes it."""
    location = Path(own.client.get_model_version_download_uri("clf", "1").removeprefix("file://"))
    own.client.set_model_version_tag("clf", "1", "unlearn.retired", '{"by": "x", "at": "y", "reason": null}')
    own.client.delete_logged_model(location.parent.name)
    assert (location / "MLmodel").exists()
    shown = call("exposure", "--model-uri", "models:/clf/2")
    assert re.search(r"models:/clf/1 .*contains", shown.out)
    again = call("retire", "--model-uri", "models:/clf/1", "--yes", "true")
    assert again.code == 0, again.err
    assert not (location / "MLmodel").exists()
    assert call("retire", "--model-uri", "models:/clf/1", "--yes", "true").code == 2


@pytest.mark.nightly
@pytest.mark.parametrize(
    "step",
    [
        *("_delete_logged_model", "_delete_files"),
        *(pytest.param(step, marks=pytest.mark.slow) for step in ("_remove_alias", "can_be_read")),
    ],
)
def test_killed_anywhere_the_same_command_goes_on(folders, monkeypatch, step):
    """Before that step or after it."""
    client, add = folders
    for name in ("before", "after"):
        folder = add(name)
        client.set_registered_model_alias(name, "old", "1")
        real = getattr(command, step)

        def killed(*arguments, name=name, real=real):
            if name == "after":
                real(*arguments)
            raise KeyboardInterrupt

        retire = ("retire", "--model-uri", f"models:/{name}/1", "--aliases", "old", "--yes", "true")
        monkeypatch.setattr(command, step, killed)
        assert call(*retire).code == 130
        monkeypatch.undo()
        assert "not finished" in retired(client.get_model_version(name, "1"))
        done = call(*retire)
        assert done.code == 0, done.err
        assert not folder.exists() and client.get_registered_model(name).aliases == {}
        assert folder.parent.name not in logged_ids(client)
        mark = json.loads(client.get_model_version(name, "1").tags["unlearn.retired"])
        assert mark.keys() == {"at", "by", "run_id", "reason"}
        assert json.loads(mlflow.artifacts.load_text(f"runs:/{mark['run_id']}/evidence/retirement.json"))["done"]
        again = call(*retire)
        assert again.code == 2 and "there is nothing left to remove" in again.err


def test_an_alias_that_is_set_after_the_plan(folders, monkeypatch):
    """By hand, in the moment before anything is deleted."""
    client, add = folders
    folder, who = add("clf"), command.whoami

    def and_set():
        client.set_registered_model_alias("clf", "champion", "1")
        return who()

    monkeypatch.setattr(command, "whoami", and_set)
    refused = call("retire", "--model-uri", "models:/clf/1", "--yes", "true")
    assert refused.code == 3 and "it is served by clf@champion" in refused.err
    assert (folder / "MLmodel").exists() and folder.parent.name in logged_ids(client)
    assert client.get_model_version("clf", "1").tags == {}, "it can be used as before"


@pytest.mark.parametrize("how", ["an alias", "an endpoint", "a copy", "a folder inside"])
def test_what_is_served_between_two_deletions(folders, monkeypatch, how):
    """The files stay, though the LoggedModel's entry is gone."""
    client, add = folders
    folder, real = add("clf"), command._delete_logged_model

    def and_more(*arguments):
        real(*arguments)
        if how == "an alias":
            client.set_registered_model_alias("clf", "champion", "1")
        elif how == "an endpoint":
            client.set_model_version_tag("clf", "1", "unlearn.endpoint.edge", "https://edge.example.com")
        else:
            add("copy", folder / "part" if how == "a folder inside" else folder)

    monkeypatch.setattr(command, "_delete_logged_model", and_more)
    refused = call("retire", "--model-uri", "models:/clf/1", "--yes", "true")
    assert refused.code == 3, refused.err
    sentence = {"an alias": "clf@champion", "an endpoint": "the endpoint edge", "a copy": "models:/copy/1 came or went"}
    assert sentence.get(how, "the files of models:/copy/1") in refused.err
    assert (folder / "MLmodel").exists()


def test_it_waits_for_another_decision(folders, monkeypatch):
    client, add = folders
    folder = add("clf")
    add("copy", folder)
    monkeypatch.setenv("MLFLOW_UNLEARN_WAIT", "0")
    with model_lock(client, "copy"):
        refused = call("retire", "--model-uri", "models:/clf/1", "--yes", "true")
    assert refused.code == 2 and "models:/copy is in use by `python` of" in refused.err
    assert (folder / "MLmodel").exists() and client.get_model_version("clf", "1").tags == {}
    assert client.get_registered_model("clf").tags == {}
    assert call("retire", "--model-uri", "models:/clf/1", "--yes", "true").code == 0


def test_a_copy_of_a_plain_folder_is_served(own, tmp_path):
    """Registered by its path: no LoggedModel tells that the copy has the same files."""
    folder = tmp_path / "plain"
    shutil.copytree(mlflow.artifacts.download_artifacts("models:/clf/1"), folder)
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(re.sub(r"^model_id:.*\n", "", text, flags=re.M))
    own.client.create_registered_model("plain")
    own.client.create_model_version("plain", str(folder))
    own.client.copy_model_version("models:/plain/1", "served")
    own.client.set_registered_model_alias("served", "champion", "1")
    refused = call("retire", "--model-uri", "models:/plain/1", "--yes", "true")
    assert refused.code == 3 and "served@champion" in refused.err
    assert (folder / "MLmodel").exists()
    own.client.delete_registered_model_alias("served", "champion")
    # By the copy's own URI, whose source is no folder.
    done = call("retire", "--model-uri", "models:/served/1", "--yes", "true")
    assert done.code == 3 and "retire models:/clf/1 and models:/elsewhere/1 too" in done.err
    assert not (folder / "MLmodel").exists()
    assert {"unlearn.retired"} <= own.tags("1", "plain").keys() & own.tags("1", "served").keys()


# Two names of one folder. The versions hold an MLmodel alone: nobody loads them.


@pytest.fixture
def folders(empty_store, tmp_path):
    """A store, and a function that registers a folder below ``tmp_path`` under a name, by whatever URI."""
    experiment = empty_store.client.create_experiment("own", (tmp_path / "runs").as_uri())

    def add(name: str, folder: Path | None = None, source: object = None, model_id: str | None = None) -> Path:
        if folder is None:  # a LoggedModel's
            logged = empty_store.client.create_logged_model(experiment, name="model")
            folder, source = Path(logged.artifact_location.removeprefix("file://")), f"models:/{logged.model_id}"
            model_id = logged.model_id if model_id is None else model_id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "MLmodel").write_text("flavors: {}\n" + (f"model_id: {model_id}\n" if model_id else ""))
        empty_store.client.create_registered_model(name)
        empty_store.client.create_model_version(name, str(source or folder))
        return folder

    return empty_store.client, add


def logged_ids(client) -> set[str]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {model.model_id for model in client.search_logged_models(experiments)}


def link(tmp_path: Path) -> Path:
    (tmp_path / "link").symlink_to(tmp_path / "here")
    return tmp_path / "link" / "model one"


@pytest.mark.slow
@pytest.mark.parametrize(
    "spelled",
    [
        lambda folder: f"file://{folder}",
        lambda folder: folder.as_uri(),  # %20
        lambda folder: f"{folder}/",
        lambda folder: f"file:{folder}/.",
        lambda folder: f"{folder.parent}/x/../{folder.name}",
        lambda folder: f"file://localhost{folder}".replace("here", "h%65re"),
        lambda folder: link(folder.parents[1]),
    ],
    ids=["scheme", "percent", "slash", "dot", "dots", "host", "link"],
)
def test_a_copy_by_another_spelling_is_served(folders, tmp_path, spelled):
    client, add = folders
    folder = add("plain", tmp_path / "here" / "model one")
    add("served", folder, spelled(folder))
    client.set_registered_model_alias("served", "champion", "1")
    refused = call("retire", "--model-uri", "models:/plain/1", "--yes", "true")
    assert refused.code == 3 and "served@champion" in refused.err
    assert (folder / "MLmodel").exists()
    client.delete_registered_model_alias("served", "champion")
    done = call("retire", "--model-uri", "models:/plain/1", "--yes", "true")
    assert done.code == 0, done.err
    assert "mark models:/served/1 as retired" in done.out
    assert not folder.exists()


@pytest.mark.parametrize("aliases", [(), ("--aliases", "champion")])
def test_a_folder_inside_or_around_another_version_s(folders, tmp_path, aliases):
    client, add = folders
    inner = add("inner", tmp_path / "outer" / "part")
    outer = add("outer", tmp_path / "outer", f"file://{tmp_path}/outer/")
    for name in ("inner", "outer") if aliases else ():
        client.set_registered_model_alias(name, "champion", "1")
    for name, other, how in (("inner", "outer", "around"), ("outer", "inner", "inside")):
        refused = call("retire", "--model-uri", f"models:/{name}/1", "--yes", "true", *aliases)
        assert refused.code == 3 and "Traceback" not in refused.err
        assert f"the files of models:/{other}/1" in refused.err and f"lie {how} its own" in refused.err
    assert (inner / "MLmodel").exists() and (outer / "MLmodel").exists()
    assert not client.get_model_version("inner", "1").tags
    # The way out that the sentence names.
    client.delete_model_version("outer", "1")
    done = call("retire", "--model-uri", "models:/inner/1", "--yes", "true", *aliases)
    assert done.code == 0, done.err
    assert not inner.exists() and (outer / "MLmodel").exists()


def test_a_run_s_name_for_a_logged_model_s_folder(empty_store, tmp_path):
    """By ``runs:/`` MLflow finds the LoggedModel's folder, which its own version names by the LoggedModel."""
    client = empty_store.client
    experiment = client.create_experiment("own", (tmp_path / "runs").as_uri())
    run = client.create_run(experiment)
    logged = client.create_logged_model(experiment, name="model", source_run_id=run.info.run_id)
    folder = Path(logged.artifact_location.removeprefix("file://"))
    folder.mkdir(parents=True)
    (folder / "MLmodel").write_text(f"flavors: {{}}\nmodel_id: {logged.model_id}\n")
    for name, source in (("first", f"models:/{logged.model_id}"), ("second", f"runs:/{run.info.run_id}/model")):
        client.create_registered_model(name)
        client.create_model_version(name, source, run.info.run_id)
    client.set_registered_model_alias("first", "champion", "1")
    refused = call("retire", "--model-uri", "models:/second/1", "--yes", "true")
    assert refused.code == 3 and "first@champion" in refused.err
    assert logged_ids(client) == {logged.model_id} and folder.exists()
    done = call("retire", "--model-uri", "models:/second/1", "--aliases", "first@champion", "--yes", "true")
    assert done.code == 0, done.err
    assert logged_ids(client) == set() and not folder.exists()


@pytest.mark.parametrize("target", ["a folder", "a LoggedModel"])
def test_an_mlmodel_that_names_another_model(folders, tmp_path, target):
    client, add = folders
    served = add("served")
    client.set_registered_model_alias("served", "champion", "1")
    other = served.parent.name
    own = add("forged", tmp_path / "plain" if target == "a folder" else None, model_id=other)
    refused = call("retire", "--model-uri", "models:/forged/1", "--yes", "true")
    assert refused.code == 3, refused.err
    assert f"its MLmodel names the LoggedModel {other}" in refused.err
    assert f"belong to {'none' if target == 'a folder' else own.parent.name}" in refused.err
    assert other in logged_ids(client) and (own / "MLmodel").exists() and (served / "MLmodel").exists()


@pytest.mark.parametrize("written", ["", "m-" + "0" * 32, "../../experiments"])
def test_the_store_tells_the_logged_model(folders, written):
    """Also where the MLmodel says nothing, or what is in no store."""
    client, add = folders
    folder = add("clf", model_id=written)
    client.copy_model_version("models:/clf/1", "copy")
    done = call("retire", "--model-uri", "models:/copy/1", "--yes", "true")
    assert done.code == 0, done.err
    assert f"done: delete the LoggedModel {folder.parent.name}" in done.out
    assert logged_ids(client) == set() and not folder.exists()


def test_files_of_a_logged_model_that_nobody_registered(folders, tmp_path):
    client, add = folders
    folder = add("registered")
    client.delete_model_version("registered", "1")
    add("part", folder / "part")
    refused = call("retire", "--model-uri", "models:/part/1", "--yes", "true")
    assert refused.code == 3 and f"the files of the LoggedModel {folder.parent.name}" in refused.err
    assert "lie around its own" in refused.err
    client.delete_model_version("part", "1")
    add("whole", tmp_path / "runs")
    refused = call("retire", "--model-uri", "models:/whole/1", "--yes", "true")
    assert refused.code == 3 and f"the files of the LoggedModel {folder.parent.name}" in refused.err
    assert "lie inside its own" in refused.err
    assert (folder / "part" / "MLmodel").exists() and logged_ids(client) == {folder.parent.name}


@pytest.mark.parametrize(
    ("source", "doubt"),
    [
        (lambda folder: "model", "is relative to"),
        (lambda folder: f"{folder.parent}/circle", "cannot be followed"),
        (lambda folder: f"file://{folder}%00", "cannot be followed"),
        (lambda folder: f"mlflow-artifacts:/{folder.parent.name}/{folder.name}", "end alike"),
        (lambda folder: f"s3://bucket{folder}/data", "end alike"),
    ],
    ids=["relative", "circle", "nul", "proxy", "bucket"],
)
def test_what_cannot_be_told_apart(folders, tmp_path, source, doubt):
    client, add = folders
    folder = add("plain", tmp_path / "model")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    client.create_registered_model("other")
    client.create_model_version("other", source(folder))
    refused = call("retire", "--model-uri", "models:/plain/1", "--yes", "true")
    assert refused.code == 3, refused.err
    assert "models:/other/1" in refused.err and doubt in refused.err
    assert (folder / "MLmodel").exists()


def test_what_mlflow_would_delete_elsewhere(folders, tmp_path):
    """When it deletes, MLflow decodes the path a second time; and it deletes nothing through a link."""
    client, add = folders
    victim = add("victim", tmp_path / "a b")
    folder = add("plain", tmp_path / "a%20b", f"file://{tmp_path}/a%2520b")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    real = add("linked", tmp_path / "real", tmp_path / "link")
    for name, doubt in (("plain", "reads the %"), ("linked", "is a symbolic link")):
        refused = call("retire", "--model-uri", f"models:/{name}/1", "--yes", "true")
        assert refused.code == 3 and doubt in refused.err
        assert not client.get_model_version(name, "1").tags
    assert all((path / "MLmodel").exists() for path in (victim, folder, real))


def all_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("mlmodel", "named"),
    [
        (None, "without an MLmodel beside it there is 'data', 'other', 'served'"),
        ("flavors: {pytorch: {model_data: data}}\n", "its MLmodel does not name 'other', 'served'"),
        ("flavors: {pytorch: {model_data: data/../other}}\n", "its MLmodel does not name 'data', 'served'"),
        ("flavors: {pytorch: {model_data: ./served, extra_files: [{path: data/x}]}}\n", "does not name 'other'"),
    ],
)
def test_a_folder_around_models_is_none(folders, tmp_path, mlmodel, named):
    """A team's folder: models that nobody has registered, and the work of years."""
    client, add = folders
    folder = add("oops", tmp_path / "team")
    (folder / "MLmodel").unlink()
    for name in ("data/images.bin", "served/MLmodel", "other/MLmodel", *(["MLmodel"] if mlmodel else [])):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(mlmodel or "flavors: {}\n")
    before = all_files(folder)
    for yes in ("false", "true"):
        refused = call("retire", "--model-uri", "models:/oops/1", "--yes", yes)
        assert refused.code == 3 and named in refused.err, refused.err
        assert "delete_model_version" in refused.err
    assert all_files(folder) == before and not client.get_model_version("oops", "1").tags


@pytest.mark.parametrize("what", ["a run's artifacts", "a file"])
def test_what_is_no_model_at_all(empty_store, tmp_path, what):
    client = empty_store.client
    with mlflow.start_run() as run:
        mlflow.log_text("x", "evidence/evidence.json")
        mlflow.log_text("x", "figures/plot.png")
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    source = {"a run's artifacts": f"runs:/{run.info.run_id}/", "a file": str(artifacts / "figures" / "plot.png")}
    client.create_registered_model("oops")
    client.create_model_version("oops", source[what], run.info.run_id)
    refused = call("retire", "--model-uri", "models:/oops/1", "--yes", "true")
    assert refused.code == 3, refused.err
    assert ("'evidence', 'figures'" if what == "a run's artifacts" else "is not a folder") in refused.err
    assert all_files(artifacts) == {"evidence/evidence.json", "figures/plot.png"}


@pytest.mark.parametrize("after", ["whoami", "_remove_alias", "_delete_logged_model"])
def test_what_comes_to_the_folder_before_a_deletion(folders, monkeypatch, after):
    client, add = folders
    folder, real = add("clf"), getattr(command, after)
    client.set_registered_model_alias("clf", "old", "1")

    def and_more(*arguments):
        (folder / "results").mkdir()
        (folder / "results" / "all.csv").write_text("x")
        return real(*arguments)

    monkeypatch.setattr(command, after, and_more)
    refused = call("retire", "--model-uri", "models:/clf/1", "--aliases", "old", "--yes", "true")
    assert refused.code == 3 and "'results' came to" in refused.err, refused.err
    assert all_files(folder) == {"MLmodel", "results/all.csv"}
    if after != "_delete_logged_model":
        assert (
            client.get_registered_model("clf").aliases == {"old": 1} and not client.get_model_version("clf", "1").tags
        )


def test_a_deletion_that_broke_off_goes_on(folders, monkeypatch):
    """The MLmodel went first: what the interrupted command was about to delete is known from its run, by no tag."""
    client, add = folders
    folder = add("clf")
    (folder / "MLmodel").write_text("flavors: {pytorch: {model_data: data}}\n")
    (folder / "data").mkdir()
    (folder / "data" / "model.pth").write_text("weights")

    def broke_off(location):
        (folder / "MLmodel").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_delete_files", broke_off)
    retire = ("retire", "--model-uri", "models:/clf/1", "--yes", "true")
    assert call(*retire).code == 130
    monkeypatch.undo()
    make_request(client, "models:/clf/1")
    shown = call("exposure", "--model-uri", "models:/clf/1")
    assert re.search(r"models:/clf/1 .*contains", shown.out), shown.out
    mark = client.get_model_version("clf", "1").tags["unlearn.retired"]
    (folder / "results").write_text("x")
    refused = call(*retire)
    assert refused.code == 3 and "without an MLmodel beside it there is 'results'" in refused.err
    assert client.get_model_version("clf", "1").tags["unlearn.retired"] == mark
    (folder / "results").unlink()
    other = add("other", folder.parents[1] / "team")
    (other / "MLmodel").rename(other / "data")
    client.set_model_version_tag("other", "1", "unlearn.retired", mark)
    forged = call("retire", "--model-uri", "models:/other/1", "--yes", "true")
    assert forged.code == 3 and "there is 'data'" in forged.err
    done = call(*retire)
    assert done.code == 0, done.err
    assert not folder.exists() and (other / "data").exists()
    assert "retired" in call("exposure", "--model-uri", "models:/clf/1").out


@pytest.mark.parametrize("moved", [False, True])
def test_what_was_refused_halfway_is_as_before(folders, monkeypatch, moved):
    """One alias is removed when somebody moves the other one, or both."""
    client, add = folders
    folder = add("clf")
    client.create_model_version("clf", str(folder.parent / "another"))
    for alias in ("a", "b"):
        client.set_registered_model_alias("clf", alias, "1")
    real = command._remove_alias

    def and_moved(*arguments):
        real(*arguments)
        for alias in ("a", "b") if moved else ("b",):
            client.set_registered_model_alias("clf", alias, "2")

    monkeypatch.setattr(command, "_remove_alias", and_moved)
    refused = call("retire", "--model-uri", "models:/clf/1", "--aliases", "a,b", "--yes", "true")
    assert refused.code == 3 and "clf@b has just been moved to version 2" in refused.err
    assert client.get_registered_model("clf").aliases == {"a": 2 if moved else 1, "b": 2}
    assert not client.get_model_version("clf", "1").tags and (folder / "MLmodel").exists()


def test_exposure_knows_a_copy_by_another_spelling(folders, tmp_path):
    client, add = folders
    folder = add("plain", tmp_path / "model")
    add("spelled", folder, folder.as_uri() + "/")
    add("inner", folder / "part")
    add("other", tmp_path / "other")
    client.create_registered_model("doubtful")
    client.create_model_version("doubtful", "model")
    filed = make_request(client, "models:/plain/1")
    shown = call("exposure", "--model-uri", "models:/plain/1")
    assert shown.code == 0, shown.err
    rows = {line.split("│")[1].strip(): line for line in shown.out.splitlines() if line.startswith("│ models:/")}
    assert f"request {filed} is about it" in " ".join(shown.out.split())
    assert "contains" in rows["models:/spelled/1"] and "contains" in rows["models:/inner/1"]
    assert "unknown" in rows["models:/doubtful/1"] and "unknown" in rows["models:/other/1"]


def make_request(client, uri: str) -> str:
    """A request on a version that is no model: filed by hand."""
    name, version = uri.removeprefix("models:/").split("/")
    with mlflow.start_run() as run:
        details = {"of": uri, "run_id": run.info.run_id}
        mlflow.log_dict(details, "request/request.json")
        mlflow.log_text("id\na\n", "request/manifest.csv")
        mlflow.set_tag("unlearn.request_id", "abcdefabcdef")
    client.set_model_version_tag(name, version, "unlearn.request.abcdefabcdef", f"pending {json.dumps(details)}")
    return "abcdefabcdef"
