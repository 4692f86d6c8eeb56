"""What still holds the samples of a case, for its dossier: the same from whatever machine it is asked."""

from mlflow.tracking import MlflowClient

from mlflow_unlearn.console import first_line
from mlflow_unlearn.errors import NoAnswer, UnlearnError
from mlflow_unlearn.evidence.case import Case, HolderRecord, Holders
from mlflow_unlearn.governance.holders import named_by
from mlflow_unlearn.governance.locating import Wanted
from mlflow_unlearn.governance.places import Place, look
from mlflow_unlearn.registry.walk import Registry


def held(client: MlflowClient, registry: Registry, case: Case) -> Holders:
    """What the registry and the tracking server can tell of it; this machine's cache is left out.

    Raises:
        NoAnswer: the server stopped to answer on the way.
    """
    wanted: list[Wanted] = []
    problems: dict[str, str] = {}
    for request in case.requests:
        path = f"{request.folder}/request.json"
        if path in case.missing and path in case.files:
            problems[request.id] = f"{path}: {case.missing[path]}"
            continue
        try:
            wanted.append(named_by(client, request.id))
        except UnlearnError as error:
            problems[request.id] = first_line(error)
    found = look(client, registry, wanted) if wanted else None
    if found is None:
        return Holders(contain=[], cannot_be_told=[], logged_models=[], runs=[], references=[], not_looked_for=problems)
    if found.unanswered is not None:
        raise NoAnswer(found.unanswered)
    return Holders(
        contain=[_holder(place) for place in found.in_state("contains")],
        cannot_be_told=[_holder(place) for place in found.in_state("unknown")],
        logged_models=found.logged_models,
        logged_models_unknown=found.logged_models_unknown,
        runs=found.runs,
        references=found.references,
        checkpoints=[str(one) for one in found.training_checkpoints],
        checkpoints_unknown=found.unlisted_checkpoints,
        not_looked_for=problems,
    )


def _holder(place: Place) -> HolderRecord:
    return HolderRecord(**place.model_dump(include={"uri", "samples", "aliases", "endpoints", "why"}))
