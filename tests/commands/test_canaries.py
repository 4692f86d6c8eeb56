"""Canaries from training to audit, by the command line."""

import json
import re
from pathlib import Path

import mlflow
import pytest
from stores import TRAIN, copied, use

from mlflow_unlearn.data.canaries import Canaries
from mlflow_unlearn.registry.versions import open_version

PAIRS = 60
POLICY = """
rules: [{metric: acc_test, at_least: 0.1}]
membership: null
minimum: {}
audit: {tier: 0, accept: [told apart, not told apart, not decided], canaries: {at_most: %s}}
"""


@pytest.fixture(scope="module")
def planted(blank, tmp_path_factory):
    """clf/1 with canaries, a request with its tranche, clf/2 that has forgotten both, and gold/1 that saw neither."""
    from stores import call

    folder = tmp_path_factory.mktemp("canaries")
    with copied(blank, folder) as store:
        trained = call("train", *TRAIN, "--name", "clf", "--lr", "0.05", "--canaries", PAIRS)
        assert trained.code == 0 and "210 training samples, 60 pairs of canaries" in trained.out, trained.err
        filed = call("request", "--model-uri", "models:/clf/1", "--forget", "random:10,seed=1")
        assert filed.code == 0 and re.search(r"\d+ samples .* to be forgotten, \d+ of them canaries", filed.out)
        [request_id] = store.requests()
        assert call("train", *TRAIN, "--name", "gold", "--lr", "0.05", "--exclude", request_id, "--seed", "1").code == 0
        done = call("unlearn", "--model-uri", "models:/clf/1", "--method", "finetune", "--params", '{"epochs": 1}')
        assert done.code == 0, done.err
    return store


@pytest.fixture
def store(planted, monkeypatch):
    use(planted, monkeypatch)
    return planted


def trained_on(store, uri, ids, folder):
    """How many of the ids a version was trained on and has not forgotten."""
    return int(open_version(store.client, uri, folder).training_manifest.mask(ids).sum())


