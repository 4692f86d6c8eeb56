"""What options name, looked up before the command's own libraries are loaded: they take seconds, this does not."""

from collections.abc import Iterator

from mlflow_unlearn.config import Audit, Command, Request
from mlflow_unlearn.evidence.signing import check_key
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.tracking import read_only_client
from mlflow_unlearn.registry.versions import check_there

_URIS = ("model_uri", "from_", "original_uri", "gold_uri")


def check_named(options: Command) -> None:
    """Refuse a private key, a version or a request that is not there; the command itself opens them.

    Raises:
        UnlearnError: also where the store cannot be reached.
    """
    check_key(getattr(options, "sign_key", None))
    uris, requests = [*_uris(options)], [*_requests(options)]
    if not uris and not requests:
        return
    with read_only_client() as client:
        for uri in uris:
            check_there(client, uri)
        for request_id in requests:
            forget_requests.run_of(client, request_id)


def _uris(options: Command) -> Iterator[str]:
    """Of options that take one version; what takes several may well go on with some of them."""
    several = ("gold_uri",) if isinstance(options, Audit) else ("model_uri",) if isinstance(options, Request) else ()
    for name in _URIS:
        uri = getattr(options, name, None)
        if uri and not (name in several and "," in uri):
            yield uri


def _requests(options: Command) -> Iterator[str]:
    exclude = getattr(options, "exclude", None)
    for spec in (getattr(options, "forget", None), exclude and forget_requests.excluded(exclude)):
        scheme, colon, value = (spec or "").partition(":")
        if colon and scheme == "request":
            yield value
