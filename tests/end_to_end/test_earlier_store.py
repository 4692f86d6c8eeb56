"""What an earlier release has written goes on: a store of commit 03bdee3, made by `make_store.py`.

Weights, evidence, reviews, studies and finished runs are that commit's. What is compared exactly was stored; what is
computed here may differ in the last digits, or by a sample, from one processor and torch to another. The models are
`toy.Net`, by `toy.trainable` or as a pickle of it: `toy` has to keep both.
"""

import json
import re
from pathlib import Path

import jsonschema
import mlflow
import optuna
import pytest

DOCS = Path(__file__).parents[2] / "docs"
SIGNED = ("clf/2", "clf/3")
UNSIGNED = ("tuned/1", "pickled/2")
LENIENT = ("--policy", "lenient.yaml", "--key", "public.pem")
QUICK = json.dumps({"epochs": 2, "lr": 0.003})
TUNE = ("tune", "--model-uri", "models:/clf/1", "--forget", "random:20%", "--study", "ours",
        "--storage", "sqlite:///optuna.db", "--space", '{"epochs": [1, 3]}', "--device", "cpu",
        "--objective", "rf_jsd_mia_val")  # fmt: skip
PARAMS = json.dumps({"neggrad_plus": {"epochs": 2}, "ssd": {"alpha": 1.0}})
COMPARE = ("compare", "--model-uri", "models:/clf/1", "--forget", "random:20%", "--seeds", "2",
           "--device", "cpu")  # fmt: skip


def words(text: str) -> str:
    """A table's text without its lines."""
    return re.sub(r"[│\s]+", " ", text)


def rows(text: str) -> dict[str, str]:
    """The lines of a table by their first cell."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {row[0]: " ".join(row[1:]) for row in cells if row[0]}


def requests(earlier, version: str) -> dict[str, str]:
    """id → state, of the requests on a version."""
    tags = {key: value for key, value in earlier.tags_of(version).items() if key.startswith("unlearn.request.")}
    return {key.removeprefix("unlearn.request."): value.partition(" ")[0] for key, value in tags.items()}


# What was recorded


@pytest.mark.parametrize("version", [*SIGNED, *UNSIGNED])
def test_verified(earlier, cli, version):
    done = cli("verify", "--model-uri", f"models:/{version}")
    assert done.code == 0, done.err
    assert f"models:/{version} agrees with its evidence" in done.out
    found = rows(done.out)
    assert found["files"].startswith("same") and found["tags"].startswith("same")
    assert found["model card"].startswith("same"), "the card is made again, word for word"
    assert all(found[part].startswith("same") for part in found if part.startswith(("chain", "request", "alias")))


def test_dossiers_of_its_requests(earlier, cli):
    """Its reviews name no review before them, and its requests no digest: what they do say agrees."""
    asked = requests(earlier, "clf/1")
    assert asked
    for request_id in asked:
        done = cli("dossier", "--request", request_id)
        assert done.code == 0, done.err
        checked = cli("dossier", "--verify", f"dossier-{request_id}.zip")
        assert checked.code == 0 and "is consistent" in checked.out, checked.err


@pytest.mark.parametrize("version", SIGNED)
def test_signatures_hold(earlier, cli, version):
    done = cli("verify", "--model-uri", f"models:/{version}", "--key", "public.pem")
    assert done.code == 0, done.err
    assert rows(done.out)["signature"].startswith("same")


def test_the_promotion_covers_the_alias(earlier, cli):
    assert earlier.aliases() == {"champion": "2"}
    done = cli("verify", "--model-uri", "models:/clf@champion")
    assert done.code == 0 and "promoted by bob (not authenticated)" in words(done.out)


def test_one_byte_is_noticed(earlier, cli):
    model_id = mlflow.models.get_model_info("models:/clf/2").model_id
    path = earlier.folder / "artifacts" / "models" / model_id / "artifacts" / "extra_files" / "weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = cli("verify", "--model-uri", "models:/clf/2")
    assert done.code == 3 and "weights.safetensors was changed" in done.err
    later = cli("verify", "--model-uri", "models:/clf/3")
    assert later.code == 3 and "chain models:/clf/2" in later.err


@pytest.mark.parametrize("version", [*SIGNED, *UNSIGNED])
def test_the_schema_of_then_takes_it(earlier, version):
    schema = json.loads((DOCS / "evidence.schema.2.json").read_text(encoding="utf-8"))
    jsonschema.validate(earlier.evidence(version), schema)


def test_measured_again(earlier, loadable, cli):
    """On this machine, with its torch: not to the last digit."""
    done = cli("verify", "--model-uri", "models:/clf/2", "--recompute", "true")
    measured = [told for part, told in rows(done.out).items() if part.startswith("metrics of ")]
    assert len(measured) == 2, done.out + done.err
    for told in measured:
        assert float(re.search(r"largest difference: (\S+), of", told).group(1)) < 0.1


def test_served(earlier, loadable):
    """As a model of MLflow's, without a word about this package."""
    for version in ("clf/1", "clf/2", "clf/3", "gold/1", "tuned/1", "pickled/1", "pickled/2"):
        model = mlflow.pyfunc.load_model(f"models:/{version}")
        output = model.predict(model.input_example)
        assert output.shape == (2, 10)


