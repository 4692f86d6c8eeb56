"""`review`: a verdict by a policy, recorded on the version."""

import pytest
from stores import call


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


def test_what_is_printed_returned_and_recorded_is_one_value(chain):
    """A policy whose only rule does not apply: there is nothing that has passed."""
    rule = "{metric: acc_test_forgotten, at_most: 0.05, when: classes}"
    (chain.folder / "idle.yaml").write_text(f"name: idle\nrules: [{rule}]\nmembership: null\nminimum: {{}}\n")
    done = call("review", "--model-uri", "models:/clf/2", "--policy", "idle.yaml")
    assert done.code == 3 and "none of its rules applies to this version" in done.err
    assert "passes" not in done.out and chain.tags("2")["unlearn.verdict"] == "fail"
