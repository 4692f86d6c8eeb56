"""The table of `locate`: what is in use has a row of its own, and a large registry does not fill the screen."""

import pytest

from mlflow_unlearn.governance.places import Place, Places, rows


def place(uri: str, state: str = "contains", samples: int = 3, why: str = "by its list", **others) -> Place:
    empty = {"source": "digits", "aliases": [], "endpoints": {}, "unlearned_by": []}
    return Place(uri=uri, state=state, samples=samples, why=why, **empty | others)


def table(*found: Place) -> list[tuple[str, ...]]:
    empty = {
        name: [] for name in ("logged_models", "logged_models_unknown", "runs", "references", "cached", "checkpoints")
    }
    return rows(Places(looked_for=3, versions_looked_at=1000, places=list(found), **empty))


def test_a_few_have_a_row_each():
    found = table(place("models:/a/1"), place("models:/a/2", unlearned_by=["models:/a/3", "models:/a/4"]))
    assert [(row[0], row[5]) for row in found] == [("models:/a/1", "–"), ("models:/a/2", "models:/a/3–4")]


def test_what_cannot_be_told_shares_a_row_by_its_reason():
    unknown = [place(f"models:/a/{n}", "unknown", 0, "no list") for n in (1, 2, 3, 5)]
    found = table(*unknown, place("models:/a/4", "unknown", 0, "no answer"), place("models:/b/1"))
    assert [row[0] for row in found] == ["models:/b/1", "models:/a/1–3, 5", "models:/a/4"]
    assert {row[2] for row in found[1:]} == {"–"}


def test_many_are_folded_but_for_what_is_in_use():
    many = [place(f"models:/{name}/{n}", samples=n) for name in "ab" for n in range(1, 31)]
    many[6] = many[6].model_copy(update={"aliases": ["champion"]})
    many[9] = many[9].model_copy(update={"endpoints": {"eu": "https://eu"}})
    many[20] = many[20].model_copy(update={"why": "the same model as models:/b/1"})
    found = {row[0]: row for row in table(*many, place("models:/a/31", "unlearned", 0))}
    assert list(found) == [
        *("models:/a/1–6, 8–9, 11–30", "models:/a/7", "models:/a/10", "models:/b/1–30", "models:/a/31")
    ]
    assert found["models:/b/1–30"][1:3] == ("contains", "1–30") and found["models:/a/7"][3] == "champion"
    assert found["models:/b/1–30"][6] == "by its list" and found["models:/a/10"][4] == "eu (https://eu)"
    assert found["models:/a/1–6, 8–9, 11–30"][6] == "2 reasons, each of which format=json has"


@pytest.mark.parametrize("count", [40, 41])
def test_folding_begins_at_a_number_of_places(count):
    assert len(table(*(place(f"models:/a/{n}") for n in range(count)))) == (count if count == 40 else 1)
