"""The inbox as a page: every case with its due date, its requests, and the versions that still hold the samples."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from mlflow_unlearn.report.figures import fit

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


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(fit=fit)
    return environment.get_template("inbox.html")
