"""`verify`: a table of all that was checked, no run, and exit code 3 where something differs."""

import re

from chains import changed, folder_of
from stores import call


def test_a_sound_version_agrees(chain):
    runs = len(chain.runs())
    done = call("verify", "--model-uri", "models:/clf/3")
    assert done.code == 0, done.err
    assert re.search(r"models:/clf/3 agrees with its evidence \(\d+ checks, 1 not checked\)", done.out)
    for part in ("evidence", "version", "files", "weights", "tags", "config", "signature"):
        assert re.search(rf"│ {part} +│", done.out), part
    assert len(chain.runs()) == runs


def test_a_difference_is_named_in_the_table_and_in_the_sentence(chain):
    with changed(folder_of("3") / "evidence" / "note.txt", b"added"):
        done = call("verify", "--model-uri", "models:/clf/3")
    assert done.code == 3
    assert "evidence/note.txt was added" in done.err and "differs" in done.out
    assert done.err.startswith("models:/clf/3 does not agree with its evidence")
