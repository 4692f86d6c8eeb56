"""What of a delivery is an event."""

import pytest
from listeners import event, pending
from mlflow.webhooks.delivery import _generate_hmac_signature

from mlflow_unlearn.events.webhook import BadDelivery, RegistryEvent, parse, signature

SENT = 1767225600.0  # 2026-01-01
ID = "0123456789ab"


@pytest.mark.parametrize("text", ["", '{"name": "a b"}', '{"name": "größe"}'])
def test_the_signature_is_mlflows_own(text):
    assert signature(b"secret", "id", "1614265330", text.encode()) == _generate_hmac_signature(
        "secret", "id", "1614265330", text
    )


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (pending("clf", "1", ID), RegistryEvent("request", ID, "clf", "1", SENT)),
        (pending("clf", "2", ID, of="models:/clf/1"), None),  # a copy of the tag
        (pending("clf", "1", ID, state="done"), None),
        (event("model_version_tag.set", name="clf", version="1", key="owner", value="pending"), None),
        (event("model_version_tag.set", name="clf", version="1", key=f"unlearn.request.{ID}", value="pending x"), None),
        (event("model_version.created", name="clf", version="3"), RegistryEvent("version", "", "clf", "3", SENT)),
        (
            event("model_version_alias.created", name="clf", version="3", alias="champion"),
            RegistryEvent("alias", "champion", "clf", "3", SENT),
        ),
        (event("model_version_alias.deleted", name="clf", alias="champion"), None),
        (event("prompt.created", name="p"), None),
        (event("something.new", name="clf"), None),
    ],
)
def test_events_that_count(body, found):
    assert parse(body) == found


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b"{}", b'{"entity": 1}', b"\xff", b'{"a": ' * 3000])
def test_what_is_not_a_delivery(body):
    with pytest.raises(BadDelivery, match="^this is not a delivery of MLflow") as refused:
        parse(body)
    assert refused.value.status == 400


def test_an_event_without_its_data():
    with pytest.raises(BadDelivery, match="KeyError"):
        parse(event("model_version.created", name="clf"))
