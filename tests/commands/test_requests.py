"""`requests`: the inbox, its page, and carrying out what is open."""

import json
import re
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import pytest
from answers import checked
from stores import call, shell

from mlflow_unlearn.data.loaders import load_source

TRAINED = load_source("digits,train=15%").train.ids
QUICK = '{"method": "finetune", "params": "{\\"epochs\\": 1}"}'


@pytest.fixture
def ids(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(TRAINED[:12]))
    return path


def inbox(cli, *options: str) -> list[dict]:
    done = cli("requests", "--format", "json", *options)
    assert done.code == 0, done.err
    return json.loads(done.out)["result"]["cases"]


def test_one_case_on_all_models(store, cli, ids):
    store.client.copy_model_version("models:/clf/1", "served")
    due = (datetime.now(UTC) + timedelta(days=3)).date().isoformat()
    filed = cli(
        *("request", "--forget", ids, "--all", "true", "--due", due, "--requester", "person-7"),
        *("--reason", "letter of Monday", "--format", "json"),
    )
    assert filed.code == 0, filed.err
    result = json.loads(filed.out)["result"]
    assert [r["uri"] for r in result["requests"]] == ["models:/clf/1", "models:/served/1"] and result["due"] == due
    [case] = inbox(cli)
    assert (case["id"], case["state"], case["days_left"]) == (result["case_id"], "open", 3)
    assert {r["id"] for r in case["requests"]} == {r["request_id"] for r in result["requests"]}
    assert case["still_in"] == ["models:/clf/1", "models:/served/1"] and case["requester"] == "person-7"
    # Filed again, it is the same case; and one on a single version joins it.
    again = cli("request", "--forget", ids, "--model-uri", "models:/clf/1", "--format", "json")
    assert (
        json.loads(again.out)["result"]["case_id"] == case["id"]
        and not json.loads(again.out)["result"]["requests"][0]["new"]
    )
    assert len(inbox(cli)) == 1


def test_overdue_ones_come_first_and_filters(store, cli, ids, tmp_path):
    assert cli("request", "--forget", ids, "--model-uri", "models:/clf/1").code == 0
    (tmp_path / "late.txt").write_text("\n".join(TRAINED[20:25]))
    assert (
        cli("request", "--forget", tmp_path / "late.txt", "--model-uri", "models:/clf/1", "--due", "2024-02-29").code
        == 0
    )
    late, open_one = inbox(cli)
    assert (late["state"], late["due"]) == ("overdue", "2024-02-29") and late["days_left"] < -900
    assert open_one["state"] == "open"
    assert [case["id"] for case in inbox(cli, "--state", "overdue")] == [late["id"]]
    assert inbox(cli, "--state", "done") == [] == inbox(cli, "--model", "other*")
    assert [case["id"] for case in inbox(cli, "--subject", "late.txt")] == [late["id"]]
    assert len(inbox(cli, "--model", "cl*")) == 2
    shown = cli("requests")
    assert shown.out.index(late["id"]) < shown.out.index(open_one["id"])


