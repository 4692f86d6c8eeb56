"""`review`: a verdict by a policy, recorded on the version."""

import json

import pytest
from chains import STRICT, evidence_of, folder_of, last_review, restate, review, tagged
from stores import call, copied, shell

from mlflow_unlearn.commands import review as command
from mlflow_unlearn.evidence.record import sha256
from mlflow_unlearn.registry.clients import registry_client


@pytest.fixture
def reviewed(chain_template, tmp_path):
    """clf/2 has failed a review after it has passed one."""
    with copied(chain_template, tmp_path / "reviewed") as store:
        for name in ("lenient.yaml", "strict.yaml"):
            (store.folder / name).write_text((chain_template.folder / name).read_text())
        assert review("2").code == 0
        assert review("2", "strict.yaml").code == 3
        yield store


def refused_everywhere(sentence: str, *, review: bool = True) -> None:
    for arguments in (
        ("verify",),
        *([("review", "--policy", "lenient.yaml")] if review else []),
        ("promote",),
        ("promote", "--override", "x"),
    ):
        refused = call(*arguments, "--model-uri", "models:/clf/2")
        assert refused.code == 3 and sentence in refused.err, (arguments, refused)


def without(store, *keys: str) -> None:
    for key in keys:
        store.client.delete_model_version_tag("clf", "2", key)


def test_review_by_the_default_policy(chain):
    done = call("review", "--model-uri", "models:/clf/2")
    assert done.code in (0, 3)
    word = "pass" if done.code == 0 else "fail"
    assert chain.tags("2")["unlearn.verdict"] == word
    assert f"by the policy 'default': {word}" in done.out
    assert "membership" in done.out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rules: [", "is not YAML"),
        ("- a", "holds no names"),
        ("rules: [{metric: acc_tset, at_least: 1}]", "did you mean 'acc_test'"),
        ("rules: [{metric: acc_test}]", "has no bound"),
        ("rules: [{metric: acc_test, at_least: .nan}]", "finite"),
        ("rules: [{metric: acc_test, at_least: 1, at_most: 0}]", "can never pass"),
        ("membership: {accept: [over-forgotten]}", "membership.accept"),
        ("approvers: bob", "approvers"),
        ("tow_person: true", "tow_person = True: there is no such key; did you mean 'two_person'?"),
        ("rules: [{metric: acc_test, atleast: 1}]", "did you mean 'at_least'?"),
        ("minimum: {forget: 0}", "minimum"),
        ("{rules: [], membership: null, minimum: {}}", "judges nothing"),
        ("{required: [signature], signers: [none.pub]}", "is not a public EC key"),
    ],
)
def test_bad_policies(chain, text, sentence):
    (chain.folder / "bad.yaml").write_text(text)
    refused = call("review", "--model-uri", "models:/clf/2", "--policy", "bad.yaml")
    assert refused.code == 2, refused.err
    assert sentence in refused.err


def test_each_review_names_the_one_before(reviewed):
    tags = reviewed.tags("2")
    files = {}
    for n in (1, 2):
        run_id = json.loads(tags[f"unlearn.review.{n}"])["run_id"]
        run = reviewed.client.get_run(run_id)
        folder = run.info.artifact_uri.removeprefix("file://")
        files[n] = open(f"{folder}/evidence/review-{n}.json", "rb").read()
        assert run.data.tags["unlearn.reviews"] == f"{n} {sha256(files[n])}"
    assert json.loads(files[1])["previous"] == {"n": 0, "sha256": ""}
    assert json.loads(files[2])["previous"] == {"n": 1, "sha256": sha256(files[1])}
    assert tags["unlearn.reviews"] == f"2 {sha256(files[2])}"
    checked = call("verify", "--model-uri", "models:/clf/2")
    assert checked.code == 0 and "all 2 are there, each after the other" in " ".join(checked.out.split())


