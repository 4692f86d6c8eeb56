"""The inbox as a page: every case with its due date, its requests, and the versions that still hold the samples."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jinja2

from mlflow_unlearn.report.figures import fit
from mlflow_unlearn.report.template import page_template

_FEW, _MOST = 4, 200
"""Lines of a list that are shown, and that are folded; there are more in the JSON."""
_UNFOLDED = 12
"""Cases of one state that are shown unfolded."""


def inbox_page(cases: Sequence[Any], today: str) -> str:
    """The page as one self-contained HTML text.

    Args:
        cases: of `mlflow_unlearn.governance.inbox`, the most urgent first.
        today: ISO date.
    """
    holders = Counter(uri for case in cases for uri in case.still_in)
    page = _template().render(
        cases=cases,
        today=today,
        **{state: [case for case in cases if case.state == state] for state in ("overdue", "open", "done")},
        holders=[
            f"{uri}: samples of {count} {'case' if count == 1 else 'cases'}" for uri, count in holders.most_common()
        ],
        few_lines=_FEW,
        most=_MOST,
        unfolded=_UNFOLDED,
    )
    return page.encode("utf-8", "replace").decode()


def _template() -> jinja2.Template:
    return page_template("inbox.html", fit=fit)
