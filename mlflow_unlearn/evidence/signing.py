"""Signatures of the evidence record: OpenSSF model signing with EC keys, offline; the extra ``[sign]``."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mlflow_unlearn.console import first_line
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import FILE, SIGNATURE

_INSTALL = 'pip install "mlflow-unlearn[sign]"'


def sign(folder: Path, key: str) -> None:
    """Sign ``evidence.json`` in ``folder`` with the private key; the signature is stored beside it.

    Raises:
        UnlearnError: the key cannot be used, or the extra is not installed.
    """
    config = _library("signing").Config()
    with tempfile.TemporaryDirectory() as alone:
        shutil.copy(folder / FILE, alone)
        try:
            config.use_elliptic_key_signer(private_key=Path(key)).sign(Path(alone), folder / SIGNATURE)
        except Exception as error:  # The cryptography library's own, of many kinds.
            raise UnlearnError(
                f"sign_key = {key!r} cannot sign ({first_line(error)}): give an EC private key in PEM format, "
                "e.g. by `openssl ecparam -name prime256v1 -genkey -noout -out key.pem`"
            ) from error


def check_key(key: str | None) -> None:
    """Try a private key before the work whose result it is to sign.

    Raises:
        UnlearnError: it cannot be used.
    """
    if key is not None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / FILE).write_text("{}")
            sign(Path(folder), key)


def is_signed(folder: Path) -> bool:
    """Whether a signature is stored beside the evidence in ``folder``."""
    return (folder / SIGNATURE).exists()


def broken(folder: Path, key: str) -> str | None:
    """Why the signature in ``folder`` is not that of this public key over this evidence; None where it is.

    Raises:
        UnlearnError: the key is none, or the extra is not installed.
    """
    library = _library("verifying")
    try:
        config = library.Config().use_elliptic_key_verifier(public_key=Path(key))
    except Exception as error:  # The cryptography library's own, of many kinds.
        raise UnlearnError(
            f"key = {key!r} is not a public key ({first_line(error)}): give an EC public key in PEM format, "
            "e.g. by `openssl ec -in key.pem -pubout -out public.pem`"
        ) from error
    with tempfile.TemporaryDirectory() as alone:
        shutil.copy(folder / FILE, alone)
        try:
            config.verify(Path(alone), folder / SIGNATURE)
        except Exception as error:  # A signature that is not JSON, another key's, or over another content.
            return first_line(error)
    return None


def _library(module: str) -> Any:
    try:
        import model_signing

        return getattr(model_signing, module)
    except ImportError as error:
        raise UnlearnError(f"signatures need model-signing ({error}): {_INSTALL}") from error
