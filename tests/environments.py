"""An environment of its own, into which a plugin can be installed without a network."""

import os
import site
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Environment:
    """A Python that has the plugin, and everything else from the environment that the tests run in."""

    def __init__(self, folder: Path) -> None:
        # Without pip of its own, which is found where torch is found.
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        [packages] = folder.glob("**/site-packages")
        # `addsitedir` and not the bare path: an editable installation is itself a .pth file.
        lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
        (packages / "borrowed.pth").write_text("\n".join(lines) + "\n")

    def __call__(self, *arguments, path=()) -> subprocess.CompletedProcess[str]:
        """Run its Python with ``path``, and the tests' folder for `toy`, on PYTHONPATH."""
        return run(self.python, *arguments, check=False, PYTHONPATH=os.pathsep.join(map(str, [*path, ROOT / "tests"])))

    def shell(self, script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script of bash up to its first failure, with the commands of the environment; pip asks no index."""
        for name, module in {"pip": "pip", "mlflow-unlearn": "mlflow_unlearn"}.items():
            command = self.python.parent / name
            command.write_text(f'#!/bin/sh\nexec "{self.python}" -m {module} "$@"\n')
            command.chmod(0o755)
        variables |= {
            "PATH": os.pathsep.join([str(self.python.parent), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # so spelt, pip reads it as --no-build-isolation
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        return run("bash", "-euo", "pipefail", "-c", f"cd '{folder}'\n{script}", check=False, **variables)


def run(*arguments, check=True, **variables):
    return subprocess.run(
        [str(argument) for argument in arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=check,
    )
