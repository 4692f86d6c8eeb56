"""Check a dossier with nothing but Python's standard library (3.9 or later), offline.

    python verify.py                  in the unzipped folder
    python verify.py dossier.zip      of a zip as it is

Add --digest SHA256, what was printed when the dossier was made, and --key public.pem, the key it was signed with.
Exit code 0: all of it agrees. 1: something does not, one sentence each. 2: it is not a dossier.

A copy of this file that came with a dossier may have been changed with it: take it from the package instead, where it
is `mlflow_unlearn/evidence/dossier_verify.py`.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import html
import io
import json
import re
import struct
import sys
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

MANIFEST, SIGNATURE = "MANIFEST", "MANIFEST.sig"
LARGEST = 2**31
"""Bytes of a dossier, unpacked."""
_WRONG_SHAPE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, csv.Error)
"""What reading a record raises that is not one; a Unicode error is a ValueError."""


class NotADossier(ValueError):
    """There is nothing that could be checked."""


class DossierCheck(NamedTuple):
    """One thing that was looked at: ok, failed or not checked."""

    outcome: str
    part: str
    message: str


def read(path: Path) -> dict[str, bytes]:
    """Every file of a dossier, a folder or a zip, by its path in it.

    Raises:
        NotADossier: it is neither, or what a zip must not hold.
    """
    try:
        files = _folder(path) if path.is_dir() else _zip(path)
    except NotADossier:
        raise
    except (*_WRONG_SHAPE, OSError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise NotADossier(f"{path} cannot be read: {error}") from error
    if MANIFEST not in files:
        raise NotADossier(f"{path} is not a dossier: it has no {MANIFEST}")
    return files


def _folder(path: Path) -> dict[str, bytes]:
    found = [one for one in sorted(path.rglob("*")) if one.is_symlink() or not one.is_dir()]
    room, files = LARGEST, dict[str, bytes]()
    for one in found:
        name = one.relative_to(path).as_posix()
        if one.is_symlink() or not one.is_file():
            raise NotADossier(f"{name} is a link or a device, and a dossier has none")
        with one.open("rb") as stream:
            files[name] = _content(stream, room)
        room -= len(files[name])
    return files


def _zip(path: Path) -> dict[str, bytes]:
    room, files = LARGEST, dict[str, bytes]()
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(set(names)) < len(names):
            raise NotADossier("the zip holds two files of one name")
        for entry in entries:
            if entry.is_dir():
                continue
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack all at once
                raise NotADossier(f"{entry.filename} is compressed in a way that no dossier is")
            with archive.open(entry) as stream:
                files[entry.filename] = _content(stream, room)
            room -= len(files[entry.filename])
    return files


def _content(stream: IO[bytes], room: int) -> bytes:
    """All of a file, piece by piece: what it says of its size is anybody's word."""
    parts = []
    while part := stream.read(2**20):
        room -= len(part)
        if room < 0:
            raise NotADossier(f"it unpacks to more than {LARGEST} bytes")
        parts.append(part)
    return b"".join(parts)


def check(files: Mapping[str, bytes], *, digest: str | None = None, key: bytes | None = None) -> list[DossierCheck]:
    """Everything: the manifest, how the records agree with each other, and signatures.

    Args:
        files: by path.
        digest: that the manifest is to have, as it was printed when the dossier was made.
        key: public EC key, PEM, that the manifest is to be signed with.
    """
    return [*check_manifest(files, digest), *check_records(files), *_whole(files), *check_signatures(files, key)]


# The manifest


