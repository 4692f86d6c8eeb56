"""What a rerun would need to know of this machine and this code."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_PACKAGES = ("mlflow-unlearn", "mlflow", "torch", "torchvision", "timm", "numpy", "scikit-learn", "optuna")


def system_facts() -> dict[str, str]:
    """What a rerun would need to know: versions, processor, threads, and the commit of this code."""
    facts = {
        "unlearn.system.python": platform.python_version(),
        "unlearn.system.platform": platform.platform(),
        "unlearn.system.host": platform.node(),
        "unlearn.system.pid": str(os.getpid()),
    }
    # Commands that only decide about a version have not loaded it, and have no threads.
    if (torch := sys.modules.get("torch")) is not None:
        facts["unlearn.system.threads"] = str(torch.get_num_threads())
        cuda = torch.cuda.is_available()
        facts["unlearn.system.accelerator"] = torch.cuda.get_device_name(0) if cuda else "none"
    for package in _PACKAGES:
        facts[f"unlearn.system.{package}"] = _installed(package)
    commit, dirty = code_commit()
    return {**facts, "unlearn.git.commit": commit, "unlearn.git.dirty": dirty}


def same_release(facts: Mapping[str, str]) -> bool:
    """Whether the facts are of the release of this package that runs here."""
    return facts.get(f"unlearn.system.{_PACKAGES[0]}") == _installed(_PACKAGES[0])


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # under conda the project runs from its folder


def code_commit(file: Path = Path(__file__)) -> tuple[str, str]:
    """Commit of the checkout that ``file`` belongs to and whether it has changes, or "unknown" twice."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("rev-parse", "HEAD").strip(), str(bool(git("status", "--porcelain").strip())).lower()
    except (OSError, subprocess.CalledProcessError):
        # No git here, or an installed package, whose version is among the facts.
        return "unknown", "unknown"