def test_due_days_of_the_environment(store, cli, ids, monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_DUE_DAYS", "7")
    assert cli("request", "--forget", ids, "--model-uri", "models:/clf/1").code == 0
    assert inbox(cli)[0]["days_left"] == 7
    monkeypatch.setenv("MLFLOW_UNLEARN_DUE_DAYS", "soon")
    refused = cli("requests")
    assert refused.code == 2 and "MLFLOW_UNLEARN_DUE_DAYS = 'soon' is not a number of days" in refused.err


def test_the_page(store, cli, ids, tmp_path):
    assert cli("request", "--forget", ids, "--model-uri", "models:/clf/1", "--requester", "<b>x</b>").code == 0
    done = cli("requests", "--format", "html", "--output", tmp_path / "in.html")
    page = (tmp_path / "in.html").read_text()
    assert done.code == 0 and "0 overdue, 1 open" in page and "models:/clf/1" in page and "&lt;b&gt;x" in page
    refused = cli("requests", "--format", "html", "--output", tmp_path / "no" / "in.html")
    assert refused.code == 2 and "cannot be written" in refused.err


@pytest.mark.nightly
def test_one_case_with_its_timeline(store, cli, ids, tmp_path):
    """By the case's id or a request's, open or done: in the terminal, as a page, and for programs."""
    filed = cli("request", "--forget", ids, "--model-uri", "models:/clf/1", "--requester", "<b>x</b>")
    assert filed.code == 0, filed.err
    [request_id] = store.requests()
    [case] = inbox(cli)
    shown = cli("requests", "--case", request_id)
    assert shown.code == 0 and f"case {case['id']}" in shown.out
    assert re.search(r"│ filed +│ 12 samples of", shown.out), shown.out
    assert f"Still open: request {request_id} was not carried out, due {case['due']}." in shown.out
    filled = cli("requests", "--case", case["id"], "--fulfil", "true", "--unlearn-options", QUICK, "--format", "json")
    result = checked(filled, "requests")["result"]
    assert [event["kind"] for event in result["case"]["events"]] == ["filed", "unlearned"]
    assert (result["cases"][0]["state"], result["differences"]) == ("done", [])
    assert result["case"]["requests"][0]["done_by"] == ["models:/clf/2"]
    done = cli("requests", "--case", case["id"], "--format", "html")
    page = (store.folder / f"case-{case['id']}.html").read_text()
    assert done.code == 0 and "models:/clf/2 by finetune" in page and "&lt;b&gt;x" in page


def test_a_case_of_which_a_record_was_edited(store, cli, ids):
    """The timeline says so, and is shown nevertheless."""
    assert cli("request", "--forget", ids, "--model-uri", "models:/clf/1").code == 0
    [case] = inbox(cli)
    [(_, details)] = store.requests().values()
    folder = store.client.get_run(details["run_id"]).info.artifact_uri.removeprefix("file://")
    path = Path(folder) / "request" / "request.json"
    path.write_text(path.read_text().replace('"samples": 12', '"samples": 11'))
    result = json.loads(cli("requests", "--case", case["id"], "--format", "json").out)["result"]
    assert any("its list has as many ids as it says" in one for one in result["differences"])
    assert "The records do not agree: request " in cli("requests", "--case", case["id"]).out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--within", "3"), "--within 3 has no effect without --fulfil"),
        (("--output", "x.html"), "--output x.html has no effect without --format html"),
        (("--fulfil", "true", "--unlearn-options", '{"metod": "lotus"}'), "--unlearn-options: metod = 'lotus'"),
        (("--fulfil", "true", "--unlearn-options", '{"forget": "x"}'), "names 'forget', which `requests` decides"),
        (("--state", "late"), "'late' is not one of"),
        (("--case", "0" * 12), "there is neither a forget request nor a case '000000000000'"),
        (("--case", "mine"), "'mine' is not the id of a request or of a case"),
        (("--case", "0" * 12, "--subject", "x"), "--subject x has no effect with --case: leave one of them out"),
    ],
)
def test_options_that_do_not_go_together(store, cli, options, message):
    refused = cli("requests", *options)
    assert refused.code == 2 and message in " ".join(refused.err.split()), refused.err


@pytest.mark.slow
@pytest.mark.parametrize("value", ["", "garbage", "pending {", "pending {}", "done {}", "\x1b[2J"])
def test_an_edited_tag_hides_no_other_request(store, cli, ids, value, monkeypatch):
    """It is named, and filing the request again heals it."""
    monkeypatch.setenv("COLUMNS", "200")  # else how long the path of the list is decides how the table is laid out
    store.client.copy_model_version("models:/clf/1", "other")
    assert cli("request", "--forget", ids, "--all", "true").code == 0
    [request_id] = store.requests()
    store.client.set_model_version_tag("clf", "1", f"unlearn.request.{request_id}", value)
    shown = cli("requests")
    assert shown.code == 3 and "other/1 pending" in " ".join(shown.out.split()), shown.err
    assert (
        f"Not a request: models:/clf/1: the tag unlearn.request.{request_id}" in shown.out and "\x1b" not in shown.out
    )
    answer = json.loads(cli("requests", "--format", "json").out)
    assert answer["exit_code"] == 3 and len(answer["result"]["unreadable"]) == 1
    assert [r["uri"] for r in answer["result"]["cases"][0]["requests"]] == ["models:/other/1"]
    assert cli("request", "--forget", ids, "--model-uri", "models:/clf/1").code == 0
    assert {r["uri"] for r in inbox(cli)[0]["requests"]} == {"models:/clf/1", "models:/other/1"}


