"""What is still open in a case, from what is recorded of it."""

import pytest

from mlflow_unlearn.evidence.case import Case, CaseRequest, CaseVersion, HolderRecord, Holders

ASKED = CaseRequest(
    id="0123456789ab",
    of="models:/clf/1",
    run_id="r",
    filed="2026-11-20T09:14:05+00:00",
    filed_by="ann",
    requester=None,
    reason=None,
    due="2026-12-20",
    samples=3,
    hashed=True,
    done_by=["models:/clf/2"],
    folder="requests/0123456789ab",
)
KNOWS = CaseVersion(
    uri="models:/clf/1",
    role="source",
    request_ids=[],
    knows=[ASKED.id],
    source_uri=None,
    method=None,
    membership=None,
    audit=None,
    verdict=None,
    aliases=[],
    retired=True,
    folder="versions/clf-1",
)
DONE = KNOWS.model_copy(
    update={
        "uri": "models:/clf/2",
        "role": "fulfilled",
        "request_ids": [ASKED.id],
        "knows": [],
        "verdict": "pass",
        "aliases": ["champion"],
        "retired": False,
    }
)


def case(asked=ASKED, knows=KNOWS, done=DONE, **changes) -> Case:
    versions = [one for one in (knows, done) if one is not None]
    values = {"id": ASKED.id, "requests": [asked], "versions": versions, "events": [], "missing": {}, "files": {}}
    return Case(**values | changes)


def test_one_that_is_closed():
    assert case().open_points == [] and case().serving == ["clf@champion"]


@pytest.mark.parametrize(
    ("of", "changes", "points"),
    [
        ("asked", {"done_by": []}, ["request 0123456789ab was not carried out, due 2026-12-20"]),
        ("asked", {"done_by": [], "due": None}, ["request 0123456789ab was not carried out"]),
        ("knows", {"retired": False}, ["models:/clf/1, which knows the samples, was not retired"]),
        (
            "knows",
            {"retired": False, "aliases": ["old", "x"]},
            ["models:/clf/1, which knows the samples, was not retired, and is old, x"],
        ),
        ("done", {"verdict": None}, ["models:/clf/2 was not reviewed"]),
        ("done", {"verdict": "fail"}, ["the last review of models:/clf/2 says fail"]),
        (
            "done",
            {"audit": "told apart"},
            ["an audit distinguishes the forgotten samples of models:/clf/2 from unseen ones"],
        ),
        ("done", {"aliases": []}, ["no alias points to a version that has forgotten the samples"]),
        ("done", {"retired": True, "verdict": None}, []),
        (
            "done",
            {"knows": ["ba9876543210"]},  # it has forgotten one request of the case and knows another
            [
                "no alias points to a version that has forgotten the samples",
                "models:/clf/2, which knows the samples, was not retired, and is champion",
            ],
        ),
    ],
)
def test_what_is_open(of, changes, points):
    changed = {"asked": ASKED, "knows": KNOWS, "done": DONE}[of].model_copy(update=changes)
    assert case(**{of: changed}).open_points == points


def test_a_version_of_the_case_that_contains_the_samples_after_all():
    """Whatever it is in the case: what knows the samples is a point already, and is named once."""
    contain = [
        HolderRecord(uri=uri, samples=3, aliases=aliases, endpoints={}, why="by its list of training ids")
        for uri, aliases in (("models:/clf/1", []), ("models:/clf/2", ["champion"]), ("models:/clf/9", []))
    ]
    rest = {"logged_models": [], "runs": [], "references": [], "not_looked_for": {}}
    found = Holders(contain=contain, cannot_be_told=[], **rest)
    assert found.open_points(case(knows=KNOWS.model_copy(update={"retired": False}))) == [
        "models:/clf/2 contains the samples; it is champion",
        "models:/clf/9 contains the samples, and does not belong to this case",
    ]


def test_what_is_missing_is_open():
    assert case(missing={"a.json": "it is gone"}).open_points == ["a.json is missing: it is gone"]


def test_the_files_are_not_in_its_json():
    text = case(files={"a.json": b"\xff"}).to_json()
    assert '"files"' not in text and "0123456789ab" in text
