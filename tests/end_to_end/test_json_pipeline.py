"""The pipeline of docs/json.md, as it is typed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from answers import checked
from stores import Outcome

PAGE = Path(__file__).parents[2] / "docs" / "json.md"


@pytest.mark.slow
def test_the_pipeline_of_the_docs(store):
    [script] = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=os.environ | {"PATH": path})
    assert ran.returncode == 0, ran.stderr
    [request_id] = store.requests()
    first, *rest = ran.stdout.splitlines()
    assert first == f"request {request_id} is fulfilled by models:/clf/2" and rest
    for command in ("request", "unlearn", "review"):
        content = (store.folder / f"{command}.json").read_text()
        code = json.loads(content)["exit_code"]
        answer = checked(Outcome(code, content, ran.stderr), command, code=code)
    failed = [check for check in answer["result"]["verdict"]["checks"] if check["outcome"] != "pass"]
    assert rest == [f"not yet: {c['rule']} is {c['value']} and needs {c['threshold']}" for c in failed] or (
        rest == ["models:/clf/2 passes: promote it"] and not failed
    )
