"""The page of the inbox: its first screen, what is folded, and hostile text."""

import re

import records
from test_case_page import Tags, said

from mlflow_unlearn.report.inbox_page import inbox_page


def answer(cases) -> str:
    text = said(inbox_page(cases, "2026-11-27"))
    return text[text.index("In short") : text.index("Not seen from here")]


def test_the_answer_comes_first():
    text = answer(records.inbox(12))
    words = (
        *("Overdue 2 days overdue ( 2026-12-20 ): group:subject=0 plain for plain , on models:/plain/1", "and 1 more"),
        *("Due next 2 days left ( 2026-12-22 ): group:subject=2", "Still contained in models:/plain/1 : samples of 12"),
        *("group:subject=1 plain", "group:subject=3 plain", "6 cases of which nothing is left to be unlearned"),
    )
    text = re.sub(r"\s+", " ", text)
    places = [text.index(re.sub(r" ?([():,]) ?", r"\1", word)) for word in words] if False else []
    plain = text.replace(" ", "")
    places = [plain.index(word.replace(" ", "")) for word in words]
    assert places == sorted(places)
