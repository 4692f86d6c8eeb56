"""A new version from its first moment on: marked until all that belongs to it is stored, finished, or taken back.

A command can be killed at any moment. So what can be stored before the version is, tags and description come with it,
and the mark (`REGISTERING_TAG`) goes last. A version that has it is refused by every command (see
`mlflow_unlearn.registry.versions.find_version`); the next command on the experiment finishes it or takes it back.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models.model import ModelInfo
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from mlflow_unlearn import cache
from mlflow_unlearn.console import note
from mlflow_unlearn.evidence.checkpoints import CHECKPOINTS_TAG, OF_SHARDS
from mlflow_unlearn.evidence.record import DIGEST_TAG, FILE, FOLDER, Evidence, sha256
from mlflow_unlearn.evidence.registered import Registered
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry import forget_requests
from mlflow_unlearn.registry.checkpoints import delete_checkpoints
from mlflow_unlearn.registry.dead import PROCESS_TAG, RunNote, of_run
from mlflow_unlearn.registry.forget_requests import ForgetRequest
from mlflow_unlearn.registry.network import once, persistently
from mlflow_unlearn.registry.versions import DESCRIPTION_LIMIT, REGISTERING_TAG, read_artifact


def next_number(client: MlflowClient, name: str) -> str:
    """The number that the next version will have, unless the last one was deleted or another command is quicker."""
    return str(max((int(v.version) for v in client.search_model_versions(f"name='{name}'")), default=0) + 1)


def register(
    client: MlflowClient,
    info: ModelInfo,
    name: str,
    *,
    tags: Mapping[str, str],
    description: str,
    requests: Sequence[ForgetRequest] = (),
) -> ModelVersion:
    """Register a logged model; the version is marked as unfinished until `complete`.

    Args:
        client: of the registry.
        info: of the logged model.
        name: of the registered model.
        tags: there from the version's first moment.
        description: likewise; Markdown.
        requests: that it is to fulfil.
    """
    # On this machine's own disk: should this process be killed, the next command believes no tag.
    if (own := of_run(info.run_id)) is not None:
        about = json.dumps([(request.id, request.of, request.run_id, request.sha256) for request in requests])
        own.add(name=name, requests=about, **({"evidence": tags[DIGEST_TAG]} if DIGEST_TAG in tags else {}))
    with _but_for("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
        persistently(lambda: client.create_registered_model(name))

    def create() -> ModelVersion:
        return client.create_model_version(
            name,
            info.model_uri,
            tags={**tags, REGISTERING_TAG: info.run_id},
            description=description[:DESCRIPTION_LIMIT],
            model_id=info.model_id,
        )

    def created() -> ModelVersion | None:
        found = _versions_of(client, info.run_id, name)
        return next((version for version in found if version.tags.get(REGISTERING_TAG) == info.run_id), None)

    version = once(create, created)
    _link(client, version, info.model_id)
    return version


def describe_version(client: MlflowClient, version: ModelVersion, description: str) -> None:
    """Set the version's description (Markdown), cut to what every database takes."""
    client.update_model_version(version.name, version.version, description=description[:DESCRIPTION_LIMIT])


def complete(client: MlflowClient, version: ModelVersion) -> None:
    """Take the mark away: all that belongs to the version is stored."""
    persistently(lambda: client.delete_model_version_tag(version.name, version.version, REGISTERING_TAG))


def registered_before(version: ModelVersion) -> Registered:
    """What an earlier command has registered: by its evidence, or where none can be read by its tags."""
    uri = f"models:/{version.name}/{version.version}"
    try:
        evidence = Evidence.model_validate_json(read_artifact(str(version.run_id), f"{FOLDER}/{FILE}"))
        if evidence.result.uri == uri:
            return Registered.of(evidence)
    except (MlflowException, OSError, ValueError):
        pass  # a version that was trained has none
    return Registered.by_tags(version.name, str(version.version), version.model_id, version.tags)


