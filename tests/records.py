"""Evidence records as a real run leaves them, with numbers from nowhere."""

import io
import math
from typing import Any

import numpy as np
from PIL import Image

from mlflow_unlearn.evidence.audit import (
    AuditFigures,
    AuditRecord,
    DetectionRecord,
    SampleRecord,
    ShareRecord,
    TailRecord,
    WithinRecord,
)
from mlflow_unlearn.evidence.case import Case, CaseEvent, CaseRequest, CaseVersion, HolderRecord, Holders
from mlflow_unlearn.evidence.policy import Policy, Verdict, judge
from mlflow_unlearn.evidence.provenance import Provenance, Selection
from mlflow_unlearn.evidence.record import (
    EXACT_LIMITS,
    ClassRow,
    DataRecord,
    Evidence,
    Exactness,
    Figures,
    Histogram,
    Learning,
    Measured,
    Person,
    RequestRecord,
    ResultRecord,
    RunRecord,
    SampleSet,
    SourceRecord,
    Step,
)
from mlflow_unlearn.governance.inbox import InboxCase, InboxRequest
from mlflow_unlearn.metrics.catalog import KEYS
from mlflow_unlearn.report.page import Sample

HOSTILE = "<script>alert(1)</script>\n\"quoted\" & 'so' \u202eright\u202c 日本語 é\u0301 " + "x" * 200
CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ANN = Person(name="ann@example.org", authenticated=True)


def digest(seed: int) -> str:
    return np.random.default_rng(seed).bytes(32).hex()


def measured(**values: float) -> Measured:
    base = {
        "acc_forget": 0.9412,
        "acc_retain": 0.9961,
        "acc_val": 0.9533,
        "acc_test": 0.9511,
        "mia_advantage": 0.0613,
        "mia_advantage_null": 0.0812,
        "mia_advantage_null_mean": 0.0502,
        "mia_advantage_null_80": 0.0631,
        "mia_advantage_se": 0.0151,
        "mia_advantage_residual": 0.0613,
        "mia_advantage_over": 0.0211,
        "mia_margin_auc": 0.5171,
        "mia_margin_auc_low": 0.4682,
        "mia_margin_auc_high": 0.5319,
        "mia": 0.6123,
        "mia_test": 0.6011,
        "mia_excess": 0.0112,
        "mia_auc": 0.5072,
        "mia_auc_low": 0.4713,
        "mia_auc_high": 0.5441,
        "entropy_ks": 0.0612,
        "rf_jsd": 0.00812,
        "rf_jsd_published": 3.4841e-5,
    }
    missing = {
        "acc_test_forgotten": "no class is wholly forgotten",
        **dict.fromkeys(AGAINST, "no gold model was given"),
    }
    both = base | values
    return Measured(
        values=both,
        not_computed={key: reason for key, reason in missing.items() if key not in both},
        counts={"n_forget": 420, "n_retain": 2580, "n_val": 300, "n_test": 900, "mia_auc_forget_left_out": 0},
    )


def of_before(measured: Measured) -> Measured:
    """As releases left it that did not measure ``mia_advantage``."""

    def known(of: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in of.items() if not key.startswith(("mia_advantage", "mia_margin"))}

    parts = {"values": known(measured.values), "not_computed": known(measured.not_computed)}
    return measured.model_copy(update=parts)


def unmeasured() -> Measured:
    """Of a forget set of three samples, whose class has no test sample."""
    left = {key: value for key, value in measured().values.items() if not key.startswith(("mia", "rf_jsd"))}
    missing = dict.fromkeys((key for key in KEYS if key not in left), "no gold model was given")
    return Measured(values=left, not_computed=missing | dict.fromkeys(MEMBERSHIP, UNMATCHED), counts={"n_forget": 3})


COLLAPSED = "collapsed: acc_retain 0.1000 is at most 0.1202, the share of the largest class + 2 SE"


def collapsed() -> Evidence:
    """Of a version that gives every sample one class."""
    plain = evidence()
    values = {"acc_forget": 0.1, "acc_retain": 0.1, "acc_val": 0.1, "acc_test": 0.1}
    missing = dict.fromkeys((key for key in KEYS if key not in values), COLLAPSED)
    ruined = Measured(values=values, not_computed=missing, counts=measured().counts)
    return plain.model_copy(update={"metrics": plain.metrics | {"unlearned": ruined}})