def check_manifest(files: Mapping[str, bytes], digest: str | None = None) -> Iterator[DossierCheck]:
    """Whether every file is the one that the manifest names, with none added or missing."""
    found = _sha256(files[MANIFEST])
    if digest is not None:
        yield _same(MANIFEST, digest.strip().lower(), found, "its digest is the given one")
    lines = re.findall("^([0-9a-f]{64})  (.+)$", files[MANIFEST].decode("utf-8", "replace"), re.MULTILINE)
    listed = {name: of_file for of_file, name in lines}
    if "".join(f"{of_file}  {name}\n" for name, of_file in sorted(listed.items())).encode() != files[MANIFEST]:
        yield DossierCheck("failed", MANIFEST, "it is not the list of files and digests that was written")
    own = set(files) - {MANIFEST, SIGNATURE}
    wrong = 0
    for name in sorted(own | set(listed)):
        how = "is missing" if name not in own else "was added" if name not in listed else "was changed"
        if name not in own or _sha256(files[name]) != listed.get(name):
            wrong += 1
            yield DossierCheck("failed", name, f"it {how}: the manifest says otherwise")
    if not wrong:
        yield DossierCheck("ok", MANIFEST, f"all {len(own)} files are as it says, none added or missing")
    if digest is None:
        message = f"its digest is {found}: compare it with what was printed, --digest {found[:6]}… does so"
        yield DossierCheck("not checked", MANIFEST, message)


# The records


def _whole(files: Mapping[str, bytes]) -> Iterator[DossierCheck]:
    """Whether it has what each dossier has, and all that its page names."""
    for name in ("index.html", "verify.py"):
        if name not in files:
            yield DossierCheck("failed", name, "it is missing, and every dossier has one")
    page = files.get("index.html", b"").decode("utf-8", "replace")
    linked = {urllib.parse.unquote(html.unescape(one)) for one in re.findall('<a href="([^"#][^"]*)">', page)}
    for name in sorted(linked - set(files) - {MANIFEST, SIGNATURE}):
        yield DossierCheck("failed", name, "it is missing, and index.html links to it")


def _absent(files: Mapping[str, bytes], case: dict[str, Any], names: Iterable[str]) -> Iterator[DossierCheck]:
    """A file that the case does not say is missing has to be there."""
    for name in names:
        if name not in files and name not in case["missing"]:
            yield DossierCheck("failed", name, "it is missing, and the case does not say so")


def check_records(files: Mapping[str, bytes]) -> list[DossierCheck]:
    """Whether requests, evidence, reviews, promotions and retirements agree, wherever one names another."""
    found: list[DossierCheck] = []
    try:
        case = _json(files, "case.json")
        versions = {str(one["uri"]): _Version(files, one) for one in case["versions"]}
        groups = [
            ("timeline", _events(files, case)),
            *((f"request {one['id']}", _request(files, case, one, versions)) for one in case["requests"]),
            *((f"version {uri}", _version(files, case, version, versions)) for uri, version in versions.items()),
            *(
                (f"reviews of {uri}", _reviews(files, case, version))
                for uri, version in versions.items()
                if version.judged
            ),
            *((f"audits of {uri}", _audits(files, version)) for uri, version in versions.items() if version.judged),
            *((f"promotions of {uri}", _promotions(files, version)) for uri, version in versions.items()),
            *((name, _retirement(files, name, versions)) for name in _below(files, "retirements/")),
            ("case.json", _missing(files, case)),
            ("index.html", _page(files)),
        ]
    except _WRONG_SHAPE as error:
        return [DossierCheck("failed", "case.json", f"it is not the record of a case ({_words(error)})")]
    for part, group in groups:
        before = len(found)
        try:
            for one in group:
                found.append(one)
        except _WRONG_SHAPE as error:
            found.append(DossierCheck("failed", part, f"its records cannot be read ({_words(error)})"))
        if all(one.outcome != "failed" for one in found[before:]):
            agree = [one for one in found[before:] if one.outcome == "ok"]
            rest = [one for one in found[before:] if one.outcome != "ok"]
            found[before:] = [
                *([DossierCheck("ok", part, "; ".join(o.message for o in agree))] if agree else []),
                *rest,
            ]
    return found


