"""The story: a request is filed, `unlearn` fulfils it, and the new version records all of it."""

import json
import math
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from stores import DATA, FORGET, Outcome, Store, call, copied, digits_folder, reset_mlflow, use
from trainings import csv_of_digits

from mlflow_unlearn import config
from mlflow_unlearn.data.forget import resolve_forget
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.evidence.record import Evidence
from mlflow_unlearn.methods import get_method
from mlflow_unlearn.metrics.catalog import KEYS
from mlflow_unlearn.registry import registration
from mlflow_unlearn.registry.digests import file_digests
from mlflow_unlearn.registry.forget_requests import ForgetRequest, mark_done
from mlflow_unlearn.registry.lock import ModelLock, model_lock
from mlflow_unlearn.registry.system import code_commit

QUICK = ("--params", '{"epochs": 1}')
PARAMS = {"epochs": 3, "lr": 0.003, "batch_size": 32}


@dataclass
class Story:
    store: Store
    request_id: str
    done: Outcome

    @property
    def run(self):
        return self.store.client.get_run(self.store.tags("2")["unlearn.run_id"])

    @property
    def metrics(self) -> dict[str, float]:
        return self.run.data.metrics

    def artifact(self, path: str) -> str:
        return Path(mlflow.artifacts.download_artifacts(run_id=self.run.info.run_id, artifact_path=path)).read_text()


@pytest.fixture(scope="module")
def finished_story(template, tmp_path_factory) -> Story:
    """Run once for all tests that only read what it left."""
    with copied(template, tmp_path_factory.mktemp("story")) as store:
        assert call("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
        [request_id] = store.requests()
        gold = call(
            *("train", "--data", DATA, "--name", "gold", "--architecture", "toy:trainable", "--exclude", request_id),
            *("--epochs", "10", "--lr", "0.05", "--batch-size", "32", "--seed", "1"),
        )
        assert gold.code == 0, gold.err
        done = call(
            *("unlearn", "--model-uri", "models:/clf/1", "--gold-uri", "models:/gold/1", "--seed", "3"),
            *("--params", json.dumps(PARAMS)),
        )
        assert done.code == 0, done.err
        return Story(store, request_id, done)


@pytest.fixture
def story(finished_story, monkeypatch):
    use(finished_story.store, monkeypatch)
    yield finished_story
    reset_mlflow()


def source():
    return load_source(DATA)


def ids(indices) -> set[str]:
    everything = source().train.ids
    return {everything[i] for i in indices}


def forgotten(spec: str = FORGET) -> set[str]:
    """The ids that a spec names for version 1."""
    data = source()
    everything = np.ones(len(data.train), bool)
    return ids(resolve_forget(spec, data, everything, lambda _: pytest.fail("no request here")).indices)


def folder_of(version: str, name: str = "clf") -> Path:
    return Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}"))


def trained_on(version: str, name: str = "clf") -> set[str]:
    """The plain ids that a version's training manifest holds."""
    manifest = Manifest.from_csv(folder_of(version, name) / "extra_files" / "training_manifest.csv")
    train = source().train.ids
    held = {i for i, known in zip(train, manifest.mask(train), strict=True) if known}
    assert len(held) == len(manifest.ids)
    return held


# What a run and a version say


