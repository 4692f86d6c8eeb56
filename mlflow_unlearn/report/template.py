"""Templates of the pages: what all of them have in common."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2


@cache  # compiling takes longer than all the rest of a page
def page_template(name: str, **filters: Callable[..., Any]) -> jinja2.Template:
    """A template of this folder; what it shows is escaped, and a name that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)