class _Version:
    """What a dossier has of one version."""

    def __init__(self, files: Mapping[str, bytes], said: dict[str, Any]) -> None:
        self.uri, self.folder, self.role = str(said["uri"]), str(said["folder"]), str(said["role"])
        self.said = said
        self.now = _json(files, f"{self.folder}/version.json")
        self.tags: dict[str, str] = self.now["tags"]
        self.judged = self.role in ("fulfilled", "later")
        name = f"{self.folder}/evidence/evidence.json"
        self.content = files.get(name)
        self.evidence: dict[str, Any] | None = _json(files, name) if self.content is not None else None

    @property
    def digest(self) -> str | None:
        """Of its evidence."""
        return _sha256(self.content) if self.content is not None else None

    @property
    def weights(self) -> str | None:
        """Digest of its weights, by its evidence."""
        return str(self.evidence["result"]["weights_sha256"]) if self.evidence is not None else None


def _request(
    files: Mapping[str, bytes], case: dict[str, Any], said: dict[str, Any], versions: Mapping[str, _Version]
) -> Iterator[DossierCheck]:
    """One request: its file, its list, its tag, and the evidence of who carried it out."""
    part, folder = f"request {said['id']}", said["folder"]
    own = [f"{folder}/{name}" for name in ("request.json", "manifest.csv")]
    yield from _absent(files, case, own)
    if not files.keys() >= {*own}:
        yield DossierCheck("not checked", part, "its files are missing")
        return
    content, filed = files[f"{folder}/request.json"], _json(files, f"{folder}/request.json")
    ids, salt = _ids(files[f"{folder}/manifest.csv"])
    listed = _sha256("\n".join(ids).encode())
    yield _same(part, filed["id"], said["id"], "its file has its id")
    yield _same(part, filed.get("case", filed["id"]), case["id"], "it belongs to this case")
    yield _same(part, filed["manifest_sha256"], listed, "its list of ids has the digest that it names")
    yield _same(part, filed["samples"], len(ids), "its list has as many ids as it says")
    names = (*("of", "due", "requester", "reason", "filed"), *("samples",))
    yield _same(part, {n: filed.get(n) for n in names}, {n: said[n] for n in names}, "the case says what its file says")
    if salt is None:
        named = _sha256("\n".join([filed["of"], *ids]).encode())[:12]
        yield _same(part, said["id"], named, "its id is that of the version and of these samples")
    about = versions.get(filed["of"])
    tag = about.tags.get(f"unlearn.request.{said['id']}") if about is not None else None
    if tag is None:
        yield DossierCheck("not checked", part, f"no tag of {filed['of']} names it")
    else:
        state, _, rest = tag.partition(" ")
        noted = json.loads(rest)
        if noted.get("sha256") is not None:
            yield _same(part, _sha256(content), noted["sha256"], "the tag of its version names the digest of its file")
        in_tag, in_file = ([one.get(key) for key in ("case", "due")] for one in (noted, filed))
        yield _same(part, in_tag, in_file, "its tag has its case and when it is due")
        done = state == "done" and bool(noted.get("by"))
        yield _same(part, done, bool(said["done_by"]), "its tag says whether it was carried out")
    for uri in said["done_by"]:
        version = versions.get(uri)
        if version is None or version.evidence is None:
            yield DossierCheck("not checked", part, f"the evidence of {uri} is missing")
            continue
        yield _same(part, said["id"] in version.evidence["request_ids"], True, f"{uri} says that it carried it out")
    for version in versions.values():
        for one in version.evidence["requests"] if version.evidence is not None else ():
            if one["id"] != said["id"]:
                continue
            yield _same(part, one["manifest_sha256"], listed, f"the evidence of {version.uri} names this list")
            yield _same(part, one["of"], filed["of"], f"the evidence of {version.uri} names its version")
            if one.get("request_sha256") is not None:
                message = f"the evidence of {version.uri} names the digest of its file"
                yield _same(part, one["request_sha256"], _sha256(content), message)


