"""`dossier`: one zip about a case, that checks itself wherever it is."""

import ast
import json
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from contextlib import nullcontext
from pathlib import Path

import mlflow
import pytest
from answers import checked
from chains import LENIENT, QUICK, changed, folder_of, tagged
from pages import said
from servers import mlflow_server
from stores import DATA, call, copied, shell

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.evidence import dossier_verify
from mlflow_unlearn.evidence.dossier import with_manifest, write_zip
from mlflow_unlearn.evidence.dossier_verify import MANIFEST, SIGNATURE, NotADossier, check, read

DOCS = Path(__file__).parents[2] / "docs" / "dossier.md"


def alone(*arguments, cwd=None):
    """`verify.py` as a process that sees neither our code nor any package."""
    return subprocess.run([sys.executable, "-I", "-S", *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


def failures(files, **more):
    return [f"{one.part}: {one.message}" for one in check(files, **more) if one.outcome == "failed"]


def flips(content, count):
    """The content with one byte changed: the first, the last, and those between at equal distances."""
    for position in sorted({step * (len(content) - 1) // count for step in range(count + 1)}):
        yield content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def known_to(version):
    """Plain ids of the samples that a version was trained on."""
    listed = Manifest.from_csv(folder_of(version) / "extra_files" / "training_manifest.csv")
    return [each for each in load_source(DATA).train.ids if Manifest((each,)).hashed(listed.salt).ids[0] in listed.ids]


def made_again(files, path):
    """What somebody does who has changed a file: the same zip with it."""
    write_zip(files, path)
    return read(path)


@pytest.fixture(scope="module")
def request_id(closed):
    [found] = closed.requests()
    return found


@pytest.fixture(scope="module")
def made(closed, request_id):
    """The dossier of the case that is closed."""
    done = call("dossier", "--request", request_id, "--output", "made.zip")
    assert done.code == 0, done.err
    return closed.folder / "made.zip"


@pytest.fixture(scope="module")
def files(made):
    return read(made)


def test_everything_is_in_it(closed, request_id, files):
    names = {re.sub("[0-9a-f]{12,}", "ID", name) for name in files}
    assert names == {
        *("MANIFEST", "case.json", "holders.json", "index.html", "verify.py", "retirements/ID.json"),
        "versions/clf-1/version.json",
        *("requests/ID/request.json", "requests/ID/manifest.csv"),
        *(f"versions/clf-2/{name}" for name in ("version.json", "audits/ID.json", "promotions/champion.json")),
        *(f"versions/clf-2/reviews/review-{n}.json" for n in (1, 2)),
        *(f"versions/clf-2/evidence/{n}" for n in ("evidence.json", "evidence.sig", "model_card.md", "report.html")),
    }
    case = json.loads(files["case.json"])
    told = [event["kind"] for event in case["events"]]
    assert told == ["filed", "unlearned", "audited", "reviewed", "reviewed", "promoted", "retired"]
    filed = json.loads(files[f"requests/{request_id}/request.json"])
    assert (case["id"], case["missing"]) == (filed["case"], {})
    assert [one["id"] for one in case["requests"]] == [request_id]
    assert {one["uri"]: one["role"] for one in case["versions"]} == {
        "models:/clf/1": "source",
        "models:/clf/2": "fulfilled",
    }
    stored = mlflow.artifacts.load_text(f"runs:/{closed.tags('2')['unlearn.run_id']}/evidence/evidence.json")
    assert files["versions/clf-2/evidence/evidence.json"].decode() == stored
    assert json.loads(files["versions/clf-2/version.json"])["tags"] == closed.tags("2")
    page = files["index.html"].decode()
    [retirement] = [json.loads(files[name]) for name in files if name.startswith("retirements/")]
    proven = "; proven" if retirement["proof"]["proven"] else "; not proven"
    assert case["events"][-1]["message"] == f"the files of models:/clf/1 were removed: replaced{proven}"
    for word in ("Closed", "p-7", "&amp;", "models:/clf/2 by lotus", "clf@champion", "not legal advice"):
        assert word in page


def test_it_is_the_same_again_and_a_run_says_that_it_was_made(closed, request_id, made):
    again = call("dossier", "--request", request_id, "--output", "again.zip", "--attach", "true", "--format", "json")
    assert (closed.folder / "again.zip").read_bytes() == made.read_bytes()
    answer = checked(again, "dossier")["result"]
    run = closed.runs()[0]
    assert run.data.tags["unlearn.dossier.sha256"] == answer["manifest_sha256"]
    assert run.data.tags["unlearn.dossier.case"] == answer["case"]
    assert answer["failures"] == answer["still_open"] == [] and answer["missing"] == {}
    stored = {file.path for file in closed.client.list_artifacts(run.info.run_id, "dossier")}
    assert stored == {"dossier/MANIFEST", "dossier/again.zip"}


@pytest.mark.slow
def test_over_http_it_is_the_same(closed, request_id, made, tmp_path):
    with mlflow_server(tmp_path, closed.uri) as uri:
        done = shell(
            "dossier", "--request", request_id, "--output", tmp_path / "http.zip", env={"MLFLOW_TRACKING_URI": uri}
        )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "http.zip").read_bytes() == made.read_bytes()


def test_it_names_no_path_of_this_machine_but_where_records_do(closed, files):
    places = {name for name, content in files.items() if str(closed.folder.parent).encode() in content}
    assert {re.sub("/.*", "", name) for name in places} <= {"retirements"}


def test_it_checks_itself_without_any_package(made, tmp_path):
    """As a folder and as a zip, in a process that finds nothing but the standard library."""
    shutil.unpack_archive(made, tmp_path / "here")
    for ended in (alone("verify.py", cwd=tmp_path / "here"), alone(tmp_path / "here" / "verify.py", made)):
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "Everything that was checked agrees." in ended.stdout
        assert "signature not checked: install cryptography" in ended.stdout
    seen = alone(
        "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'here')!r}); import verify; print(*sys.modules)"
    )
    assert "zipfile" in seen.stdout.split()
    assert not {"mlflow", "mlflow_unlearn", "numpy", "pydantic", "cryptography"} & set(seen.stdout.split())


def test_it_can_be_read_by_python_3_9():
    source = Path(dossier_verify.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 9))
    imported = {node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import) for alias in n.names}
    tops = {name.partition(".")[0] for name in imported}
    assert tops - {"__future__", "cryptography"} <= sys.stdlib_module_names


def test_one_changed_byte_is_found(files, tmp_path):
    """In every file, zipped anew."""
    for name, content in files.items():
        for other in flips(content, 4):
            assert failures(made_again({**files, name: other}, tmp_path / "forged.zip")), name


def test_a_file_that_was_removed_is_found_although_the_manifest_was_rewritten(files):
    """Whichever it is; and where the page lost its line as well, by what the case says."""
    rest = {name: content for name, content in files.items() if name != MANIFEST}
    for name in rest:
        without = {one: content for one, content in rest.items() if one != name}
        assert failures(with_manifest(without)), name
        page = re.sub(rb"<tr>[^\n]*" + re.escape(name.encode()) + rb"<.*?</tr>\n", b"", without.get("index.html", b""))
        page = re.sub(rb'<a href="' + re.escape(name.encode()) + rb'">.*?</a>', b"", page)
        assert f'href="{name}"'.encode() not in page
        if name not in ("index.html", "holders.json"):  # the page alone names who holds the samples
            assert failures(with_manifest({**without, "index.html": page})), name


def alone_protected() -> set[str]:
    """The files that docs/dossier.md says the manifest's digest alone protects."""
    section = DOCS.read_text(encoding="utf-8").split("### What only the digest")[1].split("\n#")[0]
    return {name for row in re.findall(r"^\| (.*?) \|", section, re.M) for name in re.findall("`(.*?)`", row)}


def test_one_changed_byte_is_found_although_the_manifest_was_rewritten(files):
    """By what records say of each other; but for the files that the docs name, of which it is true."""
    unseen = set()
    for name, content in files.items():
        for other in flips(content, 25) if name != MANIFEST else ():
            rest = {one: files[one] for one in files if one != MANIFEST}
            unseen |= {name} if not failures(with_manifest({**rest, name: other})) else set()
    assert unseen == alone_protected()


def test_a_zip_with_one_byte_changed_ends_in_a_sentence(made, tmp_path):
    """The zip itself, not what is in it: it cannot be read, something differs, or what is read is the same."""
    right = read(made)
    for other in flips(made.read_bytes(), 400):
        (tmp_path / "broken.zip").write_bytes(other)
        try:
            found = read(tmp_path / "broken.zip")
        except NotADossier as error:
            assert "cannot be read" in str(error) or "has no MANIFEST" in str(error)
        else:
            assert found == right or failures(found)


def test_files_that_are_added_removed_or_swapped(files):
    rest = dict(files)
    rest.pop("versions/clf-2/evidence/report.html")
    assert "versions/clf-2/evidence/report.html: it is missing: the manifest says otherwise" in failures(rest)
    assert "notes.txt: it was added: the manifest says otherwise" in failures({**files, "notes.txt": b""})
    one, two = (f"versions/clf-2/reviews/review-{n}.json" for n in (1, 2))
    swapped = with_manifest({n: c for n, c in {**files, one: files[two], two: files[one]}.items() if n != MANIFEST})
    found = failures(swapped)
    assert any("not so: the tag of review 1 names the digest of its file" in each for each in found)
    assert any("review 1 is the first" in each for each in found)


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("version.json", '"unlearn.verdict": "pass"', '"unlearn.verdict": "fail"', "the tags have the last verdict"),
        ("version.json", "unlearn.review.1", "unlearn.review.7", "no tag names review 1"),
        ("version.json", '"unlearn.method"', '"unlearn.metric.x"', "its tags have its metrics"),
        ("promotions/champion.json", '"review": 2', '"review": 1', "champion rests on review 1, which passed"),
        ("reviews/review-2.json", '"n":2', '"n":3', "review 2 is about this version"),
        ("evidence/evidence.json", '"weights_sha256": "', '"weights_sha256": "0', "its tag names the digest of its"),
        ("audits", '"uri": "models:/clf/2"', '"uri": "models:/clf/3"', "is of this version"),
        ("version.json", "{", "[", "is not the record of a case"),
        ("reviews/review-1.json", "{", "", "its records cannot be read"),
    ],
)
def test_records_that_say_something_else_of_each_other(files, name, old, new, sentence):
    path = next(one for one in files if one.startswith(f"versions/clf-2/{name}"))
    text = files[path].decode()
    text = text if old in text else re.sub(r'": ', '":', text)
    assert (old if old in text else old.replace(": ", ":")) in text
    edited = text.replace(old, new, 1) if old in text else text.replace(old.replace(": ", ":"), new, 1)
    found = failures(with_manifest({**{n: c for n, c in files.items() if n != MANIFEST}, path: edited.encode()}))
    assert any(sentence in each for each in found), found


