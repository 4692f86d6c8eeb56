"""Makes walkthrough.md: runs the commands of one request against a server with users, and takes pictures of the UI.

To be run in the environment of the tests, with Debian's package chromium; takes about five minutes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))
from servers import mlflow_server  # noqa: E402

PICTURES = DOCS / "walkthrough"
USERS = ("admin", "erin", "ravi")
PASSWORD = "walkthrough-1234"

HEAD = """# Walkthrough: from a request to a retired version

One deletion request, step by step, with what the commands print and what the MLflow UI shows. Erin is the engineer,
Ravi the reviewer; both have accounts on the server (`mlflow server --app-name basic-auth`), Erin manages the model
`digits`, and Ravi may edit it. What each command checks and writes is in [governance](governance.md).

This page was made by `python docs/walkthrough.py`, which runs every command below, each with its user's
`MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`.
"""


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """URI of an MLflow server with users."""
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder / 'users.db'}\n"
        f"admin_username = admin\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    options = ("--app-name", "basic-auth")
    users = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this page alone",
    }
    with mlflow_server(folder, f"sqlite:///{folder / 'mlflow.db'}", *options, **users) as uri:
        yield uri


class Story:
    """The page as it grows."""

    def __init__(self, uri: str, folder: Path, browser: Browser) -> None:
        self.uri, self.folder = uri, folder
        self.text = HEAD
        credentials = {"username": "ravi", "password": PASSWORD}
        context = browser.new_context(http_credentials=credentials, viewport={"width": 1280, "height": 860})
        # Otherwise the UI opens a chat on every page.
        context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        self.page: Page = context.new_page()

    def environment(self, user: str) -> dict[str, str]:
        return os.environ | {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            "MLFLOW_EXPERIMENT_NAME": {"erin": "training", "ravi": "reviews"}.get(user, "Default"),
            "MLFLOW_UNLEARN_CACHE": str(self.folder / "cache"),
            "MLFLOW_LOGGING_LEVEL": "WARNING",
            "COLUMNS": "118",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def write(self, text: str) -> None:
        self.text += f"\n{text}\n"

    def run(self, user: str, command: str, *, code: int = 0) -> str:
        """Run a command and write it down with its output."""
        result = subprocess.run(
            command, shell=True, capture_output=True, text=True, cwd=self.folder, env=self.environment(user)
        )
        if result.returncode != code:
            sys.exit(f"{command}\n{result.stdout}{result.stderr}exit code {result.returncode}, not {code}")
        warnings = [
            line for line in result.stderr.splitlines() if line.startswith(("Error", "Note", "Warning", "models:/"))
        ]
        shown = [line.rstrip() for line in result.stdout.rstrip().splitlines() if not line.startswith(("🏃", "🧪"))]
        printed = "\n".join([*shown, *warnings]).replace(str(self.folder), "~")
        status = f"\n$ echo $?\n{code}" if code else ""
        self.text += f"\n```console\n{user}$ {command}\n{printed}{status}\n```\n"
        return result.stdout

    def picture(self, name: str, address: str, alt: str, *, wait: str, height: int = 860, frame: bool = False) -> None:
        """Add a picture of the UI as Ravi sees it."""
        self.page.set_viewport_size({"width": 1280, "height": height})
        self.page.goto("about:blank")
        self.page.goto(f"{self.uri}/#/{address}")
        frame_or_page = self.page.frame_locator("iframe.mlflow-html-iframe") if frame else self.page
        frame_or_page.get_by_text(wait).first.wait_for(timeout=60_000)
        self.page.wait_for_timeout(1500)  # the UI is still loading other parts
        self.page.screenshot(path=PICTURES / f"{name}.png")
        self.text += f"\n![{alt}](walkthrough/{name}.png)\n"


def write_page(story: Story) -> None:
    """From the request to the retired version."""
    from mlflow import MlflowClient

    os.environ.update({k: v for k, v in story.environment("erin").items() if k.startswith("MLFLOW_")})
    client = MlflowClient()

    def report_of(experiment: str) -> str:
        """Path in the UI to the report of the newest command of an experiment; its attempts are runs inside its own."""
        found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
        run = next(run for run in found if "mlflow.parentRunId" not in run.data.tags)
        return f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/evidence/report.html"

    story.write("## Before: a model in production")
    recipe = "--architecture timm:test_resnet --epochs 70 --lr 0.1 --weight-decay 0"
    story.run("erin", f"mlflow-unlearn train --data digits,train=50% --name digits {recipe}")
    grant(story.uri, "c.grant_user_permission('ravi', 'registered_model', 'digits', 'EDIT')")
    client.set_registered_model_alias("digits", "champion", "1")

    story.write("## Request\n\nThe ids of the scans to forget are in `ids.csv`. Erin files the request.")
    story.run("erin", "mlflow-unlearn data --data digits,train=50% --ids all.csv | head -4")
    command = "python -c \"import pandas; s = pandas.read_csv('all.csv'); "
    command += "s[s.split == 'train'].sample(180, random_state=1)[['id']].to_csv('ids.csv', index=False)\""
    subprocess.run(command, shell=True, check=True, cwd=story.folder, env=story.environment("erin"))
    story.run(
        "erin",
        "mlflow-unlearn request --model-uri models:/digits/1 --forget ids.csv "
        '--requester "data protection office" --reason "withdrawal of consent, case 17"',
    )
    story.write("It is attached to the version, and stays pending until a version has fulfilled it.")
    story.picture(
        "request", "models/digits/versions/1", "Version 1 with the pending request among its tags", wait="pending"
    )

    story.write("## Unlearn\n\nErin has settings tried, cheapest first, until one passes the default policy.")
    story.run("erin", "mlflow-unlearn unlearn --model-uri models:/digits/1 --until pass")
    story.write("Version 2 has the description and the tags that a reviewer reads first:")
    story.picture(
        "version",
        "models/digits/versions/2",
        "Version 2 with description and tags",
        wait="What was asked",
        height=1400,
    )
    story.write("and its run has the report, at `evidence/report.html`:")
    alt = "The report in MLflow's artifact view"
    story.picture("report", report_of("training"), alt, wait="Verdict", height=1000, frame=True)

    story.write("## Review\n\nRavi checks it against the team's policy: the default one, with the two-person rule.")
    (story.folder / "policy.yaml").write_text("name: team\ntwo_person: true\nrequired: [filed_request, reason]\n")
    story.run("ravi", "cat policy.yaml")
    story.run("ravi", "mlflow-unlearn review --model-uri models:/digits/2 --policy policy.yaml")
    story.write(
        "The verdict is stored in Ravi's own run, with the report for that policy, and in a tag of the version."
    )
    story.picture("review", report_of("reviews"), "The report of the review", wait="Verdict", height=1000, frame=True)

    story.write("## Promote\n\nErin made this version, so she may not approve it:")
    story.run("erin", "mlflow-unlearn promote --model-uri models:/digits/2", code=3)
    story.run("ravi", "mlflow-unlearn promote --model-uri models:/digits/2")
    story.picture("promote", "models/digits", "The alias champion at version 2", wait="champion")
    story.write("From now on, an alias that is moved by hand is found:")
    client.set_registered_model_alias("digits", "champion", "1")
    story.run("ravi", "mlflow-unlearn verify --model-uri models:/digits/2", code=3)
    client.set_registered_model_alias("digits", "champion", "2")

    story.write("## Retire\n\nVersion 1 still contains the data.")
    story.run("erin", "mlflow-unlearn exposure --model-uri models:/digits/2")
    retire = 'mlflow-unlearn retire --model-uri models:/digits/1 --reason "case 17"'
    story.run("erin", retire)
    story.run("erin", f"{retire} --yes true")
    story.picture("retire", "models/digits/versions/1", "Version 1, retired", wait="unlearn.retired")

    story.write("## Afterwards\n\nVersion 1 is gone, and version 2 can still be checked months later:")
    story.run("ravi", "mlflow-unlearn verify --model-uri models:/digits/2 --recompute true")


def grant(uri: str, code: str) -> None:
    """Run code as the administrator, with MLflow's own client ``c``."""
    environment = os.environ | {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    code = f"from mlflow.server import get_app_client\nc = get_app_client('basic-auth', {uri!r})\n{code}"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def main() -> None:
    """Write the page and its pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("needs Debian's package chromium")
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, server(Path(name)) as uri, sync_playwright() as playwright:
        grant(uri, f"for u in {USERS[1:]}: c.create_user(u, {PASSWORD!r})")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        story = Story(uri, Path(name), browser)
        write_page(story)
        browser.close()
    (DOCS / "walkthrough.md").write_text(story.text, encoding="utf-8")


if __name__ == "__main__":
    main()