def _version(
    files: Mapping[str, bytes], case: dict[str, Any], version: _Version, versions: Mapping[str, _Version]
) -> Iterator[DossierCheck]:
    """One version: its tags, its evidence, its source, and what lies beside the evidence."""
    part, tags, evidence = f"version {version.uri}", version.tags, version.evidence
    yield _same(part, version.now["uri"], version.uri, "its file is about it")
    yield _same(part, version.now["aliases"], version.said["aliases"], "the case has its aliases")
    yield from _mark(files, case, version)
    if not version.judged:
        return
    if evidence is None:
        yield from _absent(files, case, [f"{version.folder}/evidence/evidence.json"])
        yield DossierCheck("not checked", part, "its evidence is missing")
        return
    yield from _absent(files, case, [f"{version.folder}/evidence/{name}" for name in ("report.html", "model_card.md")])
    result = evidence["result"]
    yield _same(part, f"models:/{result['name']}/{result['version']}", version.uri, "its evidence is about it")
    yield _same(part, version.digest, tags.get("unlearn.evidence_sha256"), "its tag names the digest of its evidence")
    yield _same(part, version.weights, tags.get("unlearn.weights_sha256"), "its tag names the digest of its weights")
    yield _same(part, evidence["run"]["id"], tags.get("unlearn.run_id"), "its tag names the run that made it")
    yield _same(part, evidence["source"]["uri"], tags.get("unlearn.source_uri"), "its tag names its source")
    ids = tags.get("unlearn.request_ids", "").split(",")
    yield _same(part, list(evidence["request_ids"]), ids, "its tag names its requests")
    measured = evidence["metrics"]["unlearned"]["values"]
    tagged = {key[15:]: value for key, value in tags.items() if key.startswith("unlearn.metric.")}
    yield _same(part, {k: repr(float(v)) for k, v in measured.items()}, tagged, "its tags have its metrics")
    report = files.get(f"{version.folder}/evidence/report.html")
    if report is not None:
        yield _same(part, _sha256(report), tags.get("unlearn.report_sha256"), "its tag names the digest of its report")
    stored = version.now["files"] or {}
    for name, digest in stored.items():
        yield _same(part, digest, result["files"].get(name), f"{name} is the one that its evidence names")
    source = versions.get(evidence["source"]["uri"])
    named = evidence["source"]
    if source is not None:
        if source.weights is not None:
            yield _same(part, named["weights_sha256"], source.weights, "its source has the weights that it names")
        if source.digest is not None:
            yield _same(part, named["evidence_sha256"], source.digest, "its source has the evidence that it names")
        for name, digest in (source.now["files"] or {}).items():
            yield _same(part, digest, named["files"].get(name), f"{name} of its source is the one that it read")
    for step in evidence["lineage"]:
        earlier = versions.get(step["uri"])
        if earlier is not None and earlier.digest is not None:
            yield _same(part, step["evidence_sha256"], earlier.digest, f"it names the evidence of {earlier.uri}")
            yield _same(part, step["weights_sha256"], earlier.weights, f"it names the weights of {earlier.uri}")


def _mark(files: Mapping[str, bytes], case: dict[str, Any], version: _Version) -> Iterator[DossierCheck]:
    """Whether it was retired: its tag alone is anybody's word, so that its files were looked for as well."""
    part, tag, gone = f"version {version.uri}", version.tags.get("unlearn.retired"), version.now.get("gone")
    mark = json.loads(tag) if tag is not None else {"unfinished": []}
    ended = "unfinished" not in mark
    if tag is not None and version.role != "copy":
        name = f"retirements/{mark['run_id']}.json"
        if name in files:
            of_it = version.uri in _json(files, name)["versions"]
            yield _same(part, of_it, True, "the retirement that its tag names is of it")
        else:
            yield from _absent(files, case, [name])
            yield DossierCheck("not checked", part, "the retirement that its tag names is missing")
    if ended and "gone" not in version.now:  # of an earlier release
        yield DossierCheck("not checked", part, "it is marked as retired, and nobody looked for its files")
    elif ended:
        yield _same(part, (gone, version.now["files"]), (True, {}), "it is marked as retired and no longer has files")
    yield _same(part, version.said["retired"], ended and gone is not False, "the case says whether it was retired")