# Decisions


def test_reviewed_again(earlier, cli):
    """By the same policies, which ask for more by now, with the same outcomes to the letter."""
    for number, code, arguments in ((1, 3, ()), (2, 0, LENIENT)):
        done = cli("review", "--model-uri", "models:/clf/2", *arguments)
        assert done.code == code, done.err
        tags = earlier.tags_of("clf/2")
        before, now = (json.loads(tags[f"unlearn.review.{n}"]) for n in (number, number + 2))
        old = earlier.artifact(before["run_id"], f"evidence/review-{number}.json")
        new = earlier.artifact(now["run_id"], f"evidence/review-{number + 2}.json")
        for part in ("name", "version", "weights_sha256", "evidence_sha256"):
            assert new[part] == old[part]
        added = {"signers": [], "authenticated": True}
        if old["policy"]["membership"] is not None:
            added["membership"] = old["policy"]["membership"] | {"uninformative": "fail"}
        assert new["policy"] == old["policy"] | added
        checks = [[{**check, "note": ""} for check in one["verdict"]["checks"]] for one in (old, new)]
        assert checks[0] == checks[1]
        assert tags["unlearn.verdict"] == before["verdict"] == now["verdict"] == ("pass" if code == 0 else "fail")


@pytest.mark.slow
def test_promoted_by_the_review_of_then(earlier, cli):
    """The verdict that is stored is what its policy says of the evidence still."""
    for approver, sentence in (("dave", "may not approve"), ("pseudonym-7", "may not approve")):
        refused = cli("promote", "--model-uri", "models:/clf/3", "--approver", approver, "--key", "public.pem")
        assert refused.code == 3 and sentence in refused.err
    done = cli("promote", "--model-uri", "models:/clf/3", "--approver", "carol", "--key", "public.pem")
    assert done.code == 0, done.err
    assert "clf@champion is now version 3 (it was version 2), approved by carol" in done.out
    promotion = json.loads(earlier.tags_of("clf/3")["unlearn.promotion.champion"])
    assert (promotion["review"], promotion["before"]) == (1, "models:/clf/2")
    for version in SIGNED:
        assert cli("verify", "--model-uri", f"models:/{version}").code == 0
    # And back by hand.
    earlier.client.set_registered_model_alias("clf", "champion", "2")
    seen = cli("verify", "--model-uri", "models:/clf/2")
    assert seen.code == 3 and "it was moved back by hand: version 3 was promoted later" in seen.err


def test_not_promoted_without_a_review(earlier, cli):
    refused = cli("promote", "--model-uri", "models:/tuned/1")
    assert refused.code == 3 and "it was not reviewed" in refused.err


def test_exposure(earlier, cli):
    before = earlier.registered()
    done = cli("exposure", "--model-uri", "models:/clf/2")
    assert done.code == 0, done.err
    found = rows(done.out)
    for version in ("clf/1", "tuned/1", "pickled/1"):
        assert found[f"models:/{version}"].startswith("contains")
    assert found["models:/clf/2"].startswith("contains"), "the second request, on itself, is about it"
    assert found["models:/clf/3"].startswith("unlearned")
    assert found["models:/spare/1"].startswith("retired") and "retired by alice" in found["models:/spare/1"]
    assert found["models:/gold/1"].startswith("unknown"), "the second request's ids are hashed"
    for request in requests(earlier, "clf/2"):
        assert f"{request} (30 samples of models:/clf/2)" in done.out
    assert earlier.registered() == before