@pytest.mark.slow
def test_one_finished_run_a_command(story):
    runs = story.store.runs()
    assert [run.data.tags["unlearn.command"] for run in runs] == ["unlearn", "train", "request", "train"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert "unlearn.error" not in story.run.data.tags
    assert story.store.versions() == ["1", "2"]


def test_tags_of_the_version(story):
    tags = story.store.tags("2")
    assert tags["unlearn.method"] == "lotus"
    assert tags["unlearn.source_uri"] == "models:/clf/1"
    assert tags["unlearn.request_ids"] == story.request_id
    assert tags["unlearn.run_id"] == story.store.runs()[0].info.run_id
    assert not any(key.startswith("unlearn.request.") for key in tags)
    measured = {k.removeprefix("unlearn.metric."): float(v) for k, v in tags.items() if k.startswith("unlearn.metric.")}
    assert measured == {k.removeprefix("unlearned."): v for k, v in story.metrics.items() if k.startswith("unlearned.")}
    assert {"acc_forget", "acc_test", "mia_auc", "rf_jsd", "jsd", "avg_gap"} <= set(measured) <= set(KEYS)


def test_the_request_is_done(story):
    [(state, details)] = story.store.requests().values()
    assert state == "done"
    assert details["by"] == ["models:/clf/2"]


def test_weights_sha256_is_that_of_the_weights(story):
    digests = {version: story.store.tags(version)["unlearn.weights_sha256"] for version in "12"}
    for version, digest in digests.items():
        assert weights_digest(mlflow.pytorch.load_model(f"models:/clf/{version}")) == digest
    assert digests["1"] != digests["2"]


def test_the_weights_lie_beside_the_program(story):
    loaded = mlflow.pytorch.load_model("models:/clf/2").state_dict()
    file = load_file(folder_of("2") / "extra_files" / "weights.safetensors")
    assert file.keys() == loaded.keys()
    assert all(torch.equal(file[name], loaded[name]) for name in file)


def test_the_metrics_are_those_of_the_registered_model(story):
    """Accuracy on the test set, computed here from the registered program."""
    test = source().test
    images = np.stack([np.asarray(test.images[i], dtype=np.float32) / 255 for i in range(len(test))])[:, None]
    for name, version in {"original": "clf/1", "unlearned": "clf/2", "gold": "gold/1"}.items():
        with torch.no_grad():
            found = mlflow.pytorch.load_model(f"models:/{version}")(torch.from_numpy(images)).argmax(1).numpy()
        assert story.metrics[f"{name}.acc_test"] == pytest.approx((found == test.labels).mean(), abs=1e-12)


def test_one_metric_a_step_and_epoch(story):
    run_id = story.run.info.run_id
    history = {
        key: [(m.step, m.value) for m in story.store.client.get_metric_history(run_id, key)]
        for key in ("acc_forget", "a_u", "delta", "temperature", "loss", "seconds")
    }
    epochs = len(history["loss"])
    assert 1 <= epochs <= 3
    for key, values in history.items():
        # What is known of the returned model comes one step after the last epoch.
        assert [step for step, _ in values] == list(range(epochs + (key in ("acc_forget", "delta")))), key
    for (_, acc), (_, a_u), (_, delta), (_, tau) in zip(
        *(history[key] for key in ("acc_forget", "a_u", "delta", "temperature")), strict=False
    ):
        assert a_u == history["a_u"][0][1]
        assert delta == pytest.approx(acc - a_u)
        assert tau == pytest.approx(math.exp(2 * delta))
    assert history["acc_forget"][-1][1] == pytest.approx(story.metrics["unlearned.acc_forget"])
    assert all(value > 0 for _, value in history["seconds"])
    assert story.metrics["unlearn_seconds"] >= sum(value for _, value in history["seconds"])


def test_metrics_have_the_name_of_their_model(story):
    names = {key.partition(".")[0] for key in story.metrics if "." in key}
    assert names == {"original", "unlearned", "gold", "count", "seconds"}
    phases = ("start", "open", "original", "method", "result", "metrics", "save")
    assert all(story.metrics[f"seconds.{phase}"] > 0 for phase in phases)
    for name in ("original", "unlearned", "gold"):
        assert {f"{name}.acc_{role}" for role in ("forget", "retain", "val", "test")} <= story.metrics.keys()
    assert story.metrics["gold.avg_gap"] == 0
    assert len({story.metrics[f"{name}.rf_jsd"] for name in ("original", "unlearned", "gold")}) == 3
    assert story.metrics["count.n_forget"] == len(forgotten())
    assert story.metrics["count.n_retain"] == len(source().train) - len(forgotten())


@pytest.mark.slow
def test_what_was_not_measured_has_a_reason(store, cli):
    """Nine samples are too few for the attack's interval, and there is no gold."""
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:9", *QUICK)
    assert done.code == 0, done.err
    # One line a reason, with all that it is the reason of.
    [line] = [line for line in done.out.splitlines() if line.endswith("(no gold model was given)")]
    assert line.startswith("Not computed: ")
    assert {"jsd", "avg_gap"} <= set(line.removeprefix("Not computed: ").partition(" (")[0].split(", "))
    run = store.runs()[0]
    needs_more = (".mia_auc", ".jsd", ".avg_gap")
    assert not any(key.startswith("gold.") or key.endswith(needs_more) for key in run.data.metrics)
    assert "10 are needed" in run.data.tags["unlearn.missing.unlearned.mia_auc"]
    assert run.data.tags["unlearn.missing.unlearned.avg_gap"] == "no gold model was given"
    assert "unlearn.missing.unlearned.acc_test_forgotten" not in run.data.tags


def test_params_hold_the_options_and_the_resolved_setting(story):
    params = story.run.data.params
    assert all(key.startswith("unlearn.") for key in params)
    for key, value in {**PARAMS, "alpha": 2.0, "retain_fraction": 0.3, "keep": "last"}.items():
        assert params[f"unlearn.params.{key}"] == str(value)
    assert params["unlearn.model_uri"] == "models:/clf/1"
    assert params["unlearn.seed"] == "3"
    assert {f"unlearn.{name}" for name in config.options(config.Unlearn)} <= params.keys()


def test_system_and_commit(story):
    tags = story.run.data.tags
    assert (tags["unlearn.git.commit"], tags["unlearn.git.dirty"]) == code_commit()
    assert tags["unlearn.system.torch"] == torch.__version__
    assert tags["unlearn.system.mlflow"] == mlflow.__version__
    assert tags["unlearn.system.threads"] == str(torch.get_num_threads())
    assert {f"unlearn.system.{name}" for name in ("python", "platform", "accelerator")} <= tags.keys()


def test_the_configuration_is_an_artifact_and_runs_again(story):
    values = yaml.safe_load(story.artifact("config.yaml"))
    assert list(values) == ["unlearn"]
    again = config.Unlearn.model_validate(values["unlearn"])
    assert again.model_uri == "models:/clf/1"
    assert again.seed == 3
    assert json.loads(again.params) == PARAMS


def test_the_sets_are_dataset_inputs(story):
    inputs = {entry.tags[0].value: entry.dataset for entry in story.run.inputs.dataset_inputs}
    data = source()
    sets = {
        "forget": forgotten(),
        "retain": set(data.train.ids) - forgotten(),
        "val": set(data.val.ids),
        "test": set(data.test.ids),
    }
    assert inputs.keys() == sets.keys()
    for role, members in sets.items():
        assert inputs[role].digest == Manifest(tuple(members)).digest[:36]
        assert str(len(members)) in inputs[role].name
        assert json.loads(inputs[role].source) == {"spec": DATA}
        assert "digits/" not in str(inputs[role].to_dictionary())


def test_lineage_in_three_places(story):
    model_id = mlflow.models.get_model_info("models:/clf/1").model_id
    assert model_id
    assert [model.model_id for model in story.run.inputs.model_inputs] == [model_id]
    assert story.store.tags("2")["unlearn.source_uri"] == "models:/clf/1"
    assert json.loads(story.artifact("evidence/evidence.json"))["source"] == {
        "uri": "models:/clf/1",
        "model_id": model_id,
        "weights_sha256": story.store.tags("1")["unlearn.weights_sha256"],
        "evidence_sha256": None,
        "files": file_digests(Path(mlflow.artifacts.download_artifacts("models:/clf/1"))),
        "loading_ran_code": True,
        "code": [
            "its architecture is the function toy:trainable",
            "the gold standard models:/gold/1: its architecture is the function toy:trainable",
        ],
    }
    # And the new one is an output of the run.
    assert mlflow.models.get_model_info("models:/clf/2").run_id == story.run.info.run_id


def test_evidence(story):
    record = json.loads(story.artifact("evidence/evidence.json"))
    tags = story.store.tags("2")
    assert record["run"]["id"] == story.run.info.run_id
    assert (record["result"]["name"], record["result"]["version"]) == ("clf", "2")
    assert record["result"]["weights_sha256"] == tags["unlearn.weights_sha256"]
    assert [request["id"] for request in record["requests"]] == [story.request_id]
    assert record["data"]["forget"] == {"samples": len(forgotten()), "sha256": Manifest(tuple(forgotten())).digest}
    assert record["data"]["retain"]["samples"] == len(source().train) - len(forgotten())
    assert record["provenance"]["params"] == {
        key.removeprefix("unlearn.params."): yaml.safe_load(value)
        for key, value in story.run.data.params.items()
        if key.startswith("unlearn.params.")
    }
    assert (record["provenance"]["method"], record["provenance"]["seed"]) == ("lotus", 3)
    assert len(record["learning"]["history"]) == len(
        story.store.client.get_metric_history(story.run.info.run_id, "loss")
    )
    for name, metrics in record["metrics"].items():
        for key, value in metrics["values"].items():
            assert story.metrics[f"{name}.{key}"] == value
    assert record["system"]["unlearn.system.torch"] == torch.__version__
    assert "do not prove" in record["limits"]
    assert "certificate" not in json.dumps(record).lower()


def test_no_plain_id_leaves_the_request(story):
    """Evidence, description, tags and the new version's manifest hold digests and hashes alone."""
    version = story.store.client.get_model_version("clf", "2")
    texts = [story.artifact("evidence/evidence.json"), version.description, json.dumps(dict(version.tags))]
    texts += [path.read_text(errors="replace") for path in folder_of("2").rglob("*") if path.is_file()]
    assert not any(re.search(r"digits/\d", text) for text in texts)


def test_the_description_is_for_reading(story):
    text = story.store.client.get_model_version("clf", "2").description
    assert len(text) <= 5000
    assert text.startswith(("**PASS** by the default policy", "**FAIL** by the default policy"))
    assert "Made from `models:/clf/1` by unlearning 54 of 270 training samples" in text
    assert story.request_id in text
    assert "**lotus**" in text
    assert "lr = 0.003" in text
    assert "do not prove" in text
    row = re.search(r"\| acc_test \| (\S+) \| (\S+) \| (\S+) \|", text)
    assert [float(cell) for cell in row.groups()] == [
        pytest.approx(story.metrics[f"{name}.acc_test"], abs=5e-5) for name in ("original", "unlearned", "gold")
    ]


def test_the_table_and_the_last_line(story):
    assert story.done.out.rstrip().endswith("Registered clf version 2 from models:/clf/1.")
    for word in ("original", "unlearned", "gold", "acc_forget", "mia_auc", "should stay"):
        assert word in story.done.out


def test_the_new_version_drops_in(story):
    old, new = (mlflow.models.Model.load(str(folder_of(version))) for version in "12")
    assert new.signature == old.signature is not None
    assert new.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    examples = [model.load_input_example(str(folder_of(v))) for model, v in ((old, "1"), (new, "2"))]
    assert np.array_equal(*examples)
    assert (folder_of("2") / "data" / "model.pt2").exists()
    for file in ("requirements.txt", "conda.yaml", "python_env.yaml"):
        assert (folder_of("2") / file).read_text() == (folder_of("1") / file).read_text()
    assert "unlearn" not in (folder_of("2") / "requirements.txt").read_text()


def test_the_manifest_of_the_new_version_is_what_it_retains(story):
    assert trained_on("1") == set(source().train.ids)
    assert trained_on("2") == set(source().train.ids) - forgotten()
    salts = {(folder_of(v) / "extra_files" / "training_manifest.csv").read_text().splitlines()[0] for v in "12"}
    assert len(salts) == 1  # of the source: what two lists have in common can be told
    assert all(salt.startswith("# salt=") for salt in salts)


def test_the_record_in_the_metadata(story):
    old, new = (mlflow.models.Model.load(str(folder_of(v))).metadata["mlflow_unlearn"] for v in "12")
    kept = ("architecture", "num_classes", "image_shape", "transform", "classes", "data")
    assert {key: new[key] for key in kept} == {key: old[key] for key in kept}
    assert new["architecture"] == "toy:trainable"
    assert new["source_uri"] == "models:/clf/1"
    assert new["request_ids"] == [story.request_id]
    assert new["method"] == "lotus"
    assert new["recipe"]["lr"] == 0.003
    assert new["recipe"]["seed"] == 3


# Ways to name a version


@pytest.mark.slow
def test_an_alias_is_resolved(store, cli):
    store.client.set_registered_model_alias("clf", "champion", "1")
    done = cli("unlearn", "--model-uri", "models:/clf@champion", "--forget", FORGET, *QUICK)
    assert done.code == 0, done.err
    assert store.tags("2")["unlearn.source_uri"] == "models:/clf/1"
    [(state, details)] = store.requests().values()
    assert (state, details["of"], details["by"]) == ("done", "models:/clf/1", ["models:/clf/2"])
    assert store.client.get_registered_model("clf").aliases == {"champion": 1}  # SQLite's


@pytest.mark.slow
def test_a_model_outside_the_registry(store, cli):
    model_id = mlflow.models.get_model_info("models:/clf/1").model_id
    uri = f"runs:/{store.tags('1')['unlearn.run_id']}/model"
    done = cli("unlearn", "--model-uri", uri, "--forget", FORGET, "--register-as", "forgetful", *QUICK)
    assert done.code == 0, done.err
    assert store.versions() == ["1"]
    assert store.tags("1", "forgetful")["unlearn.source_uri"] == uri
    run = store.client.get_run(store.runs()[0].info.run_id)  # a search leaves the inputs out
    assert [entry.model_id for entry in run.inputs.model_inputs] == [model_id]
    # Nothing can carry the request but its run, and evaluate finds it there.
    assert run.data.tags["unlearn.request_id"] == store.tags("1", "forgetful")["unlearn.request_ids"]
    assert trained_on("1", "forgetful") == set(source().train.ids) - forgotten()
    assert cli("evaluate", "--model-uri", "models:/forgetful/1").code == 0


@pytest.mark.slow
def test_a_source_whose_name_cannot_be_registered_by(store, cli):
    """Another tool has; it is said before anything is measured, and what only reads goes on."""
    store.client.copy_model_version("models:/clf/1", "plain")
    store.client.rename_registered_model("plain", "o'brien")
    uri = ("--model-uri", "models:/o'brien/1")
    known = len(store.runs())
    refused = cli("unlearn", *uri, "--forget", FORGET, *QUICK)
    assert refused.code == 2 and """does not find one with "'": leave it out""" in refused.err
    assert "give another name with --register-as" in refused.err
    assert store.versions() == ["1"] and len(store.runs()) == known
    assert cli("request", *uri, "--forget", "random:20").code == 0
    assert "contains" in cli("exposure", *uri).out
    done = cli("unlearn", *uri, "--register-as", "obrien", *QUICK)
    assert done.code == 0, done.err
    assert "did you mean" not in cli("verify", "--model-uri", "models:/o'brien/7").err
    assert cli("verify", "--model-uri", "models:/obrien/1").code == 0
    assert cli("retire", *uri).code == 0


@pytest.mark.slow
def test_another_name(store, cli):
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    assert cli("unlearn", "--model-uri", "models:/clf/1", "--register-as", "clf-clean", *QUICK).code == 0
    assert store.versions() == ["1"]
    assert store.versions("clf-clean") == ["1"]
    [(state, details)] = store.requests().values()
    assert (state, details["by"]) == ("done", ["models:/clf-clean/1"])


@pytest.mark.slow
def test_a_version_without_a_logged_model(store, cli, tmp_path):
    """Saved to a folder and registered from there: lineage has two places, and the command says so."""
    module = mlflow.pytorch.load_model("models:/clf/1")
    example = np.zeros((2, 1, 8, 8), np.float32)
    mlflow.pytorch.save_model(
        module, tmp_path / "plain", input_example=example, pip_requirements=["torch"],
        signature=mlflow.models.infer_signature(example, np.zeros((2, 10), np.float32)),
    )  # fmt: skip
    store.client.create_registered_model("plain")
    store.client.create_model_version("plain", (tmp_path / "plain").as_uri())
    assert mlflow.models.get_model_info("models:/plain/1").model_id is None
    done = cli(
        *("unlearn", "--model-uri", "models:/plain/1", "--forget", FORGET, *QUICK),
        *("--data", f"{DATA},split=drawn", "--architecture", "toy:trainable", "--transform", "none"),
    )
    assert done.code == 0, done.err
    assert "models:/plain/1 has no LoggedModel" in done.out
    run = store.client.get_run(store.runs()[0].info.run_id)
    assert run.inputs.model_inputs == []
    assert store.tags("2", "plain")["unlearn.source_uri"] == "models:/plain/1"
    evidence = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="evidence/evidence.json"))
    assert json.loads(evidence.read_text())["source"]["uri"] == "models:/plain/1"