def _reviews(files: Mapping[str, bytes], case: dict[str, Any], version: _Version) -> Iterator[DossierCheck]:
    """The chain: each review names the one before, the tags name each review, and one tag the last."""
    part, tags, before = f"reviews of {version.uri}", version.tags, {"n": 0, "sha256": ""}
    noted = {int(key[15:]): json.loads(value) for key, value in tags.items() if re.match("unlearn.review.[0-9]", key)}
    head = tags.get("unlearn.reviews")
    last = int(head.split()[0]) if head is not None else max(noted, default=0)
    for n in range(1, last + 1):
        name = f"{version.folder}/reviews/review-{n}.json"
        if n not in noted:
            yield DossierCheck("failed", part, f"no tag names review {n}")
            return
        if name not in files:
            yield from _absent(files, case, [name])
            yield DossierCheck("not checked", part, f"review {n} is missing")
            before = {"n": n, "sha256": noted[n]["sha256"]}
            continue
        digest, record = _sha256(files[name]), _json(files, name)
        checks = record["verdict"]["checks"]
        word = "pass" if checks and all(one["outcome"] == "pass" for one in checks) else "fail"
        yield _same(part, digest, noted[n]["sha256"], f"the tag of review {n} names the digest of its file")
        yield _same(part, word, noted[n]["verdict"], f"the tag of review {n} says {word}")
        if record.get("previous") is not None:  # earlier releases knew no chain
            message = f"review {n} names review {n - 1}" if n > 1 else "review 1 is the first"
            yield _same(part, record["previous"], before, message)
        about = (record["n"], f"models:/{record['name']}/{record['version']}")
        yield _same(part, about, (n, version.uri), f"review {n} is about this version")
        if version.evidence is not None:
            yield _same(part, record["evidence_sha256"], version.digest, f"review {n} names this evidence")
            yield _same(part, record["weights_sha256"], version.weights, f"review {n} names these weights")
        if record.get("audit") is not None:
            audit = f"{version.folder}/audits/{record['audit']['run_id']}.json"
            if audit in files:
                yield _same(part, _json(files, audit), record["audit"], f"the audit of review {n} is the one here")
        before = {"n": n, "sha256": digest}
    if last:
        yield _same(part, noted[last]["verdict"], tags.get("unlearn.verdict"), "the tags have the last verdict")
    if head is not None:
        yield _same(part, head, f"{before['n']} {before['sha256']}", "the tags name the last review")
    yield _same(
        part, version.said["verdict"], noted[last]["verdict"] if last else None, "the case has the last verdict"
    )


def _audits(files: Mapping[str, bytes], version: _Version) -> Iterator[DossierCheck]:
    """Each audit is of this version and of its forget set."""
    for name in _below(files, f"{version.folder}/audits/"):
        part, audit = f"audits of {version.uri}", _json(files, name)
        yield _same(part, audit["uri"], version.uri, f"audit {audit['run_id']} is of this version")
        if version.evidence is None:
            continue
        yield _same(part, audit["weights_sha256"], version.weights, f"audit {audit['run_id']} is of these weights")
        if audit["forget_sha256"] != version.evidence["data"]["forget"]["sha256"]:
            message = f"audit {audit['run_id']} is of another forget set than the evidence"
            yield DossierCheck("not checked", part, message)


