"""One command of a kind at a time: in an experiment, and on a registered model."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import mlflow
import pytest

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry import lock as locks
from mlflow_unlearn.registry.clients import registry_client
from mlflow_unlearn.registry.dead import this_process
from mlflow_unlearn.registry.lock import LOCK_TAG, Flag, experiment_lock, model_lock

HOLD = """
import sys, time
from mlflow import MlflowClient
from mlflow_unlearn.registry.lock import model_lock
with model_lock(MlflowClient(), "shared"):
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def test_a_second_command_is_refused_until_the_first_has_ended(empty_store):
    with mlflow.start_run() as run:
        with experiment_lock("compare", run.info.run_id):
            with pytest.raises(UnlearnError, match="another compare is running in experiment"):
                with experiment_lock("compare", run.info.run_id):
                    pytest.fail("two at a time")
            with experiment_lock("tune", run.info.run_id):
                pass
        with experiment_lock("compare", run.info.run_id):
            pass


# The lock of a registered model.


@pytest.fixture
def client(empty_store, monkeypatch):
    """Of a store with one registered model, ``shared``; waiting is short."""
    monkeypatch.setattr(locks, "_POLL", 0.05)
    monkeypatch.setattr(locks, "_GRACE", 0.5)
    empty_store.client.create_registered_model("shared")
    return empty_store.client


def flags(client) -> dict[str, Flag]:
    tags = client.get_registered_model("shared").tags
    return {k: Flag.from_tag(k.rpartition(".")[2], v) for k, v in tags.items() if k.startswith(f"{LOCK_TAG}.model.")}


def put(client, flag: Flag) -> str:
    """Another process's flag."""
    key = f"{LOCK_TAG}.model.{flag.id}"
    client.set_registered_model_tag("shared", key, json.dumps(vars(flag)))
    return key


def elsewhere(**values) -> Flag:
    """Of a live process on another machine, that came first."""
    known = {"command": "promote", "who": "ann", "process": "there another 7 1"}
    return Flag(**{"since": "2001-01-01T00:00:00.000+00:00", "id": "other", **known, **values})


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    ['{"since": 5}', '{"process": 7}', '{"beat": "x"}', '{"since": "noon", "more": 1}', "[]", "noon", '{"who": null}'],
)
def test_a_tag_that_is_no_flag_belongs_to_nobody_known(client, value, monkeypatch):
    """It is waited for as for a process that may live, and is gone when it stays as it is."""
    client.set_registered_model_tag("shared", f"{LOCK_TAG}.model.x", value)
    with pytest.raises(UnlearnError, match="in use by `an unknown command` of an unknown user on an unknown machine"):
        with model_lock(client, "shared", wait=0):
            pytest.fail("two at a time")
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    with model_lock(client, "shared", wait=5):
        assert len(flags(client)) == 1


def test_it_is_held_inside_the_block_and_then_free(client):
    with model_lock(client, "shared", wait=0) as (lock, model):
        assert model.name == "shared" and lock.check().name == "shared"
        [flag] = flags(client).values()
        assert (flag.process, flag.ended) == (this_process(), False)
        with pytest.raises(
            UnlearnError, match=r"^models:/shared is in use by `python` of .* on .* \(process \d+\), si"
        ):
            with model_lock(client, "shared", wait=0):
                pytest.fail("two at a time")
        assert list(flags(client).values()) == [flag], "who gave up left nothing"
        with model_lock(client, "shared", version="1", wait=0):
            pass  # another purpose
    assert flags(client) == {}


def test_it_takes_three_requests(client, monkeypatch):
    made, registry = [], registry_client(client)
    for name in ("set_registered_model_tag", "get_registered_model", "delete_registered_model_tag"):
        real = getattr(registry, name)
        monkeypatch.setattr(registry, name, lambda *a, real=real, name=name: (made.append(name), real(*a))[1])
    monkeypatch.setattr(locks, "registry_client", lambda _: registry)
    with model_lock(client, "shared"):
        pass
    assert made == ["set_registered_model_tag", "get_registered_model", "delete_registered_model_tag"]


def test_a_sum_that_several_add_to_loses_nothing(client):
    """Read, wait, write: without the lock most additions would be lost."""

    def add() -> None:
        for _ in range(4):
            with model_lock(client, "shared"):
                n = int(client.get_registered_model("shared").tags.get("n", "0"))
                time.sleep(0.02)
                client.set_registered_model_tag("shared", "n", str(n + 1))

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.get_registered_model("shared").tags == {"n": "12"}


def test_of_two_that_begin_at_once_one_gets_it(client):
    """Both see each other's flag; neither may wait for ever, nor both give up."""
    other = elsewhere(since="2999-01-01T00:00:00.000+00:00")
    key = put(client, other)
    threading.Timer(0.2, client.delete_registered_model_tag, ("shared", key)).start()
    with model_lock(client, "shared", wait=0):
        assert key not in flags(client)


