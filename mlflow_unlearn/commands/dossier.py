"""`dossier`: everything about one case in one zip, and the check of such a zip, offline."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import counted, first_line, say, without_passwords
from mlflow_unlearn.errors import Refused, UnlearnError, shortlist
from mlflow_unlearn.evidence import dossier_verify
from mlflow_unlearn.evidence.case import Case, Holders
from mlflow_unlearn.evidence.dossier import CASE, CHECKER, HOLDERS, PAGE, checker, with_manifest, write_zip
from mlflow_unlearn.evidence.dossier_verify import MANIFEST, SIGNATURE, DossierCheck, NotADossier, shown
from mlflow_unlearn.evidence.record import sha256
from mlflow_unlearn.evidence.signing import check_key, sign
from mlflow_unlearn.governance.case import open_case
from mlflow_unlearn.governance.still_in import held
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.walk import walk
from mlflow_unlearn.report import table
from mlflow_unlearn.report.case_page import case_page
from mlflow_unlearn.spelling import command_line, spelled

CASE_OF_DOSSIER, DIGEST_OF_DOSSIER = "unlearn.dossier.case", "unlearn.dossier.sha256"
"""Tags of the run that records a dossier: the case, and the digest of the manifest."""
_OUTCOMES = {"ok": "same", "failed": "differs"}


class DossierResult(CommandResult):
    """A dossier that was written or checked."""

    file: str
    case: str | None = Field(None, description="Id of the case; None where a dossier was only checked.")
    manifest_sha256: str = Field(description="Of the list of all digests: it stands for the whole dossier.")
    files: dict[str, str] = Field(description="Path in the dossier → SHA-256.")
    missing: dict[str, str] = Field({}, description="Path → why that file is not there.")
    still_open: list[str] = Field([], description="What is still to be done in this case, in words.")
    failures: list[str] = Field(description="What does not agree, in words.")
    not_checked: list[str] = Field(description="What could not be checked, and why.")

    def next_step(self, options: Any) -> str | None:
        """Of one that was written: to check it, as who receives it will."""
        check = ("--verify", self.file, "--digest", self.manifest_sha256)
        return command_line("dossier", *check) if self.case is not None else None


def dossier(options: config.Dossier) -> DossierResult:
    """Write the dossier of a case, or check one.

    Raises:
        UnlearnError: there is no such case, or the zip cannot be written or read.
        Refused: files are missing or records do not agree, which the dossier that was written says; or a check failed.
    """
    if (options.request is None) == (options.verify is None):
        raise UnlearnError(
            f"dossier takes one of {spelled('request')} (to write one) and {spelled('verify')} (to check one)"
        )
    if options.request is not None and (options.key is not None or options.digest is not None):
        raise UnlearnError(
            f"{spelled('key')} and {spelled('digest')} go with {spelled('verify')}: leave them out; "
            f"{spelled('sign_key')} signs a dossier"
        )
    return _check(options, options.verify) if options.verify is not None else _write(options, str(options.request))


def _write(options: config.Dossier, request: str) -> DossierResult:
    if options.output is not None:
        _check_output(Path(options.output), options)
    check_key(options.sign_key)
    with tracking.prepared("dossier", options) as run, tracking.scratch() as folder:
        client = tracking.client()
        case = open_case(client, request)
        path = Path(options.output or f"dossier-{case.id}.zip")
        _check_output(path, options)
        run_id = run.begin(f"case {case.id}")
        holders = held(client, walk(client), case)
        files = _files(case, holders)
        if options.sign_key is not None:
            (folder / MANIFEST).write_bytes(files[MANIFEST])
            sign(folder, options.sign_key, [MANIFEST], to=SIGNATURE)
            files[SIGNATURE] = (folder / SIGNATURE).read_bytes()
        begun = path.with_name(f".{path.name}.{run_id[:8]}")
        try:
            _write_zip(files, begun, path)
            _record(case, files, begun if options.attach else None, path.name, folder)
            os.replace(begun, path)  # only what is recorded is there
        finally:
            begun.unlink(missing_ok=True)
        result = _result(path, files, dossier_verify.check(files), case, holders)
        say(f"Wrote {path}: {counted(len(files), 'file')} about case {case.id} (run {run_id}).")
        say(f"SHA-256 of its {MANIFEST}, which identifies it: {result.manifest_sha256}")
        for point in result.still_open:
            say(f"Still open: {point}.")
        if holders.unknown:
            say(f"It is unknown whether these contain the samples: {shortlist(holders.unknown)}.")
        _refuse(result, f"{path} was written but is incomplete")
        return result


def _check_output(path: Path, options: config.Dossier) -> None:
    """Before any work.

    Raises:
        UnlearnError: there is such a file, or no such folder.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise UnlearnError(
            f"{spelled('output', str(path))} cannot be written: give the name of a file in an existing folder"
        )
    if path.exists() and not options.force:
        raise UnlearnError(
            f"{spelled('output', str(path))} already exists: give another name, or {spelled('force', True)} to "
            "replace it"
        )


