"""`verify --recompute`: the metrics once more."""

import re
from itertools import cycle

import pandas
import pytest
from chains import QUICK, evidence_of, folder_of, rewritten
from stores import call, digits_folder

from mlflow_unlearn import config
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.evidence.record import Evidence
from mlflow_unlearn.metrics.catalog import KEYS, METRICS
from mlflow_unlearn.metrics.suite import Metrics, compare
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.session.gold import open_gold
from mlflow_unlearn.session.measured import evaluate_measured, open_measured


@pytest.mark.slow
def test_measured_again(chain):
    done = call("verify", "--model-uri", "models:/clf/2", "--recompute", "true")
    assert done.code == 0, done.err
    assert re.search(r"metrics of unlearned.*same", done.out)
    # Everything that names the digest is rewritten: only measuring tells.
    record = evidence_of("2").model_dump()
    record["metrics"]["unlearned"]["values"]["acc_test"] += 0.01
    with rewritten(chain, "2", Evidence.model_validate(record)):
        assert call("verify", "--model-uri", "models:/clf/2").code == 0
        done = call("verify", "--model-uri", "models:/clf/2", "--recompute", "true")
    assert done.code == 3
    assert "metrics of unlearned" in done.err and "of acc_test" in done.err


@pytest.mark.slow
def test_what_differs_is_not_loaded(chain, tmp_path):
    """A forged record names code as its data: it must not run."""
    (chain.folder / "forged_data.py").write_text(f"def splits():\n    open({str(tmp_path / 'ran')!r}, 'w')\n")
    record = evidence_of("2").model_dump()
    record["data"]["source"] = "python:forged_data:splits"
    path = folder_of("2") / "evidence" / "evidence.json"
    text = path.read_text()
    try:
        path.write_text(Evidence.model_validate(record).to_json())
        done = call("verify", "--model-uri", "models:/clf/2", "--recompute", "true")
    finally:
        path.write_text(text)
    assert done.code == 3 and "is not loaded" in done.out
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_ids_of_every_kind(empty_store, tmp_path):
    """Unicode, markup, quotes, formulas and 4 KB in ids: from the table of the data to what is verified."""
    digits_folder(tmp_path)
    kinds = ("größe/日本\u202e{}", "x" * 4096 + "{}", "<script>alert({})</script>", '"quoted", {}', " {} ", "=1+{}")
    files = sorted((tmp_path / "train").rglob("*.png")) + sorted((tmp_path / "test").rglob("*.png"))
    ids = [kind.format(number) for number, kind in zip(range(len(files)), cycle(kinds), strict=False)]
    splits = ["train" if "train" in path.parts else ("val", "test")[n % 2] for n, path in enumerate(files)]
    table = {"path": files, "label": [path.parent.name for path in files], "id": ids, "split": splits}
    pandas.DataFrame(table).to_csv(tmp_path / "table.csv", index=False)
    pandas.DataFrame({"id": ids[:24]}).to_csv(tmp_path / "ids.csv", index=False)
    for arguments in (
        ("train", "--data", f"csv:{tmp_path / 'table.csv'}", "--name", "clf", "--architecture", "toy:trainable"),
        ("request", "--model-uri", "models:/clf/1", "--forget", tmp_path / "ids.csv"),
        ("unlearn", "--model-uri", "models:/clf/1", "--params", QUICK, "--show-samples", "true", "--force", "true"),
        ("verify", "--model-uri", "models:/clf/2", "--recompute", "true"),
    ):
        done = call(*arguments)
        assert done.code == 0, done.err
    report = (folder_of("2") / "evidence" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in report
    assert Manifest.from_csv(folder_of("2") / "extra_files" / "training_manifest.csv").salt is not None


@pytest.mark.slow
@pytest.mark.parametrize("stored", [pytest.param((), marks=pytest.mark.slow), ("--hash-ids", "true")])
def test_hashed_ids_of_a_filed_request_are_measured_again(store, stored):
    """The digest of the forget set has the salt of the request, or, where that keeps plain ids, one in the record."""
    assert call("request", "--model-uri", "models:/clf/1", "--forget", "random:20", *stored).code == 0
    hidden = ("--hash-ids", "true", "--params", QUICK)
    done = call("unlearn", "--model-uri", "models:/clf/1", *hidden)
    assert done.code == 0, done.err
    assert evidence_of("2").data.salt is not None
    checked = call("verify", "--model-uri", "models:/clf/2", "--recompute", "true")
    assert checked.code == 0, checked.err


def measured(version: str, definition: int) -> dict[str, Metrics]:
    """A version and its source, every metric by this definition where it has one."""
    options = config.Evaluate(model_uri=f"models:/clf/{version}", device="cpu")
    with tracking.run("evaluate", options), tracking.scratch() as folder:
        session, original = open_measured(tracking.client(), options, folder, progress=False)
        outputs, _ = evaluate_measured(session, original, options, open_gold(session, options))
        return compare(outputs, seed=options.seed, definitions=dict.fromkeys(KEYS, definition))


@pytest.mark.nightly
def test_by_the_definitions_of_the_record(store):
    """Two classes one after the other: the first counts nowhere in the second step, and did in an earlier release."""
    for version, label in (("1", "3"), ("2", "5")):
        done = call("unlearn", "--model-uri", f"models:/clf/{version}", "--forget", f"class:{label}", "--params", QUICK)
        assert done.code == 0, done.err
    evidence = evidence_of("3")
    now = evidence.metrics["unlearned"]
    assert now.counts["removed_classes"] == 1
    assert evidence.definitions == {key: metric.definition for key, metric in METRICS.items()}
    # Each request by itself: of the first one all is measured that is of its class.
    first, second = (request.metrics["unlearned"] for request in evidence.requests)
    assert {"mia_auc", "acc_test_forgotten"} <= first.values.keys() & second.values.keys()
    assert evidence.union["unlearned"].counts["removed_classes"] == 0

    then = measured("3", 1)
    assert then["unlearned"]["acc_test"] < now.values["acc_test"] - 0.01
    record = evidence.model_dump() | {"definitions": dict.fromkeys(KEYS, 1)}
    with rewritten(store, "3", Evidence.model_validate(record)):
        other = call("verify", "--model-uri", "models:/clf/3", "--recompute", "true")
    assert other.code == 3 and "metrics of unlearned: " in other.err
    for model, metrics in then.items():
        record["metrics"][model]["values"] = dict(metrics)
    for made in (evidence, Evidence.model_validate(record)):
        with rewritten(store, "3", made):
            same = call("verify", "--model-uri", "models:/clf/3", "--recompute", "true")
        assert same.code == 0, same.err

    record["definitions"]["acc_test"] = 99
    with rewritten(store, "3", Evidence.model_validate(record)):
        later = call("verify", "--model-uri", "models:/clf/3", "--recompute", "true")
    assert later.code == 0, later.err
    assert "does not know the definitions of acc_test" in " ".join(later.out.split())
