"""The marker ``machine``: what a test needs that no package brings. Where that is lacking, the test is skipped."""

import os
import sys

import pytest

LACKS = "this machine: "
"""How the reason of a skip begins that no package can mend."""


def _has_bfloat16() -> bool:
    from mlflow_unlearn.engine import hardware

    return hardware.has_bfloat16(hardware.pick_device("auto"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


MACHINE = {
    "bfloat16": (_has_bfloat16, "its processor has no bfloat16"),
    "CUDA": (_has_cuda, "it has no CUDA device"),
    "no CUDA": (lambda: not _has_cuda(), "it has a CUDA device"),
    "Linux": (lambda: sys.platform == "linux", "it does not run Linux"),
}
"""Argument of the marker ``machine`` → whether this one has it, and the reason of the skip if not."""


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        for mark in item.iter_markers("machine"):
            if len(mark.args) != 1 or mark.args[0] not in MACHINE:
                raise pytest.UsageError(f"{item.nodeid}: the marker machine takes one of {', '.join(MACHINE)}")
            has, reason = MACHINE[mark.args[0]]
            if not has():
                item.add_marker(pytest.mark.skip(reason=LACKS + reason))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus) -> None:
    """Where everything that can be installed should be (CI), a test skipped for the lack of it is a failed run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("MLFLOW_UNLEARN_NO_SKIPS") or reporter is None:
        return
    reasons = [report.longrepr[2] for report in reporter.stats.get("skipped", ())]
    count = sum(not reason.startswith(f"Skipped: {LACKS}") for reason in reasons)
    if count:
        reporter.write_line(
            f"{count} tests were skipped that this machine could run, and MLFLOW_UNLEARN_NO_SKIPS is set: "
            "see the reasons above.",
            red=True,
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