def test_signed_and_checked_by_the_tool(closed, request_id, keys):
    done = call("dossier", "--request", request_id, "--output", "signed.zip", "--sign-key", keys / "ours.pem")
    assert done.code == 0, done.err
    files = read(closed.folder / "signed.zip")
    digest = re.search("identifies it: ([0-9a-f]{64})", done.out)[1]
    right = call("dossier", "--verify", "signed.zip", "--key", keys / "ours.pub", "--digest", digest)
    assert "it matches the records" in right.out and "not checked" not in right.out
    assert right.code == 0 and f"is consistent (SHA-256 of its MANIFEST: {digest})" in right.out, right.err
    mine = (keys / "ours.pub").read_bytes()
    holds = {one.part for one in check(files, key=mine) if one.message.startswith("it was made by the holder")}
    assert holds == {SIGNATURE, "versions/clf-2/evidence/evidence.sig"}
    other = call("dossier", "--verify", "signed.zip", "--key", keys / "theirs.pub")
    assert other.code == 3 and "MANIFEST.sig: it does not hold for this key" in other.err
    wrong = call("dossier", "--verify", "signed.zip", "--digest", "0" * 64)
    assert wrong.code == 3 and "MANIFEST: not so: its digest is the given one" in wrong.err
    forged = with_manifest({n: c for n, c in {**files, "case.json": b"{}"}.items() if n not in (MANIFEST, SIGNATURE)})
    assert any(
        "MANIFEST.sig: not so: it is over MANIFEST" in e for e in failures({**forged, SIGNATURE: files[SIGNATURE]})
    )
    for each in flips(files[SIGNATURE], 300):
        assert SIGNATURE in str(failures({**files, SIGNATURE: each}, key=mine))


