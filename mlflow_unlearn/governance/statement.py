"""What the description of a version, and its tag for people, say of its last review."""

from mlflow.entities.model_registry import ModelVersion

from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.evidence.record import Evidence, Wording
from mlflow_unlearn.evidence.review import ReviewChain, ReviewEntry
from mlflow_unlearn.registry.versions import DESCRIPTION_LIMIT
from mlflow_unlearn.report.description import VERDICT_FOR_PEOPLE, body, body_in, people_tags, split, verdict_paragraph


def restated(
    registered: ModelVersion, evidence: Evidence, chain: ReviewChain, last: ReviewEntry
) -> tuple[str, dict[str, str]]:
    """Description and tags once a review counts; what users have written after ours stays.

    Args:
        registered: as it is.
        evidence: of the version.
        chain: the reviews so far.
        last: the one that is to count.

    Raises:
        Refused: the description does not begin with ours.
        UnlearnError: what users have written leaves no room.
    """
    uri, text = f"models:/{registered.name}/{registered.version}", registered.description or ""
    if evidence.run.experiment_id is None:
        return text, {}  # an earlier release's, which knew of no reviews
    _, below = split(text, evidence, (last, *chain.entries.values(), None))
    found = body_in(below, evidence)
    if found != body(evidence) and Wording.of(found) != (evidence.texts or {}).get("description"):
        raise Refused(f"the description of {uri} has just been changed: see `verify`")
    anew = f"{verdict_paragraph(evidence, last)}\n\n{below}"
    if (over := len(anew) - DESCRIPTION_LIMIT) > 0:
        raise UnlearnError(
            f"the description of {uri} has no room for the verdict: shorten what was written after the table of "
            f"metrics by {over} characters"
        )
    return anew, {VERDICT_FOR_PEOPLE: people_tags(evidence, last)[VERDICT_FOR_PEOPLE]}
