"""How `earlier_store.tar.xz` was made: a store as commit 03bdee3 writes it, which later code has to go on with.

With that commit checked out clean somewhere, run with its code, not with this one::

    git worktree add /tmp/earlier/code 03bdee3
    cd /tmp/earlier/code && OMP_NUM_THREADS=1 PYTHONPATH=.:tests python .../tests/end_to_end/make_store.py OUT.tar.xz

Everything is done by the command line. `MLmodel` names the folder of its artifacts and its digest is in the evidence,
and an exported program names the files of the code that it was traced from: have code, Python and store at paths that
may be read by everybody. The databases name `EARLIER_STORE` in the place of the store's folder.
"""

import getpass
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(tempfile.gettempdir()).resolve() / "earlier" / "store"
PLACEHOLDER = "EARLIER_STORE"

POLICY = """\
name: lenient
rules:
  - {metric: acc_test, at_least: 0.1}
  - {metric: acc_retain, relative_to: original, at_least: -0.9}
membership: null
minimum: {forget: 2}
required: [filed_request, reason, requester, signature, clean_commit]
approvers: [bob, carol]
two_person: true
"""
QUICK = json.dumps({"epochs": 3, "lr": 0.003})
PARAMS = json.dumps({"neggrad_plus": {"epochs": 2}, "ssd": {"alpha": 1.0}})
TRAIN = ("train", "--data", "digits,train=15%", "--architecture", "toy:trainable", "--epochs", "20", "--lr", "0.05",
         "--batch-size", "32", "--device", "cpu")  # fmt: skip
SIGNED = ("--sign-key", "private.pem", "--device", "cpu")
REVIEW = ("review", "--policy", "lenient.yaml", "--key", "public.pem")
REQUEST = ("request", "--requester", "pseudonym-7", "--reason", "deletion request 17")

STEPS: list[tuple[int, tuple[str, ...]]] = [
    # A chain with signed evidence: clf 1 → 2 (request A, beside a gold standard) → 3 (request B, ids hashed).
    (0, (*TRAIN, "--name", "clf")),
    (0, (*TRAIN, "--name", "gold", "--exclude", "random:40,seed=1")),
    (0, (*REQUEST, "--model-uri", "models:/clf/1", "--forget", "random:40,seed=1")),
    (0, ("unlearn", "--model-uri", "models:/clf/1", "--method", "neggrad_plus", "--params", '{"epochs": 3}',
         "--gold-uri", "models:/gold/1", *SIGNED)),
    (3, ("review", "--model-uri", "models:/clf/2")),
    (0, (*REVIEW, "--model-uri", "models:/clf/2")),
    (0, ("promote", "--model-uri", "models:/clf/2", "--approver", "bob")),
    (0, (*REQUEST, "--model-uri", "models:/clf/2", "--forget", "random:30,seed=2", "--hash-ids", "true")),
    (0, ("unlearn", "--model-uri", "models:/clf/2", "--params", QUICK, *SIGNED)),
    (0, (*REVIEW, "--model-uri", "models:/clf/3")),
    # Left for later code: clf 3 has passed and is not promoted, and a request on it is pending.
    (0, (*REQUEST, "--model-uri", "models:/clf/3", "--forget", "class:7")),
    # A study whose winner is registered, and a comparison.
    (0, ("tune", "--model-uri", "models:/clf/1", "--forget", "random:20%", "--n-trials", "3", "--study", "ours",
         "--storage", "sqlite:///optuna.db", "--space", '{"epochs": [1, 3]}', "--register-as", "tuned",
         "--device", "cpu")),
    (0, ("compare", "--model-uri", "models:/clf/1", "--forget", "random:20%", "--methods", "neggrad_plus,ssd",
         "--seeds", "2", "--params", PARAMS, "--device", "cpu")),
    # A pickle, with a forget set that was given and not filed; a version that is gone.
    (0, (*TRAIN, "--name", "pickled", "--serialization", "pickle")),
    (0, ("unlearn", "--model-uri", "models:/pickled/1", "--forget", "random:20,seed=3", "--params", QUICK,
         "--prefix", "4", "--device", "cpu")),
    (0, (*TRAIN, "--name", "spare")),
    (0, ("retire", "--model-uri", "models:/spare/1", "--reason", "made by mistake", "--yes", "true")),
]  # fmt: skip


def main(out: str) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    os.chdir(FOLDER)
    # Nobody's name and no machine's is to be in it.
    os.environ |= {
        "LOGNAME": "alice",
        "MLFLOW_TRACKING_URI": f"sqlite:///{FOLDER}/mlflow.db",
        "MLFLOW_EXPERIMENT_NAME": "earlier",
        "MLFLOW_UNLEARN_CACHE": "off",
    }
    platform.node = lambda: "workshop"
    platform.platform = lambda *_, **__: "Linux"
    sys.argv[0] = "mlflow-unlearn"
    sys.modules["plotly"] = None  # as without the extra [plots]: each of its pages has 5 MB
    assert getpass.getuser() == "alice"

    ecparam = ("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "private.pem")
    subprocess.run(ecparam, check=True)
    subprocess.run(("openssl", "ec", "-in", "private.pem", "-pubout", "-out", "public.pem"), check=True)
    Path("lenient.yaml").write_text(POLICY)

    import mlflow

    from mlflow_unlearn.cli import main as command_line

    mlflow.MlflowClient().create_experiment("earlier", artifact_location=f"{FOLDER}/artifacts")
    for expected, arguments in STEPS:
        print("$ mlflow-unlearn", *arguments, flush=True)
        try:
            command_line(list(arguments))
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        if code != expected:
            sys.exit(f"exit code {code} instead of {expected}")
    tags = mlflow.search_runs(search_all_experiments=True)
    [commit] = set(tags["tags.unlearn.git.commit"].dropna())
    if set(tags["tags.unlearn.git.dirty"].dropna()) != {"false"}:
        sys.exit("the commit is not checked out clean")
    packages = ("mlflow", "torch", "optuna", "scikit-learn", "numpy", "model-signing")
    made = {"commit": commit, "python": platform.python_version(), **{name: version(name) for name in packages}}
    Path("made.json").write_text(json.dumps(made, indent=1) + "\n")
    os.remove("private.pem")
    for name in ("mlflow.db", "optuna.db"):
        relocatable(FOLDER / name)
    for leftover in FOLDER.glob("*.lock"):
        leftover.unlink()
    with tarfile.open(out, "w:xz", preset=9) as archive:
        for path in sorted(FOLDER.rglob("*")):
            archive.add(path, path.relative_to(FOLDER).as_posix(), recursive=False, filter=anonymous)
    print(f"{out}: {os.path.getsize(out) / 1e6:.2f} MB")


def relocatable(database: Path) -> None:
    """Put the placeholder where the folder is named."""
    connection = sqlite3.connect(database)
    with connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for column in [row[1] for row in connection.execute(f"PRAGMA table_info('{table}')")]:
                found = connection.execute(
                    f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)',
                    (str(FOLDER), PLACEHOLDER, str(FOLDER)),
                )
                if found.rowcount:
                    print(f"{database.name}: {table}.{column}: {found.rowcount} rows")
    connection.execute("VACUUM")
    connection.close()


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
