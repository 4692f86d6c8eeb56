"""From training to promotion under a policy that asks for an audit, and a cheat that the same policy refuses."""

import re
import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from stores import call, copied
from torch import nn

from mlflow_unlearn import config
from mlflow_unlearn.engine.features import last_linear
from mlflow_unlearn.evidence.audit import AuditRecord
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.loading import admitted
from mlflow_unlearn.registry.versions import open_version

TRAIN = (
    *("train", "--data", "python:toy:mislabelled_splits", "--architecture", "timm:test_resnet"),
    *("--epochs", "40", "--lr", "0.1", "--weight-decay", "0"),
)
GOLDS = ("--gold-uri", "models:/gold/1,models:/gold/2")
POLICY = """
rules: [{metric: acc_test, at_least: 0.5}]
membership: null
audit: {tier: 2, accept: [not told apart], share_remembered: {at_most: 0.5}, canaries: {at_most: 0.75}}
"""


def audit_of(store) -> AuditRecord:
    """The newest one."""
    run = next(run for run in store.runs() if run.data.tags.get("unlearn.command") == "audit")
    return AuditRecord.model_validate_json(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/evidence/audit.json"))


def softened(store, folder: Path) -> nn.Module:
    """The original, its logits divided by four: no decision changes, and it has forgotten nothing."""
    folder.mkdir()
    options = config.Evaluate(model_uri="models:/clf/1")
    version = admitted(open_version(store.client, options.model_uri, folder), options)
    module = load_module(version, None, 10)
    layer = last_linear(module)
    assert layer is not None
    with torch.no_grad():
        layer.weight.div_(4.0)
        layer.bias.div_(4.0)
    return module


def champion(store) -> str:
    return str(store.client.get_registered_model("clf").aliases["champion"])


def done(*arguments: object, code: int = 0) -> str:
    outcome = call(*arguments)
    assert outcome.code == code, outcome.out + outcome.err
    return outcome.out + outcome.err


@pytest.mark.nightly
def test_canaries_request_unlearn_audit_review_promote(blank, tmp_path):
    """Of honest audits one in twenty alarms by chance, and the coins are the system's: then it begins anew."""
    for attempt in range(3):
        folder = tmp_path / f"store {attempt}"
        with copied(blank, folder) as store:
            policy = folder / "policy.yaml"
            policy.write_text(POLICY)
            if has_forgotten(store, policy):
                promoted_and_no_cheat(store, policy, folder)
                return
    pytest.fail("three honest audits in a row are no chance")


def has_forgotten(store, policy: Path) -> bool:
    """From training to the audit, which may alarm by chance."""
    done(*TRAIN, "--name", "clf", "--canaries", 60)
    done("request", "--model-uri", "models:/clf/1", "--forget", "random:15%,seed=1")
    [request_id] = store.requests()
    for seed in (1, 2):
        done(*TRAIN, "--name", "gold", "--exclude", request_id, "--seed", seed)
    done("unlearn", "--model-uri", "models:/clf/1", "--method", "transpose", "--gold-uri", "models:/gold/1")
    refused = done("review", "--policy", policy, "--model-uri", "models:/clf/2", code=3)
    assert "`mlflow-unlearn audit` does that" in " ".join(refused.split())
    told = call("audit", "--model-uri", "models:/clf/2", *GOLDS)
    assert re.search(r"canaries, audited: \d+ of \d+ trained twins", told.out), told.out + told.err
    record = audit_of(store)
    assert record.tier == 2 and record.golds == ["gold 1", "gold 2"]
    assert record.attacks["original"]["rmia"].flagged and record.attacks["original"]["rmia"].auc > 0.6
    assert told.code == (0 if record.decision[0] == "not told apart" else 3)
    return told.code == 0


def promoted_and_no_cheat(store, policy: Path, folder: Path) -> None:
    assert audit_of(store).share_remembered.high < 0.5
    review = ("review", "--policy", policy, "--model-uri")
    done(*review, "models:/clf/2")
    done("promote", "--model-uri", "models:/clf/2", "--policy", policy)
    done("verify", "--model-uri", "models:/clf/2")
    assert champion(store) == "2"

    # A cheat with the evidence of the one that passed: its files are copied, and its weights exchanged.
    forged = softened(store, folder / "original")
    metadata = mlflow.models.get_model_info("models:/clf/2").metadata
    with mlflow.start_run():
        info = mlflow.pytorch.log_model(forged, name="model", metadata=metadata, serialization_format="pickle")
    location = Path(store.client.get_logged_model(info.model_id).artifact_location.removeprefix("file://"))
    for path in Path(mlflow.artifacts.download_artifacts("models:/clf/2")).iterdir():
        if not (location / path.name).exists():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, location / path.name)
    forged_version = mlflow.register_model(info.model_uri, "clf").version
    for key, value in store.tags("2").items():
        store.client.set_model_version_tag("clf", str(forged_version), key, value)
    told = done("audit", "--model-uri", "models:/clf/3", *GOLDS, code=3)
    assert "models:/clf/3: told apart" in told and "rmia: residual" in told
    assert "does not agree with its evidence" in done(*review, "models:/clf/3", code=3)
    done("promote", "--model-uri", "models:/clf/3", "--policy", policy, code=3)
    assert champion(store) == "2"
