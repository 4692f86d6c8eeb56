"""Puts this folder on the path, so that every test can import `toy`."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """No test reads or fills the user's cache, in this process or in one that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus) -> None:
    """Where everything should be installed (CI), a skipped test is a failed run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("MLFLOW_UNLEARN_NO_SKIPS") and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("Tests were skipped, and MLFLOW_UNLEARN_NO_SKIPS is set: see the reasons above.", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
