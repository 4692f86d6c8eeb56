"""`promote`: from the review to the alias, and every other move of it seen."""

import json
from pathlib import Path

import mlflow
import pytest
from chains import evidence_of, folder_of, review, tagged
from stores import call, shell

from mlflow_unlearn.commands import promote as command
from mlflow_unlearn.registry.clients import registry_client


def test_review_and_promote(chain):
    refused = review("3", "strict.yaml")
    assert refused.code == 3
    assert "acc_test is" in refused.err and "must be ≥ 1.1 (fail)" in refused.err
    failed = call("promote", "--model-uri", "models:/clf/3")
    assert failed.code == 3 and "its review 1 did not pass" in failed.err
    assert "champion" not in chain.client.get_registered_model("clf").aliases
    before = folder_of("3") / "evidence" / "evidence.json"
    content = before.read_bytes()
    assert review("3").code == 0
    assert before.read_bytes() == content
    told = json.loads(chain.tags("3")["unlearn.review.2"])
    run = chain.client.get_run(told["run_id"])
    assert run.info.status == "FINISHED"
    file = Path(mlflow.artifacts.download_artifacts(run_id=told["run_id"], artifact_path="evidence/review-2.json"))
    assert json.loads(file.read_text())["evidence_sha256"] == evidence_of("3").sha256
    other = call("promote", "--model-uri", "models:/clf/3", "--policy", "strict.yaml")
    assert other.code == 3 and "this one is 'strict'" in other.err
    done = call("promote", "--model-uri", "models:/clf/3", "--approver", "bob")
    assert done.code == 0, done.err
    assert chain.client.get_registered_model("clf").aliases["champion"] in ("3", 3)  # SQLite gives a number
    promotion = json.loads(chain.tags("3")["unlearn.promotion.champion"])
    assert (promotion["by"], promotion["review"], promotion["override"]) == ("bob (not authenticated)", 2, None)
    assert call("verify", "--model-uri", "models:/clf/3").code == 0
    # By hand nobody is kept from it, and it shows.
    chain.client.set_registered_model_alias("clf", "champion", "2")
    seen = call("verify", "--model-uri", "models:/clf/2")
    assert seen.code == 3 and "alias champion: it was moved by hand: no promotion" in seen.err
    left = call("verify", "--model-uri", "models:/clf/3")
    assert left.code == 3 and "alias champion: it was moved by hand from here to version 2" in left.err
    # A later promotion is no move by hand, and an earlier one does not cover moving it back.
    assert review("2").code == 0
    assert call("promote", "--model-uri", "models:/clf/2", "--override", "canary").code == 0
    assert call("verify", "--model-uri", "models:/clf/3").code == 0
    chain.client.set_registered_model_alias("clf", "champion", "3")
    back = call("verify", "--model-uri", "models:/clf/3")
    assert back.code == 3 and "it was moved back by hand: version 2 was promoted later" in back.err
    # Nor does a tag that no promotion has written.
    forged = {
        "uri": "models:/clf/3",
        "at": "2999-01-01",
        **{k: promotion[k] for k in promotion if k.endswith("sha256")},
    }
    for more in ({}, {"run_id": promotion["run_id"]}):
        with tagged(chain, "3", unlearn__promotion__champion=json.dumps(forged | more)):
            seen = call("verify", "--model-uri", "models:/clf/3")
        assert seen.code == 3 and "its promotion" in seen.err
    chain.client.delete_registered_model_alias("clf", "champion")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("promote", "--model-uri", "models:/clf/2", "--alias", "latest"), "reserved"),
        (("promote", "--model-uri", "models:/clf/2", "--alias", "v7"), "reserved"),
        (("promote", "--model-uri", "models:/clf/2", "--alias", "a b!"), "cannot be set"),
        (("review", "--model-uri", "models:/clf/2", "--policy", "none.yaml"), "cannot be read"),
        (("review", "--model-uri", "models:/m-00000000000000000000000000000000"), "not a registered version"),
        (("verify", "--model-uri", "models:/clf/4", "--key", "none.pem"), "is not a public key"),
        (("review", "--model-uri", "models:/clf/2", "--key", "none.pem"), "is not a public key"),
        (("unlearn", "--model-uri", "models:/clf/1", "--sign-key", "none.pem"), "cannot sign"),
        (("retire", "--model-uri", "models:/clf/2", "--aliases", "nope"), "clf@nope does not point to"),
    ],
)
def test_bad_input(chain, arguments, sentence):
    before = chain.everything_registered()
    refused = call(*arguments)
    assert refused.code == 2, refused.err
    assert sentence in refused.err
    assert "Traceback" not in refused.err
    assert chain.everything_registered() == before


