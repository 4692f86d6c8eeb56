"""Whether two URIs name one folder."""

import mlflow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_unlearn.governance import location
from mlflow_unlearn.governance.location import Relations, locate, relation

MODEL = "1/models/m-0123/artifacts"


@pytest.fixture(autouse=True)
def server(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.com/prefix")
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        (f"s3://bucket/{MODEL}", f"s3://bucket//{MODEL}/", "same"),
        (f"s3://bucket/{MODEL}", f"S3://bucket/x/../{MODEL}", "same"),
        ("s3://bucket/a b", "s3://bucket/a%2520b", "same"),
        ("s3://bucket/a", "s3://bucket/ab", "apart"),
        ("s3://bucket/a/b", "s3://bucket/a", "inside"),
        ("s3://bucket", "s3://bucket/a", "around"),
        (f"s3://bucket/{MODEL}", f"s3://other/{MODEL}", "apart"),
        (f"s3://bucket/{MODEL}", f"gs://bucket/{MODEL}", "apart"),
        ("wasbs://one@x.blob.core.windows.net/a", "wasbs://two@x.blob.core.windows.net/b", "apart"),
        ("sftp://me:secret@host/a", "sftp://host/a", "same"),
        (f"mlflow-artifacts:/{MODEL}", f"mlflow-artifacts://mlflow.example.com/{MODEL}", "same"),
        (
            f"mlflow-artifacts:/{MODEL}",
            f"https://MLflow.example.com/prefix/api/2.0/mlflow-artifacts/artifacts/{MODEL}",
            "same",
        ),
        (f"mlflow-artifacts:/{MODEL}", f"mlflow-artifacts://10.0.0.1:5000/{MODEL}", "unclear"),
        (f"mlflow-artifacts:/{MODEL}", f"s3://bucket/store/{MODEL}", "unclear"),
        (f"mlflow-artifacts:/{MODEL}", f"s3://bucket/store/{MODEL}/data", "unclear"),
        (f"mlflow-artifacts:/{MODEL}", f"/srv/store/{MODEL}", "unclear"),
        (f"mlflow-artifacts:/{MODEL}", "s3://bucket/store/2/models/m-4567/artifacts", "apart"),
        ("s3://bucket", f"/srv/store/{MODEL}", "unclear"),
        ("s3://bucket:port", "s3://bucket/a", "apart"),
        ("http://[::1/a", "s3://bucket/a", "unclear"),
        ("/srv/a", "file:///srv/a", "same"),
        ("/", "/srv/a", "around"),
        ("a", "/srv/a", "unclear"),
        ("FILE:///srv/a", "/srv/a", "unclear"),
    ],
)
def test_relation(one, other, how):
    opposite = {"inside": "around", "around": "inside"}
    assert relation(locate(one), locate(other)) == how
    assert relation(locate(other), locate(one)) == opposite.get(how, how)


def test_links_are_followed(tmp_path):
    (tmp_path / "real" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert relation(locate(f"{tmp_path}/link/model"), locate((tmp_path / "real").as_uri())) == "inside"
    # Of what has been deleted as well.
    assert relation(locate(f"{tmp_path}/link/gone"), locate(f"{tmp_path}/real/gone/")) == "same"
    # ``..`` behind a link leads out of the folder that it names.
    (tmp_path / "deep").symlink_to(tmp_path / "real" / "model")
    assert relation(locate(f"{tmp_path}/deep/../x"), locate(f"{tmp_path}/real/x")) == "same"


def test_what_cannot_be_followed(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for uri in (f"{tmp_path}/circle/model", f"file://{tmp_path}/%00", "", "file:"):
        found = locate(uri)
        assert found.doubt and relation(found, found) == "unclear"


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda parts: "/".join(parts))
URIS = st.one_of(
    NAMES.map(lambda path: f"/nowhere/{path}"),
    NAMES.map(lambda path: f"s3://bucket/{path}"),
    NAMES.map(lambda path: f"mlflow-artifacts://host/{path}"),
    st.just("relative/path"),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(many=st.lists(URIS, max_size=8), one=URIS)
def test_many_are_compared_as_one_by_one(many, one):
    """The first that is the same; else the first that is not apart."""
    locations = {str(number): locate(uri) for number, uri in enumerate(many)}
    found = [(name, relation(locate(one), location)) for name, location in locations.items()]
    near = [entry for entry in found if entry[1] != "apart"]
    expected = next((entry for entry in near if entry[1] == "same"), near[0] if near else ("", "apart"))
    assert Relations(locations).first(locate(one)) == expected


def test_links_and_mounts_are_known_among_many(tmp_path):
    (tmp_path / "real" / "part").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    others = {str(n): locate(str(tmp_path / f"other{n}")) for n in range(3)}
    many = Relations({**others, "real": locate(str(tmp_path / "real"))})
    assert many.first(locate(str(tmp_path / "link"))) == ("real", "same")
    assert many.first(locate(str(tmp_path / "link" / "part"))) == ("real", "inside")
    assert many.first(locate(str(tmp_path))) == ("0", "around")
    assert many.first(locate(str(tmp_path / "apart"))) == ("", "apart")


@pytest.mark.parametrize("stores", [("s3://bucket",), ("s3://bucket", "mlflow-artifacts://host", "/nowhere")])
def test_a_folder_is_compared_only_with_those_near_it(stores, monkeypatch):
    uris = [f"{stores[n % len(stores)]}/1/models/m-{n:04}/artifacts" for n in range(200)]
    many, compared = Relations({uri: locate(uri) for uri in uris}), []
    monkeypatch.setattr(location, "relation", lambda *both: compared.append(both) or relation(*both))
    for uri in uris:
        assert many.first(locate(uri)) == (uri, "same")
    assert many.first(locate(f"{stores[0]}/1/models/m-9999/artifacts")) == ("", "apart")
    assert len(compared) == 200
