"""The version's description, and its tags for people: the record in the order in which a reviewer asks.

Did it work, what was asked and by whom, how sure is that, what did it cost, where is more, what now? The first
paragraph and the tag `VERDICT_FOR_PEOPLE` are of the last review; all else is of the evidence alone.
"""

import re
from collections.abc import Iterable, Iterator

from mlflow_unlearn.console import counted
from mlflow_unlearn.evidence.policy import Policy, Verdict, judge
from mlflow_unlearn.evidence.record import CARD, FOLDER, REPORT, Evidence, RequestRecord, Wording
from mlflow_unlearn.evidence.review import ReviewEntry
from mlflow_unlearn.registry.versions import DESCRIPTION_LIMIT
from mlflow_unlearn.report import answer
from mlflow_unlearn.report.card import (
    alarms,
    as_text,
    claimed,
    exactness,
    frozen,
    made,
    metrics_table,
    model_card,
    reading,
)
from mlflow_unlearn.report.figures import fit
from mlflow_unlearn.spelling import shell_line

PEOPLE = "unlearn-"
"""Of tags that people read: MLflow shows tags by name, and these before all that begin with ``unlearn.``."""
VERDICT_FOR_PEOPLE = f"{PEOPLE}verdict"
_REQUESTS, _CHECKS = 3, 2
"""How many are named before the rest is counted."""
_HEAD = 1000
"""Characters of a description that its first paragraph may take."""


def describe(evidence: Evidence) -> str:
    """As a new version is described: by the default policy's verdict, which is advisory until there is a review."""
    return described(evidence, None)


def described(evidence: Evidence, last: ReviewEntry | None) -> str:
    """The description, Markdown: `verdict_paragraph`, and below it `body`."""
    return f"{verdict_paragraph(evidence, last)}\n\n{body(evidence)}"


def verdict_paragraph(evidence: Evidence, last: ReviewEntry | None) -> str:
    """What a description begins with.

    Args:
        evidence: of the version.
        last: the review that counts; None: there is none.
    """
    word, whose = _verdict(evidence, last)
    run = f" ([its run and report](#/runs/{last.run_id}))" if last is not None else ""
    said = f"{begins_with(evidence, last)}{as_text(whose)}{run}. "
    return said[: _HEAD - len(now := _now(evidence, last))] + now


def begins_with(evidence: Evidence, last: ReviewEntry | None) -> str:
    """What each release's paragraph begins with."""
    return f"**{_verdict(evidence, last)[0]}** "


def body(evidence: Evidence) -> str:
    """What of a description is of the evidence alone, whatever reviews say later."""
    answers = "\n".join(f"- {line}" for line in _answers(evidence))
    parts = [*alarms(evidence), answers, *frozen(evidence), *exactness(evidence), evidence.limits, made(evidence)]
    return "\n\n".join([*parts, metrics_table(evidence)])[: DESCRIPTION_LIMIT - _HEAD - 2]


def split(text: str, evidence: Evidence, reviews: Iterable[ReviewEntry | None]) -> tuple[str, str]:
    """The first paragraph of a description, and what stands below it.

    Args:
        text: the description.
        evidence: of the version.
        reviews: that the paragraph may be of; the first one whose words it has counts.
    """
    known = (verdict_paragraph(evidence, review) for review in reviews)
    paragraph = next((one for one in known if text.startswith(f"{one}\n\n")), text.partition("\n\n")[0])
    return paragraph, text[len(paragraph) + 2 :]


def body_in(below: str, evidence: Evidence) -> str:
    """What of it should be `body`, in the words of this release or as long as in those of the one that wrote it."""
    ours, recorded = body(evidence), (evidence.texts or {}).get("description")
    end = len(ours) if recorded is None or below.startswith(ours) else recorded.characters
    # Without a blank line, what users write below would be a part of our table.
    return below[:end] if below[end:].startswith(("\n\n", "\r\n\r\n")) or not below[end:].strip() else below


def worded(evidence: Evidence) -> Evidence:
    """The record with what people read of it in the words of this release, which a later one may change."""
    evidence = evidence.model_copy(update={"texts": {}})  # which tells it from a record of an earlier release
    tags = {name: value for name, value in people_tags(evidence, None).items() if name != VERDICT_FOR_PEOPLE}
    texts = {"description": body(evidence), CARD: model_card(evidence), **tags}
    return evidence.model_copy(update={"texts": {name: Wording.of(text) for name, text in texts.items()}})