@pytest.fixture
def promoted(chain):
    """clf/2 is champion and clf/3 has passed; what is set here is gone after."""
    assert review("2").code == review("3").code == 0
    before = {version: chain.tags(version).keys() for version in "23"}
    assert call("promote", "--model-uri", "models:/clf/2").code == 0
    yield chain
    chain.client.delete_registered_model_alias("clf", "champion")
    for version in "23":
        for key in chain.tags(version).keys() - before[version]:
            chain.client.delete_model_version_tag("clf", version, key)


@pytest.mark.slow
@pytest.mark.parametrize("moved", [False, True])
def test_interrupted_and_started_again(promoted, monkeypatch, moved):
    """Before or after the alias is moved: nobody is accused of moving it by hand, and the same command goes on."""
    real = type(registry_client(promoted.client)).set_registered_model_alias

    def killed(self, *arguments):
        if moved:
            real(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(registry_client(promoted.client)), "set_registered_model_alias", killed)
    assert call("promote", "--model-uri", "models:/clf/3").code == 130
    monkeypatch.undo()
    for version in "23":
        checked = call("verify", "--model-uri", f"models:/clf/{version}")
        assert checked.code == 0 and "by hand" not in checked.out, checked.err
        assert ("did not reach the alias" in " ".join(checked.out.split())) == (not moved)
    again = call("promote", "--model-uri", "models:/clf/3")
    assert again.code == 0 and "clf@champion is now version 3" in again.out
    assert call("verify", "--model-uri", "models:/clf/3").code == 0
    # What is moved by hand after that is seen, whatever became of the run in between.
    promoted.client.set_registered_model_alias("clf", "champion", "2")
    assert "it was moved back by hand" in call("verify", "--model-uri", "models:/clf/2").err


def test_an_unfinished_run_excuses_only_its_own_promotion(promoted):
    """A tag that names a run which has recorded another promotion, or none."""
    told = json.loads(promoted.tags("2")["unlearn.promotion.champion"])
    with mlflow.start_run() as run:
        pass
    promoted.client.set_terminated(run.info.run_id, "KILLED")
    forged = json.dumps(told | {"uri": "models:/clf/3", "at": "2999-01-01", "run_id": run.info.run_id})
    with tagged(promoted, "3", unlearn__promotion__champion=forged):
        seen = call("verify", "--model-uri", "models:/clf/2")
    assert seen.code == 3 and "it was moved back by hand: version 3 was promoted later" in seen.err


@pytest.mark.parametrize("what", ["retired", pytest.param("reviewed again", marks=pytest.mark.slow)])
def test_what_happened_while_it_was_examined(promoted, monkeypatch, what):
    approver = command.approver_of

    def and_more(given):
        monkeypatch.undo()
        mark = '{"by": "x", "at": "y", "reason": null}'
        if what == "retired":
            promoted.client.set_model_version_tag("clf", "3", "unlearn.retired", mark)
        else:
            done = shell("review", "--model-uri", "models:/clf/3", "--policy", "strict.yaml")
            assert done.returncode == 3, done.stderr
        return approver(given)

    monkeypatch.setattr(command, "approver_of", and_more)
    refused = call("promote", "--model-uri", "models:/clf/3")
    assert refused.code == 3
    assert ("retired by x at y" if what == "retired" else "did not pass") in refused.err
    assert str(promoted.client.get_registered_model("clf").aliases["champion"]) == "2"
    if what == "retired":
        promoted.client.delete_model_version_tag("clf", "3", "unlearn.retired")
    else:
        assert review("3").code == 0
