"""Makes walkthrough.md: types the commands of one request against a server with users, and takes pictures of the UI.

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
PEOPLE = ("admin", "erin", "ravi")
PASSWORD = "walkthrough-1234"

HEAD = """# Walkthrough: from a request to a retired version

One deletion request, step by step, with what the commands print and what the MLflow UI shows. Erin is the engineer,
Ravi the reviewer; the server knows both (`mlflow server --app-name basic-auth`), Erin manages the model `digits`, and
Ravi may edit it. What each command checks and writes is in [governance](governance.md).

This page was made by `python docs/walkthrough.py`, which types every command below, each with its user's
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
        # Else the UI opens a chat beside every page.
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

    def say(self, text: str) -> None:
        self.text += f"\n{text}\n"

    def types(self, user: str, command: str, *, code: int = 0) -> str:
        """A command with what it prints."""
        result = subprocess.run(
            command, shell=True, capture_output=True, text=True, cwd=self.folder, env=self.environment(user)
        )
        if result.returncode != code:
            sys.exit(f"{command}\n{result.stdout}{result.stderr}exit code {result.returncode}, not {code}")
        warnings = [line for line in result.stderr.splitlines() if line.startswith(("Error", "Note", "Warning"))]
        told = [line.rstrip() for line in result.stdout.rstrip().splitlines() if not line.startswith(("🏃", "🧪"))]
        printed = "\n".join([*told, *warnings]).replace(str(self.folder), "~")
        asked = f"\n$ echo $?\n{code}" if code else ""
        self.text += f"\n```console\n{user}$ {command}\n{printed}{asked}\n```\n"
        return result.stdout

    def shows(self, name: str, address: str, alt: str, *, wait: str, height: int = 860, frame: bool = False) -> None:
        """A picture of the UI, as Ravi sees it."""
        self.page.set_viewport_size({"width": 1280, "height": height})
        self.page.goto("about:blank")
        self.page.goto(f"{self.uri}/#/{address}")
        place = self.page.frame_locator("iframe.mlflow-html-iframe") if frame else self.page
        place.get_by_text(wait).first.wait_for(timeout=60_000)
        self.page.wait_for_timeout(1500)  # the UI goes on loading beside what was waited for
        self.page.screenshot(path=PICTURES / f"{name}.png")
        self.text += f"\n![{alt}](walkthrough/{name}.png)\n"


def tell(story: Story) -> None:
    """The whole way."""
    from mlflow import MlflowClient

    os.environ.update({k: v for k, v in story.environment("erin").items() if k.startswith("MLFLOW_")})
    client = MlflowClient()

    def report_of(experiment: str) -> str:
        """The address of the report in its newest run."""
        [run] = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1)
        return f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/evidence/report.html"

    story.say("## Before: a model in production")
    recipe = "--epochs 12 --lr 0.02 --batch-size 16"
    story.types("erin", f"mlflow-unlearn train --data digits,train=30% --name digits {recipe}")
    grant(story.uri, "c.grant_user_permission('ravi', 'registered_model', 'digits', 'EDIT')")
    client.set_registered_model_alias("digits", "champion", "1")

    story.say("## Request\n\nThe ids of the scans that have to leave are in `ids.csv`. Erin files the request.")
    story.types("erin", "mlflow-unlearn data --data digits,train=30% --ids all.csv | head -4")
    command = "python -c \"import pandas; s = pandas.read_csv('all.csv'); "
    command += "s[s.split == 'train'].sample(130, random_state=1)[['id']].to_csv('ids.csv', index=False)\""
    subprocess.run(command, shell=True, check=True, cwd=story.folder, env=story.environment("erin"))
    story.types(
        "erin",
        "mlflow-unlearn request --model-uri models:/digits/1 --forget ids.csv "
        '--requester "data protection office" --reason "withdrawal of consent, case 17"',
    )
    story.say("It hangs on the version, and stays pending until a version has carried it out.")
    story.shows(
        "request", "models/digits/versions/1", "Version 1 with the pending request among its tags", wait="pending"
    )

    story.say("## Unlearn\n\nOn so few samples the published strength, α = 2, changes little. Erin takes more.")
    story.types("erin", "mlflow-unlearn unlearn --model-uri models:/digits/1 --params '{\"alpha\": 64}'")
    story.say("Version 2 has the description and the tags that a reviewer reads first:")
    story.shows(
        "version",
        "models/digits/versions/2",
        "Version 2 with description and tags",
        wait="after unlearning",
        height=1400,
    )
    story.say("and its run has the report, at `evidence/report.html`:")
    alt = "The report in MLflow's artifact view"
    story.shows("report", report_of("training"), alt, wait="Verdict", height=1000, frame=True)

    story.say("## Review\n\nRavi judges it by the team's policy: the default one, with the two-person rule.")
    (story.folder / "policy.yaml").write_text("name: team\ntwo_person: true\nrequired: [filed_request, reason]\n")
    story.types("ravi", "cat policy.yaml")
    story.types("ravi", "mlflow-unlearn review --model-uri models:/digits/2 --policy policy.yaml")
    story.say(
        "The verdict lies in Ravi's own run, with the report as that policy sees it, and in a tag of the version."
    )
    story.shows("review", report_of("reviews"), "The report of the review", wait="Verdict", height=1000, frame=True)

    story.say("## Promote\n\nErin made this version, so it is not hers to approve:")
    story.types("erin", "mlflow-unlearn promote --model-uri models:/digits/2", code=3)
    story.types("ravi", "mlflow-unlearn promote --model-uri models:/digits/2")
    story.shows("promote", "models/digits", "The alias champion at version 2", wait="champion")
    story.say("From now on, an alias that somebody moves by hand is found:")
    client.set_registered_model_alias("digits", "champion", "1")
    story.types("ravi", "mlflow-unlearn verify --model-uri models:/digits/2", code=3)
    client.set_registered_model_alias("digits", "champion", "2")

    story.say("## Retire\n\nVersion 1 still holds the data.")
    story.types("erin", "mlflow-unlearn exposure --model-uri models:/digits/2")
    retire = 'mlflow-unlearn retire --model-uri models:/digits/1 --reason "case 17"'
    story.types("erin", retire)
    story.types("erin", f"{retire} --yes true")
    story.shows("retire", "models/digits/versions/1", "Version 1, retired", wait="unlearn.retired")

    story.say("## Afterwards\n\nMonths later somebody asks. Version 1 is gone, and version 2 still answers for itself:")
    story.types("ravi", "mlflow-unlearn verify --model-uri models:/digits/2 --recompute true")


def grant(uri: str, code: str) -> None:
    """As the administrator, by MLflow's own client."""
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
        grant(uri, f"for u in {PEOPLE[1:]}: c.create_user(u, {PASSWORD!r})")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        story = Story(uri, Path(name), browser)
        tell(story)
        browser.close()
    (DOCS / "walkthrough.md").write_text(story.text, encoding="utf-8")


if __name__ == "__main__":
    main()