# What is forgotten


@pytest.mark.slow
def test_a_spec_leaves_pending_requests_pending(store, cli):
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", "random:10").code == 0
    [other] = store.requests()
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:20,seed=5", *QUICK)
    assert done.code == 0, done.err
    assert f"request {other} stays pending" in done.err
    states = {key: state for key, (state, _) in store.requests().items()}
    assert states.pop(other) == "pending"
    [(own, state)] = states.items()
    assert state == "done"
    assert store.tags("2")["unlearn.request_ids"] == own
    assert trained_on("2") == set(source().train.ids) - forgotten("random:20,seed=5")


@pytest.mark.slow
def test_a_spec_that_names_a_filed_request(store, cli):
    for spec in ("random:10", "random:20,seed=5"):
        assert cli("request", "--model-uri", "models:/clf/1", "--forget", spec).code == 0
    first, second = sorted(store.requests(), key=lambda key: store.requests()[key][1]["run_id"])
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", f"request:{first}", *QUICK)
    assert done.code == 0, done.err
    assert {key: state for key, (state, _) in store.requests().items()} == {first: "done", second: "pending"}
    assert store.tags("2")["unlearn.request_ids"] == first


@pytest.mark.slow
def test_pending_requests_are_carried_out_together(store, cli):
    specs = ("random:10", "random:20,seed=5", "class:3")
    for spec in specs:
        assert cli("request", "--model-uri", "models:/clf/1", "--forget", spec).code == 0
    done = cli("unlearn", "--model-uri", "models:/clf/1", *QUICK)
    assert done.code == 0, done.err
    requests = store.requests()
    assert {state for state, _ in requests.values()} == {"done"}
    sizes = dict(re.findall(r"^Request (\S+): (\d+) samples to forget\.$", done.err, re.MULTILINE))
    assert sizes.keys() == requests.keys()
    assert sorted(map(int, sizes.values())) == sorted(len(forgotten(spec)) for spec in specs)
    assert set(store.tags("2")["unlearn.request_ids"].split(",")) == set(requests)
    together = set.union(*map(forgotten, specs))
    assert trained_on("2") == set(source().train.ids) - together
    assert store.runs()[0].data.metrics["count.n_forget"] == len(together)