def settle(client: MlflowClient, run: Run, own: RunNote) -> ModelVersion | None:
    """Finish what the run of a command that was killed had registered, or take it back; the version that is complete.

    Two commands may do so at once.

    Args:
        client: of the registry.
        run: whose process is gone.
        own: its note, by which its version and evidence are known.
    """
    for version in _versions_of(client, run.info.run_id, own.facts.get("name")):
        if version.tags.get(REGISTERING_TAG) == run.info.run_id and _finish(client, version, run, own.facts):
            note(
                f"Note: models:/{version.name}/{version.version}, which run {run.info.run_id} was registering when it "
                "was killed, is complete now."
            )
    take_back(client, run, own)
    found = _versions_of(client, run.info.run_id, own.facts.get("name"))
    if found:
        for path, entry in cache.entries(cache.CHECKPOINTS):
            if entry.get("run") == run.info.run_id:
                path.unlink(missing_ok=True)
    return found[-1] if found else None


def _versions_of(client: MlflowClient, run_id: str, name: str | None) -> list[ModelVersion]:
    """Of the model that the run was registering: anyone may register another one that names the run."""
    found = client.search_model_versions(f"run_id = '{run_id}'")
    own = (version for version in found if version.name == name)
    return sorted(own, key=lambda version: int(version.version))


def _finish(client: MlflowClient, version: ModelVersion, run: Run, facts: Mapping[str, str]) -> bool:
    """Do what is left, if all that the version needs was stored before it."""
    if "evidence" in facts:
        try:
            content = read_artifact(run.info.run_id, f"{FOLDER}/{FILE}")
            evidence = Evidence.model_validate_json(content)
        except (MlflowException, OSError, ValueError):
            return False
        uri = f"models:/{version.name}/{version.version}"
        if not sha256(content) == facts["evidence"] == version.tags.get(DIGEST_TAG) or evidence.result.uri != uri:
            return False  # it got another number than was expected, and the command was killed before it wrote again
        forget_requests.mark_done(client, _requests_of(facts), uri)
    _link(client, version, str(version.source).removeprefix("models:/"))
    with _but_for("RESOURCE_DOES_NOT_EXIST"):  # another command has met the same dead run
        complete(client, version)
    return True


def _requests_of(facts: Mapping[str, str]) -> list[ForgetRequest]:
    return [
        # One that has no tag yet was given with forget=.
        ForgetRequest(id, of, run_id, ad_hoc=True, sha256=digest)
        for id, of, run_id, digest in load_json(facts.get("requests", "[]"))
    ]


def take_back(client: MlflowClient, run: Run, own: RunNote) -> list[str]:
    """Delete what of a run of ours is unfinished: marked versions, and LoggedModels that no version has.

    Args:
        client: of the registry.
        run: that has failed, or whose process is gone.
        own: its note.

    Returns:
        The URIs of versions that are complete.
    """
    complete = []
    for version in _versions_of(client, run.info.run_id, own.facts.get("name")):
        uri = f"models:/{version.name}/{version.version}"
        if version.tags.get(REGISTERING_TAG) != run.info.run_id:
            complete.append(uri)
            continue
        forget_requests.mark_undone(client, _requests_of(own.facts), uri)  # first: none is done by what is not there
        with _but_for("RESOURCE_DOES_NOT_EXIST"):  # another command has met the same dead run
            client.delete_model_version(version.name, version.version)
        if not client.search_model_versions(f"name='{version.name}'"):
            with _but_for("RESOURCE_DOES_NOT_EXIST"):  # another command has met the same dead run
                client.delete_registered_model(version.name)
    found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    # The run may be another program's as well, which has given us its id.
    models = [model for model in found if model.tags.get(PROCESS_TAG) == own.name]
    left = client.search_model_versions(f"run_id = '{run.info.run_id}'") if models else []
    registered = {str(version.source) for version in left}
    for model in models:
        if f"models:/{model.model_id}" not in registered and model.artifact_location not in registered:
            with _but_for("RESOURCE_DOES_NOT_EXIST"):
                client.delete_logged_model(model.model_id)
    if not complete and run.data.tags.get(CHECKPOINTS_TAG) == OF_SHARDS:
        delete_checkpoints(run.info.run_id)  # the same command stores them again
    return complete


def _link(client: MlflowClient, version: ModelVersion, model_id: str) -> None:
    """Have the LoggedModel name its version, as `mlflow.register_model` does."""
    named = json.dumps([{"name": version.name, "version": version.version}])
    with suppress(MlflowException):  # MLflow itself only warns: the version does not depend on it
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: named})


@contextmanager
def _but_for(*codes: str) -> Iterator[None]:
    """An error of MLflow with one of these codes says that the step was taken before."""
    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise
