"""Deliveries of MLflow's webhooks: whether they are what they say, and what of them is an event that counts.

MLflow follows https://www.standardwebhooks.com with headers of its own (``mlflow/webhooks/delivery.py``).
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from email.message import Message
from typing import Any

from mlflow.webhooks.constants import (
    WEBHOOK_DELIVERY_ID_HEADER,
    WEBHOOK_SIGNATURE_HEADER,
    WEBHOOK_SIGNATURE_VERSION,
    WEBHOOK_TIMESTAMP_HEADER,
)

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.parsing import load_json, whole_number
from mlflow_unlearn.registry.forget_requests import TAG, ForgetRequest


class BadDelivery(Exception):
    """A delivery that is not accepted.

    Attributes:
        status: of the answer: 401 where nothing is known of its sender, 400 otherwise.
    """

    def __init__(self, status: int, sentence: str) -> None:
        """With the sentence that is the answer."""
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class RegistryEvent:
    """Something that has happened to a model version.

    Attributes:
        kind: ``request``, ``version`` or ``alias``.
        detail: the id of the request, or the alias.
        model: name of the registered model.
        version: its number.
        sent: when the server sent it, in seconds; 0 if it did not say.
    """

    kind: str
    detail: str
    model: str
    version: str
    sent: float = 0.0


def signature(secret: bytes, delivery: str, timestamp: str, body: bytes) -> str:
    """What MLflow puts into the header of a delivery: the HMAC-SHA256 of ``ID.TIMESTAMP.BODY``.

    Args:
        secret: of the webhook.
        delivery: its id.
        timestamp: when it was sent, as its header has it.
        body: as it was sent.
    """
    digest = hmac.new(secret, f"{delivery}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"{WEBHOOK_SIGNATURE_VERSION},{base64.b64encode(digest).decode()}"


def check(headers: Message, body: bytes, secret: bytes, *, now: float, window: float) -> str:
    """The id of a delivery that is signed, and new.

    Args:
        headers: of the request.
        body: of the request.
        secret: of the webhook.
        now: seconds since 1970.
        window: how many seconds its timestamp may differ from ``now``.

    Raises:
        BadDelivery: it is not signed with the secret, or too old.
    """
    names = (WEBHOOK_DELIVERY_ID_HEADER, WEBHOOK_TIMESTAMP_HEADER, WEBHOOK_SIGNATURE_HEADER)
    delivery, timestamp, signed = (headers.get(name, "") for name in names)
    for name, value in zip(names, (delivery, timestamp, signed), strict=True):
        if not value:
            raise BadDelivery(401, f"the header {name} is missing: create the webhook with a secret")
    expected = signature(secret, delivery, timestamp, body)
    # Several, separated by spaces, while a secret is changed.
    if not any(hmac.compare_digest(one.encode(), expected.encode()) for one in signed.split()):
        raise BadDelivery(401, "the signature is wrong: the webhook and the listener need the same secret")
    seconds = whole_number(timestamp)
    if seconds is None or abs(now - seconds) > window:
        raise BadDelivery(400, f"the timestamp {timestamp[:20]} is more than {window:g} seconds from the clock here")
    return delivery


def parse(body: bytes) -> RegistryEvent | None:
    """The event of a delivery; None for one that no rule is about.

    Raises:
        BadDelivery: it is not a delivery of MLflow.
    """
    try:
        content = load_json(body)
        name = f"{content['entity']}.{content['action']}"
        data: dict[str, Any] = content["data"]
        sent = datetime.fromisoformat(content["timestamp"]).timestamp() if "timestamp" in content else 0.0
        if name == "model_version.created":
            return RegistryEvent("version", "", str(data["name"]), str(data["version"]), sent)
        if name == "model_version_alias.created":
            return RegistryEvent("alias", str(data["alias"]), str(data["name"]), str(data["version"]), sent)
        if name != "model_version_tag.set" or not str(data["key"]).startswith(TAG):
            return None
        request = pending(str(data["name"]), str(data["version"]), str(data["key"]), str(data["value"]))
        if request is None:
            return None
        return RegistryEvent("request", request.id, str(data["name"]), str(data["version"]), sent)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadDelivery(400, f"this is not a delivery of MLflow ({type(error).__name__}: {error})") from error


def pending(model: str, version: str, key: str, value: str) -> ForgetRequest | None:
    """The request that a tag says is pending about this very version; a copy of the tag on another one is not.

    Args:
        model: name of the registered model.
        version: that has the tag.
        key: of the tag.
        value: of the tag.
    """
    if not key.startswith(TAG) or value.partition(" ")[0] != "pending":
        return None
    try:
        request = ForgetRequest.from_tag(key, value)
    except UnlearnError:  # edited by hand: `unlearn` refuses the version with that sentence
        return None
    return request if request.of == f"models:/{model}/{version}" and not request.ad_hoc else None
