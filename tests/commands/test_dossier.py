"""`dossier`: one zip about a case, that checks itself wherever it is."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from chains import folder_of
from stores import call

from mlflow_unlearn.evidence.dossier import checker, with_manifest, write_zip
from mlflow_unlearn.evidence.dossier_verify import MANIFEST, check, read


@pytest.fixture(scope="module")
def made(closed):
    """The dossier of the case that is closed."""
    [request_id] = closed.requests()
    done = call("dossier", "--request", request_id, "--output", "made.zip")
    assert done.code == 0, done.err
    assert re.search("SHA-256 of its MANIFEST.*[0-9a-f]{64}", done.out)
    return closed.folder / "made.zip"


def failed(files, **more):
    return [f"{one.part}: {one.message}" for one in check(files, **more) if one.outcome == "failed"]


def test_everything_is_in_it(closed, made):
    files = read(made)
    for one in files:
        print(one, len(files[one]))
    print(*check(files), sep="\n")
    assert failed(files) == []
    raise SystemError
