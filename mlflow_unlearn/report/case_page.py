"""The page of a case: the answer in the first screen, then a timeline, versions, and what the records can support."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

import jinja2

from mlflow_unlearn.evidence.case import Case, Holders
from mlflow_unlearn.report.figures import fit
from mlflow_unlearn.report.template import page_template

_MOST = 12
"""Lines of each kind in the first screen."""
_MOST_ROWS = 200
"""Rows of the table of what holds the samples."""
_ROLES = {
    "source": "knows the samples",
    "fulfilled": "carried out",
    "later": "made from one that carried it out",
    "copy": "a copy of one that carried it out",
}
_ERASURE, _ACCOUNT = "GDPR Art. 17", "GDPR Art. 5(2)"
_OPINION, _AB_1008 = "EDPB Opinion 28/2024", "California AB 1008"
_PARTS = (
    (
        "requests/",
        "What is to be forgotten, who asked and filed it, when, and by when.",
        (f"{_ERASURE}: the request, and how long it took", f"{_AB_1008}: the request to delete"),
    ),
    (
        "versions/…/evidence/",
        "How a version was made, from what, and how far the samples still show in its outputs.",
        (
            f"{_ERASURE}: what was done about the model",
            f"{_OPINION}: documentation, and a test of membership inference",
            f"{_AB_1008}: what the system may still output",
        ),
    ),
    (
        "versions/…/audits/",
        "Attacks on a version, calibrated by retrained models.",
        (f"{_OPINION}: tests of resistance to attacks",),
    ),
    (
        "versions/…/reviews/, promotions/",
        "Who judged a version, by which rules, and who put it into use.",
        (f"{_ACCOUNT}: being able to demonstrate", "EU AI Act Art. 12: events, beside the logs of the system itself"),
    ),
    (
        "retirements/, version.json",
        "What became of the versions that know the samples.",
        (f"{_ERASURE}: copies that were removed, and those that were not",),
    ),
    (
        "holders.json",
        "Which versions still contain the samples, and which may.",
        (f"{_ERASURE}: what is left to be done",),
    ),
    (
        "case.json, index.html",
        "All of it in the order of time, with persons, runs and digests.",
        (f"{_ACCOUNT}: an overview", "EU AI Act Art. 12 and 19: a record of events beside the logs"),
    ),
    (
        "MANIFEST, verify.py",
        "Digests of all files, and the program that compares them; a signature where there is a key.",
        (f"{_ACCOUNT}: records that can be checked", "EU AI Act Art. 18: documents to be kept, unchanged"),
    ),
)
_TEXTS = (
    (
        _ERASURE,
        "The data subject has the right to obtain the erasure of personal data concerning them without undue delay, "
        "where one of the grounds of paragraph 1 applies; paragraph 3 lists exceptions.",
    ),
    (
        _ACCOUNT,
        "The controller is responsible for compliance with the principles of paragraph 1, and able to demonstrate it.",
    ),
    (
        _OPINION,
        "Whether a model trained with personal data is anonymous is assessed case by case: the likelihood to extract "
        "such data from it, or to obtain them by queries, has to be insignificant. Authorities look at the "
        "documentation and at tests of resistance to attacks, membership inference among them. Where that does not "
        "let them confirm effective measures, they may find that Art. 5(2) GDPR was not met.",
    ),
    (
        "EU AI Act Art. 12",
        "High-risk AI systems technically allow for the automatic recording of events (logs) over their lifetime.",
    ),
    (
        "EU AI Act Art. 18",
        "Providers of high-risk AI systems keep the technical documentation and further documents for ten years after "
        "the system was placed on the market or put into service.",
    ),
    (
        "EU AI Act Art. 19",
        "Providers of high-risk AI systems keep the logs of Art. 12 that are under their control for an appropriate "
        "period of at least six months, unless other law provides otherwise.",
    ),
    (
        _AB_1008,
        "Personal information under the CCPA (Civil Code § 1798.140) can exist in abstract digital formats, among them "
        "AI systems that are capable of outputting it; § 1798.105 gives consumers the right to request deletion.",
    ),
)


def case_page(
    case: Case,
    *,
    failures: Sequence[str] = (),
    holders: Holders | None = None,
    digests: Mapping[str, str] | None = None,
) -> str:
    """The page as one self-contained HTML text.

    Args:
        case: what it is about.
        failures: where its records do not agree with each other, in words.
        holders: what still holds its samples; None where that was not looked for.
        digests: of the files beside the page, which it then links to and lists, with what they can support; None for a
            page that stands alone.
    """
    workers = dict.fromkeys(f"{e.by}, {e.at[:10]}" for e in case.events if e.kind == "unlearned")
    points = case.open_points + (holders.open_points(case) if holders is not None else [])
    return (
        _template()
        .render(
            case=case,
            word=_word(len(points), failures, len(holders.unknown) if holders is not None else 0),
            points=points,
            holders=holders,
            most_rows=_MOST_ROWS,
            failures=failures,
            workers=list(workers),
            linked=digests is not None,
            digests=dict(sorted((digests or {}).items())),
            most=_MOST,
            ROLES=_ROLES,
            PARTS=_PARTS,
            TEXTS=_TEXTS,
        )
        .encode("utf-8", "replace")
        .decode()
    )


def _word(count: int, failures: Sequence[str], unknown: int) -> tuple[str, str]:
    """The state of a case with so many open points and models that cannot be told: its colour and what it says."""
    if failures:
        return "fail", "Records differ"
    if count:
        return "open", f"Open: {count} {'point' if count == 1 else 'points'}"
    if unknown:
        return "open", f"Unknown: {unknown} {'model' if unknown == 1 else 'models'} may contain the samples"
    return "pass", "Closed"


def _template() -> jinja2.Template:
    return page_template("case_page.html", fit=fit, address=quote)
