"""The page of a case: its first screen, and hostile text."""

import re

import records
from pages import Tags, said

from mlflow_unlearn.report.case_page import case_page


def test_the_answer_comes_first():
    text = said(case_page(records.case()))
    answer = text[text.index("In short") : text.index("Timeline")]
    words = (
        "Open: 2 points",
        "3 samples of plain",
        "filed by plain",
        "2026-12-20",
        "membership test indistinguishable",
    )
    places = [answer.index(word) for word in words]
    assert places == sorted(places)
    assert "audit: not told apart" in answer and "last review: pass" in answer
    assert "knows the samples, was not retired" in answer and "is missing: plain" in answer


def test_closed_and_failed():
    closed = records.case(missing={}, versions=[])
    assert "Closed" in said(case_page(closed))
    failed = said(case_page(closed, failures=["the chain is broken"]))
    assert "Records differ" in failed and "the chain is broken" in failed and "Closed" not in failed


def test_what_still_holds_the_samples():
    """It is in the answer and in a table, and a case is not closed while another model contains them."""
    closed = records.case(missing={}, versions=[])
    text = said(case_page(closed, holders=records.holders()))
    assert "Open: 3 points" in text and "Closed" not in text
    answer = text[text.index("In short") : text.index("Timeline")]
    assert "Still in models:/plain/7 ( plain ) unknown for 1 version" in answer
    assert "models:/plain/7 contains the samples, and does not belong to this case" in answer
    assert "models:/m-plain contains the samples" in answer and "the samples of request 0123456789ab were not" in answer
    assert "models:/plain/70 unknown –" in text and "models:/plain/7 yes 3" in text
    unsure = records.holders(many=1).model_copy(update={"contain": [], "logged_models": [], "not_looked_for": {}})
    word = said(case_page(closed, holders=unsure))
    assert "Unknown: 1 model may contain the samples" in word and "Closed" not in word
    unsure = unsure.model_copy(update={"cannot_be_told": [], "logged_models_unknown": ["models:/m-1", "models:/m-2"]})
    word = said(case_page(closed, holders=unsure))
    assert "Unknown: 2 models may contain the samples" in word and "unknown for 2 LoggedModels" in word
    none = records.holders(many=0).model_copy(update={"logged_models": [], "not_looked_for": {}})
    assert "Closed" in said(case_page(closed, holders=none)) and "Still in" not in said(case_page(closed))


def test_alone_it_names_no_files():
    alone, beside = case_page(records.case()), case_page(records.case(), digests={"case.json": "f" * 64})
    assert "href" not in alone.replace('href="#main"', "").replace('href="data:,"', "")
    assert "legal" not in alone and "case.json" not in alone
    assert '<a href="case.json">case.json</a></th><td class="digest">' + "f" * 64 in beside
    assert "not legal advice" in said(beside)
    for name in ("GDPR Art. 17", "GDPR Art. 5(2)", "EDPB Opinion 28/2024", "Art. 12", "Art. 18", "Art. 19", "AB 1008"):
        assert name in said(beside)


def test_hostile_text_stays_text():
    hostile, plain = (
        case_page(records.case(word), failures=[word], holders=records.holders(word, many=3), digests={name: "f" * 64})
        for word, name in ((records.HOSTILE, "a'b\".json"), ("plain", "a"))
    )
    assert "script" not in Tags(hostile).found and "&lt;script&gt;" in hostile
    assert Tags(hostile).found == Tags(plain).found


def test_nothing_is_loaded():
    text = case_page(records.case(), digests={"a.json": "f" * 64})
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?\s*(https?:)?//", text)
    assert "default-src 'none'" in text
