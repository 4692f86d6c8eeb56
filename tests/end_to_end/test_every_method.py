"""Every method through the registry path of the main job: a version registered, tagged and evaluated alike."""

import json
import warnings

import mlflow
import pytest
from stores import FORGET
from toy import PLAIN_METHODS

from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.methods import BUILTIN

CHEAP = {
    "lotus": {"epochs": 2},
    "finetune": {"epochs": 2},
    "neggrad_plus": {"epochs": 2},
    "random_labels": {"epochs": 2},
    "bad_teacher": {"lr": 0.001},
    "scrub": {"epochs": 3, "alpha": 0.5},
    "ssd": {"alpha": 1.0},
    "unsir": {"noise_steps": 2, "copies": 1, "batch_size": 16},
    "salun": {"epochs": 2, "objective": "lotus"},
    "transpose": {"epochs": 2},
    "perturb": {"epochs": 2},
    "msg": {"epochs": 2},
    "retrain_from": {"epochs": 2, "split": "6"},
    "amun": {"epochs": 2, "steps": 5},
    "retrain": {"epochs": 4},
}


def recorded(version: str) -> dict:
    return mlflow.models.get_model_info(f"models:/clf/{version}").metadata["mlflow_unlearn"]


# A plain one, one that steers itself, one without epochs; the conformance suite trains the others by default.
BY_DEFAULT = ("finetune", "lotus", "ssd")


@pytest.mark.nightly
@pytest.mark.parametrize(
    "method", [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in PLAIN_METHODS]
)
def test_every_method_registers_a_version(method, store, cli):
    unlearn = ("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, "--method", method)
    done = cli(*unlearn, "--params", json.dumps(CHEAP[method]))
    assert done.code == 0, done.err
    tags = store.tags("2")
    assert tags["unlearn.method"] == method
    assert tags["unlearn.source_uri"] == "models:/clf/1"
    assert {"unlearn.metric.acc_forget", "unlearn.metric.mia_excess", "unlearn.metric.rf_jsd"} <= tags.keys()
    assert weights_digest(mlflow.pytorch.load_model("models:/clf/2")) == tags["unlearn.weights_sha256"]
    record = recorded("2")
    assert record["method"] == method
    assert CHEAP[method].items() <= record["recipe"].items()
    [run] = [run for run in store.runs() if run.data.tags.get("unlearn.command") == "unlearn"]
    assert {f"unlearn.params.{name}" for name in BUILTIN[method].Params.model_fields} <= run.data.params.keys()
    if "epochs" in CHEAP[method]:
        assert len(store.client.get_metric_history(run.info.run_id, "loss")) >= min(2, CHEAP[method]["epochs"])


@pytest.mark.slow
def test_a_preset_gives_way_to_what_is_given(store, cli):
    unlearn = ("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, "--method", "scrub")
    done = cli(*unlearn, "--preset", "authors-small", "--params", '{"epochs": 1, "msteps": 1}')
    assert done.code == 0, done.err
    recipe = recorded("2")["recipe"]
    assert {key: recipe[key] for key in ("alpha", "gamma", "temperature", "msteps")} == {
        **{"alpha": 0.5, "gamma": 1.0, "temperature": 2.0},
        "msteps": 1,
    }


def test_a_method_that_refuses_the_model_ends_before_anything_is_measured(store, cli, monkeypatch, tmp_path):
    monkeypatch.setattr(BUILTIN["transpose"], "unsuited", classmethod(lambda cls, model: "transpose would do nothing"))
    on = ("--model-uri", "models:/clf/1", "--forget", FORGET)
    known = len(store.runs())
    tune = ("tune", *on, "--n-trials", "1", "--register", "none", "--storage", f"sqlite:///{tmp_path}/optuna.db")
    for arguments in (("unlearn", *on, "--method", "transpose"), (*tune, "--methods", "transpose")):
        done = cli(*arguments)
        assert done.code == 2 and "transpose would do nothing" in done.err
        assert len(store.runs()) == known, "no run was begun"


@pytest.mark.slow
def test_a_warning_reaches_the_terminal_and_the_version(store, cli):
    with warnings.catch_warnings(action="ignore"):  # which others do meanwhile, too
        done = cli(
            *("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, "--method", "unsir"),
            *("--params", json.dumps(CHEAP["unsir"])),
        )
    assert done.code == 0
    [line] = [line for line in done.err.splitlines() if line.startswith("Warning: UNSIR forgets whole classes")]
    assert store.tags("2")["unlearn.warning"] == line.removeprefix("Warning: ")


@pytest.mark.slow
def test_a_method_that_moves_nothing_registers_nothing(store, cli):
    """SSD's alpha of 10 cannot select a weight where a tenth of the data or more is forgotten."""
    before = store.everything_registered()
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:20%", "--method", "ssd")
    assert done.code == 3
    assert "nothing was unlearned: ssd left every weight as it was (SSD cannot select a weight" in done.err
    after = store.everything_registered()
    assert [version for version, _ in after["clf"]] == [version for version, _ in before["clf"]]
    [run] = [run for run in store.runs() if run.data.tags.get("unlearn.command") == "unlearn"]
    assert run.info.status == "FAILED"


@pytest.mark.slow
def test_retraining_takes_the_recorded_recipe(store, cli):
    """Also of a version that was unlearned: its own recipe is LoTUS's, its source's is that of the training."""
    assert cli("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    done = cli("unlearn", "--model-uri", "models:/clf/2", "--forget", "random:10", "--method", "retrain")
    assert done.code == 0, done.err
    recipe = recorded("3")["recipe"]
    assert {key: recipe[key] for key in ("epochs", "lr", "batch_size")} == {"epochs": 20, "lr": 0.05, "batch_size": 32}
    assert recipe["augment"] == "none"
    assert "takes the defaults" not in done.err


@pytest.mark.nightly
def test_retraining_without_a_record_says_so(store, cli, tmp_path):
    import toy

    with mlflow.start_run():
        mlflow.pytorch.log_model(
            toy.original(), name="model", registered_model_name="theirs", serialization_format="pickle"
        )
    done = cli(
        *("unlearn", "--model-uri", "models:/theirs/1", "--data", "digits,train=15%,split=drawn"),
        *("--transform", "none"),
        *("--forget", FORGET, "--method", "retrain", "--params", '{"epochs": 2}', "--force", "true"),
    )
    assert done.code == 0, done.err
    assert "models:/theirs/1 does not record how it was trained; retraining takes the defaults" in done.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--method", "skrub"), "unknown method 'skrub': known methods, nearest first, are scrub,"),
        (("--method", "scrub", "--params", '{"alhpa": 1}'), "temperature (> 0, ≤ 100)"),
        (("--method", "scrub", "--preset", "large"), "unknown preset 'large' of scrub: valid values: authors-large,"),
        (("--method", "salun", "--params", '{"objective": "x"}'), "objective (random_labels | lotus)"),
    ],
)
def test_bad_methods_and_params(arguments, sentence, store, cli):
    before, known = store.everything_registered(), len(store.runs())
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, *arguments)
    assert done.code == 2
    assert sentence in done.err.replace("\n", " ")
    assert store.everything_registered() == before and len(store.runs()) == known