@pytest.mark.slow
def test_retired(earlier, cli):
    """First a plan, then for good: what is left knows what became of its source."""
    served = cli("retire", "--model-uri", "models:/clf/2")
    assert served.code == 3 and "still served by clf@champion" in served.err
    files = sorted(path for path in earlier.folder.rglob("*") if path.is_file())
    before = earlier.registered()
    planned = cli("retire", "--model-uri", "models:/clf/1")
    assert planned.code == 0, planned.err
    assert "would mark models:/clf/1 as retired" in planned.out and "Nothing was done" in planned.out
    assert "The same weights remain in models:/pickled/1" in planned.out
    assert earlier.registered() == before
    assert sorted(path for path in earlier.folder.rglob("*") if path.is_file()) == files

    model_id = mlflow.models.get_model_info("models:/clf/1").model_id
    retire = ("retire", "--model-uri", "models:/clf/1", "--reason", "replaced", "--yes", "true")
    done = cli(*retire)
    assert done.code == 3 and "retire models:/pickled/1 too" in done.err
    folder = earlier.folder / "artifacts" / "models" / model_id
    assert not [path for path in folder.rglob("*") if path.is_file()]
    checked = cli("verify", "--model-uri", "models:/clf/2")
    assert checked.code == 0 and "it was retired by" in words(checked.out)
    assert cli("retire", "--model-uri", "models:/pickled/1", "--yes", "true").code == 0
    again = cli(*retire)
    assert again.code == 0 and "Proven: none of" in again.out, again.err


def test_what_was_retired_then(earlier, cli):
    for command, code in (("verify", 3), ("unlearn", 2), ("retire", 2)):
        refused = cli(command, "--model-uri", "models:/spare/1")
        assert refused.code == code
        assert re.search(r"was retired by alice (\(not authenticated\) )?at 20\S+: made by mistake", refused.err)


# Work that goes on


def test_evaluated(earlier, loadable, cli):
    done = cli("evaluate", "--model-uri", "models:/clf/2", "--gold-uri", "models:/gold/1", "--device", "cpu")
    assert done.code == 0, done.err
    run = earlier.commands("evaluate")[0]
    stored = earlier.evidence("clf/2")["metrics"]
    for model in ("original", "unlearned", "gold"):
        for key in ("acc_forget", "acc_retain", "acc_test"):
            assert run.data.metrics[f"{model}.{key}"] == pytest.approx(stored[model]["values"][key], abs=0.02)


@pytest.mark.slow
def test_a_request_of_then_is_carried_out(earlier, loadable, cli):
    """The third one of the chain, filed on version 3."""
    [request] = requests(earlier, "clf/3")
    assert requests(earlier, "clf/3") == {request: "pending"}
    done = cli("unlearn", "--model-uri", "models:/clf/3", "--params", QUICK, "--device", "cpu")
    assert done.code == 0, done.err
    assert "Registered clf version 4 from models:/clf/3." in done.out
    assert requests(earlier, "clf/3") == {request: "done"}
    evidence = earlier.evidence("clf/4")
    assert [step["uri"] for step in evidence["lineage"]] == ["models:/clf/2", "models:/clf/3"]
    assert [r["carried_out_by"] for r in evidence["requests"]] == [f"models:/clf/{n}" for n in (2, 3, 4)]
    assert evidence["request_ids"] == [request]
    assert evidence["source"]["evidence_sha256"] == earlier.tags_of("clf/3")["unlearn.evidence_sha256"]
    assert evidence["source"]["weights_sha256"] == earlier.tags_of("clf/3")["unlearn.weights_sha256"]
    assert evidence["union"]["unlearned"]["counts"]["n_forget"] > 30 + 40 - 10, "all three, some in two of them"
    jsonschema.validate(evidence, json.loads((DOCS / "evidence.schema.json").read_text(encoding="utf-8")))
    for version in ("clf/3", "clf/4"):
        checked = cli("verify", "--model-uri", f"models:/{version}")
        assert checked.code == 0, checked.err