def _files(case: Case, holders: Holders) -> dict[str, bytes]:
    """All files of a dossier but for its signature."""
    own = {CASE: case.to_json(), HOLDERS: holders.to_json()}
    files = {**case.files, **{name: text.encode() for name, text in own.items()}, CHECKER: checker()}
    return with_manifest({**files, PAGE: _page(case, holders, files)})


def _page(case: Case, holders: Holders | None, files: dict[str, bytes]) -> bytes:
    """The page beside these files."""
    failures = [_words(one) for one in dossier_verify.check_records(files) if one.outcome == "failed"]
    digests = {name: sha256(content) for name, content in files.items()}
    return without_passwords(case_page(case, failures=failures, holders=holders, digests=digests)).encode()


def _check_page(files: dict[str, bytes]) -> DossierCheck:
    """Whether the page, which no other file names, is what its files say."""
    rest = {name: content for name, content in files.items() if name not in (PAGE, MANIFEST, SIGNATURE)}
    name = CASE
    try:
        case = Case.model_validate(load_json(files[CASE]) | {"files": {}})
        name = HOLDERS  # which those of earlier releases have not
        holders = Holders.model_validate(load_json(files[HOLDERS])) if HOLDERS in files else None
    except (KeyError, TypeError, ValueError):  # pydantic's too
        return DossierCheck(
            "failed", name, f"it is not the record of {'a case' if name == CASE else 'who holds samples'}"
        )
    if files.get(PAGE) == _page(case, holders, rest):
        return DossierCheck("ok", PAGE, "it matches the records")
    message = "it is not what this release makes of the records: another release made it, or it was changed"
    return DossierCheck("not checked", PAGE, message)


def _write_zip(files: dict[str, bytes], begun: Path, path: Path) -> None:
    try:
        write_zip(files, begun)
    except OSError as error:
        raise UnlearnError(f"{spelled('output', str(path))} cannot be written ({error.strerror})") from error


def _record(case: Case, files: dict[str, bytes], attached: Path | None, name: str, folder: Path) -> None:
    """On the run: that there is this dossier, and all its digests."""
    mlflow.set_tags({CASE_OF_DOSSIER: case.id, DIGEST_OF_DOSSIER: sha256(files[MANIFEST])})
    mlflow.log_text(files[MANIFEST].decode(), f"dossier/{MANIFEST}")
    if attached is not None:
        named = folder / name
        named.write_bytes(attached.read_bytes())
        mlflow.log_artifact(str(named), "dossier")


def _check(options: config.Dossier, name: str) -> DossierResult:
    try:
        files = dossier_verify.read(Path(name))
        key = Path(options.key).read_bytes() if options.key is not None else None
    except NotADossier as error:
        raise UnlearnError(
            f"{spelled('verify', name)} cannot be checked ({first_line(error)}): give a zip or its folder"
        ) from error
    except OSError as error:
        raise UnlearnError(
            f"{spelled('key', options.key)} cannot be read ({error.strerror}): give a PEM file"
        ) from error
    found = dossier_verify.check(files, digest=options.digest, key=key)
    found.append(_check_page(files))
    if files.get(CHECKER) != checker():
        found.append(
            DossierCheck("not checked", CHECKER, "it is not this release's; this release's own was used instead")
        )
    rows = [(shown(one.part), _OUTCOMES.get(one.outcome, one.outcome), shown(one.message)) for one in found]
    table.show_findings(name, rows)
    result = _result(Path(name), files, found)
    _refuse(result, f"{name} contradicts itself")
    say(f"{name} is consistent (SHA-256 of its {MANIFEST}: {result.manifest_sha256}).")
    return result


def _result(
    path: Path,
    files: dict[str, bytes],
    found: Sequence[DossierCheck],
    case: Case | None = None,
    holders: Holders | None = None,
) -> DossierResult:
    """What is said of a dossier.

    Args:
        path: where it is.
        files: in it.
        found: by its check.
        case: of it, where it was written just now.
        holders: likewise.
    """
    points = [*case.open_points, *holders.open_points(case)] if case is not None and holders is not None else []
    return DossierResult(
        file=str(path),
        case=case.id if case is not None else None,
        manifest_sha256=sha256(files[MANIFEST]),
        files={name: sha256(content) for name, content in sorted(files.items())},
        missing=case.missing if case is not None else {},
        still_open=points,
        failures=[_words(one) for one in found if one.outcome == "failed"],
        not_checked=[_words(one) for one in found if one.outcome == "not checked"],
    )


def _refuse(result: DossierResult, what: str) -> None:
    reasons = [*(f"{path} is missing: {why}" for path, why in result.missing.items()), *result.failures]
    if reasons:
        listed = "; ".join(reasons[:10]) + (f"; … ({len(reasons)} in all)" if len(reasons) > 10 else "")
        raise Refused(f"{what} ({listed})", result)


def _words(one: DossierCheck) -> str:
    return f"{one.part}: {one.message}"