def _promotions(files: Mapping[str, bytes], version: _Version) -> Iterator[DossierCheck]:
    """Each promotion is what its tag says, of this evidence, and by a review that passed or in spite of it."""
    part = f"promotions of {version.uri}"
    for name in _below(files, f"{version.folder}/promotions/"):
        record = _json(files, name)
        tag = version.tags.get(f"unlearn.promotion.{record['alias']}")
        yield _same(part, record, json.loads(tag) if tag is not None else None, f"the tag says {record['alias']} too")
        yield _same(part, record["uri"], version.uri, f"{record['alias']} is about this version")
        if version.evidence is not None:
            yield _same(part, record["evidence_sha256"], version.digest, f"{record['alias']} names this evidence")
            yield _same(part, record["weights_sha256"], version.weights, f"{record['alias']} names these weights")
        review = f"{version.folder}/reviews/review-{record['review']}.json"
        if record["override"] is not None:
            yield DossierCheck("ok", part, f"{record['alias']} was promoted despite its review, which is recorded")
        elif review in files:
            outcomes = {one["outcome"] for one in _json(files, review)["verdict"]["checks"]}
            yield _same(part, outcomes, {"pass"}, f"{record['alias']} rests on review {record['review']}, which passed")
        else:
            yield DossierCheck("not checked", part, f"the review that {record['alias']} rests on is missing")


def _retirement(files: Mapping[str, bytes], name: str, versions: Mapping[str, _Version]) -> Iterator[DossierCheck]:
    """A retirement has ended, and the versions that it names say so."""
    record = _json(files, name)
    for uri in record["versions"]:
        version = versions.get(uri)
        if version is None:  # a copy under another name, perhaps
            continue
        mark = json.loads(version.tags["unlearn.retired"])
        begun = mark.pop("unfinished", None) is not None
        yield _same(name, record["done"], not begun, f"the tag of {uri} says whether it has ended")
        if begun:
            yield DossierCheck("not checked", name, f"it was started but not finished: {uri} may still have files")
            continue
        yield _same(name, {k: record[k] for k in ("at", "by", "run_id", "reason")}, mark, f"the tag of {uri} says so")


_RECORDED: dict[str, Callable[[Any], tuple[object, object, object]]] = {
    "filed": lambda record: (record["filed"], record.get("filed_by"), None),
    "unlearned": lambda record: (record["created"], record["made_by"], record["run"]["id"]),
    "audited": lambda record: (record["at"], record["by"], record["run_id"]),
    "reviewed": lambda record: (record["at"], record["by"], None),
    "promoted": lambda record: (record["at"], record["by"], record["run_id"]),
    "retired": lambda record: (record["at"], record["by"], record["run_id"]),
}
"""Kind of event → its time, person and run, as its record has them; None where it does not name its run."""
_OF_EVENTS = r"requests/[^/]+/request\.json|versions/[^/]+/(evidence/evidence\.json|(reviews|audits|promotions)/[^/]+)"


def _events(files: Mapping[str, bytes], case: dict[str, Any]) -> Iterator[DossierCheck]:
    """The timeline has every record, and says of each what the record says."""
    part = "timeline"
    records = {name for name in files if re.fullmatch(_OF_EVENTS, name) or name.startswith("retirements/")}
    told = [event["file"] for event in case["events"]]
    edited = {path for path in case["missing"] if path in files}
    yield _same(part, sorted(records - edited), sorted(told), "it has every record once")
    for event in case["events"]:
        record = _json(files, event["file"])
        at, by, run_id = _RECORDED[event["kind"]](record)
        said = (event["at"], event["by"], event["run_id"] if run_id is not None else None, event["sha256"])
        of_record = (at, _person(by), run_id, _sha256(files[event["file"]]))
        yield _same(part, said, of_record, f"{event['kind']} {event['at']} is as {event['file']} has it")


def _missing(files: Mapping[str, bytes], case: dict[str, Any]) -> Iterator[DossierCheck]:
    for path, why in case["missing"].items():
        yield DossierCheck("failed" if path in files else "not checked", path, str(why))