def test_a_chain_retains_nothing_that_was_forgotten_before(chain_template, cli, tmp_path):
    """1 → 2 → 3: version 2's manifest masks what version 3 may be fed."""
    with copied(chain_template, tmp_path / "store") as store:
        second, third = trained_on("2"), trained_on("3")
        assert second == set(source().train.ids) - forgotten("random:20,seed=1")
        assert third < second and len(second - third) == 20
        assert store.tags("3")["unlearn.source_uri"] == "models:/clf/2"
        inputs = store.client.get_run(store.tags("3")["unlearn.run_id"]).inputs.dataset_inputs
        retain = next(entry.dataset for entry in inputs if entry.tags[0].value == "retain")
        assert retain.digest == Manifest(tuple(third)).digest[:36]
        # Measured against version 1, what version 2 forgot is still not retained.
        measured = cli("evaluate", "--model-uri", "models:/clf/3", "--original-uri", "models:/clf/1")
        assert measured.code == 0, measured.err
        assert store.runs()[0].data.metrics["count.n_retain"] == len(third)


@pytest.mark.slow
def test_a_later_request_carries_the_done_ones_out_again(store, cli):
    """Version 1 still knows them: what is made of it must forget them too."""
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    [first] = store.requests()
    assert cli("unlearn", "--model-uri", "models:/clf/1", *QUICK).code == 0
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", "random:30,seed=9").code == 0
    done = cli("unlearn", "--model-uri", "models:/clf/1", *QUICK)
    assert done.code == 0
    assert f"request {first} was carried out by models:/clf/2; it is carried out again" in done.err
    requests = store.requests()
    assert requests.pop(first)[1]["by"] == ["models:/clf/2", "models:/clf/3"]
    [(_, details)] = requests.values()
    assert details["by"] == ["models:/clf/3"]
    assert trained_on("3") == set(source().train.ids) - forgotten() - forgotten("random:30,seed=9")


