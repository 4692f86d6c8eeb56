"""Changes the arithmetic and the rules in small ways, and fails where the tests notice too few of the changes.

`make mutants` runs it. What mutmut changes, and which tests judge, stands in pyproject.toml under [tool.mutmut]. Of the
methods it is the functions alone: a plan is judged by training, which takes longer than a mutant may. A timeout counts
as not noticed, since a busy machine causes it as well.

What is left changes nothing that can be seen: `strict` where two lists are of one length, `deepcopy` of what is only
read, memory (`> 0` before a partition, the size of a chunk), a bound between two neighbouring floats, a class number
that nobody has, limits from below where from above is the same, `>` for `>=` where equality gives the same or no float.
"""

import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from fnmatch import fnmatch
from pathlib import Path

LEAST = 0.9
SCOPE = (
    "mlflow_unlearn.metrics.*",
    "mlflow_unlearn.methods.*.x_*",
    "mlflow_unlearn.*.policy.*",
    "mlflow_unlearn.tuning.winner.*",
)
MUTMUT = str(Path(sys.executable).with_name("mutmut"))


def statuses() -> dict[str, str]:
    """Name of each mutant in scope → what became of it."""
    listed = subprocess.run([MUTMUT, "results", "--all", "true"], check=True, capture_output=True, text=True).stdout
    found = dict(line.strip().split(": ") for line in listed.splitlines() if ": " in line)
    return {name: status for name, status in found.items() if any(fnmatch(name, part) for part in SCOPE)}


def main() -> int:
    """Run, tell each file's count and what was not noticed, and return the exit code."""
    shutil.rmtree("mutants", ignore_errors=True)
    code = subprocess.run([MUTMUT, "run", *sys.argv[1:], *SCOPE]).returncode
    if code:
        return code
    found = statuses()
    if empty := [part for part in SCOPE if not any(fnmatch(name, part) for name in found)]:
        print(f"no mutant is named {' or '.join(empty)}: has a file moved?")
        return 1
    files: dict[str, Counter[str]] = defaultdict(Counter)
    for name, status in found.items():
        files[name.rpartition(".")[0]][status] += 1
        if status != "killed":
            print(f"{status}: mutmut show {name}")
    print()
    for file, counts in sorted(files.items()):
        print(f"{file:<44} {counts.total():>5} {dict(counts)}")
    noticed = sum(status == "killed" for status in found.values())
    share = noticed / len(found)
    print(f"\n{noticed} of {len(found)} mutants were noticed: {share:.1%}, and at least {LEAST:.0%} have to be")
    return 0 if share >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