MEMBERSHIP = tuple(key for key in KEYS if key.startswith("mia"))
UNMATCHED = "no class of the forget set occurs in the test set"
BEFORE = {"acc_forget": 0.9976, "acc_test": 0.9556, "mia_auc": 0.6524, "mia_auc_low": 0.6192, "mia_auc_high": 0.6857}
APART = {"mia_advantage": 0.2213, "mia_advantage_residual": 0.2213, "mia_advantage_over": 0.0, "mia_margin_auc": 0.6604}
BEFORE |= APART | {"mia": 0.8431, "mia_excess": 0.2311, "entropy_ks": 0.2933, "rf_jsd": 0.0214, "acc_retain": 0.9977}
GOLD = {"acc_forget": 0.9452, "acc_retain": 0.9973, "mia_auc": 0.4981, "mia_auc_low": 0.4622, "mia_auc_high": 0.5347}
GOLD |= {"mia_advantage": 0.0402, "mia_advantage_residual": 0.0311, "mia_advantage_over": 0.0402}
AGAINST = {"jsd": 0.0181, "jsd_published": 2.151e-5, "avg_gap": 0.0213, "avg_gap_excess": 0.0092}
AGAINST |= {"avg_gap_advantage": 0.0113}


def request(id: str, **changes: Any) -> RequestRecord:
    values = {
        "id": id,
        "of": "models:/digits/3",
        "run_id": "5f0d6f6c3c1b4a5e9c55",
        "filed": "2026-11-20T09:14:05+00:00",
        "filed_by": ANN,
        "requester": "Data protection officer, on behalf of 14 participants",
        "reason": "Withdrawal of consent under article 17 GDPR",
        "samples": 420,
        "manifest_sha256": digest(1),
        "carried_out_by": "models:/digits/4",
        "metrics": {},
    }
    return RequestRecord(**values | changes)