@pytest.mark.nightly
def test_what_has_left_the_data_source_is_known_until_a_training_without_it(empty_store, cli, tmp_path):
    """Nobody can unlearn what cannot be read: weights that have learned it still count as knowing it."""
    data, table = csv_of_digits(tmp_path / "images"), tmp_path / "images" / "list.csv"
    toy = ("--architecture", "toy:of_any_size", "--transform", "none", "--batch-size", "16", "--epochs", "3")
    assert cli("train", "--data", data, "--name", "clf", *toy).code == 0

    def requested(*numbers: int) -> str:
        ids = tmp_path / f"{numbers[0]}.txt"
        ids.write_text("\n".join(f"{number}.png" for number in numbers))
        done = cli("request", "--model-uri", "models:/clf/1", "--forget", str(ids))
        assert done.code == 0, done.err
        return re.search(r"Filed request (\w+)", done.out).group(1)

    def unlearned(*options: str) -> str:
        done = cli("unlearn", "--model-uri", "models:/clf/1", *options)
        assert done.code == 0, done.err
        return " ".join(done.err.split())

    first = requested(*range(10))
    unlearned(*QUICK)
    lost = {f"{number}.png" for number in range(5)} | {"30.png"}
    table.write_text("\n".join(line for line in table.read_text().splitlines() if line.split(",")[0] not in lost))
    second = requested(*range(40, 50))
    said = unlearned(*QUICK)
    assert f"5 samples of request {first} are no longer in the training split, and models:/clf/1 knows them" in said
    requests = empty_store.requests()
    assert requests[first][1]["by"] == ["models:/clf/2"] and requests[second][1]["by"] == ["models:/clf/3"]
    known = Manifest.from_csv(folder_of("3") / "extra_files" / "training_manifest.csv")
    assert (
        known.mask(sorted(lost)).all() and not known.mask([f"{n}.png" for n in (*range(5, 10), *range(40, 50))]).any()
    )
    located = cli("locate", "--forget", str(tmp_path / "0.txt"))
    assert re.search(r"clf/3\W+contains", located.out), located.out

    third = requested(*range(60, 70))
    unlearned("--method", "retrain", *QUICK)
    requests = empty_store.requests()
    assert all("models:/clf/4" in requests[request][1]["by"] for request in (first, second, third))
    known = Manifest.from_csv(folder_of("4") / "extra_files" / "training_manifest.csv")
    assert not known.mask(sorted(lost)).any()
    evidence = Evidence.model_validate_json((folder_of("4") / "evidence" / "evidence.json").read_text())
    assert evidence.exactness.kind == "exact" and evidence.exactness.steps == evidence.exactness.steps_from_scratch > 0


@pytest.mark.nightly
def test_a_trial_is_not_carried_out_again(store, cli):
    """A set given with forget= is a trial, until the same samples are filed as a request."""
    assert cli("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, *QUICK).code == 0
    [(trial, (state, details))] = store.requests().items()
    assert (state, details["ad_hoc"]) == ("done", True)
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", "random:30,seed=9").code == 0
    done = cli("unlearn", "--model-uri", "models:/clf/1", *QUICK)
    assert done.code == 0, done.err
    assert trial not in done.err
    assert trial not in store.tags("3")["unlearn.request_ids"]
    assert trained_on("3") == set(source().train.ids) - forgotten("random:30,seed=9")
    assert store.requests()[trial][1]["by"] == ["models:/clf/2"]
    assert not any("ad_hoc" in details for key, (_, details) in store.requests().items() if key != trial)

    filed = cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET)
    assert filed.out.strip() == f"Request {trial} was filed before and was carried out by models:/clf/2."
    assert "ad_hoc" not in store.requests()[trial][1]
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", "random:5,seed=2").code == 0
    done = cli("unlearn", "--model-uri", "models:/clf/1", *QUICK)
    assert done.code == 0, done.err
    assert set(store.tags("4")["unlearn.request_ids"].split(",")) == set(store.requests())
    everything = map(forgotten, (FORGET, "random:30,seed=9", "random:5,seed=2"))
    assert trained_on("4") == set(source().train.ids) - set.union(*everything)