@pytest.mark.parametrize("due", ["2026-99-99", "soon", "", "12026-01-01"])
def test_an_edited_day_is_not_a_request(store, cli, ids, due):
    assert cli("request", "--forget", ids, "--model-uri", "models:/clf/1", "--due", "2026-12-24").code == 0
    [request_id] = store.requests()
    key = f"unlearn.request.{request_id}"
    store.client.set_model_version_tag("clf", "1", key, store.tags("1")[key].replace("2026-12-24", due))
    shown = cli("requests")
    assert shown.code == 3 and f"the tag {key}" in shown.out and "Traceback" not in shown.err


def test_a_tag_that_names_no_version_as_the_one_that_did_it(store, cli, ids):
    """Filed again the request is open: what is said to have carried it out is not there."""
    assert cli("request", "--forget", ids, "--model-uri", "models:/clf/1").code == 0
    [(request_id, (_, details))] = store.requests().items()
    value = f"done {json.dumps({**details, 'by': ['x']})}"
    store.client.set_model_version_tag("clf", "1", f"unlearn.request.{request_id}", value)
    assert inbox(cli, "--state", "all")[0]["state"] == "done"
    again = cli("request", "--forget", ids, "--model-uri", "models:/clf/1")
    assert again.code == 0 and "is open again: x, which carried it out, is gone" in again.err
    assert inbox(cli)[0]["state"] == "open"


@pytest.mark.nightly
def test_fulfilling_goes_on_beside_an_edited_tag(store, cli, ids):
    """The version that has it cannot be unlearned: which of its requests are open nobody knows."""
    store.client.copy_model_version("models:/clf/1", "other")
    assert cli("request", "--forget", ids, "--all", "true").code == 0
    store.client.set_model_version_tag("clf", "1", "unlearn.request.0123456789ab", "pending {")
    done = cli("requests", "--fulfil", "true", "--unlearn-options", QUICK, "--format", "json")
    outcomes = {one["uri"]: one["outcome"] for one in json.loads(done.out)["result"]["fulfilled"]}
    assert done.code == 3 and outcomes == {"models:/clf/1": "failed", "models:/other/1": "fulfilled"}


@pytest.mark.nightly
def test_what_has_become_of_a_version_meanwhile_is_said(store, cli, ids):
    """While the first one is unlearned, the second is retired and the third deleted."""
    for name in ("other", "third"):
        store.client.copy_model_version("models:/clf/1", name)
    assert cli("request", "--forget", ids, "--all", "true").code == 0
    with sqlite3.connect(store.folder / "mlflow.db") as database:
        database.execute(
            "CREATE TRIGGER meanwhile AFTER INSERT ON model_versions WHEN NEW.name = 'clf' BEGIN "
            "INSERT INTO model_version_tags (key, value, name, version, workspace) SELECT 'unlearn.retired', '{}', "
            "name, version, workspace FROM model_versions WHERE name = 'other'; "
            "UPDATE model_versions SET current_stage = 'Deleted_Internal' WHERE name = 'third'; END"
        )
    done = cli("requests", "--fulfil", "true", "--unlearn-options", QUICK, "--format", "json")
    outcomes = [one["outcome"] for one in json.loads(done.out)["result"]["fulfilled"]]
    assert (done.code, outcomes) == (0, ["fulfilled", "retired", "deleted"]), done.err


