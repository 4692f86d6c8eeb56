"""What each version is to samples that were to be forgotten."""

import pytest

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.governance import manifest_index
from mlflow_unlearn.governance.files import logged_models
from mlflow_unlearn.governance.holders import exposure_of, forgotten_by, sharing
from mlflow_unlearn.governance.locating import Search
from mlflow_unlearn.registry.walk import walk


def version(chain, number: str):
    return chain.client.get_model_version("clf", number)


def states(chain, number: str) -> dict[str, str]:
    wanted = forgotten_by(chain.client, version(chain, number))
    with manifest_index.opened() as index:
        found = Search(chain.client, walk(chain.client), index).find(wanted)
    return {entry.uri.rpartition("/")[2]: entry.state for entry in found.versions}


def test_versions_that_were_trained_on_the_samples_contain_them(chain):
    """Request A is about version 1 and version 2 fulfilled it; what comes after that came of it, too."""
    assert states(chain, "1") == {"1": "contains", "2": "unlearned", "3": "unlearned", "4": "unlearned"}
    assert states(chain, "3")["4"] == "unlearned"
    assert {states(chain, "3")[number] for number in "13"} == {"contains"}


def test_a_request_is_known_by_its_own_samples(chain):
    [first, *_] = forgotten_by(chain.client, version(chain, "1"))
    assert (first.about, len(first.samples.ids), first.samples.salt) == ({"models:/clf/1"}, 20, None)


def test_every_version_has_its_own_files_and_logged_model(chain):
    models = logged_models(chain.client)
    for number in "1234":
        entry = exposure_of(chain.client, version(chain, number), models)
        assert entry.model_id in {model.id for model in models}
        assert [one.uri for one in sharing(chain.client, entry, models)] == [f"models:/clf/{number}"]


def test_a_version_that_no_request_is_about(chain):
    chain.client.create_registered_model("bare")
    chain.client.create_model_version("bare", str(chain.folder / "nothing"))
    with pytest.raises(UnlearnError, match="models:/bare/1 has no forget request and has carried out none"):
        forgotten_by(chain.client, chain.client.get_model_version("bare", "1"))
    chain.client.delete_registered_model("bare")