@pytest.mark.nightly
def test_what_left_the_source_does_not_stop_later_requests(empty_store, cli, tmp_path):
    """The files of a request that was carried out are deleted, as they should be; version 1 still knows them."""
    data = digits_folder(tmp_path / "images")
    trained = cli(
        *("train", "--data", f"folder:{data}", "--name", "clf", "--architecture", "toy:trainable"),
        *("--epochs", "10", "--batch-size", "32"),
    )
    assert trained.code == 0, trained.err
    names = sorted(path.relative_to(data).as_posix() for path in data.glob("train/*/*.png"))
    for step, gone in enumerate((names[:100:10], names[1:100:10])):
        (tmp_path / "ids.txt").write_text("\n".join(gone))
        filed = cli("request", "--model-uri", "models:/clf/1", "--forget", str(tmp_path / "ids.txt"))
        assert filed.code == 0, filed.err
        done = cli("unlearn", "--model-uri", "models:/clf/1", "--register-as", f"step{step}", *QUICK)
        assert done.code == 0, done.err
        for name in gone:
            (data / name).unlink()
    first, second = (empty_store.tags("1", f"step{step}")["unlearn.request_ids"] for step in (0, 1))
    assert {first, second} == set(
        empty_store.requests()
    ) and f"request {first} are no longer in the training split" in done.err
    manifest = Manifest.from_csv(folder_of("1", "step1") / "extra_files" / "training_manifest.csv")
    assert manifest.mask(names[:100:10]).all() and not manifest.mask(names[1:100:10]).any()
    assert len(manifest.ids) == 190


@pytest.mark.slow
def test_requests_of_a_copied_version_are_not_its_own(store, cli):
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    [request_id] = store.requests()
    store.client.copy_model_version("models:/clf/1", "copy")
    assert request_id in store.requests("1", "copy")
    nothing = cli("unlearn", "--model-uri", "models:/copy/1", *QUICK)
    assert nothing.code == 2
    assert f"request {request_id} came with a copy of models:/clf/1" in nothing.err
    assert "has no pending forget request" in nothing.err
    done = cli("unlearn", "--model-uri", "models:/copy/1", "--forget", "random:20,seed=5", *QUICK)
    assert done.code == 0, done.err
    assert request_id not in store.tags("2", "copy")["unlearn.request_ids"]
    assert {key: state for key, (state, _) in store.requests("1", "copy").items()}[request_id] == "pending"
    assert store.requests()[request_id][0] == "pending"


@pytest.mark.slow
@pytest.mark.parametrize("filed_by", ["request", "unlearn"])
def test_hashed_ids(store, cli, tmp_path, filed_by):
    """No name of a sample in the request's artifacts, and it is carried out all the same."""
    names = sorted(forgotten())
    (tmp_path / "ids.csv").write_text("\n".join(["id", *names]))
    spec = ("--model-uri", "models:/clf/1", "--forget", str(tmp_path / "ids.csv"), "--hash-ids")
    if filed_by == "request":
        assert cli("request", *spec).code == 0
        assert cli("unlearn", "--model-uri", "models:/clf/1", *QUICK).code == 0
    else:
        assert cli("unlearn", *spec, *QUICK).code == 0
    assert trained_on("2") == set(source().train.ids) - set(names)
    for run in store.runs()[:2]:
        folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=""))
        for path in folder.rglob("*"):
            if path.is_file() and "model" not in path.relative_to(folder).parts[0]:
                assert not re.search(r"digits/\d", path.read_text()), path
        assert not re.search(r"digits/\d", json.dumps(run.data.tags))
    # Filed again in the plain, it is the same request.
    again = cli("request", "--model-uri", "models:/clf/1", "--forget", str(tmp_path / "ids.csv"))
    assert "was filed before and was carried out by models:/clf/2" in again.out


@pytest.fixture(scope="module")
def people(blank, tmp_path_factory):
    """A version that was trained on the images of five people, and the rows of their table."""
    folder = tmp_path_factory.mktemp("people")
    data = digits_folder(folder / "images")
    people = ("anna-k", "berta-k", "carla-k", "dora-k", "emil-k")
    rows = [
        (path.relative_to(data).as_posix(), path.parent.name.replace("three", "zoe-k"), path.parts[-3], people[i % 5])
        for i, path in enumerate(sorted(data.glob("*/*/*.png")))
    ]
    table = "\n".join(["path,label,split,person", *map(",".join, rows)])
    (data / "table.csv").write_text(table)
    with copied(blank, folder / "store") as store:
        trained = call(
            *("train", "--data", f"csv:{data / 'table.csv'}", "--name", "clf", "--architecture", "toy:trainable"),
            *("--epochs", "10", "--batch-size", "32"),
        )
        assert trained.code == 0, trained.err
    return store, rows


@pytest.mark.slow
@pytest.mark.parametrize("command", ["request", "unlearn"])
def test_hashed_the_spec_is_recorded_by_its_kind_alone(people, cli, tmp_path, command):
    """The value of a group is a person's name, and a class may be one."""
    trained, rows = people
    with copied(trained, tmp_path / "store") as store:
        check_hidden(store, rows, cli, command)


