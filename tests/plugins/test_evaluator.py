"""`mlflow.models.evaluate(model_type="unlearning")`, with the plugin installed as a user would."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import EvaluationResult
from sklearn.linear_model import LogisticRegression
from stores import DATA, FORGET, call, reset_mlflow, use
from torch import nn
from torch.utils.data import TensorDataset

from mlflow_unlearn import Splits, evaluate
from mlflow_unlearn.data.forget import resolve_forget
from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.evidence.audit import AuditRecord
from mlflow_unlearn.metrics.catalog import KEYS

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "plugins" / "mlflow_unlearn_plugins"
FILES = {"before_and_after.csv", "measured.json", "entropies.png"}

EVALUATE = """
import json
import sys

import mlflow
import numpy
import pandas

folder, cases, results = sys.argv[1], json.load(sys.stdin), []
for number, case in enumerate(cases):
    samples = case["samples"]
    data = numpy.array(samples) if isinstance(samples, list) else pandas.DataFrame(samples)
    with mlflow.start_run() as run:
        try:
            result = mlflow.models.evaluate(
                case["model"],
                data,
                model_type="unlearning",
                evaluators="unlearning",
                evaluator_config=case["config"],
                **case["more"],
            )
        except mlflow.exceptions.MlflowException as error:
            results.append({"error": error.message, "code": error.error_code})
            continue
        result.save(f"{folder}/{number}")
        results.append({"run": run.info.run_id, "metrics": result.metrics})
with open(f"{folder}/results.json", "w") as file:
    json.dump(results, file)
"""
CLASSIFY = """
import json
import sys

import mlflow
from mlflow.models.evaluation.base import resolve_evaluators_and_configs

images = [[i % 7, i % 5, i % 3] for i in range(60)]
labels = [int(a + b > 5 + c) for a, b, c in images]
with mlflow.start_run():
    result = mlflow.models.evaluate(
        sys.argv[2],
        images,
        targets=labels,
        model_type="classifier",
        evaluator_config={"log_model_explainability": False},
    )
found = {
    "metrics": result.metrics,
    "artifacts": sorted(result.artifacts),
    "asked": [one.name for one in resolve_evaluators_and_configs(None, None, "classifier")],
    "there": mlflow.models.list_evaluators(),
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
}
with open(f"{sys.argv[1]}/results.json", "w") as file:
    json.dump(found, file, default=float)
