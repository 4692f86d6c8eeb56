"""Evidence as it is stored: today's schema, the one before, and what cannot be read."""

import json
from pathlib import Path

import jsonschema
import pytest
import records

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import FILE, FOLDER, json_schema, read_evidence, sha256

ROOT = Path(__file__).parents[2]


def stored(folder, content):
    (folder / FOLDER).mkdir()
    (folder / FOLDER / FILE).write_bytes(content)
    return folder


def of_schema_2(record):
    """What the release before wrote of the same version: hyperparameters, seed and prefix in one mapping."""
    told = json.loads(record.to_json())
    provenance, learning = told.pop("provenance"), told.pop("learning")
    for key in ("exactness", "audit", "definitions"):
        told.pop(key)
    recipe = record.provenance.recipe()
    selection = record.provenance.selection
    told |= {
        "schema_version": 2,
        "method": {"name": provenance["method"], "hyperparameters": recipe, **learning},
        "selection": selection.tags() if selection is not None else None,
    }
    return told


@pytest.mark.parametrize("record", [records.evidence(), records.sequence()], ids=["one", "sequence"])
class TestReading:
    def test_what_is_written_is_what_is_read(self, record, tmp_path):
        found, digest = read_evidence(stored(tmp_path, record.to_json().encode()))
        assert found == record and digest == record.sha256 and found.written_as == 3

    def test_what_is_written_follows_the_published_schema(self, record):
        jsonschema.validate(json.loads(record.to_json()), json.loads(json_schema()))

    def test_the_schema_before_is_read_as_todays(self, record, tmp_path):
        content = json.dumps(of_schema_2(record)).encode()
        found, digest = read_evidence(stored(tmp_path, content))
        measured = {key for one in record.metrics.values() for key in (*one.values, *one.not_computed)}
        assert found.definitions == dict.fromkeys(measured, 1)
        assert found.model_dump(exclude={"definitions"}) == record.model_dump(exclude={"definitions"})
        assert found.written_as == 2 and digest == sha256(content)
        assert found.tags() == record.tags()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda told: told | {"schema_version": 4}, r"schema_version: Input should be 3"),
        (lambda told: told | {"schema_version": 1}, r"schema_version: Input should be 3"),
        (lambda told: told | {"more": 1}, r"more: Extra inputs"),
        (lambda told: told | {"metrics": {}}, r"there are no metrics of original and unlearned"),
        (lambda told: told | {"schema_version": 2}, r"the file: 'method'"),
        (lambda told: of_schema_2(records.evidence()) | {"method": 5}, r"the file: 'int' object"),
        (lambda told: of_schema_2(records.evidence()) | {"metrics": []}, r"the file: "),
        (lambda told: [told], r"Input should be an object"),
        (lambda told: None, r"Input should be an object"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, change, told):
    content = json.dumps(change(json.loads(records.evidence().to_json()))).encode()
    with pytest.raises(UnlearnError, match=told) as error:
        read_evidence(stored(tmp_path, content))
    assert "\n" not in str(error.value)


def test_what_is_no_json_is_one_sentence(tmp_path):
    with pytest.raises(UnlearnError, match="evidence.json cannot be read"):
        read_evidence(stored(tmp_path, b"{"))


def test_a_folder_without_evidence(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_evidence(tmp_path)


def test_the_published_schema_is_the_codes():
    assert (ROOT / "docs" / "evidence.schema.json").read_text(encoding="utf-8") == json_schema()


def test_a_record_that_does_not_say_which_code_ran_is_read(tmp_path):
    """Releases of schema 3 before this one recorded that there was some."""
    told = json.loads(records.sequence().to_json())
    del told["source"]["code"]
    content = json.dumps(told).encode()
    evidence, digest = read_evidence(stored(tmp_path, content))
    assert (evidence.source.loading_ran_code, evidence.source.code, digest) == (True, [], sha256(content))