@pytest.mark.slow
def test_a_failing_review_whose_tag_is_gone(reviewed):
    """The one before it had passed."""
    without(reviewed, "unlearn.review.2")
    reviewed.client.set_model_version_tag("clf", "2", "unlearn.verdict", "pass")
    refused_everywhere("reviews: review 2 is missing")


@pytest.mark.slow
def test_a_failing_review_that_is_gone_from_the_version_with_its_place_in_the_chain(reviewed):
    """Its own run still names it."""
    head = sha256(last_review(reviewed, "2")[2].read_bytes())
    first = json.loads(reviewed.tags("2")["unlearn.review.1"])
    without(reviewed, "unlearn.review.2")
    for key, value in (("unlearn.verdict", "pass"), ("unlearn.reviews", f"1 {first['sha256']}")):
        reviewed.client.set_model_version_tag("clf", "2", key, value)
    refused_everywhere(f"recorded as number '2 {head[:18]}' is not among them")


@pytest.mark.slow
def test_all_reviews_are_gone_from_the_version(reviewed):
    without(reviewed, "unlearn.review.1", "unlearn.review.2", "unlearn.verdict", "unlearn.reviews")
    refused_everywhere("recorded as number '1 ")
    # Also in a run that was deleted.
    for run in reviewed.runs():
        if "unlearn.reviews" in run.data.tags:
            reviewed.client.delete_run(run.info.run_id)
    refused_everywhere("recorded as number '2 ")


@pytest.mark.slow
def test_a_verdict_that_was_changed(reviewed):
    told = json.loads(reviewed.tags("2")["unlearn.review.2"])
    forged = {"unlearn__review__2": json.dumps(told | {"verdict": "pass"}), "unlearn__verdict": "pass"}
    with tagged(reviewed, "2", **forged):
        refused_everywhere("review 2 says pass, and its run")


@pytest.mark.slow
def test_two_at_once_get_two_numbers(reviewed, monkeypatch):
    """The other one begins later and ends before this one takes its number."""
    examine = command.examine

    def and_another(*arguments, **options):
        found = examine(*arguments, **options)
        done = shell("review", "--model-uri", "models:/clf/2", "--policy", "strict.yaml")
        assert done.returncode == 3, done.stderr
        return found

    monkeypatch.setattr(command, "examine", and_another)
    assert review("2").code == 0
    monkeypatch.undo()
    entries = [json.loads(reviewed.tags("2")[f"unlearn.review.{n}"]) for n in (1, 2, 3, 4)]
    assert [one["verdict"] for one in entries] == ["pass", "fail", "fail", "pass"]
    assert call("verify", "--model-uri", "models:/clf/2").code == 0


@pytest.mark.nightly
@pytest.mark.parametrize("key", ["unlearn.review.3", "unlearn.verdict", "unlearn.reviews"])
def test_interrupted_and_started_again(reviewed, monkeypatch, key):
    """Killed before or after any of the tags: it counts with the last one alone, and the next one takes its number."""
    real = type(registry_client(reviewed.client)).set_model_version_tag

    def killed(self, name, version, tag, value):
        if tag == key:
            raise KeyboardInterrupt
        real(self, name, version, tag, value)

    monkeypatch.setattr(type(registry_client(reviewed.client)), "set_model_version_tag", killed)
    assert review("2").code == 130
    monkeypatch.undo()
    checked = call("verify", "--model-uri", "models:/clf/2")
    assert checked.code == 0, checked.err
    assert ("review 3 was begun in run" in checked.out) == (key != "unlearn.review.3")
    refused = call("promote", "--model-uri", "models:/clf/2")
    assert refused.code == 3 and "its review 2 did not pass" in refused.err
    assert review("2").code == 0
    assert reviewed.tags("2")["unlearn.reviews"].startswith("3 ")
    assert call("promote", "--model-uri", "models:/clf/2").code == 0


