"""`--format json`: one document on standard output, as the command's schema has it, and nothing else there."""

import json
from pathlib import Path

import pytest
from chains import QUICK, tagged
from jsonschema import Draft202012Validator
from stores import DATA, FORGET, TRAIN, Outcome, call

from mlflow_unlearn import cli
from mlflow_unlearn.config import COMMANDS

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
V1, V2, V3, V4 = (("--model-uri", f"models:/clf/{number}") for number in range(1, 5))


def checked(done: Outcome, command: str, *, code: int = 0) -> dict:
    """The one document, which is as the schema has it and gives the exit code."""
    answer = json.loads(done.out)  # which fails where anything else stands there
    schema = json.loads((SCHEMAS / f"{command}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(answer)
    assert (done.code, answer["exit_code"]) == (code, code), done.err
    assert (answer["error"] is None) == (code == 0)
    return answer


def answer(command: str, *arguments: object, code: int = 0) -> dict:
    return checked(call(command, *arguments, "--format", "json"), command, code=code)


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


def test_train(empty_store):
    trained = answer("train", *TRAIN[:-4], "--name", "new", "--epochs", "1")["result"]
    new = trained["registered"]
    assert (new["uri"], trained["samples"], new["source_uri"]) == ("models:/new/1", 270, None)
    assert empty_store.client.get_run(trained["run_id"]).info.status == "FINISHED"
    assert empty_store.tags("1", "new")["unlearn.weights_sha256"] == new["weights_sha256"]
    assert {"acc_retain", "acc_val", "acc_test"} == new["metrics"]["trained"]["values"].keys()
    assert new["provenance"]["params"]["epochs"] == 1


def test_request_then_unlearn(store):
    filed = answer("request", *V1, "--forget", FORGET)["result"]
    assert (filed["new"], filed["done_by"], filed["samples"]) == (True, [], 54)
    assert list(store.requests()) == [filed["request_id"]]
    result = answer("unlearn", *V1, "--params", QUICK)["result"]
    new = result["registered"]
    assert (new["uri"], new["source_uri"]) == ("models:/clf/2", "models:/clf/1")
    assert new["request_ids"] == [filed["request_id"]] and new["provenance"]["method"] == "lotus"
    assert store.tags("2")["unlearn.run_id"] == result["run_id"]
    unlearned = new["metrics"]["unlearned"]
    assert float(store.tags("2")["unlearn.metric.acc_test"]) == unlearned["values"]["acc_test"]
    assert "jsd" in unlearned["not_computed"] and result["plan"] is None and result["attempts"] == []
    again = answer("request", *V1, "--forget", FORGET)["result"]
    assert (again["new"], again["done_by"]) == (False, ["models:/clf/2"])


def test_hidden_ids_stay_hidden(store):
    ids = [sample.split(",")[0] for sample in _training_rows(store)][:30]
    (store.folder / "ids.csv").write_text("\n".join(ids))
    filed = call("request", *V1, "--forget", "ids.csv", "--hash-ids", "true", "--format", "json")
    done = call("unlearn", *V1, "--params", QUICK, "--format", "json")
    audited = call("audit", *V2, "--format", "json")
    assert checked(filed, "request")["result"]["samples"] == 30 and checked(done, "unlearn")
    checked(audited, "audit", code=3)
    for outcome in (filed, done, audited):
        assert not [id for id in ids if f'"{id}"' in outcome.out]