def _page(files: Mapping[str, bytes]) -> Iterator[DossierCheck]:
    """The page lists every other file with its digest."""
    if "index.html" not in files:  # it is made when all others are there
        return
    page = files["index.html"].decode("utf-8")
    for name in sorted(set(files) - {"index.html", MANIFEST, SIGNATURE}):
        listed = re.search(re.escape(name) + r"(</a>)?</th><td class=.digest.>([0-9a-f]{64})</td>", page)
        yield _same("index.html", listed[2] if listed else None, _sha256(files[name]), f"it has the digest of {name}")


# Signatures


def check_signatures(files: Mapping[str, bytes], key: bytes | None = None) -> Iterator[DossierCheck]:
    """Of the manifest, by the given key, and of the evidence of each version, by the one that it names."""
    if SIGNATURE in files:
        for one in _signature(files, SIGNATURE, {MANIFEST: MANIFEST}, key, key):
            asked = key is not None and one.outcome != "ok"  # whoever gives a key relies on it
            yield one._replace(outcome="failed") if asked else one
    elif key is not None:
        yield DossierCheck("failed", SIGNATURE, "it is missing: the dossier is not signed")
    else:
        yield DossierCheck("not checked", SIGNATURE, "the dossier is not signed")
    for name in sorted(files):
        match = re.fullmatch(r"(versions/[^/]+/evidence)/evidence\.json", name)
        if match is None:
            continue
        folder, signature = match[1], f"{match[1]}/evidence.sig"
        try:
            recorded = json.loads(files[name]).get("public_key")
        except _WRONG_SHAPE:
            continue  # which was found before
        if signature in files:
            covers = {one: f"{folder}/{one}" for one in ("evidence.json", "report.html", "model_card.md")}
            yield from _signature(files, signature, covers, recorded.encode() if recorded else None, key)
        elif recorded is not None:
            yield DossierCheck("failed", signature, "it is missing: the evidence says that it was signed")


def _signature(
    files: Mapping[str, bytes], name: str, covers: Mapping[str, str], key: bytes | None, trusted: bytes | None
) -> Iterator[DossierCheck]:
    """One signature: that it is over these files needs no key, whose it is does."""
    try:
        bundle = json.loads(files[name])
        envelope = bundle["dsseEnvelope"]
        payload = _decoded(envelope["payload"])
        signed = {one["name"]: one["digest"] for one in json.loads(payload)["predicate"]["resources"]}
        for file, digest in signed.items():
            yield _same(name, _sha256(files[covers[file]]), digest, f"it is over {file}")
        material = bundle["verificationMaterial"]
        hint = material["publicKey"]["hint"]
        [made] = envelope["signatures"]
        kind, signature = envelope["payloadType"], _decoded(made["sig"])
        known = bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json" and not made["keyid"]
        if not known or set(material) - {"publicKey", "tlogEntries"}:
            raise ValueError("it is of another kind")
    except _WRONG_SHAPE as error:
        yield DossierCheck("failed", name, f"it is not a signature of these files ({_words(error)})")
        return
    if next(iter(covers)) not in signed:
        yield DossierCheck("failed", name, f"it is not over {next(iter(covers))}")
    if key is None:
        yield DossierCheck("not checked", name, f"it names the key sha256:{hint}: --key names the public key")
        return
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        yield DossierCheck(
            "not checked", name, "signature not checked: install cryptography (pip install cryptography)"
        )
        return

    def written(public: Any) -> bytes:
        pem: bytes = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return pem

    try:
        public = serialization.load_pem_public_key(key)
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise ValueError("it is not an EC key")
        pem = written(public)
        holds = trusted is not None and written(serialization.load_pem_public_key(trusted)) == pem
        size: hashes.HashAlgorithm = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[public.key_size]
        if hint != _sha256(pem):
            raise ValueError(f"the signature names another one, sha256:{hint}")
        said = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
        public.verify(signature, said, ec.ECDSA(size))
    except InvalidSignature:
        yield DossierCheck("failed", name, "it was not made by the holder of this key, or over something else")
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm) as error:
        yield DossierCheck("failed", name, f"it does not hold for this key ({_words(error)})")
    else:
        message = f"it was made by the holder of the key sha256:{_sha256(pem)}"
        if holds:
            yield DossierCheck("ok", name, message)
        else:
            yield DossierCheck(
                "not checked", name, f"{message}, which the evidence names itself: --key says whom to trust"
            )


