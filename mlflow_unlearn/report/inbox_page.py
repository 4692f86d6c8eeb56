"""The inbox as a page: every case with its due date, its requests, and the versions that still hold the samples."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from mlflow_unlearn.report.figures import fit

_MOST = 12
"""Lines of a list that are shown."""


def inbox_page(cases: Sequence[Any], today: str) -> str:
    """The page as one self-contained HTML text.

    Args:
        cases: of `mlflow_unlearn.governance.inbox`.
        today: ISO date.
    """
    states = [case.state for case in cases]
    page = _template().render(
        cases=cases,
        today=today,
        open=states.count("open") + states.count("overdue"),
        overdue=states.count("overdue"),
        most=_MOST,
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