@pytest.mark.slow
def test_ghosts_are_nowhere_and_twins_are_forgotten(store, tmp_path):
    version = open_version(store.client, "models:/clf/1", tmp_path)
    committed = version.record.canaries
    run = mlflow.get_run(committed.run_id)
    assert run.data.tags["unlearn.canaries_sha256"] == committed.sha256
    canaries = Canaries.model_validate_json(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/canaries.json"))
    assert canaries.digest == committed.sha256 and committed.pairs == len(canaries.pairs) == PAIRS
    twins, ghosts = ([getattr(pair, name) for pair in canaries.pairs] for name in ("twin", "ghost"))
    left = {}
    for uri in ("models:/clf/1", "models:/clf/2", "models:/gold/1"):
        folder = tmp_path / uri[8:].replace("/", "-")
        folder.mkdir()
        assert trained_on(store, uri, ghosts, folder) == 0
        left[uri] = trained_on(store, uri, twins, folder)
    assert left["models:/clf/1"] == PAIRS
    assert left["models:/clf/2"] == left["models:/gold/1"] <= PAIRS - 48
    assert open_version(store.client, "models:/clf/2", tmp_path).record.canaries == committed


def test_the_same_request_again_is_the_same(store, cli):
    again = cli("request", "--model-uri", "models:/clf/1", "--forget", "random:10,seed=1")
    assert again.code == 0 and "was filed before" in again.out, again.out
    assert len(store.requests()) == 1


@pytest.mark.slow
def test_an_audit_tests_them_and_a_policy_may_ask(store, cli, tmp_path):
    outcome = cli("audit", "--model-uri", "models:/clf/2")
    assert re.search(r"canaries, audited: \d+ of \d+ trained twins", outcome.out), outcome.out + outcome.err
    found = re.search(r"canaries, original: (\d+) of (\d+) trained twins .* at most ([0-9.]+)", outcome.out)
    assert int(found[1]) <= int(found[2]) <= PAIRS and int(found[2]) >= 48
    run = next(run for run in store.runs() if run.data.tags["unlearn.command"] == "audit")
    bound = run.data.metrics["audit.audited.canaries.bound"]
    policy = store.folder / "policy.yaml"
    for most, code in ((bound + 0.01, 0), (bound - 0.01, 3)):
        policy.write_text(POLICY % most)
        result = cli("review", "--model-uri", "models:/clf/2", "--policy", str(policy))
        assert result.code == code, result.out + result.err


@pytest.mark.slow
def test_who_has_memorised_its_twins_is_told(blank, cli, tmp_path):
    """Where labels are by lot, nothing but memory makes a twin likelier than its ghost."""
    with copied(blank, tmp_path) as store:
        learn = ("--data", "python:toy:shuffled_splits", *TRAIN[2:4], "--epochs", "120", "--batch-size", "32")
        trained = cli("train", *learn, "--name", "clf", "--lr", "0.05", "--weight-decay", "0", "--canaries", PAIRS)
        assert trained.code == 0, trained.err
        run = next(run for run in store.runs() if "unlearn.canaries_sha256" in run.data.tags)
        planted = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/canaries.json"))["pairs"]
        twins = tmp_path / "twins.csv"
        twins.write_text("id\n" + "\n".join(pair["twin"] for pair in planted))
        outcome = cli("audit", "--model-uri", "models:/clf/1", "--forget", str(twins))
    found = re.search(r"canaries, original: (\d+) of (\d+) trained twins", outcome.out)
    assert found and int(found[1]) > 0.8 * int(found[2]) > 0.8 * PAIRS / 2, outcome.out + outcome.err


@pytest.mark.slow
def test_twins_that_were_picked_count_for_nothing(store, cli, tmp_path):
    """Not those that behave well, but the next ones in the order that was committed to."""
    run = next(run for run in store.runs() if "unlearn.canaries_sha256" in run.data.tags)
    canaries = Canaries.model_validate_json(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/canaries.json"))
    for pairs, counted in ((canaries.pairs[:20], True), (canaries.pairs[1:40], False)):
        chosen = tmp_path / "chosen.csv"
        chosen.write_text("id\n" + "\n".join(pair.twin for pair in pairs))
        outcome = cli("audit", "--model-uri", "models:/clf/1", "--forget", str(chosen))
        assert ("canaries, audited: " in outcome.out) == counted, outcome.out + outcome.err


@pytest.mark.slow
def test_a_coin_that_was_turned_is_tampering(store, cli):
    run = mlflow.get_run(next(run for run in store.runs() if "unlearn.canaries_sha256" in run.data.tags).info.run_id)
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "canaries.json"
    text = path.read_text()
    stored = json.loads(text)
    stored["pairs"][0] = {"twin": stored["pairs"][0]["ghost"], "ghost": stored["pairs"][0]["twin"]}
    path.write_text(json.dumps(stored))
    try:
        outcome = cli("audit", "--model-uri", "models:/clf/2")
    finally:
        path.write_text(text)
    assert outcome.code == 3 and "not those that the version committed to" in outcome.err


def test_a_request_that_was_changed_takes_no_part(store, cli):
    """Else someone could free twins that are taken."""
    [(_, details)] = store.requests().values()
    run = mlflow.get_run(details["run_id"])
    path = Path(run.info.artifact_uri.removeprefix("file://")) / "request" / "manifest.csv"
    text = path.read_text()
    path.write_text("\n".join(text.splitlines()[:3]) + "\n")
    try:
        outcome = cli("request", "--model-uri", "models:/clf/1", "--forget", "random:10,seed=8")
    finally:
        path.write_text(text)
    assert outcome.code == 2 and "is not what was filed" in outcome.err, outcome.err


def test_bad_input(store, cli):
    many = cli("train", *TRAIN, "--name", "other", "--canaries", "500")
    assert many.code == 2 and "--canaries 500 is too many for 270 training samples" in many.err
    none = cli("request", "--model-uri", "models:/gold/1", "--forget", "random:10,seed=1", "--canaries", "5")
    assert none.code == 2 and "models:/gold/1 was trained without" in none.err
