"""What each version is to samples that were to be forgotten."""

import pytest

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.governance.holders import exposure_of, forgotten_by, logged_models, sharing, version_exposures


def version(chain, number: str):
    return chain.client.get_model_version("clf", number)


def states(chain, number: str) -> dict[str, str]:
    forgotten = forgotten_by(chain.client, version(chain, number))
    found = version_exposures(chain.client, forgotten, logged_models(chain.client))
    return {entry.uri.rpartition("/")[2]: entry.state for entry in found}


def test_versions_that_were_trained_on_the_samples_contain_them(chain):
    """Request A is about version 1 and version 2 fulfilled it; what comes after was never trained on its samples."""
    assert states(chain, "1") == {"1": "contains", "2": "unlearned", "3": "never contained", "4": "never contained"}
    assert states(chain, "3")["4"] == "unlearned"
    assert {states(chain, "3")[number] for number in "13"} == {"contains"}


def test_a_request_is_known_by_its_own_samples(chain):
    [first, *_] = forgotten_by(chain.client, version(chain, "1"))
    assert (first.of, first.samples, len(first.ids)) == ("models:/clf/1", 20, 20)


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
