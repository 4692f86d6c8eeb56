"""`verify`: does a version still agree with its evidence?"""

from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import counted, say
from mlflow_unlearn.errors import NotPassed
from mlflow_unlearn.governance.aliases import check_aliases
from mlflow_unlearn.governance.approval import check_reviews
from mlflow_unlearn.governance.exactness import check_exactness
from mlflow_unlearn.governance.integrity import IntegrityFinding, examine
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.report import table


class VerifyResult(CommandResult):
    """Whether a version is still what its evidence says."""

    uri: str
    agrees: bool = Field(description="Whether nothing differs; what was not checked is among the findings.")
    findings: list[IntegrityFinding]


def verify(options: config.Verify) -> VerifyResult:
    """Check everything and print it.

    Raises:
        NotPassed: something differs.
    """
    with tracking.read_only_client() as client, tracking.scratch() as folder:
        examined = examine(client, options.model_uri, folder, key=options.key)
        findings = [
            *examined.findings,
            *check_exactness(client, examined, folder),
            *check_reviews(examined),
            *check_aliases(client, examined),
        ]
        if options.recompute:
            # Here and not above: comparing digests must not wait for torch.
            from mlflow_unlearn.governance.recompute import recompute

            findings += recompute(client, examined, options.data, folder, no_code=options.no_code)
    table.show_findings(examined.uri, [(f.part, f.outcome, f.message) for f in findings])
    different = [finding for finding in findings if finding.outcome == "differs"]
    result = VerifyResult(uri=examined.uri, agrees=not different, findings=findings)
    if different:
        differences = "; ".join(f"{finding.part}: {finding.message}" for finding in different)
        raise NotPassed(f"{examined.uri} does not agree with its evidence: {differences}", result)
    same = sum(finding.outcome == "same" for finding in findings)
    rest = f", {len(findings) - same} not checked" if same < len(findings) else ""
    say(f"{examined.uri} agrees with its evidence ({counted(same, 'check')}{rest}).")
    return result
