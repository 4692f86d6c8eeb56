"""The whole story against `mlflow server` with users and PostgreSQL, by the command line alone, as three people."""

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from databases import postgres_programs, postgres_server
from kills import Ended, Forge
from servers import mlflow_server
from stores import DATA, Store
from werkzeug.security import generate_password_hash

LENIENT = """
name: lenient
rules: [{metric: acc_test, at_least: 0.1}]
membership: null
required: [signature]
signers: [ours.pub]
two_person: true
"""
PASSWORDS = {name: f"{name}-secret-1234" for name in ("admin", "engineer", "reviewer", "reader")}

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.skipif(postgres_programs() is None, reason="needs Debian's package postgresql"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """URI of a server that knows users, and their database; its runs, models and requests are in PostgreSQL."""
    folder = tmp_path_factory.mktemp("access")
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder / 'users.db'}\n"
        f"admin_username = admin\nadmin_password = {PASSWORDS['admin']}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    with (
        postgres_server() as database,
        mlflow_server(
            folder,
            f"{database}/postgres",
            *("--app-name", "basic-auth"),
            MLFLOW_AUTH_CONFIG_PATH=str(folder / "auth.ini"),
            MLFLOW_FLASK_SERVER_SECRET_KEY="of this test alone",
        ) as uri,
    ):
        yield uri, folder / "users.db"


def hash_cheaply(database: Path) -> None:
    """The server hashes the password of each request, by scrypt for 0.17 s: most of what this test would wait for."""
    with closing(sqlite3.connect(database)) as users, users:
        for name, password in PASSWORDS.items():
            cheap = generate_password_hash(password, method="pbkdf2:sha256:1")
            users.execute("UPDATE users SET password_hash = ? WHERE username = ?", (cheap, name))