"""


@pytest.fixture
def used(gold_store, monkeypatch):
    use(gold_store, monkeypatch)
    yield gold_store
    reset_mlflow()


@pytest.fixture(scope="module")
def source():
    return load_source(DATA)


@pytest.fixture(scope="module")
def samples(source) -> pd.DataFrame:
    """Every sample of the source, what was forgotten among them."""
    forget = resolve_forget(FORGET, source, source.train.labels >= 0, lambda _: Manifest(())).indices
    table = source.listing().rename(columns={"class": "label"}).replace({"split": {"train": "retain"}})
    table.loc[table["id"].isin([source.train.ids[row] for row in forget]), "split"] = "forget"
    return table


def start(code: str, folder: Path, *arguments: str, path: list[Path], text: str = ""):
    """A process that writes `results.json` into ``folder``, which is made; returns what waits for it and reads that."""
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As many threads as here, since the last bits depend on them.
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT, ROOT / "tests"])),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        },
    )

    def finish():
        _, err = process.communicate(text, timeout=150)
        assert process.returncode == 0, err
        return json.loads((folder / "results.json").read_text())

    return finish


@pytest.fixture
def measured(installed, tmp_path):
    """Evaluate the cases in one process; each result is stored in a numbered folder of ``tmp_path / "out"``."""

    def run(*cases: dict) -> list[dict]:
        return start(EVALUATE, tmp_path / "out", path=[installed], text=json.dumps(cases))()

    return run


def case(model: str | None, table, config=None, **more) -> dict:
    samples = table if isinstance(table, list) else table.to_dict("list")
    return {"model": model, "samples": samples, "config": config or {}, "more": more}


@pytest.mark.nightly
def test_the_figures_are_those_of_the_command(used, measured, samples, tmp_path):
    """By the whole table in another order of rows, with labels; and by nothing but what was forgotten.

    A third case is the original itself, on a part of the test samples.
    """
    arguments = ("--model-uri", "models:/clf/2", "--gold-uri", "models:/gold/1", "--seed", "3")
    assert call("evaluate", *arguments).code == 0
    metrics = used.runs()[0].data.metrics
    expected = {key.removeprefix("unlearned."): v for key, v in metrics.items() if key.startswith("unlearned.")}
    config = {"gold_uri": "models:/gold/1", "seed": 3}
    mixed = samples.sample(frac=1, random_state=0)
    forgotten = samples[samples["split"] == "forget"][["id", "split"]]
    few = pd.concat([samples[samples["split"] == "forget"], samples[samples["split"] == "test"][:40]])
    whole, short, part = measured(
        case("models:/clf/2", mixed, config, targets="label"),
        case("models:/clf/2", forgotten, config),
        case("models:/clf/1", few.assign(label=few["label"].astype(int))),
    )
    assert {"mia_excess", "rf_jsd", "jsd", "avg_gap_excess", "acc_val"} <= expected.keys() <= set(KEYS)
    for found in (whole, short):
        assert found["metrics"] == pytest.approx(expected, abs=1e-9, rel=0)
        run = used.client.get_run(found["run"])
        assert run.data.metrics == found["metrics"]
        for key in ("acc_forget", "mia_auc"):
            assert len(used.client.get_metric_history(found["run"], key)) == 1
        assert {Path(file.path).name for file in used.client.list_artifacts(found["run"], "unlearning")} == FILES
    model_id = mlflow.models.get_model_info("models:/clf/2").model_id
    of_model = {m.run_id for m in used.client.get_logged_model(model_id).metrics}
    assert {whole["run"], short["run"]} <= of_model

    saved = EvaluationResult.load(tmp_path / "out" / "0")
    table = saved.artifacts["before_and_after"].content.set_index("metric")
    assert list(table.columns) == ["original", "unlearned", "gold", "meaning"]
    assert table["unlearned"].dropna().to_dict() == pytest.approx(expected, abs=1e-9, rel=0)
    for name in ("original", "gold"):
        assert table[name]["acc_forget"] == pytest.approx(metrics[f"{name}.acc_forget"])
    details = saved.artifacts["measured"].content
    assert (details["evaluated"], details["models"]["original"]) == ("unlearned", "models:/clf/1")
    assert details["counts"]["n_forget"] == 54
    drawn = np.asarray(saved.artifacts["entropies"].content.convert("RGB"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10

    details = EvaluationResult.load(tmp_path / "out" / "2").artifacts["measured"].content
    assert (details["evaluated"], list(details["models"])) == ("original", ["original"])
    counts = details["counts"]
    assert (counts["n_forget"], counts["n_retain"], counts["n_test"]) == (54, 216, 40)
    assert counts["n_val"] == (samples["split"] == "val").sum()
    assert details["missing"]["original"]["jsd"] == "no gold model was given"
    assert part["metrics"] == details["metrics"]["original"]
    assert "jsd" not in part["metrics"]


@pytest.mark.nightly
def test_an_audit_is_that_of_the_command(used, measured, samples, tmp_path):
    assert call("audit", "--model-uri", "models:/clf/2", "--gold-uri", "models:/gold/1").code in (0, 3)
    run = next(run for run in used.runs() if run.data.tags["unlearn.command"] == "audit")
    expected = AuditRecord.model_validate_json(
        mlflow.artifacts.load_text(f"{run.info.artifact_uri}/evidence/audit.json")
    )
    before = used.everything_registered()
    # The second one is the original, and left out.
    golds = "models:/gold/1,models:/clf/1"
    [found] = measured(case("models:/clf/2", samples, {"gold_uri": golds, "audit": True}, targets="label"))
    record = AuditRecord.model_validate(EvaluationResult.load(tmp_path / "out" / "0").artifacts["audit"].content)
    assert record.attacks == expected.attacks and record.decision == expected.decision
    shown = [sample.id for sample in (*record.worst, *record.retained.worst)]
    assert shown and all(re.fullmatch("[0-9a-f]{64}", name) for name in shown)
    assert list(record.unusable) == ["models:/clf/1"]
    assert found["metrics"]["audit.audited.rmia.auc"] == expected.attacks["audited"]["rmia"].auc
    assert "jsd" in found["metrics"] and used.everything_registered() == before


def tensors(part) -> TensorDataset:
    images = np.stack([np.asarray(part.images[i], np.float32) / 255 for i in range(len(part))])
    return TensorDataset(torch.from_numpy(images[:, None]), torch.from_numpy(part.labels))


@pytest.mark.nightly
def test_versions_that_others_have_registered(empty_store, measured, source, samples, tmp_path):
    """Pickled and exported, registered from a run and from a folder, by URI and by id: as `evaluate()` says."""
    rows = {name: samples["id"][samples["split"] == name] for name in ("forget", "retain")}
    train = {name: source.train.subset(np.flatnonzero(np.isin(source.train.ids, ids))) for name, ids in rows.items()}
    splits = Splits(**{name: tensors(p) for name, p in (train | {"val": source.val, "test": source.test}).items()})
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    images, labels = tensors(source.train).tensors
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()
    module.eval()
    common = {"pip_requirements": ["torch"]}
    with mlflow.start_run():
        pickled = mlflow.pytorch.log_model(
            module, name="m", registered_model_name="pickled", serialization_format="pickle", **common
        )
        mlflow.pytorch.log_model(
            module, name="m", registered_model_name="exported", input_example=images[:2].numpy(), **common
        )
    mlflow.pytorch.save_model(module, tmp_path / "saved", serialization_format="pickle", **common)
    mlflow.register_model((tmp_path / "saved").as_uri(), "saved")

    expected = evaluate(module, splits, original=module, seed=0, device="cpu")
    config = {"data": DATA, "split": "drawn", "transform": "none", "device": "cpu"}
    results = measured(
        case("models:/pickled/1", samples, config | {"classes": ",".join(source.classes)}),
        case("models:/exported/1", samples, config),
        case("models:/saved/1", samples, config | {"model_uri": "models:/saved/1"}),
        case(pickled.model_uri, samples, config),
        case(None, samples, config, model_id=pickled.model_id),
        case("models:/saved/1", samples, config),
        case("models:/pickled/1", samples, config | {"model_uri": "models:/saved/1"}),
        case("models:/pickled/1", samples, {"data": DATA}),
        case("models:/pickled/1", samples, {"transform": "none"}),
    )
    for one in results[:5]:
        # Pixels that differ in the last bit may change the places of two samples in the bootstrap.
        assert one["metrics"] == pytest.approx(expected, abs=1e-4)
        for key in ("acc_forget", "mia_auc"):
            assert len(empty_store.client.get_metric_history(one["run"], key)) == 1
    sentences = [one["error"] for one in results[5:]]
    assert "give its URI once more as model_uri in evaluator_config" in sentences[0]
    assert f"is for a model without an id, and this is models:/{pickled.model_id}" in sentences[1]
    assert "does not record its input transform" in sentences[2]
    assert "does not record its data source" in sentences[3]


@pytest.mark.nightly
def test_bad_input_ends_in_a_sentence(used, measured, source, samples):
    one = samples["id"][samples["split"] == "forget"].iloc[0]
    forget = samples[samples["split"] == "forget"][["id", "split"]]

    def rows(split: str, *ids: str) -> pd.DataFrame:
        return pd.concat([forget, pd.DataFrame({"id": ids, "split": split})])

    with mlflow.start_run():
        trees = mlflow.sklearn.log_model(
            LogisticRegression().fit([[0], [1]], [0, 1]), name="m", pip_requirements=["scikit-learn"]
        )
    cases = {
        "no column 'split': its columns are 'id'": case("models:/clf/2", forget[["id"]]),
        "no column 'id': its columns are 'name', 'split'": case("models:/clf/2", forget.rename(columns={"id": "name"})),
        "is a ndarray: give a pandas DataFrame with the columns id and split": case("models:/clf/2", [[0.0], [1.0]]),
        "the splits 'holdout': valid values: forget, retain, val, test": case(
            "models:/clf/2", rows("holdout", "digits/1")
        ),
        "ids that 'digits,train=15%' doesn't have: 'digits/9999'": case("models:/clf/2", rows("test", "digits/9999")),
        f"ids twice: '{one}'": case("models:/clf/2", rows("retain", one)),
        "no row of the split 'forget'": case("models:/clf/2", samples[samples["split"] == "test"]),
        f"names '{source.test.ids[0]}' as forget, and it is in the test part": case(
            "models:/clf/2", rows("forget", source.test.ids[0])
        ),
        f"labels '{one}' as": case("models:/clf/2", forget.assign(label="no such class")),
        f"as retain that models:/m-.* forgot earlier: '{one}'": case(
            "models:/clf/2", pd.concat([forget[1:], pd.DataFrame({"id": [one], "split": "retain"})])
        ),
        "unknown key 'golduri' in evaluator_config: did you mean 'gold_uri'": case(
            "models:/clf/2", forget, {"golduri": "models:/gold/1"}
        ),
        "evaluator_config: seed = 'x' is not usable": case("models:/clf/2", forget, {"seed": "x"}),
        "models:/clf/1 was trained on 54 samples that are to be forgotten": case(
            "models:/clf/2", forget, {"gold_uri": "models:/clf/1"}
        ),
        "audit = 'yes' is not usable: give True or False": case("models:/clf/2", forget, {"audit": "yes"}),
        "names 2 models, and metrics are measured against one: audit=True takes all": case(
            "models:/clf/2", forget, {"gold_uri": "models:/gold/1,models:/gold/2"}
        ),
        "has no version '7'": case("models:/clf/2", forget, {"original_uri": "models:/clf/7"}),
        "is not a PyTorch model": case(trees.model_uri, forget, {"data": DATA}),
    }
    for sentence, found in zip(cases, measured(*cases.values()), strict=True):
        assert "error" in found, sentence
        assert re.search(sentence, found["error"]), (sentence, found["error"])
        assert "\n" not in found["error"]
        assert found["code"] == "INVALID_PARAMETER_VALUE"


@pytest.mark.nightly
def test_other_evaluations_stay_as_they_are(empty_store, installed, tmp_path):
    """A classifier's metrics are the same with the plugin and without, and it loads nothing else."""
    rows = [[i % 7, i % 5, i % 3] for i in range(40)]
    with mlflow.start_run():
        model = LogisticRegression().fit(rows, [int(a + b > 5) for a, b, _ in rows])
        info = mlflow.sklearn.log_model(model, name="m", pip_requirements=["scikit-learn"])
    waiting = [
        start(CLASSIFY, tmp_path / name, info.model_uri, path=path)
        for name, path in {"with": [installed], "without": []}.items()
    ]
    own, plain = (finish() for finish in waiting)
    assert "unlearning" in own["there"]
    assert own["asked"] and "unlearning" not in own["asked"]
    assert set(own["modules"]) - set(plain["modules"]) == {"mlflow_unlearn_plugins"}
    assert own["metrics"].keys() >= {"accuracy_score", "f1_score"}
    assert own["artifacts"] == plain["artifacts"]
    assert own["metrics"] == plain["metrics"]


def test_only_its_own_model_type(monkeypatch):
    monkeypatch.syspath_prepend(str(PLUGINS / "src"))
    from mlflow_unlearn_plugins.evaluator import UnlearningEvaluator

    for model_type in ("classifier", "regressor", "question-answering", "", None):
        assert not UnlearningEvaluator.can_evaluate(model_type=model_type, evaluator_config={})
    assert UnlearningEvaluator.can_evaluate(model_type="unlearning", evaluator_config={})
    with pytest.raises(MlflowException, match="takes no extra_metrics and no custom_artifacts"):
        UnlearningEvaluator().evaluate(
            model_type="unlearning", dataset=None, run_id="", evaluator_config={}, extra_metrics=[len]
        )