def test_who_gives_a_key_relies_on_it(closed, request_id, keys, tmp_path):
    """Without cryptography nothing can be told, and a key that is none is not left aside."""
    path, ours = tmp_path / "signed.zip", keys / "ours.pub"
    assert call("dossier", "--request", request_id, "--output", path, "--sign-key", keys / "ours.pem").code == 0
    for key in (ours, keys / "theirs.pub"):
        blind = alone(dossier_verify.__file__, path, "--key", key)
        assert blind.returncode == 1 and re.search("failed *MANIFEST.sig: .*install cryptography", blind.stdout)
    assert alone(dossier_verify.__file__, path).returncode == 0
    assert alone(dossier_verify.__file__, path, "--key", "").returncode == 2
    text = ours.read_bytes()
    for written in (b"# ours\n" + text, text.replace(b"\n", b"\r\n")):
        assert failures(read(path), key=written) == []
        [held] = [one for one in check(read(path), key=written) if one.part == SIGNATURE and "holder" in one.message]
        assert held.outcome == "ok"
    for wrong in (b"", b"no key", (keys / "theirs.pub").read_bytes()):
        assert any(one.startswith("MANIFEST.sig: ") for one in failures(read(path), key=wrong))


@pytest.mark.parametrize(
    ("name", "code", "sentence"),
    [
        (
            "index.html",
            0,
            "it is not what this release makes of the records: another release made it, or it was changed",
        ),
        ("verify.py", 3, "it is not this release's; this release's own was used instead"),
        ("case.json", 3, "it is not the record of a case"),
        ("holders.json", 3, "it is not the record of who holds samples"),
    ],
)
def test_what_the_tool_sees_besides(closed, files, name, code, sentence):
    other = files[name].replace(b"Closed", b"Opened") if name == "index.html" else b"pass\n"
    rest = {one: content for one, content in files.items() if one != MANIFEST}
    write_zip(with_manifest({**rest, name: other}), closed.folder / "forged.zip")
    done = call("dossier", "--verify", "forged.zip")
    assert done.code == code and sentence in " ".join(re.sub("[│]", " ", done.out).split()), done.err