@pytest.mark.slow
def test_a_new_request_on_an_old_version(earlier, loadable, cli):
    """By retraining, with the recipe that the first version of the chain has recorded."""
    filed = cli("request", "--model-uri", "models:/clf/2", "--forget", "random:10,seed=5")
    assert filed.code == 0, filed.err
    done = cli("unlearn", "--model-uri", "models:/clf/2", "--method", "retrain", "--device", "cpu")
    assert done.code == 0, done.err
    evidence = earlier.evidence("clf/4")
    assert {key: evidence["provenance"]["params"][key] for key in ("epochs", "lr", "batch_size")} == {
        "epochs": 20,
        "lr": 0.05,
        "batch_size": 32,
    }
    # The request of then comes along, since version 2 still knows its samples; some may be named by both.
    assert len(evidence["request_ids"]) == 2 and 30 < evidence["data"]["forget"]["samples"] <= 40
    assert set(requests(earlier, "clf/2").values()) == {"done"}
    checked = cli("verify", "--model-uri", "models:/clf/4")
    assert checked.code == 0, checked.err


@pytest.mark.slow
def test_a_pickle_goes_on(earlier, cli):
    done = cli(
        *("unlearn", "--model-uri", "models:/pickled/2", "--forget", "random:15,seed=6", "--params", QUICK),
        *("--device", "cpu"),
    )
    assert done.code == 0, done.err
    assert cli("verify", "--model-uri", "models:/pickled/3").code == 0
    assert earlier.evidence("pickled/3")["source"]["loading_ran_code"]


@pytest.mark.nightly
def test_a_study_goes_on(earlier, loadable, cli):
    [before] = earlier.commands("tune")
    storage = f"sqlite:///{earlier.folder / 'optuna.db'}"
    old = optuna.load_study(study_name="ours", storage=storage).trials
    # Nothing is left to do: the winner is known to be registered.
    again = cli(*TUNE, "--n-trials", "3", "--register-as", "tuned")
    assert again.code == 0, again.err
    best = int(before.data.metrics["best_trial"])
    assert f"The best trial is still {best}, which is registered as models:/tuned/1." in again.out
    assert earlier.nested(earlier.commands("tune")[0]) == []

    more = cli(*TUNE, "--n-trials", "4", "--register", "none")
    assert more.code == 0, more.err
    trials = optuna.load_study(study_name="ours", storage=storage).trials
    assert [(t.params, t.values, t.user_attrs) for t in trials[:3]] == [(t.params, t.values, t.user_attrs) for t in old]
    assert [t.state for t in trials] == [optuna.trial.TrialState.COMPLETE] * 4
    assert len({tuple(t.params.items()) for t in trials}) == 4, "it tries something new"
    runs = earlier.nested(earlier.commands("tune")[0])
    assert [run.info.run_name for run in runs] == ["trial 3"]
    told = earlier.artifact(earlier.commands("tune")[0].info.run_id, "tune/study.json")
    assert len(told["trials"]) == 4
    other = cli(*TUNE, "--n-trials", "4", "--register", "none", "--seed", "1")
    assert other.code == 2 and "study 'ours' was started with another seed" in other.err


@pytest.mark.nightly
def test_a_comparison_is_made_again(earlier, loadable, cli):
    """What was finished then did not record pixels, code, torch and threads: it is not taken over."""
    [before] = earlier.commands("compare")
    old = {row["method"]: row for row in earlier.artifact(before.info.run_id, "compare/table.json")}
    done = cli(*COMPARE, "--methods", "neggrad_plus,ssd", "--params", PARAMS)
    assert done.code == 0, done.err
    again = earlier.commands("compare")[0]
    made = [f"{method}, seed {seed}" for method in ("neggrad_plus", "ssd") for seed in (0, 1)]
    names = [run.info.run_name for run in earlier.nested(again)]
    assert sorted(name for name in names if not name.startswith("retrain")) == made and len(names) == 6
    new = {row["method"]: row for row in earlier.artifact(again.info.run_id, "compare/table.json")}
    assert list(new) == list(old) == ["original", "retrain", "floor", "neggrad_plus", "ssd"]
    for method in new:
        for key in ("acc_forget", "acc_retain", "acc_test"):
            assert new[method][key] == pytest.approx(old[method][key], abs=0.1)

    params = json.dumps(json.loads(PARAMS) | {"finetune": {"epochs": 1}})
    more = cli(*COMPARE, "--methods", "neggrad_plus,ssd,finetune", "--params", params)
    assert more.code == 0, more.err
    run = earlier.commands("compare")[0]
    assert [one.info.run_name for one in earlier.nested(run)] == ["finetune, seed 0", "finetune, seed 1"]
