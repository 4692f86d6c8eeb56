"""A dossier: the files of a case in one zip, with a manifest, a page, and the program that checks them offline."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

from mlflow_unlearn.evidence import dossier_verify
from mlflow_unlearn.evidence.case import Case
from mlflow_unlearn.evidence.dossier_verify import MANIFEST
from mlflow_unlearn.evidence.record import sha256

CASE, HOLDERS, PAGE, CHECKER = "case.json", "holders.json", "index.html", "verify.py"
_NO_TIME = (1980, 1, 1, 0, 0, 0)
"""Of every file in the zip, which is the same for the same files."""


def checker() -> bytes:
    """The program that a dossier carries: this release's own."""
    return Path(str(dossier_verify.__file__)).read_bytes()


def differences(case: Case) -> list[str]:
    """Where the records of a case do not agree with each other, in words."""
    files = {**case.files, CASE: case.to_json().encode()}
    return [f"{one.part}: {one.message}" for one in dossier_verify.check_records(files) if one.outcome == "failed"]


def with_manifest(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files with the list of their digests, as ``sha256sum`` writes and reads it."""
    listed = "".join(f"{sha256(content)}  {name}\n" for name, content in sorted(files.items()))
    return {**files, MANIFEST: listed.encode()}


def write_zip(files: Mapping[str, bytes], path: Path) -> None:
    """Write all of them, the same bytes for the same files.

    Raises:
        OSError: the file cannot be written.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _NO_TIME)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(entry, content, compresslevel=9)
