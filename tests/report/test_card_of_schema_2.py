"""The card that earlier releases wrote: what stored versions are held against, so it may never change."""

import hashlib
import json

import pytest

from mlflow_unlearn.report.card_of_schema_2 import model_card

FROZEN = "1ece5e9b2e1f93ba"

STORED = {
    "method": {"name": "scrub", "seconds": 2.5, "hyperparameters": {"lr": 0.1, "epochs_of_decay": [5, 8], "seed": 0}},
    "data": {
        "source": "digits",
        "transform": "none",
        "forget": {"samples": 10, "sha256": "a"},
        "retain": {"samples": 30, "sha256": "b"},
        "val": {"samples": 5, "sha256": "c"},
        "test": {"samples": 6, "sha256": "d"},
        "forgotten_before": None,
    },
    "metrics": {
        "original": {"values": {"acc_forget": 1.0, "acc_test": 0.9}, "not_computed": {"mia_auc": "too few"}},
        "unlearned": {"values": {"acc_forget": 0.75, "acc_test": 0.875}, "not_computed": {"mia_auc": "too few"}},
    },
    "result": {"name": "clf", "version": "2"},
    "requests": [
        {
            "id": "0123456789ab",
            "of": "models:/clf/1",
            "samples": 10,
            "filed": None,
            "filed_by": None,
            "requester": "<b>me</b>",
            "reason": None,
            "carried_out_by": "models:/clf/2",
            "metrics": {},
        }
    ],
    "request_ids": ["0123456789ab"],
    "source": {"uri": "models:/clf/1", "loading_ran_code": True},
    "run": {"id": "r"},
    "made_by": {"name": "ann", "authenticated": False},
    "created": "2026-11-25",
    "hardware": {"device": "cpu"},
    "selection": None,
    "incomplete": None,
    "union": {},
    "attack": "The attack.",
    "limits": "The limits.",
}


def test_its_text():
    lines = model_card(STORED).splitlines()
    assert lines[0] == "# clf, version 2"
    assert lines[2] == (
        "`models:/clf/1` after unlearning 10 of 40 training samples (request `0123456789ab`) with **scrub** "
        "(lr = 0.1, epochs_of_decay = (5, 8), seed = 0)."
    )
    assert lines[4] == "Membership: not measured: too few. Test accuracy changed by -0.0250."
    # They escaped some characters twice, and so it stays.
    assert "requester &#38;&#38;#35;60;b&#38;&#38;#35;62;me&#38;&#38;#35;60;/b&#38;&#38;#35;62;, reason not" in lines[8]
    assert {"| acc_forget | 1.0000 | 0.7500 |", "| seconds | 2.5 |"} <= set(lines)
    assert lines[-1] == "The source version is a pickle: loading it ran the code that it carries."


@pytest.mark.parametrize("missing", ["method", "data", "metrics"])
def test_what_is_no_record(missing):
    with pytest.raises(Exception, match=missing):
        model_card({key: value for key, value in STORED.items() if key != missing})


def test_it_is_frozen():
    """A change would make every version of schema 2 fail `verify`."""
    assert hashlib.sha256(json.dumps(model_card(STORED)).encode()).hexdigest()[:16] == FROZEN