def environment(uri: str, user: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return kept | {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": PASSWORDS[user],
        "MLFLOW_EXPERIMENT_NAME": f"experiment of {user}",
        "PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[n]) for n in (1, 2)),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def forge():
    running = Forge({"COLUMNS": "200"})
    yield running
    running.close()


@pytest.mark.nightly
def test_the_story_of_three_people(server, forge, keys, tmp_path):
    server, database = server

    def users(code: str) -> None:
        """What only MLflow's own client of the users can do."""
        text = f"from mlflow.server import get_app_client\nc = get_app_client('basic-auth', {server!r})\n{code}"
        subprocess.run([sys.executable, "-c", text], check=True, env=environment(server, "admin"), cwd=tmp_path)

    def as_user(user: str, *arguments: str) -> Ended:
        return forge.run(Store(tmp_path), *arguments, **environment(server, user))

    def done(user: str, *arguments: str) -> str:
        result = as_user(user, *arguments)
        assert result.code == 0, result.err
        return result.out

    def refused(user: str, *arguments: str, code: int = 2, sentence: str = "does not permit this to") -> None:
        result = as_user(user, *arguments)
        assert result.code == code, result.out + result.err
        assert sentence in result.err
        assert "Traceback" not in result.err

    (tmp_path / "policy.yaml").write_text(LENIENT)
    (tmp_path / "theirs.yaml").write_text(LENIENT.replace("ours", "theirs"))
    (tmp_path / "empty.yaml").write_text("rules: []\nmembership: null\nminimum: {}\ntwo_person: true\n")
    for name in ("ours.pub", "theirs.pub"):
        (tmp_path / name).write_bytes((keys / name).read_bytes())
    users("".join(f"c.create_user({u!r}, {p!r})\n" for u, p in PASSWORDS.items() if u != "admin"))
    hash_cheaply(database)
    done(
        *("engineer", "train", "--data", DATA, "--name", "clf", "--architecture", "toy:trainable"),
        *("--epochs", "20", "--lr", "0.05", "--batch-size", "32"),
    )
    users("c.grant_user_permission('reviewer', 'registered_model', 'clf', 'EDIT')")
    version_1, version_2 = ("--model-uri", "models:/clf/1"), ("--model-uri", "models:/clf/2")

    # A reader may look, and no more, by these commands or by hand.
    by_hand = subprocess.run(
        [sys.executable, "-c", BY_HAND],
        capture_output=True,
        text=True,
        env=environment(server, "reader"),
        cwd=tmp_path,
        check=True,
    ).stdout
    assert by_hand.splitlines() == ["PERMISSION_DENIED"] * 4, by_hand
    refused("reader", "request", *version_1, "--forget", "random:20")
    filed = done("engineer", "request", *version_1, "--forget", "random:20", "--requester", "p-7", "--reason", "asked")
    assert re.search(r"Filed request [0-9a-f]{12}", filed)
    signed = ("--sign-key", str(keys / "ours.pem"))
    assert "Registered clf version 2" in done("engineer", "unlearn", *version_1, "--params", '{"epochs": 2}', *signed)
    assert "agrees with its evidence" in done("reader", "verify", *version_2)
    assert "contains" in done("reader", "exposure", *version_2)
    refused("reader", "review", *version_2, "--policy", "policy.yaml")

    # A policy says whose signature counts, and has to judge something.
    refused("reviewer", "review", *version_2, "--policy", "empty.yaml", sentence="judges nothing")
    foreign = "which the policy does not name"
    refused("reviewer", "review", *version_2, "--policy", "theirs.yaml", code=3, sentence=foreign)

    # Two people: the engineer may review, and not promote what the engineer has made.
    assert "passes the policy 'lenient'" in done("reviewer", "review", *version_2, "--policy", "policy.yaml")
    refused("engineer", "promote", *version_2, code=3, sentence="'engineer' filed request")
    refused("reviewer", "promote", *version_2, "--approver", "boss", code=3, sentence="knows you as 'reviewer'")
    refused("reader", "promote", *version_2)
    assert "clf@champion is now version 2, approved by reviewer." in done("reviewer", "promote", *version_2)
    refused("reader", "retire", *version_1, "--yes", "true")
    refused("engineer", "retire", *version_2, "--yes", "true", code=3, sentence="clf@champion")
    assert "None of these URIs can be read now" in done("engineer", "retire", *version_1, "--yes", "true")
    seen = " ".join(done("reader", "verify", *version_2).replace("│", " ").split())
    assert "promoted by reviewer" in seen and "its policy says the same of the evidence" in seen
    subprocess.run([sys.executable, "-c", FORGED], check=True, env=environment(server, "engineer"), cwd=tmp_path)
    refused("reader", "verify", *version_2, code=3, sentence="tag unlearn.warning: as the evidence has it: 'none'")
    assert "contains" not in done("reader", "exposure", *version_2)

    # No password is anywhere in what was stored.
    log = subprocess.run(
        [sys.executable, "-c", DUMP], check=True, capture_output=True, text=True, env=environment(server, "admin")
    ).stdout
    assert "config.yaml" in log
    assert not any(password in log for password in PASSWORDS.values())


BY_HAND = """
import mlflow
client = mlflow.MlflowClient()
for attempt in (
    lambda: client.set_model_version_tag("clf", "1", "unlearn.verdict", "pass"),
    lambda: client.delete_model_version_tag("clf", "1", "unlearn.data"),
    lambda: client.set_registered_model_alias("clf", "champion", "1"),
    lambda: client.delete_model_version("clf", "1"),
):
    try:
        attempt()
        print("done")
    except mlflow.MlflowException as error:
        print(error.error_code)
"""

FORGED = """
import mlflow
mlflow.MlflowClient().set_model_version_tag("clf", "2", "unlearn.warning", "none")
"""

DUMP = """
import mlflow, pathlib, tempfile
client = mlflow.MlflowClient()
for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):
    print(run.data.params, run.data.tags)
    folder = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=tempfile.mkdtemp())
    for path in pathlib.Path(folder).rglob("*"):
        print(path, path.read_bytes() if path.is_file() else "")
for version in client.search_model_versions():
    print(version.tags, version.description)
"""
