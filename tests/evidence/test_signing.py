"""Signatures of the record: made with one key, checked with its public half."""

import pytest

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import FILE, SIGNATURE
from mlflow_unlearn.evidence.signing import broken, check_key, is_signed, sign


@pytest.fixture
def signed(keys, tmp_path):
    (tmp_path / FILE).write_text('{"a": 1}')
    sign(tmp_path, str(keys / "ours.pem"))
    return tmp_path


def test_a_signature_holds_for_its_own_key_and_file(signed, keys):
    assert is_signed(signed) and broken(signed, str(keys / "ours.pub")) is None


def test_another_key_does_not_fit(signed, keys):
    assert broken(signed, str(keys / "theirs.pub"))


@pytest.mark.parametrize(("name", "content"), [(FILE, '{"a": 2}'), (SIGNATURE, "{}"), (SIGNATURE, "no JSON")])
def test_a_changed_file_or_signature_does_not_hold(signed, keys, name, content):
    (signed / name).write_text(content)
    assert broken(signed, str(keys / "ours.pub"))


def test_nothing_is_signed_without_a_key(tmp_path):
    check_key(None)
    assert not is_signed(tmp_path)


@pytest.mark.parametrize("name", ["ours.pub", "nothing.pem"])
def test_what_is_not_a_private_key_is_refused_beforehand(keys, name):
    with pytest.raises(UnlearnError, match="cannot sign .*give an EC private key in PEM format"):
        check_key(str(keys / name))


@pytest.mark.parametrize("name", ["ours.pem", "nothing.pub"])
def test_what_is_not_a_public_key_is_refused(signed, keys, name):
    with pytest.raises(UnlearnError, match="is not a public key .*give an EC public key in PEM format"):
        broken(signed, str(keys / name))
