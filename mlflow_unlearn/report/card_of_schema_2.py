"""`model_card.md` as releases with evidence schema 2 wrote it, so that `verify` can hold their cards against it.

Frozen: the template reads the stored JSON alone and shares no words with today's card, whatever becomes of that.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2


def model_card(stored: Mapping[str, Any]) -> str:
    """The card that belongs to a parsed ``evidence.json`` of schema 2.

    Raises:
        KeyError: a field is missing.
    """
    environment = jinja2.Environment(autoescape=False, keep_trailing_newline=True)
    environment.filters |= {"escaped": _escaped, "membership": _membership, "person": _person}
    template = environment.from_string(Path(__file__).with_suffix(".md.j2").read_text(encoding="utf-8"))
    # They rendered the record before it was stored, when a hyperparameter with several values was a tuple.
    recipe = stored["method"]["hyperparameters"].items()
    return template.render(stored, recipe={key: tuple(v) if isinstance(v, list) else v for key, v in recipe})


def _membership(measured: Mapping[str, Any]) -> str:
    low, high = (measured["values"].get(f"mia_auc_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return "not measured"
    if low > 0.5 or high < 0.5:
        return "residual" if low > 0.5 else "over-forgotten"
    return "undecided" if high - low > 0.1 else "indistinguishable"


def _person(person: Mapping[str, Any]) -> str:
    return str(person["name"]) if person["authenticated"] else f"{person['name']} (not authenticated)"


def _escaped(value: str) -> str:
    shown = " ".join(value.split())
    for character in "\\`*_{}[]<>()#|!&~":
        shown = shown.replace(character, f"&#{ord(character)};")
    return shown
