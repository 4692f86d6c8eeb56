"""`--format json`: one document on standard output, as the command's schema has it, and nothing else there."""

import json

import mlflow
import pytest
from answers import SCHEMAS, V1, V2, answer, checked
from chains import QUICK
from jsonschema import Draft202012Validator
from stores import DATA, FORGET, TRAIN, Outcome, call, shell

from mlflow_unlearn import cli
from mlflow_unlearn.config import COMMANDS
from mlflow_unlearn.data.loaders import load_source

EPOCHS = ("--params", '{"lotus": {"epochs": 1}, "retrain": {"epochs": 1}}')


@pytest.mark.parametrize("name", COMMANDS)
def test_schemas_are_what_the_code_generates(name):
    schema = (SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")
    assert schema == cli.answer_schema(name)
    Draft202012Validator.check_schema(json.loads(schema))


def test_no_schema_of_another_command():
    assert {file.name.removesuffix(".schema.json") for file in SCHEMAS.iterdir()} <= {*COMMANDS}


def test_a_document_that_lacks_a_field_is_not_valid():
    """So that the tests below can fail."""
    schema = json.loads((SCHEMAS / "data.schema.json").read_text(encoding="utf-8"))
    empty = {"schema_version": 1, "command": "data", "exit_code": 0, "result": {}, "error": None, "note": None}
    assert not Draft202012Validator(schema).is_valid(empty)
    assert Draft202012Validator(schema).is_valid({**empty, "result": None})


def test_data():
    result = answer("data", "--data", DATA)["result"]
    assert sum(result["samples"]["train"].values()) == 270 and result["sha256"]


def test_methods():
    result = answer("methods")["result"]
    lotus = result["methods"]["lotus"]
    assert "alpha" in lotus["params"]["properties"] and not lotus["plugin"] and lotus["summary"]
    assert result["methods"]["scrub"]["presets"]


@pytest.mark.slow
def test_train(empty_store):
    trained = answer("train", *TRAIN[:-4], "--name", "new", "--epochs", "1")["result"]
    new = trained["registered"]
    assert (new["uri"], trained["samples"], new["source_uri"]) == ("models:/new/1", 270, None)
    assert empty_store.client.get_run(trained["run_id"]).info.status == "FINISHED"
    assert empty_store.tags("1", "new")["unlearn.weights_sha256"] == new["weights_sha256"]
    assert {"acc_retain", "acc_val", "acc_test"} == new["metrics"]["trained"]["values"].keys()
    assert new["provenance"]["params"]["epochs"] == 1


@pytest.mark.nightly
def test_request_then_unlearn_then_audit(store):
    """Ids that a request hides are in no answer."""
    ids = load_source(DATA).train.ids[:54]
    (store.folder / "ids.csv").write_text("\n".join(ids))
    request = ("request", *V1, "--forget", "ids.csv", "--hash-ids", "true", "--format", "json")
    outcomes = [call(*request)]
    [filed] = checked(outcomes[0], "request")["result"]["requests"]
    assert (filed["new"], filed["done_by"], filed["samples"]) == (True, [], 54)
    assert list(store.requests()) == [filed["request_id"]]
    outcomes.append(call("unlearn", *V1, "--params", QUICK, "--format", "json"))
    result = checked(outcomes[1], "unlearn")["result"]
    new = result["registered"]
    assert (new["uri"], new["source_uri"]) == ("models:/clf/2", "models:/clf/1")
    assert new["request_ids"] == [filed["request_id"]] and new["provenance"]["method"] == "lotus"
    assert store.tags("2")["unlearn.run_id"] == result["run_id"]
    unlearned = new["metrics"]["unlearned"]
    assert float(store.tags("2")["unlearn.metric.acc_test"]) == unlearned["values"]["acc_test"]
    assert "jsd" in unlearned["not_computed"] and result["plan"] is None and result["attempts"] == []
    outcomes += [call(*request), call("audit", *V2, "--format", "json")]
    [again] = checked(outcomes[2], "request")["result"]["requests"]
    audited = checked(outcomes[3], "audit", code=3)["result"]
    assert (again["new"], again["done_by"]) == (False, ["models:/clf/2"])
    assert audited["decision"] and audited["audit"]["attacks"]
    for outcome in outcomes:
        assert not [id for id in ids if f'"{id}"' in outcome.out]


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("evaluate", ()),
        ("audit", ()),
        pytest.param("unlearn", (), marks=pytest.mark.slow),
        pytest.param("tune", ("--n-trials", "2"), marks=pytest.mark.slow),
        pytest.param("compare", ("--methods", "lotus", "--seeds", "1"), marks=pytest.mark.slow),
    ],
)
def test_plans(gold_store, command, more):
    """Of every command that has them; nothing is registered."""
    result = answer(command, *V1, "--forget", FORGET, *more, "--plan", "true")["result"]
    seconds = result["plan"]["seconds"]
    assert seconds["metrics"] > 0 and result["plan"]["disk"] and not result.get("registered")
    run = gold_store.client.get_run(result["run_id"])
    assert run.data.metrics["plan.seconds"] == pytest.approx(sum(seconds.values()))
    assert (len(result["ways"]) == 6) if command == "unlearn" else "ways" not in result