def _decoded(text: str) -> bytes:
    """Of base64, which may be written in several ways: only the usual one."""
    found = base64.b64decode(text, validate=True)
    if base64.b64encode(found).decode() != text:
        raise ValueError("its base64 is not written as it was")
    return found


# Small things


def _same(part: str, found: object, expected: object, message: str) -> DossierCheck:
    if found == expected and type(found) is type(expected):
        return DossierCheck("ok", part, message)
    return DossierCheck("failed", part, f"not so: {message} ({_short(found)}, and not {_short(expected)})")


def shown(text: str) -> str:
    r"""A text with nothing in it that would steer a terminal, or that it has no letter for.

    >>> shown("a\x1b[2J\u202eb")
    'a\\x1b[2J\\u202eb'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def _print(text: str, file: TextIO) -> None:
    encoding = file.encoding or "ascii"
    print(shown(text).encode(encoding, "backslashreplace").decode(encoding), file=file)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:48]} … {text[-48:]}"


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200].replace("\n", " ")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    found = json.loads(files[name].decode("utf-8"))
    if not isinstance(found, dict):
        raise TypeError(f"{name} is not a JSON object")
    return found


def _below(files: Mapping[str, bytes], folder: str) -> list[str]:
    return [name for name in sorted(files) if name.startswith(folder)]


def _ids(content: bytes) -> tuple[list[str], str | None]:
    """The sorted ids of a list and its salt; a list is written in one way."""
    text = content.decode("utf-8")
    first, _, rest = text.partition("\n")
    salt = first[7:] if first.startswith("# salt=") else None
    rows = list(csv.reader(io.StringIO(text if salt is None else rest), strict=True))
    ids = [row[0] for row in rows[1:]]
    again = io.StringIO()
    csv.writer(again, lineterminator="\n").writerows([["id"], *([one] for one in ids)])
    head = "" if salt is None else f"# salt={salt}\n"
    if ids != sorted(ids) or head + again.getvalue() != text or not re.fullmatch("[0-9a-fA-F]+", salt or "0"):
        raise ValueError("the list of ids is not written as it was filed")
    return ids, salt


def _person(value: object) -> object:
    """A person's name, as the timeline has it."""
    if not isinstance(value, dict):
        return value if value is not None else "not recorded"
    return value["name"] if value["authenticated"] else f"{value['name']} (not authenticated)"


def main(arguments: list[str] | None = None) -> int:
    """Check and print; the exit code."""
    parser = argparse.ArgumentParser(description="Check a dossier, offline.")
    parser.add_argument("dossier", nargs="?", help="folder or zip; default: the folder of this file")
    parser.add_argument("--digest", help=f"SHA-256 of {MANIFEST}, as it was printed when the dossier was made")
    parser.add_argument("--key", help="public EC key (PEM file) that the dossier was signed with")
    given = parser.parse_args(arguments)
    try:
        key = Path(given.key).read_bytes() if given.key is not None else None
        found = check(read(Path(given.dossier or Path(__file__).parent)), digest=given.digest, key=key)
    except (NotADossier, OSError) as error:
        _print(f"Error: {error}", sys.stderr)
        return 2
    for one in found:
        _print(f"{one.outcome:12}{one.part}: {one.message}", sys.stdout)
    failed = [one for one in found if one.outcome == "failed"]
    print(f"{len(failed)} of {len(found)} checks failed." if failed else "Everything that was checked agrees.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