def check_hidden(store, rows, cli, command):
    for spec, shown in (("group:person=anna-k", "group:…"), ("class:zoe-k", "class:…")):
        options = QUICK if command == "unlearn" else ()
        done = cli(command, "--model-uri", "models:/clf/1", "--forget", spec, "--hash-ids", *options)
        assert done.code == 0, done.err
        value = spec.partition(":")[2].rpartition("=")[2]
        run = store.client.get_run(store.runs()[0].info.run_id)
        assert run.data.params["unlearn.forget"] == shown
        assert value not in json.dumps([run.data.params, run.data.tags, store.everything_registered()])
        folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=""))
        for name in ("config.yaml", "request/request.json", "request/manifest.csv"):
            assert value not in (folder / name).read_text(), name
        assert yaml.safe_load((folder / "config.yaml").read_text())[command]["forget"] == shown
        assert json.loads((folder / "request/request.json").read_text())["forget"] == shown
        # A digest of the plain ids would confirm a guess.
        chosen = tuple(row[0] for row in rows if row[2] == "train" and value in row)
        [digest] = [e.dataset.digest for e in run.inputs.dataset_inputs if e.tags[0].value == "forget"]
        stored = Manifest.from_csv(folder / "request/manifest.csv")
        assert stored.mask(chosen).sum() == len(stored.ids) == len(chosen)
        assert digest == stored.digest[:36] != Manifest(chosen).digest[:36]


@pytest.mark.slow
def test_hashed_a_sentence_with_ids_is_only_printed(store, cli, tmp_path, monkeypatch):
    """Under `mlflow run`, where there is a run that could be told."""
    held_out = source().test.ids[0]
    (tmp_path / "ids.txt").write_text(held_out)
    for command in ("request", "unlearn"):
        spec = (command, "--model-uri", "models:/clf/1", "--forget", str(tmp_path / "ids.txt"))
        for hidden, options in ((True, ("--hash-ids",)), (False, ())):
            with mlflow.start_run() as there:
                pass
            monkeypatch.setenv("MLFLOW_RUN_ID", there.info.run_id)  # whose end would take it away
            refused = cli(*spec, *options)
            assert refused.code == 2
            assert held_out in refused.err
            run = store.runs()[0]
            assert (held_out not in json.dumps(run.data.tags)) == hidden
            assert ("ids are hashed here" in run.data.tags["unlearn.error"]) == hidden


# What goes wrong late


def logged_models(store) -> set[str]:
    experiments = [experiment.experiment_id for experiment in store.client.search_experiments()]
    return {model.model_id for model in store.client.search_logged_models(experiments)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("late", "error"),
    [
        ("mlflow_unlearn.governance.publish.complete", OSError),
        ("mlflow_unlearn.registry.forget_requests.mark_done", KeyboardInterrupt),
        pytest.param("mlflow.MlflowClient.log_model_artifacts", OSError, marks=pytest.mark.slow),
    ],
)
def test_a_failure_after_registration_takes_the_version_back(store, cli, monkeypatch, late, error):
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    before, models, calls = store.everything_registered(), logged_models(store), []

    def fail(*arguments, **options):
        calls.append(store.everything_registered())
        raise error("too late")

    with monkeypatch.context() as patch:
        patch.setattr(late, fail)
        failed = cli("unlearn", "--model-uri", "models:/clf/1", "--register-as", "late", *QUICK)
    assert failed.code == (130 if error is KeyboardInterrupt else 2), failed.err
    assert ["late" in names for names in calls] == ["artifacts" not in late]
    assert store.everything_registered() == before and logged_models(store) == models
    assert store.runs()[0].info.status == ("KILLED" if error is KeyboardInterrupt else "FAILED")


@pytest.mark.slow
def test_interrupted_once_its_requests_are_marked(store, cli, monkeypatch):
    """As the lock of the marks is given back: none may stay done by a version that is taken back."""
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    before, release = store.everything_registered(), ModelLock.release

    def interrupted(lock):
        release(lock)
        if any(state == "done" for state, _ in store.requests().values()):
            patch.undo()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ModelLock, "release", interrupted)
        stopped = cli("unlearn", "--model-uri", "models:/clf/1", *QUICK)
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == "Interrupted: nothing was registered, requests stay as they were."
    assert store.everything_registered() == before
    assert cli("unlearn", "--model-uri", "models:/clf/1", *QUICK).code == 0


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt, 130), pytest.param(OSError, 2, marks=pytest.mark.slow)]
)
def test_interrupted_once_it_is_complete(store, cli, monkeypatch, error, code):
    """The server has taken the mark away, and the command does not hear of it: the version is there, and it says so."""
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0

    def carried_out(client, version):
        registration.complete(client, version)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("mlflow_unlearn.governance.publish.complete", carried_out)
        stopped = cli("unlearn", "--model-uri", "models:/clf/1", *QUICK)
    assert stopped.code == code
    assert "models:/clf/2 was registered before that, and stays" in stopped.err
    assert "nothing was registered" not in stopped.err
    [(state, details)] = store.requests().values()
    assert (state, details["by"]) == ("done", ["models:/clf/2"])
    assert cli("verify", "--model-uri", "models:/clf/2").code == 0


@pytest.mark.slow
def test_a_lock_that_was_lost_registers_nothing(store, cli, monkeypatch):
    """Renewals have failed for longer than others wait: another command may have fulfilled the same requests."""
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    before = store.everything_registered()
    with monkeypatch.context() as patch:
        patch.setattr("mlflow_unlearn.registry.lock.LEASE", -1.0)
        patch.setattr("mlflow_unlearn.governance.publish.register", pytest.fail)
        patch.setattr(ModelLock, "acquire", lambda lock, wait: acquired(lock))
        lost = cli("unlearn", "--model-uri", "models:/clf/1", *QUICK)
    assert lost.code == 2 and "the lock of models:/clf/1 was lost" in lost.err
    assert store.everything_registered() == before


def acquired(lock):
    """The flag is up, and was not renewed since."""
    lock._renewed = lock._write()
    return lock._read()


