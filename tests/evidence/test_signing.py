"""Signatures of the evidence: made with one key, checked with its public half."""

import hashlib
import subprocess

import pytest

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import CARD, FILE, REPORT, SIGNATURE
from mlflow_unlearn.evidence.signing import Signature, check, check_key, fingerprint, public_key, sign

ALL = (FILE, REPORT, CARD)


@pytest.fixture
def signed(keys, tmp_path):
    for name in ALL:
        (tmp_path / name).write_text('{"a": 1}')
    sign(tmp_path, str(keys / "ours.pem"))
    return tmp_path


def print_of(keys, name: str) -> str:
    """As `sha256sum` prints it."""
    return "sha256:" + hashlib.sha256((keys / f"{name}.pub").read_bytes()).hexdigest()


def test_a_signature_holds_for_its_own_key_and_all_files(signed, keys):
    ours = str(keys / "ours.pub")
    expected = Signature(print_of(keys, "ours"), True, None, sorted(ALL))
    assert check(signed, ours, None) == expected
    recorded = public_key(str(keys / "ours.pem"))
    assert recorded == (keys / "ours.pub").read_text()
    assert check(signed, None, recorded) == Signature(expected.signer, False, None, expected.covers)
    assert check(signed, None, None) == Signature()


def test_another_key_does_not_fit_and_both_are_named(signed, keys):
    found = check(signed, str(keys / "theirs.pub"), (keys / "ours.pub").read_text())
    assert (
        found is not None
        and found.given
        and found.broken
        == (
            f"it was made with the key {print_of(keys, 'ours')}, and not with the given one, {print_of(keys, 'theirs')}"
        )
    )
    found = check(signed, None, (keys / "theirs.pub").read_text())
    assert found is not None and "not with the one that the record names" in str(found.broken)


@pytest.mark.parametrize("content", ['{"a": 2}', None])
@pytest.mark.parametrize("name", ALL)
def test_a_changed_or_missing_file_is_found_by_the_signature(signed, keys, name, content):
    (signed / name).unlink() if content is None else (signed / name).write_text(content)
    found = check(signed, str(keys / "ours.pub"), None)
    assert found is not None and found.broken


@pytest.mark.parametrize("content", ["{}", "no JSON", "[]", '{"dsseEnvelope": {"payload": "e30="}}'])
def test_what_is_not_a_signature_does_not_hold(signed, keys, content):
    (signed / SIGNATURE).write_text(content)
    found = check(signed, str(keys / "ours.pub"), None)
    assert found is not None and found.broken


def test_one_over_the_evidence_alone_holds_as_what_it_is(keys, tmp_path):
    """As earlier releases made it: what else lies there is not covered."""
    (tmp_path / FILE).write_text('{"a": 1}')
    sign(tmp_path, str(keys / "ours.pem"))
    (tmp_path / REPORT).write_text("anything")
    found = check(tmp_path, str(keys / "ours.pub"), None)
    assert found is not None and found.broken is None and found.covers == [FILE]


def test_one_over_other_files_is_none(keys, tmp_path):
    """It would hold, but says nothing about the evidence."""
    from model_signing import signing

    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").write_text("x")
    config = signing.Config().use_elliptic_key_signer(private_key=keys / "ours.pem")
    config.sign(tmp_path / "else", tmp_path / SIGNATURE)
    found = check(tmp_path, str(keys / "ours.pub"), None)
    assert found is not None and "it is over notes.txt and not over evidence.json" in str(found.broken)


def test_nothing_is_signed_without_a_key(tmp_path):
    check_key(None)
    assert check(tmp_path, None, None) is None


@pytest.mark.parametrize("name", ["ours.pub", "nothing.pem"])
def test_what_is_not_a_private_key_is_refused_beforehand(keys, name):
    for use in (check_key, public_key):
        with pytest.raises(UnlearnError, match="cannot sign .*give an EC private key in PEM format"):
            use(str(keys / name))


@pytest.mark.parametrize("name", ["ours.pem", "nothing.pub"])
def test_what_is_not_a_public_key_is_refused(signed, keys, name):
    with pytest.raises(UnlearnError, match="is not a public key .*give an EC public key in PEM format"):
        check(signed, str(keys / name), None)
    found = check(signed, None, "no PEM")
    assert found is not None and "the key that the record names cannot be read" in str(found.broken)


def test_only_ec_keys_have_a_fingerprint(tmp_path):
    subprocess.run(["openssl", "genrsa", "-out", tmp_path / "rsa.pem", "2048"], check=True, capture_output=True)
    options = ["-in", tmp_path / "rsa.pem", "-pubout", "-out", tmp_path / "rsa.pub"]
    subprocess.run(["openssl", "rsa", *options], check=True, capture_output=True)
    with pytest.raises(ValueError, match="a key of another kind"):
        fingerprint((tmp_path / "rsa.pub").read_bytes())
