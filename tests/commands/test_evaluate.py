"""`evaluate`: a version, what it came from and a gold standard, side by side; nothing is registered."""

import mlflow
import pytest
from stores import DATA, FORGET, reset_mlflow, use

from mlflow_unlearn.data.forget import resolve_forget
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.metrics.catalog import KEYS

REQUIRES_GOLD = {"jsd", "jsd_published", "avg_gap", "avg_gap_excess"}


@pytest.fixture
def measured(gold_store, monkeypatch, cli):
    """Run `evaluate`; returns the outcome and its run. Whatever it says, the registry stays as it was."""
    use(gold_store, monkeypatch)

    def run(*arguments: str):
        before = gold_store.everything_registered()
        known = {run.info.run_id for run in gold_store.runs()}
        outcome = cli("evaluate", *arguments)
        assert gold_store.everything_registered() == before
        made = [run for run in gold_store.runs() if run.info.run_id not in known]
        if outcome.code == 2:  # a look-up that failed makes none
            assert not made
            return outcome, None
        [new] = made
        assert new.info.status == ("FINISHED" if outcome.code == 0 else "FAILED")
        assert not gold_store.client.list_artifacts(new.info.run_id, "model")
        assert not gold_store.client.get_run(new.info.run_id).outputs.model_outputs
        return outcome, new

    yield run
    reset_mlflow()


def columns(run) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for key in run.data.metrics:
        name, _, metric = key.partition(".")
        found.setdefault(name, set()).add(metric)
    found.pop("count")
    found.pop("seconds")
    return found


def count(run, role: str) -> float:
    return run.data.metrics[f"count.n_{role}"]


def test_by_its_own_record(measured, gold_store):
    """The original and the forget set come from the version's record; the figures are those of `unlearn`."""
    outcome, run = measured("--model-uri", "models:/clf/2")
    assert outcome.code == 0, outcome.err
    assert "nothing was registered" in outcome.out
    found = columns(run)
    assert found.keys() == {"original", "unlearned"}
    assert not REQUIRES_GOLD & (found["original"] | found["unlearned"])
    assert found["unlearned"] <= set(KEYS)
    tagged = {key: value for key, value in gold_store.tags("2").items() if key.startswith("unlearn.metric.")}
    assert tagged
    for key, value in tagged.items():
        name = key.removeprefix("unlearn.metric.")
        assert run.data.metrics[f"unlearned.{name}"] == pytest.approx(float(value), abs=1e-6), name
    assert run.data.metrics["original.acc_forget"] > run.data.metrics["unlearned.acc_forget"] - 1e-9


def test_with_gold(measured):
    outcome, run = measured("--model-uri", "models:/clf/2", "--gold-uri", "models:/gold/1")
    assert outcome.code == 0, outcome.err
    found = columns(run)
    assert found.keys() == {"original", "unlearned", "gold"}
    for name in found:
        assert REQUIRES_GOLD <= found[name]
    assert run.data.metrics["gold.avg_gap"] == run.data.metrics["gold.jsd"] == 0
    assert run.data.metrics["unlearned.jsd"] > 0
    for word in ("original", "unlearned", "gold", "avg_gap_excess"):
        assert word in outcome.out


def test_a_model_that_saw_the_samples_is_no_gold(measured):
    outcome, run = measured("--model-uri", "models:/clf/2", "--gold-uri", "models:/clf/1")
    assert outcome.code == 2
    assert "models:/clf/1 was trained on 54 samples that are to be forgotten" in outcome.err
    assert run is None


def test_the_original_itself(measured, gold_store):
    """Without a source there is one column; the forget set is that of the pending requests, or the spec's."""
    nothing, _ = measured("--model-uri", "models:/clf/1")
    assert nothing.code == 2
    assert "give --forget" in nothing.err
    outcome, run = measured("--model-uri", "models:/clf/1", "--forget", "random:30")
    assert outcome.code == 0, outcome.err
    assert columns(run).keys() == {"original"}
    assert (count(run, "forget"), count(run, "retain")) == (30, 240)


def test_pending_requests_are_the_default_before_unlearning(store, cli):
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", FORGET).code == 0
    assert cli("evaluate", "--model-uri", "models:/clf/1").code == 0
    assert count(store.runs()[0], "forget") == 54
    assert [state for state, _ in store.requests().values()] == ["pending"]


def test_another_original(measured):
    """The gold standard in its place: its own training set is what counts."""
    outcome, run = measured("--model-uri", "models:/clf/2", "--original-uri", "models:/clf/1", "--seed", "4")
    assert outcome.code == 0, outcome.err
    assert columns(run).keys() == {"original", "unlearned"}
    never, _ = measured("--model-uri", "models:/clf/2", "--original-uri", "models:/gold/1")
    assert never.code == 2
    assert "wasn't trained on" in never.err


def test_another_forget_set(measured, tmp_path):
    """A part of what was forgotten, named by a file; the rest of it is not retained."""
    source = load_source(DATA)
    everything = resolve_forget(FORGET, source, ~(source.train.labels < 0), lambda _: Manifest(())).indices
    some = [source.train.ids[i] for i in everything[:20]]
    (tmp_path / "ids.txt").write_text("\n".join(some))
    outcome, run = measured("--model-uri", "models:/clf/2", "--forget", str(tmp_path / "ids.txt"))
    assert outcome.code == 0, outcome.err
    assert count(run, "forget") == 20
    assert count(run, "retain") == 216


def test_the_sets_and_the_model_are_inputs(measured, gold_store):
    _, run = measured("--model-uri", "models:/clf/2")
    inputs = gold_store.client.get_run(run.info.run_id).inputs
    assert {entry.tags[0].value for entry in inputs.dataset_inputs} == {"forget", "retain", "val", "test"}
    # What metrics are linked to is an input: the measured version, and the original beside it.
    measured_models = [mlflow.models.get_model_info(f"models:/clf/{version}").model_id for version in "12"]
    assert sorted(m.model_id for m in inputs.model_inputs) == sorted(measured_models)
