"""What is recorded of the machine and of the code."""

import platform
import subprocess

import torch

from mlflow_unlearn.registry.system import code_commit, system_facts


def test_facts_of_this_process():
    facts = system_facts()
    assert facts["unlearn.system.python"] == platform.python_version()
    assert facts["unlearn.system.torch"] == torch.__version__
    assert facts["unlearn.system.threads"] == str(torch.get_num_threads())
    assert (facts["unlearn.git.commit"], facts["unlearn.git.dirty"]) == code_commit()


def test_commit_and_dirty_flag_of_a_checkout(tmp_path):
    """Of the folder that the package runs from, not of the working directory."""
    package = tmp_path / "checkout" / "mlflow_unlearn"
    package.mkdir(parents=True)
    file = package / "system.py"
    file.write_text("")
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(package), *identity, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    assert code_commit(file) == ("unknown", "unknown")
    git("init", "-q")
    assert code_commit(file) == ("unknown", "unknown")
    git("add", "-A")
    git("commit", "-qm", "all")
    assert code_commit(file) == (git("rev-parse", "HEAD"), "false")
    file.write_text("changed = True\n")
    assert code_commit(file) == (git("rev-parse", "HEAD"), "true")