@pytest.mark.nightly
def test_only_on_one_model(store, cli, ids):
    store.client.copy_model_version("models:/clf/1", "other")
    assert cli("request", "--forget", ids, "--all", "true").code == 0
    done = cli("requests", "--fulfil", "true", "--model", "oth*", "--unlearn-options", QUICK, "--format", "json")
    assert [one["uri"] for one in json.loads(done.out)["result"]["fulfilled"]] == ["models:/other/1"], done.err
    assert store.versions() == ["1"]


@pytest.mark.nightly
def test_hashed_ids_are_found_all_the_same(store, cli, ids):
    """Hashed by the salt of the lists of training ids; until it is done, and after."""
    assert cli("request", "--forget", ids, "--all", "true", "--hash-ids", "true").code == 0
    [case] = inbox(cli)
    assert (case["still_in"], case["unclear"]) == (["models:/clf/1"], 0) and str(ids) not in json.dumps(case)
    done = json.loads(cli("requests", "--fulfil", "true", "--unlearn-options", QUICK, "--format", "json").out)
    assert done["result"]["cases"][0]["still_in"] == ["models:/clf/1"]
    [request] = case["requests"]
    found = json.loads(cli("locate", "--forget", f"request:{request['id']}", "--format", "json").out)["result"]
    assert {p["uri"]: p["state"] for p in found["places"]} == {
        "models:/clf/1": "contains",
        "models:/clf/2": "unlearned",
    }


def test_an_empty_inbox(store, cli):
    assert "No forget request here" in cli("requests").out
    done = cli("requests", "--fulfil", "true")
    assert done.code == 0 and "Nothing was to be fulfilled" in done.out


@pytest.mark.nightly
def test_fulfilling_goes_on_after_a_failure(store, cli, ids, monkeypatch):
    """Of three versions one has lost its files; the served one comes first; nothing is done twice."""
    for name in ("served", "lost"):
        store.client.copy_model_version("models:/clf/1", name)
    store.client.set_registered_model_alias("served", "champion", "1")
    filed = cli("request", "--forget", ids, "--all", "true")
    assert filed.code == 0, filed.err
    store.client.create_model_version("lost", str(store.folder / "nowhere"))
    for key, value in store.tags("1", "lost").items():
        if key.startswith("unlearn.request."):
            other = value.replace("models:/lost/1", "models:/lost/2")
            store.client.set_model_version_tag("lost", "2", key, other)
            store.client.delete_model_version_tag("lost", "1", key)
    done = cli("requests", "--fulfil", "true", "--unlearn-options", QUICK, "--format", "json")
    answer = json.loads(done.out)
    outcomes = {one["uri"]: (one["outcome"], one["registered"]) for one in answer["result"]["fulfilled"]}
    assert outcomes == {
        "models:/clf/1": ("fulfilled", "models:/clf/2"),
        "models:/served/1": ("fulfilled", "models:/served/2"),
        "models:/lost/2": ("failed", None),
    }
    assert done.code == 3 and "not fulfilled on models:/lost/2" in answer["error"]["message"]
    assert "cannot be read" in next(o["message"] for o in answer["result"]["fulfilled"] if o["outcome"] == "failed")
    again = json.loads(cli("requests", "--fulfil", "true", "--unlearn-options", QUICK, "--format", "json").out)
    assert [one["uri"] for one in again["result"]["fulfilled"]] == ["models:/lost/2"]
    assert store.versions("served") == ["1", "2"]


@pytest.mark.nightly
def test_the_newest_served_version_comes_first_and_only_what_is_due(store, cli, ids):
    for _ in range(2):
        store.client.copy_model_version("models:/clf/1", "clf")
    store.client.set_registered_model_alias("clf", "champion", "2")
    assert cli("request", "--forget", ids, "--all", "true", "--due", "2999-01-01").code == 0
    none = cli("requests", "--fulfil", "true", "--within", "30")
    assert none.code == 0 and "Nothing was to be fulfilled" in none.out
    done = json.loads(cli("requests", "--fulfil", "true", "--unlearn-options", QUICK, "--format", "json").out)
    assert [one["uri"] for one in done["result"]["fulfilled"]] == [f"models:/clf/{n}" for n in (2, 3, 1)]
    assert done["result"]["cases"][0]["state"] == "done"


