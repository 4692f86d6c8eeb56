"""`exposure`: where forgotten data still lives, as far as the tracking server and this machine can tell."""

from mlflow_unlearn import config
from mlflow_unlearn.governance.holders import ENDPOINT_TAG, cached, forgotten_by, places, unregistered
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.versions import registered_version
from mlflow_unlearn.report import table


def exposure(options: config.Exposure) -> None:
    """Print every version, LoggedModel, run and cache entry that may hold what the version's requests name."""
    with tracking.read_only_client() as client:
        target = registered_version(client, options.model_uri)
        forgotten = forgotten_by(client, target)
        found = places(client, forgotten)
        holders = [place for place in found if place.holds == "holds it"]
        table.show_exposure(
            [f"{request.id} ({request.samples} samples of {request.of})" for request in forgotten],
            [
                (
                    place.uri,
                    place.holds,
                    ", ".join(place.registered.aliases) or "–",
                    ", ".join(f"{name} ({url})" for name, url in place.endpoints.items()) or "–",
                    place.why,
                )
                for place in found
                if place.holds != "never had it"
            ],
            {
                "LoggedModels that were never registered": [f"models:/{m}" for m in unregistered(client, found)],
                "runs that logged these models": sorted({p.registered.run_id for p in holders if p.registered.run_id}),
                "outputs in this machine's cache": [str(path) for path in cached(holders)],
            },
        )
    print(
        "Not seen from here: downloads, backups, and copies on other machines and servers; endpoints are known by the "
        f"tag {ENDPOINT_TAG}NAME alone."
    )