def first_paragraph(store) -> str:
    return store.client.get_model_version("clf", "2").description.partition("\n")[0]


def verified(store) -> str:
    done = call("verify", "--model-uri", "models:/clf/2")
    assert done.code == 0, done.err
    return " ".join(done.out.replace("│", " ").split())


@pytest.mark.slow
def test_the_description_begins_with_the_last_verdict(reviewed):
    """And what users have written below it stays."""
    run_id = json.loads(reviewed.tags("2")["unlearn.review.2"])["run_id"]
    assert first_paragraph(reviewed).startswith("**FAIL** by the policy strict: review 2, by ")
    assert first_paragraph(reviewed).endswith(
        f"([its run and report](#/runs/{run_id})). **What now:** `mlflow-unlearn review --model-uri models:/clf/2` "
        "lists what can be done about it."
    )
    assert reviewed.tags("2")["unlearn-verdict"].startswith("FAIL by the policy strict: review 2, by ")
    text = reviewed.client.get_model_version("clf", "2").description
    reviewed.client.update_model_version("clf", "2", description=f"{text}\n\nMind the gap.")
    assert review("2").code == 0
    assert first_paragraph(reviewed).startswith("**PASS** by the policy lenient: review 3, by ")
    anew = reviewed.client.get_model_version("clf", "2").description
    assert anew.split("\n\n", 1)[1] == text.split("\n\n", 1)[1] + "\n\nMind the gap."
    assert "it is what review 3 says" in verified(reviewed)


@pytest.mark.slow
def test_a_row_below_our_table_is_no_part_of_it(reviewed):
    text = reviewed.client.get_model_version("clf", "2").description
    row = f"{text}\n| **verdict after legal review** | PASS | PASS |"
    reviewed.client.update_model_version("clf", "2", description=row)
    refused_everywhere("description: it is what the evidence says")
    reviewed.client.update_model_version("clf", "2", description=f"{text}\n\n| ours | PASS |")
    assert "description same it is what the evidence says" in verified(reviewed)


def test_what_has_failed_is_on_the_page(reviewed):
    assert "test is 0." in first_paragraph(reviewed) and "acc_test is 0." in reviewed.tags("2")["unlearn-verdict"]


@pytest.mark.slow
def test_a_description_of_an_earlier_review(reviewed):
    """Review 1 has passed and 2 has not: what stood there in between is no longer true."""
    now = reviewed.client.get_model_version("clf", "2").description
    first = json.loads(reviewed.tags("2")["unlearn.review.1"])
    rest = now.split("\n\n", 1)[1]
    head = f"**PASS** by the policy lenient: review 1, by {first['by']}, {first['at'][:10]}"
    head = head.replace("(", "&#40;").replace(")", "&#41;") + f" ([its run and report](#/runs/{first['run_id']}))."
    reviewed.client.update_model_version("clf", "2", description=f"{head}\n\n{rest}")
    refused_everywhere("verdict in the description: it is not what review 2 says", review=False)
    reviewed.client.update_model_version("clf", "2", description=now)
    with tagged(reviewed, "2", **{"unlearn-verdict": "PASS"}):
        refused_everywhere("tag unlearn-verdict: it is not what review 2 says", review=False)
        assert review("2", "strict.yaml").code == 3 and reviewed.tags("2")["unlearn-verdict"].startswith("FAIL by")
        assert call("verify", "--model-uri", "models:/clf/2").code == 0, "a review writes both anew"


def test_a_tag_that_names_another_reviewer(reviewed):
    """With a description that agrees with it: the review's file does not."""
    told = json.loads(reviewed.tags("2")["unlearn.review.2"]) | {"by": "the board"}
    with tagged(reviewed, "2", unlearn__review__2=json.dumps(told)):
        restate(reviewed, "2", evidence_of("2"))
        assert "by the board" in first_paragraph(reviewed)
        refused = call("verify", "--model-uri", "models:/clf/2")
    assert refused.code == 3 and "review 2: its tag and its file name different verdicts" in refused.err


