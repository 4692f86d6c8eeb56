"""What a store holds, file by file: all below a root, and in a bucket every version of every object."""

import hashlib
import os
import posixpath
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
from mlflow.utils.file_utils import local_file_uri_to_path

from mlflow_unlearn.console import first_line
from mlflow_unlearn.governance.location import FILE, Location
from mlflow_unlearn.registry.network import persistently

_AT_ONCE = 8
"""Folders that are asked for at the same time: a server takes as long for each, however few files it has."""
_CHUNK = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    """One file below a root, or one version of an object.

    Attributes:
        path: relative to the root.
        uri: of the file.
        size: in bytes; None where the store does not tell.
        digest: its SHA-256, for which all of it is read.
        older: the id of an object version that is not the newest one: it is read by nobody, and is there.
    """

    path: str
    uri: str
    size: int | None
    digest: Callable[[], str]
    older: str | None = None

    @property
    def place(self) -> str:
        """As it is shown."""
        return self.uri if self.older is None else f"{self.uri} (object version {self.older})"


@dataclass(frozen=True)
class Unseen:
    """What could not be looked at, and why; ``older`` if that are versions of objects which are not the newest ones."""

    place: str
    why: str
    older: bool = False


def stored_files(root: Location) -> Iterator[StoredFile | Unseen]:
    """All files below a folder; what its store does not show is named.

    Through links to folders too, since MLflow follows them. A folder of this machine that is not there has no files.
    """
    try:
        if root.doubt:
            raise OSError(root.doubt)
        if root.store == FILE:
            yield from _of_this_machine(root)
        elif (bucket := _bucket_of(root.uri)) is not None:
            yield from _of_bucket(root, bucket)
        else:
            yield from _by_mlflow(root)
    except Exception as error:  # a store's client raises whatever it likes, also that it is not installed
        yield Unseen(root.uri, first_line(error))


def remove_object_versions(folder: Location, paths: Collection[str]) -> list[Unseen]:
    """Delete what a bucket with versioning keeps of objects that were deleted.

    An object that is there again is left alone.

    Args:
        folder: where they were.
        paths: of these objects below the folder, no others.

    Returns:
        What is left, and why: a retention period, a legal hold, no permission.
    """
    left: list[Unseen] = []
    try:
        if folder.doubt or folder.store == FILE or (bucket := _bucket_of(folder.uri)) is None:
            return []
        markers: list[tuple[str, str]] = []
        kept: set[str] = set()
        keys = {posixpath.join(bucket.prefix, path) for path in paths}
        for page in bucket.pages("list_object_versions"):
            for version in page.get("Versions", ()):
                if version["Key"] not in keys:
                    continue
                why = (
                    "it was stored again"
                    if version["IsLatest"]
                    else bucket.remove(version["Key"], version["VersionId"])
                )
                if why is not None:
                    left.append(Unseen(f"{bucket.uri(version['Key'])} (object version {version['VersionId']})", why))
                    kept.add(version["Key"])
            markers += [(m["Key"], m["VersionId"]) for m in page.get("DeleteMarkers", ()) if m["Key"] in keys]
        for key, marker in markers:
            # Without its marker a version that stays would be there for everybody again.
            if key not in kept and (why := bucket.remove(key, marker)) is not None:
                left.append(Unseen(f"{bucket.uri(key)} (delete marker {marker})", why))
    except Exception as error:  # as above
        left.append(Unseen(f"older object versions at {folder.uri}", first_line(error), older=True))
    return left