def test_a_case_of_which_nothing_is_done(store, cli):
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", "random:9", "--hash-ids", "true").code == 0
    [request_id] = store.requests()
    done = cli("dossier", "--request", request_id)
    assert done.code == 0, done.err
    assert f"Still open: request {request_id} was not carried out, due " in done.out
    [path] = store.folder.glob("dossier-*.zip")
    found = read(path)
    assert path.name == f"dossier-{json.loads(found['case.json'])['id']}.zip"
    assert failures(found) == []
    assert found[f"requests/{request_id}/manifest.csv"].startswith(b"# salt=") and b"digits/" not in b"".join(
        content for name, content in found.items() if name != "verify.py"
    )
    page = found["index.html"].decode()
    assert "Open: 2 points" in page and "nothing yet" in page and "the ids are stored hashed" in page
    for other in flips(found[f"requests/{request_id}/manifest.csv"], 60):  # the salt too, by the page
        rest = {name: content for name, content in found.items() if name != MANIFEST}
        assert failures(with_manifest({**rest, f"requests/{request_id}/manifest.csv": other}))


def test_what_still_holds_the_samples(store, cli, tmp_path):
    """A copy that no request is about is open in the case; of a version without a list it cannot be told."""
    store.client.copy_model_version("models:/clf/1", "served")
    store.client.set_registered_model_alias("served", "champion", "1")
    store.client.create_registered_model("theirs")
    store.client.create_model_version("theirs", str(tmp_path))
    (tmp_path / "ids.txt").write_text("\n".join(load_source(DATA).train.ids[:9]))
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", tmp_path / "ids.txt").code == 0
    [request_id] = store.requests()
    answer = checked(cli("dossier", "--request", request_id, "--output", "held.zip", "--format", "json"), "dossier")
    served = "models:/served/1 contains the samples, and does not belong to this case; it is champion"
    assert served in answer["result"]["still_open"]
    files = read(store.folder / "held.zip")
    found = json.loads(files["holders.json"])
    assert {one["uri"]: (one["samples"], one["aliases"]) for one in found["contain"]} == {
        "models:/clf/1": (9, []),
        "models:/served/1": (9, ["champion"]),
    }
    assert [one["uri"] for one in found["cannot_be_told"]] == ["models:/theirs/1"] and found["not_looked_for"] == {}
    page = said(files["index.html"].decode())
    assert "Still in models:/clf/1 models:/served/1 ( champion )" in page and "unknown for 1 version" in page
    # A page that does not say what the list says is found by the tool, and the list itself by the page's digest.
    other = files["holders.json"].replace(b"models:/served/1", b"models:/served/2")
    rest = {name: content for name, content in files.items() if name != MANIFEST}
    assert any(
        "it has the digest of holders.json" in e for e in failures(with_manifest({**rest, "holders.json": other}))
    )
    # Once there is a request on it too, it belongs to the case, and the samples that both name are counted once.
    assert cli("request", "--model-uri", "models:/served/1", "--forget", tmp_path / "ids.txt").code == 0
    answer = checked(cli("dossier", "--request", request_id, "--output", "both.zip", "--format", "json"), "dossier")
    assert not any("does not belong" in point for point in answer["result"]["still_open"])
    found = json.loads(read(store.folder / "both.zip")["holders.json"])
    assert {one["samples"] for one in found["contain"]} == {9}