def test_a_description_without_room_for_the_verdict(reviewed):
    text = reviewed.client.get_model_version("clf", "2").description
    noted = text + "\n\n" + "x" * (4998 - len(text))
    reviewed.client.update_model_version("clf", "2", description=noted)
    (reviewed.folder / "long.yaml").write_text(STRICT.replace("strict", "strict, in more words than fit"))
    refused = review("2", "long.yaml")
    assert refused.code == 2 and "has no room for the verdict: shorten what was written after" in refused.err
    assert "unlearn.review.3" not in reviewed.tags("2")
    assert reviewed.client.get_model_version("clf", "2").description == noted


@pytest.mark.slow
def test_killed_before_it_is_described(reviewed, monkeypatch):
    """The review counts already; the same command, given again, records no second one and goes on from there."""
    before = first_paragraph(reviewed)

    def killed(*_):
        raise KeyboardInterrupt

    for policy, code in (
        ("strict.yaml", 3),
        ("lenient.yaml", 0),
    ):  # the page says FAIL, as before; then it says so still
        monkeypatch.setattr(type(registry_client(reviewed.client)), "update_model_version", killed)
        assert review("2", policy).code == 130
        monkeypatch.undo()
        if code == 3:
            assert reviewed.tags("2")["unlearn.reviews"].startswith("3 ") and first_paragraph(reviewed) == before
            assert "the last review is not finished, or was interrupted" in verified(reviewed)
        else:
            differs = call("verify", "--model-uri", "models:/clf/2")
            assert differs.code == 3 and "verdict in the description: it is not what review" in differs.err
            assert call("promote", "--model-uri", "models:/clf/2").code == 3
        assert review("2", policy).code == code
    n = reviewed.tags("2")["unlearn.reviews"].split()[0]
    assert f"it is what review {n} says" in verified(reviewed)
    assert first_paragraph(reviewed).startswith(f"**PASS** by the policy lenient: review {n}, by ")


@pytest.mark.slow
def test_one_that_claims_to_be_unfinished(reviewed):
    """A failing review whose head was put back is no interrupted one: its run says that it was finished."""
    first = json.loads(reviewed.tags("2")["unlearn.review.1"])
    with tagged(reviewed, "2", unlearn__reviews=f"1 {first['sha256']}", unlearn__verdict="pass"):
        refused_everywhere("recorded as number '2 ")
        gone = json.loads(reviewed.tags("2")["unlearn.review.2"]) | {"run_id": "0" * 32}
        with tagged(reviewed, "2", unlearn__review__2=json.dumps(gone)):
            refused_everywhere("whether it was finished cannot be read")


def test_a_version_that_was_retired_meanwhile(reviewed, monkeypatch):
    who = command.whoami

    def and_retired():
        reviewed.client.set_model_version_tag("clf", "2", "unlearn.retired", '{"by": "x", "at": "y", "reason": null}')
        return who()

    monkeypatch.setattr(command, "whoami", and_retired)
    refused = review("2")
    assert refused.code == 3 and "retired by x at y" in refused.err
    assert "unlearn.review.3" not in reviewed.tags("2")
    assert (folder_of("2") / "MLmodel").exists()


def test_what_is_printed_returned_and_recorded_is_one_value(chain):
    """A policy whose only rule does not apply: there is nothing that has passed."""
    rule = "{metric: acc_test_forgotten, at_most: 0.05, when: classes}"
    (chain.folder / "idle.yaml").write_text(f"name: idle\nrules: [{rule}]\nmembership: null\nminimum: {{}}\n")
    done = call("review", "--model-uri", "models:/clf/2", "--policy", "idle.yaml")
    assert done.code == 3 and "none of its rules applies to this version" in done.err
    assert "passes" not in done.out and chain.tags("2")["unlearn.verdict"] == "fail"