@pytest.mark.slow
def test_evaluate(gold_store):
    result = answer("evaluate", *V2, "--gold-uri", "models:/gold/1")["result"]
    assert list(result["metrics"]) == ["original", "unlearned", "gold"]
    assert (result["uri"], result["original_uri"]) == ("models:/clf/2", "models:/clf/1")
    logged = gold_store.client.get_run(result["run_id"]).data.metrics
    for model, measured in result["metrics"].items():
        assert measured["values"] == {key: logged[f"{model}.{key}"] for key in measured["values"]}


@pytest.mark.slow
def test_audit(gold_store):
    told = answer("audit", *V1, "--forget", FORGET, code=3)
    result = told["result"]
    assert result["decision"] in told["error"]["message"] and result["why"] in told["error"]["message"]
    stored = mlflow.artifacts.load_dict(f"runs:/{result['run_id']}/evidence/audit.json")
    assert stored == result["audit"] and stored["attacks"]["audited"]["margin"]["p_value"] <= 1


@pytest.mark.slow
def test_compare(gold_store):
    result = answer("compare", *V1, "--forget", FORGET, "--methods", "lotus", "--seeds", "1", *EPOCHS)["result"]
    stored = mlflow.artifacts.load_dict(f"runs:/{result['run_id']}/compare/table.json")
    assert [row["method"] for row in result["rows"]] == ["original", "retrain", "floor", "lotus"]
    for row, cells in zip(result["rows"], stored, strict=True):
        assert {column: spread and spread["mean"] for column, spread in row["columns"].items()} == {
            column: cells[column] for column in row["columns"]
        }


TUNE = ("tune", *V1, "--forget", "random:8%", "--methods", "lotus", "--seed", "2")


@pytest.mark.slow
def test_tune(store):
    result = answer(*TUNE, "--n-trials", "1", "--register", "none")["result"]
    assert result["trials"] == 1 and result["study_run_id"] == result["run_id"]
    best = result["best"]
    assert best["setting"]["method"] == "lotus" and len(best["values"]) == 1 and result["registered"] is None


@pytest.mark.nightly
def test_tune_with_workers_registers(store):
    """In a process of its own, whose workers answer as well: to nobody."""
    ran = shell(*TUNE, "--n-trials", "4", "--workers", "2", "--format", "json")
    result = checked(Outcome(ran.returncode, ran.stdout, ran.stderr), "tune")["result"]
    assert store.tags("2")["unlearn.run_id"] == result["run_id"]  # it leads, from the first trial to the last
    chosen = result["registered"]["provenance"]["selection"]
    assert (chosen["study"], chosen["trial"]) == (result["study"], result["best"]["number"])
    again = answer(*TUNE, "--n-trials", "4", "--study", result["study"])["result"]
    assert again["registered"]["uri"] == result["registered"]["uri"] == "models:/clf/2"