@pytest.mark.nightly
def test_descendants_and_copies_that_know_the_samples_are_open(chain_template, tmp_path, cli):
    """They were made before the request, which another version has carried out; one of each is served."""
    with copied(chain_template, tmp_path / "store") as store:
        (tmp_path / "lenient.yaml").write_text(LENIENT)
        store.client.set_registered_model_alias("clf", "champion", "4")
        store.client.copy_model_version("models:/clf/1", "prod")
        store.client.set_registered_model_alias("prod", "champion", "1")
        (tmp_path / "ids.txt").write_text("\n".join(known_to("4")[:9]))
        assert cli("request", "--model-uri", "models:/clf/1", "--forget", tmp_path / "ids.txt").code == 0
        [asked] = [id for id, (state, _) in store.requests("1").items() if state == "pending"]
        assert cli("unlearn", "--model-uri", "models:/clf/1", "--params", QUICK).code == 0
        new = ("--model-uri", "models:/clf/5")
        assert cli("review", *new, "--policy", tmp_path / "lenient.yaml").code == 0
        assert cli("promote", *new, "--alias", "next").code == 0
        done = cli("dossier", "--request", asked, "--output", tmp_path / "d.zip", "--format", "json")
        points = checked(done, "dossier")["result"]["still_open"]
    beyond = {point.split()[0]: point for point in points if "contains the samples" in point}
    assert set(beyond) == {"models:/clf/2", "models:/clf/3", "models:/clf/4", "models:/prod/1"}
    assert {uri for uri, point in beyond.items() if "it is champion" in point} == {"models:/clf/4", "models:/prod/1"}
    assert "Closed" not in said(read(tmp_path / "d.zip")["index.html"].decode())


def test_what_cannot_be_looked_for_is_said(store, cli):
    """The list of a request is gone."""
    assert cli("request", "--model-uri", "models:/clf/1", "--forget", "random:9").code == 0
    [(request_id, (_, details))] = store.requests().items()
    folder = store.client.get_run(details["run_id"]).info.artifact_uri.removeprefix("file://")
    (Path(folder) / "request" / "manifest.csv").unlink()
    done = cli("dossier", "--request", request_id, "--output", "gone.zip")
    assert done.code == 3 and f"Still open: the samples of request {request_id} were not looked for: " in done.out
    assert request_id in json.loads(read(store.folder / "gone.zip")["holders.json"])["not_looked_for"]