def test_the_later_one_takes_its_flag_down_and_waits(client, monkeypatch):
    monkeypatch.setattr(locks, "_SILENT", 0.1)
    notes = []
    monkeypatch.setattr(locks, "note", notes.append)
    key = put(client, elsewhere())
    seen = []

    def look() -> None:
        seen.append(set(flags(client)))
        client.delete_registered_model_tag("shared", key)

    threading.Timer(0.5, look).start()
    with model_lock(client, "shared", wait=20):
        assert seen == [{key}]
    assert notes == ["Waiting: models:/shared is in use by `promote` of ann on there (process 7), since 2001-01-01T00:"
                     "00:00.000+00:00."]  # fmt: skip


@pytest.mark.slow
def test_a_process_of_this_machine_that_was_killed_is_taken_over_at_once(client):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, "60"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UnlearnError, match=rf"\(process {holder.pid}\)"):
        with model_lock(client, "shared", wait=0):
            pytest.fail("two at a time")
    holder.kill()
    holder.wait()
    with model_lock(client, "shared", wait=0):
        assert len(flags(client)) == 1


def test_a_number_that_another_process_has_now_is_another_process(client):
    with model_lock(client, "shared") as (lock, _):
        [ours] = flags(client).values()
    put(client, replace(ours, id="before", process=f"{ours.process}0"))
    with model_lock(client, "shared", wait=0):
        pass
    put(client, replace(ours, id="alive"))
    with pytest.raises(UnlearnError):
        with model_lock(client, "shared", wait=0):
            pytest.fail("this process lives")


@pytest.mark.slow
def test_another_machine_s_flag_is_watched(client, monkeypatch):
    """By our own clock, from when we first saw what it says; each renewal begins that anew."""
    monkeypatch.setattr(locks, "PATIENCE", 0.8)
    flag = elsewhere(since="2999-01-01T00:00:00.000+00:00")
    put(client, flag)
    renewal = threading.Timer(0.5, put, (client, replace(flag, beat=1)))
    renewal.start()
    begun = time.monotonic()
    with model_lock(client, "shared", wait=20):
        assert time.monotonic() - begun >= 1.3


@pytest.mark.slow
@pytest.mark.parametrize("value", ["", "{", "[]", "5", '{"pid": 1}', '{"since": 5, "pid": "../1", "x": 1}'])
def test_a_flag_that_nobody_can_read_ends_as_well(client, monkeypatch, value):
    monkeypatch.setattr(locks, "PATIENCE", 0.3)
    client.set_registered_model_tag("shared", f"{LOCK_TAG}.model.odd", value)
    with model_lock(client, "shared", wait=5):
        assert len(flags(client)) == 1


@pytest.mark.slow
def test_it_is_renewed_while_it_is_held(client, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.1)
    with model_lock(client, "shared") as (lock, _):
        time.sleep(1)
        [flag] = flags(client).values()
        assert flag.beat >= 2
        lock.check()
    time.sleep(0.3)
    assert flags(client) == {}


def test_a_lock_that_was_lost_stops_the_command(client, monkeypatch):
    with model_lock(client, "shared") as (lock, _):
        [key] = flags(client)
        client.delete_registered_model_tag("shared", key)
        with pytest.raises(UnlearnError, match="the lock of models:/shared was lost"):
            lock.check()
    with model_lock(client, "shared") as (lock, _):
        monkeypatch.setattr(locks, "LEASE", -1)
        with pytest.raises(UnlearnError, match="was suspended for more than"):
            lock.check()


@pytest.mark.slow
def test_a_process_that_was_stopped_for_long_does_not_come_back(client, empty_store):
    """Others have taken its lock over meanwhile: its flag stays away, and its next step is refused."""
    code = """
import time
from mlflow import MlflowClient
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry import lock
lock.BEAT, lock.LEASE = 0.2, 1.0
with lock.model_lock(MlflowClient(), "shared") as (held, _):
    print("held", flush=True)
    while True:
        time.sleep(0.1)
        try:
            held.check()
        except UnlearnError as error:
            print(error, flush=True)
            break
"""
    stopped = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert stopped.stdout.readline() == "held\n"
    while True:  # not in the middle of a write, which would hold SQLite's lock
        stopped.send_signal(signal.SIGSTOP)
        if empty_store.writable():
            break
        stopped.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    [key] = flags(client)
    client.delete_registered_model_tag("shared", key)
    time.sleep(1.5)
    with model_lock(client, "shared", wait=0):
        stopped.send_signal(signal.SIGCONT)
        assert "was lost" in stopped.communicate(timeout=60)[0]
        assert key not in flags(client)


def test_how_long_to_wait_is_the_environment_s_to_say(client, monkeypatch):
    put(client, elsewhere())
    monkeypatch.setenv("MLFLOW_UNLEARN_WAIT", "0")
    with pytest.raises(UnlearnError, match="in use by `promote` of ann"):
        with model_lock(client, "shared"):
            pytest.fail("two at a time")
    for value in ("soon", "-1", "inf", "nan"):
        monkeypatch.setenv("MLFLOW_UNLEARN_WAIT", value)
        with pytest.raises(UnlearnError, match=f"MLFLOW_UNLEARN_WAIT = '{value}' is not a number of seconds"):
            with model_lock(client, "shared"):
                pytest.fail("no number")
