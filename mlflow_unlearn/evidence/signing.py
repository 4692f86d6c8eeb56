"""Signatures of the evidence: OpenSSF model signing with EC keys, offline; the extra ``[sign]``."""

import base64
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_unlearn.console import first_line
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.record import CARD, FILE, REPORT, SIGNATURE
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.spelling import spelled

_INSTALL = 'pip install "mlflow-unlearn[sign]"'
_MADE_BY = "e.g. by `openssl ec -in key.pem -pubout -out public.pem`"


@dataclass(frozen=True)
class Signature:
    """What came of checking the signature that is stored beside an evidence record.

    Attributes:
        signer: fingerprint of the key that it was checked with; None: there was none to check it with.
        given: whether the caller gave that key; otherwise it is the one that the record itself names.
        broken: why it is not that key's over these files; None where it is, or where nothing was checked.
        covers: names of the files that it is over.
    """

    signer: str | None = None
    given: bool = False
    broken: str | None = None
    covers: Sequence[str] = ()


def sign(folder: Path, key: str, files: Sequence[str] = (FILE, REPORT, CARD), to: str = SIGNATURE) -> None:
    """Sign the record in ``folder`` and what is made from it with the private key; the signature is stored beside them.

    Args:
        folder: where they are.
        key: private EC key, a PEM file.
        files: names of what is signed, as far as it exists.
        to: name of the signature.

    Raises:
        UnlearnError: the key cannot be used, or the extra is not installed.
    """
    config = _library("signing").Config()
    with _only(folder, [name for name in files if (folder / name).exists()]) as signed:
        try:
            config.use_elliptic_key_signer(private_key=Path(key)).sign(Path(signed), folder / to)
        except Exception as error:  # The cryptography library's own, of many kinds.
            raise _bad_private_key(key, error) from error


def check_key(key: str | None) -> None:
    """Try a private key before the work whose result it is to sign.

    Raises:
        UnlearnError: it cannot be used.
    """
    if key is not None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / FILE).write_text("{}")
            sign(Path(folder), key)


def public_key(key: str) -> str:
    """The public half of a private EC key, PEM, as the record names it.

    Raises:
        UnlearnError: the key cannot be used.
    """
    from cryptography.hazmat.primitives import serialization

    try:
        return _pem(serialization.load_pem_private_key(Path(key).read_bytes(), None).public_key()).decode()
    except (OSError, ValueError, TypeError) as error:
        raise _bad_private_key(key, error) from error


def fingerprint(pem: bytes) -> str:
    """``sha256:`` and the SHA-256 of a public EC key's PEM file as openssl writes it, which is what signatures name.

    Raises:
        ValueError: it is not a public EC key.
    """
    # Not at the top: only who uses signatures pays for loading it.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(pem)
    except UnsupportedAlgorithm as error:
        raise ValueError(first_line(error)) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("it is a key of another kind")
    return f"sha256:{hashlib.sha256(_pem(key)).hexdigest()}"


def check(folder: Path, key: str | None, recorded: str | None) -> Signature | None:
    """What the signature in ``folder`` is worth; None where there is none.

    Args:
        folder: of the evidence.
        key: public key (PEM file) that it must be by; None takes the recorded one.
        recorded: public key (PEM) that the record says it is signed with.

    Raises:
        UnlearnError: the given key is not one, or the extra is not installed and a key is given.
    """
    if not (folder / SIGNATURE).exists():
        return None
    if key is None and recorded is None:
        return Signature()
    try:
        library = _library("verifying")
        pem = Path(key).read_bytes() if key is not None else str(recorded).encode()
        signer = fingerprint(pem)
    except UnlearnError:
        if key is not None:
            raise
        return Signature()
    except (OSError, ValueError) as error:
        if key is None:
            return Signature(broken=f"the key that the record names cannot be read ({first_line(error)})")
        raise UnlearnError(
            f"{spelled('key', key)} is not a public key ({first_line(error)}): give an EC public key in PEM format, "
            f"{_MADE_BY}"
        ) from error
    try:
        named, covers = _named((folder / SIGNATURE).read_bytes())
        if named not in (None, signer):
            whose = "the given one" if key is not None else "the one that the record names"
            raise ValueError(f"it was made with the key {named}, and not with {whose}, {signer}")
        with _only(folder, covers) as signed, tempfile.TemporaryDirectory() as keys:
            public = Path(keys) / "public.pem"
            public.write_bytes(pem)
            library.Config().use_elliptic_key_verifier(public_key=public).verify(Path(signed), folder / SIGNATURE)
    except Exception as error:  # A signature that is not JSON, another key's, or over another content.
        return Signature(signer, key is not None, first_line(error) or "it is not the key's signature over these files")
    return Signature(signer, key is not None, None, covers)


def _named(signature: bytes) -> tuple[str | None, list[str]]:
    """The key that a signature names, by its fingerprint, and the files that it says it is over."""
    bundle = load_json(signature)
    payload = load_json(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    covers = [str(resource["name"]) for resource in payload["predicate"]["resources"]]
    if FILE not in covers or not {FILE, REPORT, CARD}.issuperset(covers):
        raise ValueError(f"it is over {', '.join(covers)} and not over {FILE}")
    hint = bundle["verificationMaterial"]["publicKey"].get("hint")
    return f"sha256:{hint}" if hint else None, covers


def _only(folder: Path, names: Sequence[str]) -> "tempfile.TemporaryDirectory[str]":
    """A temporary folder with copies of these files, as far as they exist, since whole folders are signed."""
    copies = tempfile.TemporaryDirectory()
    for name in names:
        if (folder / name).is_file():
            shutil.copy(folder / name, copies.name)
    return copies


def _pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    encoded: bytes = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _bad_private_key(key: str, error: Exception) -> UnlearnError:
    return UnlearnError(
        f"{spelled('sign_key', key)} cannot sign ({first_line(error)}): give an EC private key in PEM format, e.g. by "
        "`openssl ecparam -name prime256v1 -genkey -noout -out key.pem`"
    )


def _library(module: str) -> Any:
    try:
        import model_signing

        return getattr(model_signing, module)
    except ImportError as error:
        raise UnlearnError(f"signatures need model-signing ({error}): {_INSTALL}") from error
