"""Whether the aliases of a version are where `promote` has moved them."""

from collections.abc import Iterator

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from mlflow_unlearn.console import first_line
from mlflow_unlearn.evidence.record import FOLDER
from mlflow_unlearn.governance.integrity import PROMOTION, PROMOTION_TAG, Examined, IntegrityFinding, hidden, same
from mlflow_unlearn.parsing import load_json
from mlflow_unlearn.registry.clients import quoted
from mlflow_unlearn.registry.network import persistently
from mlflow_unlearn.registry.versions import read_artifact

GUARDED = "champion"
"""The alias that only `promote` should move; those that it has moved before are guarded as well."""


def check_aliases(client: MlflowClient, examined: Examined) -> Iterator[IntegrityFinding]:
    """An alias that was moved by hand is not prevented, but seen."""
    name, own = examined.registered.name, examined.registered.tags
    promoted = {key.removeprefix(PROMOTION_TAG) for key in own if key.startswith(PROMOTION_TAG)}
    elsewhere = promoted.difference(examined.registered.aliases)
    if not (promoted or examined.registered.aliases):
        return  # the other versions' aliases are theirs
    versions = client.search_model_versions(f"name={quoted(name)}")
    guarded = {key.removeprefix(PROMOTION_TAG) for v in versions for key in v.tags if key.startswith(PROMOTION_TAG)}
    tags = {str(version.version): version.tags for version in versions}
    for alias in examined.registered.aliases:
        part, key = f"alias {alias}", PROMOTION_TAG + alias
        promotion = own.get(key)
        later, begun = [], []
        for number, theirs in tags.items():
            if _promoted_at(theirs.get(key)) > _promoted_at(promotion):
                how = _unfinished(client, theirs[key])
                begun.append(f"version {number} {how}") if how else later.append(number)
        if alias not in {*guarded, GUARDED}:
            yield IntegrityFinding(part, "not checked", "`promote` has never moved this alias")
        elif promotion is None:
            yield IntegrityFinding(part, "differs", "it was moved by hand: no promotion of this version is recorded")
        elif later:
            message = f"it was moved back by hand: version {', '.join(later)} was promoted later"
            yield IntegrityFinding(part, "differs", message)
        else:
            yield _same_promotion(part, promotion, examined)
            yield from (IntegrityFinding(part, "not checked", f"the promotion of {one}") for one in begun)
    # An alias that `promote` gave to this version, and that a version without a later promotion has now.
    now = client.get_registered_model(name).aliases if elsewhere else {}
    for alias in sorted(elsewhere & now.keys()):
        key, number = PROMOTION_TAG + alias, now[alias]
        promotion = own[key]
        if _promoted_at(tags[str(number)].get(key)) > _promoted_at(promotion):
            continue
        if how := _unfinished(client, promotion):
            yield IntegrityFinding(f"alias {alias}", "not checked", f"the promotion of this version {how}")
        else:
            yield IntegrityFinding(f"alias {alias}", "differs", f"it was moved by hand from here to version {number}")
    # A promotion that is over, or that never was.
    for alias in sorted(elsewhere):
        yield _same_promotion(f"promotion to {alias}", own[PROMOTION_TAG + alias], examined)


def _promoted_at(tag: str | None) -> str:
    """ISO time in UTC, as the tag of a promotion has it; empty without one."""
    try:
        return str(load_json(tag or "{}").get("at", ""))
    except (ValueError, AttributeError):
        return ""


def _unfinished(client: MlflowClient, tag: str) -> str | None:
    """How a promotion ended whose command did not reach the alias; None for one that did.

    The tag is written before the alias is moved, and the command's run is finished after that.
    """
    try:
        run_id = load_json(tag)["run_id"]
        status = persistently(lambda: client.get_run(run_id)).info.status
        if status == "FINISHED" or load_json(read_artifact(run_id, f"{FOLDER}/{PROMOTION}")) != load_json(tag):
            return None
    except (ValueError, KeyError, TypeError, MlflowException, OSError):
        return None  # what cannot be read excuses nobody
    return f"did not reach the alias (run {run_id} is {status}): the same `promote` continues it"


def _same_promotion(part: str, tag: str, examined: Examined) -> IntegrityFinding:
    expected = {
        "uri": examined.uri,
        "weights_sha256": examined.evidence.result.weights_sha256,
        "evidence_sha256": examined.sha256,
    }
    try:
        promotion = load_json(tag)
        recorded = load_json(read_artifact(promotion["run_id"], f"{FOLDER}/{PROMOTION}"))
    except (ValueError, KeyError, TypeError, MlflowException, OSError) as error:
        message = f"the record of its promotion cannot be read ({first_line(error)})"
        return IntegrityFinding(part, "not checked" if hidden(error) else "differs", message)
    if promotion != recorded:
        return IntegrityFinding(part, "differs", "the tag of its promotion is not what the promotion's run recorded")
    for name, value in expected.items():
        if promotion.get(name) != value:
            return same(part, promotion.get(name), value, f"the {name} that was promoted")
    message = f"promoted by {promotion.get('by')} at {promotion.get('at')}"
    if promotion.get("override"):
        message += f", despite the verdict: {promotion['override']}"
    return IntegrityFinding(part, "same", message)