def _of_this_machine(root: Location) -> Iterator[StoredFile | Unseen]:
    start = local_file_uri_to_path(root.uri)
    pending, entered = [start], set()
    while pending:
        folder = pending.pop()
        try:
            found = os.stat(folder)
            if (found.st_dev, found.st_ino) in entered:  # links in a circle
                continue
            entered.add((found.st_dev, found.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        pending.append(entry.path)
                    elif entry.is_file():
                        path = os.path.relpath(entry.path, start)
                        yield StoredFile(path, entry.path, entry.stat().st_size, partial(_digest_of_file, entry.path))
        except FileNotFoundError:  # deleted meanwhile
            continue
        except OSError as error:
            yield Unseen(folder, error.strerror or first_line(error))


def _of_bucket(root: Location, bucket: "_Bucket") -> Iterator[StoredFile | Unseen]:
    try:
        for page in bucket.pages("list_object_versions"):
            yield from (bucket.file(v, None if v["IsLatest"] else v["VersionId"]) for v in page.get("Versions", ()))
    except Exception as error:  # a permission of its own, which users of a bucket may lack
        yield Unseen(f"older object versions at {root.uri}", first_line(error), older=True)
        for page in bucket.pages("list_objects_v2"):
            yield from (bucket.file(entry) for entry in page.get("Contents", ()))


def _by_mlflow(root: Location) -> Iterator[StoredFile | Unseen]:
    """Folder by folder, as MLflow lists them."""
    repository = get_artifact_repository(root.uri)

    def listed(folder: str | None) -> list[Any] | Unseen:
        try:
            return list(persistently(lambda: repository.list_artifacts(folder)))
        except Exception as error:  # as in `stored_files`
            if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            return Unseen(posixpath.join(root.uri, folder or ""), first_line(error))

    folders: list[str | None] = [None]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while folders:
            deeper: list[str | None] = []
            for entries in pool.map(listed, folders):
                if isinstance(entries, Unseen):
                    yield entries
                    continue
                deeper += [entry.path for entry in entries if entry.is_dir]
                for entry in entries:
                    if not entry.is_dir:
                        uri, digest = (
                            posixpath.join(root.uri, entry.path),
                            partial(_digest_by_mlflow, repository, entry.path),
                        )
                        yield StoredFile(entry.path, uri, entry.file_size, digest)
            folders = deeper


@dataclass(frozen=True)
class _Bucket:
    """A folder of one: the client and the options are those of MLflow, with its endpoint and its credentials."""

    client: Any
    options: dict[str, str]
    prefix: str

    def pages(self, operation: str) -> Iterable[dict[str, Any]]:
        prefix = f"{self.prefix}/" if self.prefix else ""
        pages: Iterable[dict[str, Any]] = self.client.get_paginator(operation).paginate(Prefix=prefix, **self.options)
        return pages

    def uri(self, key: str) -> str:
        return f"s3://{self.options['Bucket']}/{key}"

    def file(self, entry: dict[str, Any], older: str | None = None) -> StoredFile:
        key = entry["Key"]
        path = posixpath.relpath(key, self.prefix) if self.prefix else key
        return StoredFile(path, self.uri(key), entry["Size"], partial(self.digest, key, older), older)

    def digest(self, key: str, version: str | None) -> str:
        which = {} if version is None else {"VersionId": version}
        digest = hashlib.sha256()
        for chunk in self.client.get_object(Key=key, **which, **self.options)["Body"].iter_chunks(_CHUNK):
            digest.update(chunk)
        return digest.hexdigest()

    def remove(self, key: str, version: str) -> str | None:
        """Delete one version; why it stays, if it does."""
        try:
            self.client.delete_object(Key=key, VersionId=version, **self.options)
        except Exception as error:  # as in `stored_files`
            return self.lock(key, version) or first_line(error)
        return None

    def lock(self, key: str, version: str) -> str:
        """What protects a version, as far as this user may know."""
        try:
            found = self.client.head_object(Key=key, VersionId=version, **self.options)
        except Exception:  # a delete marker, or no permission: why it was not deleted is known, and is said instead
            return ""
        if found.get("ObjectLockLegalHoldStatus") == "ON":
            return "it is under a legal hold"
        if mode := found.get("ObjectLockMode"):
            return f"it is retained ({mode}) until {found['ObjectLockRetainUntilDate'].isoformat()}"
        return ""


def _bucket_of(uri: str) -> _Bucket | None:
    """The bucket of an S3 URI, by MLflow's own repository; None for other stores."""
    repository = get_artifact_repository(uri)
    if not isinstance(repository, S3ArtifactRepository):
        return None
    bucket, path = repository.parse_s3_compliant_uri(uri)
    return _Bucket(repository._get_s3_client(), {"Bucket": bucket, **repository._bucket_owner_params}, path.strip("/"))


def _digest_of_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_by_mlflow(repository: Any, path: str) -> str:
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        return _digest_of_file(str(Path(persistently(lambda: repository.download_artifacts(path, folder)))))
