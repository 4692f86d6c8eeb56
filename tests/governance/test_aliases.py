"""Aliases that were moved by something else than `promote`."""

import pytest

from mlflow_unlearn.governance.aliases import check_aliases
from mlflow_unlearn.governance.integrity import examine


@pytest.fixture
def alias(chain):
    """Set an alias of clf by hand; it is gone after."""
    names = []

    def move(name: str, version: str) -> None:
        chain.client.set_registered_model_alias("clf", name, version)
        names.append(name)

    yield move
    for name in names:
        chain.client.delete_registered_model_alias("clf", name)


def found(chain, tmp_path, version: str) -> dict[str, tuple[str, str]]:
    examined = examine(chain.client, f"models:/clf/{version}", tmp_path)
    return {one.part: (one.outcome, one.message) for one in check_aliases(chain.client, examined)}


@pytest.mark.slow
def test_the_guarded_alias_needs_a_promotion(chain, alias, tmp_path):
    alias("champion", "2")
    assert found(chain, tmp_path, "2") == {
        "alias champion": ("differs", "it was moved by hand: no promotion of this version is recorded")
    }


def test_an_alias_that_promote_never_moved_is_free(chain, alias, tmp_path):
    alias("mine", "3")
    assert found(chain, tmp_path, "3") == {"alias mine": ("not checked", "`promote` has never moved this alias")}


def test_a_version_without_aliases_has_nothing_to_check(chain, tmp_path):
    assert found(chain, tmp_path, "2") == {}