@pytest.mark.nightly
def test_two_that_fulfil_at_once(store, ids):
    """Each version is unlearned once; the second command says that the first one has done it."""
    store.client.copy_model_version("models:/clf/1", "other")
    assert call("request", "--forget", ids, "--all", "true").code == 0
    command = [sys.executable, "-m", "mlflow_unlearn", "requests", "--fulfil", "true", "--unlearn-options", QUICK]
    both = [
        subprocess.Popen([*command, "--format", "json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    answers = [json.loads(process.communicate()[0]) for process in both]
    outcomes = sorted(one["outcome"] for answer in answers for one in answer["result"]["fulfilled"])
    assert outcomes.count("fulfilled") == 2, answers
    assert {name: len(store.versions(name)) for name in ("clf", "other")} == {"clf": 2, "other": 2}
    assert [answer["exit_code"] for answer in answers] == [0, 0], answers
    assert shell("requests", "--state", "open", "--format", "json").stdout.count('"state": "pending"') == 0


@pytest.mark.nightly
def test_what_is_fulfilled_under_a_project_has_runs_of_its_own(store, cli, ids, monkeypatch):
    """`mlflow run` gives us its run: one that each version's command would write its options to."""
    assert cli("request", "--forget", ids, "--model-uri", "models:/clf/1").code == 0
    with mlflow.start_run() as project:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", project.info.run_id)
    done = cli("requests", "--fulfil", "true", "--unlearn-options", QUICK)
    assert done.code == 0, done.err
    assert store.client.get_model_version("clf", "2").run_id != project.info.run_id
    assert store.client.get_run(project.info.run_id).data.params == {}


@pytest.mark.slow
def test_a_model_that_was_renamed_closes_no_case(store, cli, ids):
    """The request names a version that is gone, the samples are there: filed again, it is the same case."""
    assert cli("request", "--forget", ids, "--model-uri", "models:/clf/1").code == 0
    [before] = inbox(cli)
    store.client.rename_registered_model("clf", "clf2")
    [case] = inbox(cli, "--state", "open")
    assert (case["id"], case["state"], case["still_in"]) == (before["id"], "open", ["models:/clf2/1"])
    assert inbox(cli, "--state", "done") == []
    [request] = case["requests"]
    assert request["state"] == "gone"
    again = f"request --model-uri models:/clf2/1 --forget request:{request['id']}"
    assert f"To file it there: mlflow-unlearn {again}\n" in cli("requests", "--fulfil", "true").err
    assert cli(*again.split()).code == 0
    [case] = inbox(cli, "--state", "open")
    assert case["id"] == before["id"] and {r["state"] for r in case["requests"]} == {"gone", "pending"}
    done = cli("requests", "--fulfil", "true", "--unlearn-options", QUICK, "--format", "json")
    assert done.code == 0 and json.loads(done.out)["result"]["cases"][0]["state"] == "done", done.err
    assert inbox(cli, "--state", "open") == []


def test_versions_that_were_retired_or_deleted_leave_the_case_open_while_others_have_the_samples(store, cli, ids):
    for name in ("gone", "retired"):
        store.client.copy_model_version("models:/clf/1", name)
    assert cli("request", "--forget", ids, "--model-uri", "models:/gone/1,models:/retired/1").code == 0
    mark = json.dumps({"by": "x", "at": "y", "reason": None, "run_id": "0"})
    store.client.set_model_version_tag("retired", "1", "unlearn.retired", mark)
    store.client.delete_model_version("gone", "1")
    [case] = inbox(cli, "--state", "all")
    assert {(r["uri"], r["state"]) for r in case["requests"]} == {
        ("models:/gone/1", "gone"),
        ("models:/retired/1", "retired"),
    }
    assert case["state"] == "open" and "models:/clf/1" in case["still_in"]
    assert "are retired or gone. To file it there: mlflow-unlearn request --model-uri " in cli("requests").err