def histogram(high: float, *, towards: float, models: tuple[str, ...], bins: int = 30) -> Histogram:
    edges = np.linspace(0, high, bins + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    shares: dict[str, dict[str, list[float]]] = {}
    spread = {"original": {"forget": 0.05, "retain": 0.05, "test": 0.14}}
    spread |= {"unlearned": {"forget": 0.13, "retain": 0.06, "test": 0.15}}
    spread |= {"gold": {"forget": 0.17, "retain": 0.05, "test": 0.16}}
    for role in ("forget", "retain", "test"):
        for model in models:
            height = np.exp(-np.abs(middles - towards) / (spread[model][role] * high))
            shares.setdefault(role, {})[model] = (height / height.sum()).round(6).tolist()
    return Histogram(edges=edges.round(6).tolist(), shares=shares)


def class_rows(names: list[str], models: tuple[str, ...]) -> list[ClassRow]:
    rng = np.random.default_rng(7)
    rows = []
    for index, name in enumerate(names):
        before = float(rng.uniform(0.9, 1))
        moved = float(rng.normal(-0.012, 0.02))
        accuracies = {"original": before, "unlearned": min(1.0, before + moved), "gold": min(1.0, before + moved / 2)}
        rf_jsd = {"original": 0.02 + 0.01 * rng.random(), "unlearned": 0.006 + 0.004 * rng.random(), "gold": 0.005}
        rows.append(
            ClassRow(
                name=name,
                forget=int(rng.integers(20, 60)) if index % 2 == 0 else 0,
                test=90,
                acc_test={model: accuracies[model] for model in models},
                rf_jsd={model: rf_jsd[model] for model in models} if index % 2 == 0 else {},
            )
        )
    return rows


def lotus_history(epochs: int = 10) -> list[dict[str, float]]:
    rows = []
    for epoch in range(epochs):
        forget, val = 0.94 + 0.058 * math.exp(-epoch / 2.5), 0.955 - 0.002 * math.sin(epoch)
        delta = forget - val
        known = {"acc_forget": forget, "acc_val": val, "delta": delta, "temperature": math.exp(8 * delta)}
        rows.append({"epoch": epoch, **known, "loss": 0.9 * math.exp(-epoch / 4) + 0.21, "seconds": 1.31})
    return rows


def evidence(*, gold: bool = True, classes: list[str] = CLASSES, **changes: Any) -> Evidence:
    """A record of one request by LoTUS; ``changes`` replace whole fields."""
    models = ("original", "unlearned", "gold") if gold else ("original", "unlearned")
    columns = {"original": measured(**BEFORE), "unlearned": measured(), "gold": measured(**GOLD)}
    if gold:
        columns = {model: Measured(**dict(one) | {"values": one.values | AGAINST}) for model, one in columns.items()}
    sets = {"forget": 420, "retain": 2580, "val": 300, "test": 900}
    values: dict[str, Any] = {
        "created": "2026-11-25T04:12:33+00:00",
        "made_by": Person(name="ben", authenticated=False),
        "run": RunRecord(id="9c0f2b7be6f84d2a8d1e", config_sha256=digest(2), experiment_id="7"),
        "source": SourceRecord(
            uri="models:/digits/3",
            model_id="m-11d",
            weights_sha256=digest(3),
            evidence_sha256=None,
            files={"MLmodel": digest(8)},
            loading_ran_code=False,
        ),
        "result": ResultRecord(
            name="digits",
            version="4",
            model_id="m-12e",
            weights_sha256=digest(4),
            files={"MLmodel": digest(5), "data/weights.safetensors": digest(6)},
        ),
        "lineage": [],
        "request_ids": ["2026-11-20-withdrawal"],
        "requests": [request("2026-11-20-withdrawal")],
        "data": DataRecord(
            source="digits,train=15%",
            digest=digest(7),
            transform="tensor",
            classes=classes,
            salt=None,
            **{role: SampleSet(samples=count, sha256=digest(count)) for role, count in sets.items()},
            forgotten_before=None,
        ),
        "provenance": Provenance(
            method="lotus", params={"alpha": 8.0, "lr": 1e-3, "epochs": 10, "batch_size": 128}, seed=0
        ),
        "learning": Learning(
            history=lotus_history(),
            final={"acc_forget": 0.9412, "delta": -0.0121},
            warnings=[],
            seconds=13.42,
        ),
        "metrics": {model: columns[model] for model in models},
        "union": {},
        "incomplete": None,
        "definitions": dict.fromkeys(KEYS, 1),
        "figures": Figures(
            entropy=histogram(2.302585, towards=0.0, models=models),
            confidence=histogram(1.0, towards=1.0, models=models),
            classes=class_rows(classes, models),
        ),
        "hardware": {"device": "cuda", "precision": "bf16"},
        "system": {
            "unlearn.system.python": "3.11.9",
            "unlearn.system.torch": "2.8.0",
            "unlearn.git.commit": "716c7d1c0ffee",
            "unlearn.git.dirty": "true",
        },
    }
    return Evidence(**values | changes)


def sequence() -> Evidence:
    """Two requests after an earlier one, each measured by itself; incomplete, from a pickle, with frozen layers."""
    wide = measured(mia_auc=0.512, mia_auc_low=0.44, mia_auc_high=0.58, mia_advantage=0.12, mia_advantage_null=0.21)
    apart = {"original": measured(**BEFORE), "unlearned": wide}
    own = ["2026-11-20-withdrawal", "2026-11-22-mislabelled"]
    first = request("2026-08-01-licence", of="models:/digits/1", carried_out_by="models:/digits/3", samples=51)
    plain = evidence()
    return evidence(
        source=plain.source.model_copy(update={"loading_ran_code": True, "evidence_sha256": digest(9)}),
        request_ids=own,
        requests=[
            first.model_copy(update={"metrics": apart}),
            request(own[0], samples=400, metrics={"original": measured(**BEFORE), "unlearned": measured()}),
            request(own[1], samples=3, reason=None, requester=None, filed_by=None, metrics={"unlearned": unmeasured()}),
        ],
        lineage=[
            Step(
                uri="models:/digits/3",
                source_uri="models:/digits/1",
                method="scrub",
                weights_sha256=digest(3),
                evidence_sha256=digest(9),
                request_ids=["2026-08-01-licence"],
            )
        ],
        union=apart,
        incomplete="the unlearned model still names class 'seven' for 12 % of its forgotten samples",
        provenance=plain.provenance.model_copy(
            update={
                "prefix": "layer3",
                "selection": Selection(
                    by="tune", rule="least |mia_auc − 0.5|", study="digits-lotus", trial=17, trials=20
                ),
            }
        ),
        learning=plain.learning.model_copy(update={"warnings": ["the temperature has reached its bound in epoch 1"]}),
    )


COVERS = "Every weight that was trained here comes from training without the forgotten samples."
EXCLUDED = (
    "What recipe and seed were chosen by, while the samples were there.",
    "The layers before fc are frozen and come from <b>w.pt</b>: what they were trained on is outside of this claim.",
)


def exact(shards: int = 4) -> Evidence:
    """By shards: one of so many was trained again from its third slice, one from its start, as stage by stage."""
    history = [
        {"epoch": 4 * n + epoch, "loss": 0.9 / (1 + epoch), "seconds": 0.1, "shard": shard, "stage": stage}
        for n, (shard, stage) in enumerate(((1, 3), (3, 1), (3, 2), (3, 3)))
        for epoch in range(4)
    ]
    claim = Exactness(
        kind="exact",
        covers=COVERS,
        excludes=list(EXCLUDED),
        retrained={"1": 2, "3": 0},
        untouched={str(shard): digest(shard) for shard in range(shards) if shard not in (1, 3)},
        steps=77,
        steps_from_scratch=1827,
        checkpoints=5,
        frozen="fc",
    )
    plain = evidence()
    learning = plain.learning.model_copy(update={"history": history, "final": {}})
    provenance = Provenance(method="exact", params={"fall_back": False}, seed=0)
    return evidence(exactness=claim, limits=EXACT_LIMITS, learning=learning, provenance=provenance)


def verdict(record: Evidence) -> Verdict:
    return judge(record, Policy(), signature=None)


def png(seed: int, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def samples(count: int = 12, named: bool = True) -> list[Sample]:
    return [
        Sample(
            name=f"train/{index:05d}.png" if named else "",
            label=CLASSES[index % 10],
            before=(CLASSES[index % 10], 0.99 - index / 200),
            after=(CLASSES[(index * 3) % 10], 0.4 + index / 30),
            divergence=0.6 / (index + 1),
            png=png(index),
        )
        for index in range(count)
    ]


def attack(corrected: float, tail: TailRecord | None = None) -> DetectionRecord:
    return DetectionRecord(
        **{"n_forget": 50, "n_unseen": 500, "auc": 0.6, "auc_low": 0.55, "auc_high": 0.65, "advantage": 0.1},
        **{"p_value": corrected, "corrected": corrected, "tail": tail},
    )


def audit(found: float = 0.5, before: float = 0.001, **changes: Any) -> AuditRecord:
    """Of the version of `evidence`."""
    record = evidence()
    values = {
        "run_id": "r",
        "at": "2026-11-26T12:00:00+00:00",
        "by": ANN,
        "uri": record.result.uri,
        "weights_sha256": record.result.weights_sha256,
        "original_uri": record.source.uri,
        "original_sha256": record.source.weights_sha256,
        "transform": record.data.transform,
        "forget_sha256": record.data.forget.sha256,
        "data_sha256": record.data.digest,
        "seed": 1,
        "tier": 1,
        "references": [],
        "unusable": {},
        "attacks": {"audited": {"rmia": attack(found, TailRecord(tpr=0.02, low=0.0, high=0.05))}}
        | {"original": {"rmia": attack(before)}},
        "not_measured": {},
        "share_remembered": ShareRecord(value=0.01, low=-0.07, high=0.09, tpr=0.9, fpr=0.5, golds=1),
        "share_missing": "",
        "completeness": 0.6,
        "remembered_p95": 0.7,
        "canaries": {},
        "within_golds": {"margin_gap": WithinRecord(value=1.4, low=0.7, high=1.1)},
        "worst": [SampleRecord(id="digits/7", remembered=0.93), SampleRecord(id="digits/9", remembered=0.91)],
        "drawn": AuditFigures(
            attack="rmia",
            rates=[0.001, 0.01, 0.1, 1.0],
            curves={
                "audited": [0.0, 0.02, 0.1, 1.0],
                "original": [0.05, 0.1, 0.3, 1.0],
                "gold 1": [0.0, 0.0, 0.1, 1.0],
            },
            remembered={"audited": [0.2, 0.6, 0.2], "original": [0.1, 0.3, 0.6], "gold 1": [0.3, 0.5, 0.2]},
        ),
        "two_versions_auc": 0.6,
        "seconds": 1.0,
    }
    return AuditRecord(**values | changes)


def case(word: str = "plain", many: int = 1, **changes) -> Case:
    """One that is open, full of one text."""
    request = CaseRequest(
        **{"id": "0123456789ab", "of": word, "run_id": word, "filed": "2026-11-20T09:14:05+00:00", "filed_by": word},
        **{"requester": word, "reason": word, "due": "2026-12-20", "samples": 3, "hashed": True},
        **{"done_by": [word], "folder": "requests/0123456789ab"},
    )
    version = CaseVersion(
        **{"uri": word, "role": "fulfilled", "request_ids": [request.id], "knows": [], "source_uri": word},
        **{"method": word, "membership": "indistinguishable", "audit": "not told apart", "verdict": "pass"},
        **{"aliases": [word], "retired": False, "folder": "versions/clf-2"},
    )
    events = [
        CaseEvent(
            **{"at": f"2026-11-2{n}T09:14:05+00:00", "kind": kind, "about": word, "message": word, "by": word},
            **{"run_id": word, "file": "requests/0123456789ab/request.json", "sha256": digest(n)},
        )
        for n, kind in enumerate(("filed", "unlearned", "audited", "reviewed", "promoted", "retired"))
    ]
    source = version.model_copy(update={"uri": f"{word} 1", "role": "source", "knows": [request.id], "request_ids": []})
    values = {"id": request.id, "requests": [request] * many, "versions": [version, source] * many, "events": events}
    return Case(**values | {"missing": {"versions/clf-2/version.json": word}, "files": {}} | changes)


def holders(word: str = "plain", many: int = 1) -> Holders:
    """As many that contain the samples, beyond those of `case`, and of which that cannot be told."""
    contain = [
        HolderRecord(uri=f"models:/{word}/{n + 7}", samples=3, aliases=[word], endpoints={word: word}, why=word)
        for n in range(many)
    ]
    unknown = [one.model_copy(update={"uri": f"{one.uri}0", "samples": 0}) for one in contain]
    rest = {"logged_models": [f"models:/m-{word}"], "runs": [word], "references": [word]}
    return Holders(contain=contain, cannot_be_told=unknown, not_looked_for={"0123456789ab": word}, **rest)


def inbox(count: int, word: str = "plain", versions: int = 2) -> list[InboxCase]:
    """So many cases, the most urgent first: a few are overdue, half of the rest is done."""
    cases = []
    for n in range(count):
        state = "overdue" if n < count // 8 + 1 else "open" if n < count // 2 else "done"
        left = {"overdue": n - count // 8 - 1, "open": n, "done": 9}[state]
        closed = "done" if state == "done" else "pending"
        requests = [
            InboxRequest(
                **{"id": f"{n:06x}{at:06x}", "uri": f"models:/{word}/{at + 1}", "state": closed},
                **{"done_by": [f"models:/{word}/{at + 9}"] * (state == "done"), "run_id": word, "samples": 3},
            )
            for at in range(versions)
        ]
        cases.append(
            InboxCase(
                **{"id": f"{n:012x}", "subject": f"group:subject={n} {word}", "requester": word, "filed_by": word},
                **{"filed": "2026-11-20T09:14:05+00:00", "due": f"2026-12-{20 + n % 9}", "days_left": left},
                **{"state": state, "requests": requests, "unclear": n % 3},
                still_in=[f"models:/{word}/{at + 1}" for at in range(versions + n % 5)],
            )
        )
    return cases
