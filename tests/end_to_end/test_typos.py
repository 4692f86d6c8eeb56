"""What is mistyped ends in a sentence before a run exists; what the run is named, and in which experiment it is."""

import subprocess
import sys

import mlflow
import pytest
from stores import DATA, FORGET, TRAIN, reset_mlflow

V1 = ("--model-uri", "models:/clf/1")
TYPOS = {
    "an option": (("unlearn", *V1, "--metod", "lotus"), "No such option '--metod'"),
    "a value": (("train", "--data", DATA, "--name", "new", "--epochs", "ten"), "'ten' is not a valid integer"),
    "a model": (("unlearn", "--model-uri", "models:/clff/1"), "did you mean 'clf'?"),
    "a version": (("evaluate", "--model-uri", "models:/clf/9", "--forget", FORGET), "has no version '9'"),
    "a method": (
        ("unlearn", *V1, "--forget", FORGET, "--method", "lotsu"),
        "unknown method 'lotsu': known methods, nearest first, are lotus",
    ),
    "a hyperparameter": (("unlearn", *V1, "--forget", FORGET, "--params", '{"alhpa": 2}'), "alhpa"),
    "a data source": (("request", *V1, "--forget", FORGET, "--data", "folder:/nowhere"), "no folder '/nowhere'"),
    "a table without its scheme": (("data", "--data", "parts.csv"), "did you mean 'csv:parts.csv'?"),
    "a request": (("unlearn", *V1, "--forget", "request:abcdefabcdef"), "abcdefabcdef"),
    "a class": (("request", *V1, "--forget", "class:elephant"), "elephant"),
    "a gold standard": (("compare", *V1, "--forget", FORGET, "--gold-uri", "models:/gold/1"), "no registered model"),
    "a policy": (("review", *V1, "--policy", "nowhere.yaml"), "nowhere.yaml"),
    "an architecture": (("train", "--data", DATA, "--name", "new", "--architecture", "resnet81"), "'resnet18'"),
    "a space": (("tune", *V1, "--forget", FORGET, "--methods", "lotus", "--space", '{"lr": "x"}'), "lr"),
    "a key": (("unlearn", *V1, "--forget", FORGET, "--sign-key", "nowhere.pem"), "nowhere.pem"),
    "an alias": (("promote", *V1, "--alias", "v1"), "--alias v1"),
    "a case": (("dossier", "--request", "abcdefabcdef"), "abcdefabcdef"),
    "two experiments": (
        ("unlearn", *V1, "--experiment-name", "a", "--experiment-id", "1"),
        "--experiment-name and --experiment-id name one experiment",
    ),
}


@pytest.mark.parametrize("typo", TYPOS)
def test_a_typo_makes_no_run(store, cli, typo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.csv").write_text("file,label\n")
    arguments, says = TYPOS[typo]
    known = [run.info.run_id for run in store.runs()]
    experiments = len(store.client.search_experiments())
    done = cli(*arguments)
    assert done.code == 2 and says in done.err, done.err
    assert [run.info.run_id for run in store.runs()] == known and mlflow.active_run() is None
    assert len(store.client.search_experiments()) == experiments


def test_under_mlflow_run_the_run_that_is_there_has_failed(store, cli, monkeypatch):
    for arguments, says in (TYPOS["a version"], TYPOS["a hyperparameter"], TYPOS["an option"]):
        with mlflow.start_run() as there:
            pass
        monkeypatch.setenv("MLFLOW_RUN_ID", there.info.run_id)
        assert cli(*arguments).code == 2
        assert says in store.client.get_run(there.info.run_id).data.tags["unlearn.error"]


@pytest.mark.slow
def test_names_say_what_was_done(store, cli):
    """What was not asked for, such as a plan's result, has a name of its own."""
    assert cli("request", *V1, "--forget", "random:5").code == 0
    assert cli("unlearn", *V1, "--plan", "true").code == 0
    assert cli("unlearn", *V1, "--params", '{"epochs": 1}').code == 0
    assert cli("review", "--model-uri", "models:/clf/2").code in (0, 3)
    assert [run.info.run_name for run in store.runs()] == [
        *("review clf v2", "unlearn clf v1", "plan clf v1", "request clf v1", "train clf")
    ]


@pytest.mark.slow
def test_runs_are_made_beside_that_of_the_version(store, cli, monkeypatch):
    """The template's is in the experiment `tests`; names of the user's own go before."""
    own = store.client.get_experiment_by_name("tests").experiment_id
    other = store.client.create_experiment("other", artifact_location=(store.folder / "other").as_uri())
    request = ("request", *V1, "--forget")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    made = []
    for number, more in enumerate([(), ("--experiment-name", "other"), ("--experiment-id", other)]):
        assert cli(*request, f"random:{number + 3}", *more).code == 0
        made.append(store.runs()[0].info.experiment_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", other)
    assert cli(*request, "random:6").code == 0
    assert [*made, store.runs()[0].info.experiment_id] == [own, other, other, other]
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    compared = cli("compare", *V1, "--forget", "random:20", "--methods", "finetune", "--seeds", "1", "--force", "true")
    assert compared.code == 0, compared.err
    inside = [run for run in store.runs() if "mlflow.parentRunId" in run.data.tags]
    assert inside and {run.info.experiment_id for run in inside} == {own}, "nested runs are beside their parent"


def test_an_experiment_that_is_gone_is_not_taken(store, cli, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    store.client.delete_experiment(store.client.get_experiment_by_name("tests").experiment_id)
    assert cli("request", *V1, "--forget", "random:5").code == 0
    assert store.runs()[0].info.experiment_id == "0"


@pytest.mark.slow
def test_what_libraries_tell_their_authors_is_shown_with_debug_alone(store, cli):
    """A pickle was asked for; MLflow's warning about it is for those who call it."""
    pickled = ("train", *TRAIN, "--epochs", "1", "--name", "pickled", "--serialization", "pickle")
    for debug in ((), ("--debug", "true")):
        done = cli(*pickled, *debug)
        assert done.code == 0, done.err
        assert ("requires exercising caution" in done.err) == bool(debug)


@pytest.mark.slow
@pytest.mark.parametrize("typo", ["a model", "a version", "a request", "a gold standard", "a key"])
def test_what_is_not_there_is_told_before_torch_is_loaded(store, typo):
    arguments, says = TYPOS[typo]
    code = (
        "import atexit, sys; from mlflow_unlearn.cli import main\n"
        "atexit.register(lambda: print('torch' in sys.modules)); main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert done.stdout.splitlines() == ["False"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [("unlearn", *V1), ("review", *V1), ("requests",), ("locate", "--forget", "x.csv")])
def test_a_mistyped_database_is_not_made(store, cli, monkeypatch, command):
    """Only a training begins a registry."""
    path = store.folder / "mlfow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    reset_mlflow()
    done = cli(*command)
    assert done.code == 2 and "mlfow.db cannot be opened (there is no such file)" in done.err, done.err
    assert not path.exists()
    assert cli("train", *TRAIN, "--name", "new").code == 0 and path.exists()


def test_nor_is_a_mistyped_registry(store, cli, monkeypatch):
    path = store.folder / "registry.db"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{path}")
    mlflow.set_registry_uri(None)
    done = cli("review", *V1)
    assert done.code == 2 and not path.exists(), done.err
    assert f"the registry sqlite:///{path} cannot be opened (there is no such file): correct MLFLOW_REG" in done.err
