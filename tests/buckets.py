"""A real S3 server with buckets, in this process."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
import requests
from mlflow.store.artifact import s3_artifact_repo
from moto.s3.models import FakeDeleteMarker, S3Backend
from moto.server import ThreadedMotoServer


@contextmanager
def s3_server(patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an empty S3 server that MLflow finds by its own variables."""
    listed = S3Backend.list_objects

    def as_s3_lists(self, bucket, prefix, *arguments, **named):
        """Moto also lists folders in which every object is deleted, which S3 does not."""
        keys, folders, *rest = listed(self, bucket, prefix, *arguments, **named)
        there = [name for name, key in bucket.keys.items() if not isinstance(key, FakeDeleteMarker)]
        return keys, [folder for folder in folders if any(name.startswith(folder) for name in there)], *rest

    patch.setattr(S3Backend, "list_objects", as_s3_lists)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        patch.setenv(name, value)
    try:
        _as_user(patch)
        requests.post(f"http://{host}:{port}/moto-api/reset", timeout=10).raise_for_status()  # of servers before
        yield boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    finally:
        server.stop()


@contextmanager
def restricted_to(actions: list[str], client: Any, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow as a user who may do these things alone; the server looks at permissions inside the block."""
    endpoint = client.meta.endpoint_url
    iam = boto3.client("iam", endpoint_url=endpoint)
    iam.create_user(UserName="restricted")
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="restricted", PolicyName="some", PolicyDocument=policy)
    key = iam.create_access_key(UserName="restricted")["AccessKey"]
    with patch.context() as inside:
        inside.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        inside.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        _as_user(inside)
        requests.post(f"{endpoint}/moto-api/reset-auth", data=b"0", timeout=10).raise_for_status()
        yield
    requests.post(f"{endpoint}/moto-api/reset-auth", data=b"Infinity", timeout=10).raise_for_status()
    _as_user(patch)


def _as_user(patch: pytest.MonkeyPatch) -> None:
    """Have clients ask the environment again who they are: MLflow and boto3 remember it."""
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    patch.setattr(boto3, "DEFAULT_SESSION", None)


def object_versions(client: Any, bucket: str) -> dict[str, list[str]]:
    """Key → versions and delete markers that are there."""
    page = client.list_object_versions(Bucket=bucket)
    found: dict[str, list[str]] = {}
    for entry in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
        found.setdefault(entry["Key"], []).append(entry["VersionId"])
    return found