@pytest.mark.slow
def test_a_request_whose_version_was_deleted_by_hand_is_open_again(store, cli):
    asked = ("request", "--model-uri", "models:/clf/1", "--forget", FORGET)
    assert cli(*asked).code == 0
    assert cli("unlearn", "--model-uri", "models:/clf/1", *QUICK).code == 0
    assert "is open again" not in cli(*asked).err
    [(state, _)] = store.requests().values()
    assert state == "done"
    store.client.delete_model_version("clf", "2")
    again = cli(*asked)
    assert again.code == 0 and "is open again: models:/clf/2, which carried it out, is gone" in again.err
    [(state, _)] = store.requests().values()
    assert state == "pending"


@pytest.mark.slow
def test_the_number_of_a_deleted_version_is_not_given_again(store, cli):
    """The evidence was written for version 2, and is written again for version 3 before that is complete."""
    store.client.create_model_version("clf", "models:/clf/1")
    store.client.delete_model_version("clf", "2")
    done = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, *QUICK)
    assert done.code == 0, done.err
    assert "Registered clf version 3 from models:/clf/1." in done.out
    verified = cli("verify", "--model-uri", "models:/clf/3")
    assert verified.code == 0, verified.err
    assert "unlearn.registering" not in store.tags("3")


@pytest.mark.slow
def test_a_class_that_is_not_forgotten_is_reported_first(store, cli):
    known = ("unlearn", "--model-uri", "models:/clf/1", "--forget", "class:3")
    done = cli(*known, "--params", '{"epochs": 1, "lr": 1e-6}')
    assert done.code == 0, done.err
    assert "Warning: the class is not forgotten" in done.err
    reason = store.tags("2")["unlearn.incomplete"]
    description = store.client.get_model_version("clf", "2").description
    first, second, _ = description.split("\n\n", 2)
    assert first.startswith("**FAIL** by the default policy")
    assert second == f"**Incomplete: a class is not forgotten** ({reason})."


# Settings


@pytest.mark.slow
def test_same_seed_same_weights(finished_story, store, cli):
    """As in the story, where the samples were named by a request; with another seed, others."""
    for seed in ("3", "4"):
        done = cli(
            *("unlearn", "--model-uri", "models:/clf/1", "--forget", FORGET, "--seed", seed),
            *("--params", json.dumps(PARAMS)),
        )
        assert done.code == 0, done.err
    first, again, other = finished_story.store.tags("2"), store.tags("2"), store.tags("3")
    assert first["unlearn.weights_sha256"] == again["unlearn.weights_sha256"] != other["unlearn.weights_sha256"]
    assert first["unlearn.metric.mia_auc"] == again["unlearn.metric.mia_auc"]


def test_params_from_a_yaml_file(tmp_path):
    """YAML reads 1e-3 as a string."""
    (tmp_path / "params.yaml").write_text("epochs: 1\nlr: 1e-3\nalpha: 4\n")
    params = get_method("lotus")(config.parse_params(str(tmp_path / "params.yaml"))).params.model_dump()
    assert [params[key] for key in ("epochs", "lr", "alpha")] == [1, 0.001, 4.0]


@pytest.mark.nightly
def test_two_at_once(store, cli):
    """Two processes on one version: one does the work, and the other one says so, or finds that it is done."""
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    command = [sys.executable, "-m", "mlflow_unlearn", "unlearn", "--model-uri", "models:/clf/1", *QUICK, "--seed"]
    both = [
        subprocess.Popen([*command, seed], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for seed in "12"
    ]
    outputs = [process.communicate(timeout=240)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], outputs
    [refused] = [output for process, output in zip(both, outputs, strict=True) if process.returncode]
    assert "models:/clf/1 is in use by `unlearn` of" in refused or "no pending forget request" in refused
    assert store.versions() == ["1", "2"]
    assert weights_digest(mlflow.pytorch.load_model("models:/clf/2")) == store.tags("2")["unlearn.weights_sha256"]
    [(state, details)] = store.requests().values()
    assert (state, details["by"]) == ("done", ["models:/clf/2"])


@pytest.mark.nightly
def test_a_second_one_on_the_same_version_says_who_works_on_it(store, cli, monkeypatch):
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", "random:20").code == 0
    store.client.set_registered_model_alias("clf", "champion", "1")
    before = store.everything_registered()
    with model_lock(store.client, "clf", version="1"):
        refused = cli("unlearn", "--model-uri", "models:/clf@champion", *QUICK)
        assert refused.code == 2
        assert re.search(r"models:/clf/1 is in use by `python` of \S+ on \S+ \(process \d+\), since 20", refused.err)
        planned = cli("unlearn", "--model-uri", "models:/clf/1", *QUICK, "--plan", "true")
        assert planned.code == 0, "a dry run is in nobody's way"
    assert store.everything_registered() == before
    assert cli("unlearn", "--model-uri", "models:/clf/1", *QUICK).code == 0
    assert store.client.get_registered_model("clf").tags == {}


@pytest.mark.slow
def test_the_second_one_waits_and_reads_the_requests_again(store, cli, monkeypatch):
    """What the first one has fulfilled is not fulfilled twice."""
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", "random:20").code == 0
    [request_id] = store.requests()
    monkeypatch.setenv("MLFLOW_UNLEARN_WAIT", "60")
    request = ForgetRequest(request_id, "models:/clf/1", store.requests()[request_id][1]["run_id"])
    held = threading.Event()

    def first() -> None:
        with model_lock(store.client, "clf", version="1"):
            held.set()
            time.sleep(1)
            mark_done(store.client, [request], "models:/clf/9")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    refused = cli("unlearn", "--model-uri", "models:/clf/1", *QUICK)
    thread.join()
    assert refused.code == 2 and "models:/clf/1 has no pending forget request" in refused.err
    assert store.versions() == ["1"]