def test_what_is_gone_is_named_and_the_rest_is_there(closed, request_id):
    """The file of a review, and one that holds a password."""
    run_id = json.loads(closed.tags("2")["unlearn.review.1"])["run_id"]
    gone = Path(closed.client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / "evidence" / "review-1.json"
    filed = closed.requests()[request_id][1]["run_id"]
    stored = Path(closed.client.get_run(filed).info.artifact_uri.removeprefix("file://")) / "request" / "request.json"
    secret = stored.read_text().replace('"p-7"', '"http://ann:hidden@host"').encode()
    with changed(gone, None), changed(stored, secret):
        done = call("dossier", "--request", request_id, "--output", "gone.zip", "--format", "json")
    answer = checked(done, "dossier", code=3)
    assert answer["result"]["missing"] == {
        f"requests/{request_id}/request.json": f"it holds a password, and stays in run {filed}",
        "versions/clf-2/reviews/review-1.json": f"it is no longer in run {run_id}",
    }
    assert "gone.zip was written but is incomplete" in answer["error"]["message"]
    found = read(closed.folder / "gone.zip")
    assert not any(b"hidden@host" in content or b":hidden" in content for content in found.values())
    assert "is no longer in run" in found["index.html"].decode()
    assert failures(found) == []  # what is missing is said, and not checked
    assert {one.part for one in check(found) if one.outcome == "not checked"} >= set(answer["result"]["missing"])


def test_a_record_that_was_edited_in_the_store(closed, request_id):
    run_id = json.loads(closed.tags("2")["unlearn.review.2"])["run_id"]
    path = Path(closed.client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / "evidence" / "review-2.json"
    with changed(path, path.read_bytes().replace(b'"lenient"', b'"Lenient"')):
        done = call("dossier", "--request", request_id, "--output", "edited.zip")
    assert done.code == 3 and "the tag of review 2 names the digest of its file" in done.err
    assert "Records differ" in read(closed.folder / "edited.zip")["index.html"].decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "key", "value"),
    [
        ("retirement", "versions", 5),
        ("retirement", "versions", [["x"]]),
        ("retirement", "by", "\ud800"),
        ("retirement", "done", "yes"),
        ("promotion", "by", {"name": "\ud800"}),
        ("promotion", "at", 7),
        ("request", "samples", True),
        ("request", "reason", "\ud800"),
        ("request", "filed_by", {"name": "\udfff", "authenticated": True, "how": "x"}),
        ("request", "due", ["2026-12-24"]),
        ("request", "source_sha256", [1]),
    ],
)
def test_a_hostile_record_is_one_that_was_edited(closed, request_id, tmp_path, of, key, value):
    """The dossier is written nevertheless, and says so."""
    run_id = {
        "retirement": lambda: json.loads(closed.tags("1")["unlearn.retired"])["run_id"],
        "promotion": lambda: json.loads(closed.tags("2")["unlearn.promotion.champion"])["run_id"],
        "request": lambda: closed.requests()[request_id][1]["run_id"],
    }[of]()
    folder = "request" if of == "request" else "evidence"
    path = Path(closed.client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / folder / f"{of}.json"
    with changed(path, json.dumps(json.loads(path.read_text()) | {key: value}).encode()):
        done = call("dossier", "--request", request_id, "--output", tmp_path / "hostile.zip", "--format", "json")
    missing = checked(done, "dossier", code=3)["result"]["missing"]
    assert [why for why in missing.values()] == ["it is there, and was edited: it is no longer such a record"]
    found = read(tmp_path / "hostile.zip")
    assert set(missing) < set(found) and failures(found)
    assert alone(dossier_verify.__file__, tmp_path / "hostile.zip").returncode == 1


def test_a_retirement_that_was_begun(closed, request_id):
    """It is open, and nothing is wrong with its records."""
    mark = json.loads(closed.tags("1")["unlearn.retired"])
    path = Path(closed.client.get_run(mark["run_id"]).info.artifact_uri.removeprefix("file://"))
    record = json.loads((path / "evidence" / "retirement.json").read_text())
    begun = json.dumps(record | {"done": False}).encode()
    with changed(path / "evidence" / "retirement.json", begun):
        lied = call("dossier", "--request", request_id, "--output", "lied.zip")
        with tagged(closed, "1", unlearn__retired=json.dumps(mark | {"unfinished": []})):
            done = call("dossier", "--request", request_id, "--output", "begun.zip")
    assert lied.code == 3 and "the tag of models:/clf/1 says whether it has ended" in lied.err
    assert done.code == 0, done.err
    assert "Still open: models:/clf/1, which knows the samples, was not retired." in done.out
    assert "it was started but not finished" in read(closed.folder / "begun.zip")["index.html"].decode()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "dossier takes one of --request (to write one) and --verify (to check one)"),
        (("--request", "1" * 12, "--verify", "a.zip"), "dossier takes one of --request"),
        (
            ("--request", "1" * 12),
            "there is neither a forget request nor a case '111111111111' on this tracking server",
        ),
        (("--request", "1" * 12, "--key", "ours.pub"), "--key and --digest go with --verify"),
        (("--request", "nope"), "'nope' is not the id of a request or of a case: it has 12 hexadecimal digits"),
        (
            ("--request", "1" * 12, "--output", "made.zip"),
            "--output made.zip already exists: give another name, or",
        ),
        (("--request", "1" * 12, "--output", "no/where.zip"), "--output no/where.zip cannot be written"),
        (("--request", "1" * 12, "--sign-key", "none.pem"), "--sign-key none.pem cannot sign"),
        (("--verify", "none.zip"), "--verify none.zip cannot be checked"),
        (("--verify", "lenient.yaml"), "is not a zip file"),
        (("--verify", "made.zip", "--key", "none.pem"), "--key none.pem cannot be read (No such file or directory)"),
    ],
)
def test_bad_input(closed, made, arguments, sentence):
    shutil.copy(made, closed.folder / "lenient.zip")
    (closed.folder / "lenient.yaml").write_text("no zip")
    before = made.read_bytes(), sorted(path.name for path in closed.folder.iterdir())
    refused = call("dossier", *arguments)
    assert refused.code == 2 and sentence in refused.err and "Traceback" not in refused.err, refused.err
    assert (made.read_bytes(), sorted(path.name for path in closed.folder.iterdir())) == before


