"""What options name, looked up before the command's own libraries are loaded: they take seconds, this does not."""

from collections.abc import Iterator

from mlflow_unlearn.config import Command
from mlflow_unlearn.evidence.signing import check_key
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.tracking import read_only_client
from mlflow_unlearn.registry.versions import check_there

_URIS = ("model_uri", "from_", "original_uri", "gold_uri", "alike_uri")
_SPECS = ("forget", "exclude")


def check_named(options: Command) -> None:
    """Refuse a private key, a version or a request that is not there; the command itself opens them.

    Raises:
        UnlearnError: also where the store cannot be reached.
    """
    check_key(getattr(options, "sign_key", None))
    uris, requests = [*_listed(options, _URIS)], [*_requests(options)]
    if not uris and not requests:
        return
    with read_only_client() as client:
        for uri in uris:
            check_there(client, uri)
        for request_id in requests:
            forget_requests.run_of(client, request_id)


def _listed(options: Command, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        parts = [part.strip() for part in (getattr(options, name, None) or "").split(",")]
        if name == "model_uri" and len(parts) > 1:  # a request goes on with those that are there
            continue
        yield from filter(None, parts)


def _requests(options: Command) -> Iterator[str]:
    for name in _SPECS:
        scheme, colon, value = (getattr(options, name, None) or "").partition(":")
        if colon and scheme == "request":
            yield value
