"""The page of the inbox: its first screen, what is folded, and hostile text."""

import re

import records
from pages import Tags, said

from mlflow_unlearn.report.inbox_page import inbox_page

TODAY = "2026-11-27"


def shown(cases) -> str:
    """What a reader sees, without spaces, which tags add."""
    return said(inbox_page(cases, TODAY)).replace(" ", "")


def test_the_answer_comes_first():
    words = (
        *("2 overdue, 4 open", "In short"),
        *("2 days overdue (2026-12-20): group:subject=0 plain for plain, on models:/plain/1", "and 1 more case"),
        *("Due next 2 days left (2026-12-22): group:subject=2 plain", "and 3 more cases"),
        *("Still contained in models:/plain/1: samples of 12 cases", "group:subject=1 plain", "group:subject=3 plain"),
        *(
            "6 cases with nothing left to be unlearned; the samples of 6 are still in a version",
            "Done by models:/plain/9",
        ),
    )
    text = shown(records.inbox(12))
    places = [text.find(word.replace(" ", "")) for word in words]
    assert -1 not in places and places == sorted(places)


def test_days_are_counted_as_people_do():
    [case] = records.inbox(1)
    for days, words in ((0, "due today"), (1, "1 day left"), (30, "30 days left")):
        text = said(inbox_page([case.model_copy(update={"state": "open", "days_left": days})], TODAY))
        assert words in text and "0 overdue, 1 open" in text
    assert "1 day overdue" in said(inbox_page([case], TODAY))


def test_nothing_known_is_not_nothing():
    """A version that cannot be told is named, and no version that is known is not none."""
    [case] = records.inbox(1)
    text = said(inbox_page([case.model_copy(update={"still_in": [], "unclear": 2})], TODAY))
    assert text.count("no version that is known") == 2 and "unknown for 2 versions" in text
    assert "There is no forget request here." in said(inbox_page([], TODAY))


def test_a_case_that_is_done_in_part():
    [case] = records.inbox(1)
    first, second = case.requests
    done = first.model_copy(update={"state": "done", "done_by": ["models:/plain/9"]})
    text = shown([case.model_copy(update={"requests": [done, second]})])
    assert "Tobeunlearnedonmodels:/plain/2Doneorclosedonmodels:/plain/1Stillin" in text


def test_long_lists_are_folded_and_none_is_lost():
    cases = records.inbox(200, versions=10)
    page = inbox_page(cases, TODAY)
    assert page.count('<li id="case-') == 200 and len(re.findall("case-[0-9a-f]{12}", page)) == 200
    assert "14 more that are overdue" in page and "62 more that are open" in page and "and 6 more" in page


def test_hostile_text_stays_text_and_nothing_is_loaded():
    text = inbox_page(records.inbox(12, records.HOSTILE), TODAY)
    assert "script" not in Tags(text).found and "&lt;script&gt;" in text
    assert Tags(text).found == Tags(inbox_page(records.inbox(12), TODAY)).found
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?\s*(https?:)?//", text) and "default-src 'none'" in text