@pytest.mark.parametrize("name", ["two.zip", "link", "other.zip"])
def test_what_is_not_a_dossier(made, tmp_path, name):
    if name == "two.zip":
        with zipfile.ZipFile(tmp_path / name, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(MANIFEST, "")
            archive.writestr(MANIFEST, "")
    elif name == "link":
        shutil.unpack_archive(made, tmp_path / name)
        (tmp_path / name / "more").symlink_to(made)
    else:
        write_zip({"case.json": b"{}"}, tmp_path / name)
    with pytest.raises(NotADossier, match="two files of one name|more is a link or a device|it has no MANIFEST"):
        read(tmp_path / name)
    ended = alone(dossier_verify.__file__, tmp_path / name)
    assert ended.returncode == 2 and ended.stderr.startswith("Error: ") and ended.stdout == ""


@pytest.mark.slow
def test_a_hostile_dossier_does_not_steer_the_terminal(closed, files, tmp_path):
    """By the name of a file, by its records, and by the name of the zip's entry that cannot be read."""
    case = json.loads(files["case.json"])
    case["missing"] = {"a\x1b[2Jb": "\x1b]0;owned\x07", "c": "\ud800\u202e"}
    rest = {name: content for name, content in files.items() if name != MANIFEST}
    more = {"case.json": json.dumps(case).encode(), "x\x1b[8m.txt": b""}
    write_zip(with_manifest({**rest, **more}), tmp_path / "hostile.zip")
    for ended in (
        alone(dossier_verify.__file__, tmp_path / "hostile.zip"),
        shell("dossier", "--verify", tmp_path / "hostile.zip"),
    ):
        assert ended.returncode in (1, 3) and "Traceback" not in ended.stderr
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", ended.stdout + ended.stderr)
        assert "\\x1b" in ended.stdout


def test_a_zip_that_lies_about_its_size_takes_no_memory(tmp_path):
    """300 MB of zeros, by the zip's word ten bytes."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a", "w") as entry:
        for _ in range(300):
            entry.write(bytes(2**20))
    content = path.read_bytes()
    assert content.count(struct.pack("<I", 300 * 2**20))
    path.write_bytes(content.replace(struct.pack("<I", 300 * 2**20), struct.pack("<I", 10)))
    tracemalloc.start()
    try:
        with pytest.raises(NotADossier, match="cannot be read"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_more_than_a_dossier_has(made, monkeypatch, tmp_path):
    """The sum of all files counts, in a folder too; and nothing that unpacks all at once is begun."""
    shutil.unpack_archive(made, tmp_path / "here")
    total = sum(map(len, read(made).values()))
    for limit, refused in ((total, False), (total - 1, True)):
        monkeypatch.setattr(dossier_verify, "LARGEST", limit)
        for path in (made, tmp_path / "here"):
            with pytest.raises(NotADossier, match="more than") if refused else nullcontext():
                assert read(path) == read(made)
    with zipfile.ZipFile(tmp_path / "other.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr(MANIFEST, b"")
    with pytest.raises(NotADossier, match="compressed in a way that no dossier is"):
        read(tmp_path / "other.zip")


def test_it_replaces_a_file_only_by_force(closed, request_id, made):
    (closed.folder / "kept.zip").write_bytes(b"mine")
    assert call("dossier", "--request", request_id, "--output", "kept.zip").code == 2
    assert (closed.folder / "kept.zip").read_bytes() == b"mine"
    assert call("dossier", "--request", request_id, "--output", "kept.zip", "--force", "true").code == 0
    assert (closed.folder / "kept.zip").read_bytes() == made.read_bytes()