def people_tags(evidence: Evidence, last: ReviewEntry | None) -> dict[str, str]:
    """The tags that people read, as plain text; none of a version that an earlier release made.

    Args:
        evidence: of the version.
        last: the review that counts; None: there is none.
    """
    if evidence.run.experiment_id is None:
        return {}
    asked = _own(evidence)
    values = {
        "asked-by": "; ".join(dict.fromkeys(map(answer.asked_by, asked))),
        "reason": "; ".join(dict.fromkeys(answer.short(request.reason or answer.NOT_RECORDED) for request in asked)),
        "result": f"{evidence.membership}, {answer.told_apart(evidence)}; test accuracy {_test_accuracy(evidence)}",
    }
    tags = {f"{PEOPLE}{name}": fit(value, 500) for name, value in values.items()}
    return tags | {VERDICT_FOR_PEOPLE: " ".join(_verdict(evidence, last))}


def by_default(evidence: Evidence) -> Verdict:
    """What the default policy says, which asks for no signature: advisory, until somebody reviews the version."""
    return judge(evidence, Policy(), signature=None)


def _verdict(evidence: Evidence, last: ReviewEntry | None) -> tuple[str, str]:
    """In a word, and whose it is; both as plain text."""
    if last is not None:
        policy, by = answer.short(last.policy, 60), answer.short(last.by, 80)
        why = f". {answer.short(last.why, 200)}" if last.why else ""
        return last.verdict.upper(), f"by the policy {policy}: review {last.n}, by {by}, {last.at[:10]}{why}"
    verdict = by_default(evidence)
    failed = [answer.short(str(check), 200) for check in verdict.checks if check.outcome != "pass"]
    more = f"; and {counted(len(failed) - _CHECKS, 'more check')}" if len(failed) > _CHECKS else ""
    why = f". {'; '.join(failed[:_CHECKS])}{more}" if failed else ""
    return verdict.word.upper(), f"by the default policy; advisory, not reviewed yet{why}"


def _now(evidence: Evidence, last: ReviewEntry | None) -> str:
    passed = last is not None and last.verdict == "pass"
    name = "promote" if passed else "review"
    does = "puts it into use" if passed else "lists what can be done about it" if last is not None else "judges it"
    return f"**What now:** {_code(shell_line(name, '--model-uri', evidence.result.uri))} {does}."


def _answers(evidence: Evidence) -> Iterator[str]:
    """A line each, of few words."""
    run, asked = evidence.run, _own(evidence)
    for request in asked[:_REQUESTS]:
        named = f", {_code(answer.short(request.forget))}" if request.forget else ""
        what = f"{counted(request.samples, 'sample')} of {_code(answer.short(request.of))}{named}"
        yield f"**What was asked:** forget {what}; reason: {_text(request.reason or answer.NOT_RECORDED)}"
        yield f"**By whom:** {_text(answer.asked_by(request))} (request {_code(answer.short(request.id))})"
    if len(asked) > _REQUESTS:
        yield f"**Asked as well:** {counted(len(asked) - _REQUESTS, 'more request')}, which the report lists"
    yield f"**How sure:** {claimed(evidence)}Membership: {reading(evidence)}; {_text(answer.membership(evidence))}"
    yield f"**What it cost:** {_cost(evidence)}"
    address = f"#/experiments/{run.experiment_id}/runs/{run.id}/artifacts/{FOLDER}/{REPORT}"  # as MLflow's UI has it
    yield f"**Report:** [{REPORT}]({address}), also under *Source Run*, *Artifacts*, *{FOLDER}*"


def _own(evidence: Evidence) -> list[RequestRecord]:
    """The requests that this version, not one before it, has carried out."""
    return [request for request in evidence.requests if request.id in evidence.request_ids]


def _cost(evidence: Evidence) -> str:
    return f"test accuracy {_test_accuracy(evidence)}; {evidence.learning.seconds:.1f} s of unlearning"


def _test_accuracy(evidence: Evidence) -> str:
    values, changed = answer.accuracy(evidence, "acc_test")
    return values if changed is None else f"{values} ({changed})"


def _text(value: str, width: int = 200) -> str:
    return as_text(answer.short(value, width))


def _code(value: str) -> str:
    """In a fixed-width font, whatever backticks are in it."""
    line = " ".join(value.split())
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    return f"{fence}{line}{fence}" if len(fence) == 1 else f"{fence} {line} {fence}"
