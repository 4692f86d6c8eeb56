"""docs/reviewing.md as it is typed: from the link of a version, in MLflow's own UI, to the decision."""

import re
import shutil
from pathlib import Path

import pytest
from servers import mlflow_server
from stores import call, copied, reset_mlflow
from typed import Page

sync_api = pytest.importorskip("playwright.sync_api")

PAGE = Path(__file__).parents[2] / "docs" / "reviewing.md"
CHROMIUM = shutil.which("chromium")
SCREEN = {"width": 1280, "height": 800}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]


@pytest.fixture
def served(template, tmp_path, monkeypatch):
    """clf/2 has forgotten a request, and a server shows it; the store, and the server's URI."""
    monkeypatch.setenv("LOGNAME", "erin")
    with copied(template, tmp_path / "store") as store:
        asked = ("--requester", "data protection office", "--reason", "withdrawal of consent, case 17")
        filed = call("request", "--model-uri", "models:/clf/1", "--forget", "random:20", *asked)
        assert filed.code == 0, filed.err
        done = call("unlearn", "--model-uri", "models:/clf/1", "--method", "retrain")
        assert done.code == 0, done.err
        with mlflow_server(store.folder, store.uri) as uri:
            reset_mlflow()
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            monkeypatch.setenv("LOGNAME", "ravi")
            yield store, uri


@pytest.fixture
def context(served):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport=SCREEN)
        # Otherwise the UI opens a chat on every page.
        context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        yield context
        browser.close()


def in_first_screen(page, text: str) -> str:
    """The element with a text, which no one has to scroll for: all that it says."""
    found = page.get_by_text(text).first
    found.wait_for(timeout=60_000)
    box = found.bounding_box()
    assert 0 <= box["y"] and box["y"] + box["height"] <= SCREEN["height"], (text, box)
    return found.evaluate("one => (one.closest('li') || one.closest('p') || one).innerText")


def opened(context, address: str):
    page = context.new_page()
    page.goto(address)
    return page


def test_from_the_link_to_the_decision(served, context):
    store, uri = served
    typed = Page(PAGE, store.folder, ours={})
    [link] = re.findall(r"`https://mlflow\.example\.com(/#/models/clf/versions/2)`", typed.text)

    page = opened(context, uri + link)
    asked = in_first_screen(page, "What was asked:")
    assert "forget 20 samples of models:/clf/1, random:20; reason: withdrawal of consent, case 17" in asked
    assert "data protection office; filed by erin (not authenticated)" in in_first_screen(page, "By whom:")
    verdict = in_first_screen(page, "by the default policy; advisory, not reviewed yet")
    assert verdict.startswith(("PASS by", "FAIL by"))
    assert "Membership: " in in_first_screen(page, "How sure:")
    assert "test accuracy" in in_first_screen(page, "What it cost:")
    assert "mlflow-unlearn review --model-uri models:/clf/2" in in_first_screen(page, "What now:")
    names = page.locator("[role=row] [role=cell]:first-child, td:first-child").all_inner_texts()
    assert [name for name in names if name.startswith("unlearn")][0] == "unlearn-asked-by"

    in_first_screen(page, "Report:")
    with context.expect_page() as shown:
        page.get_by_role("link", name="report.html").click()
    report = shown.value.frame_locator("iframe.mlflow-html-iframe")
    report.locator("h1").wait_for(timeout=60_000)
    assert report.locator("h1").inner_text() == "clf, version 2"
    assert report.locator(".word").inner_text().strip() == verdict[:4]
    report.locator("#use-advantage").click()
    assert report.locator("#term-advantage").is_visible()
    assert report.locator("h1").inner_text() == "clf, version 2"  # the link has not left the page

    (store.folder / "policy.yaml").write_text(re.findall(r"^```yaml\n(.*?)^```$", typed.text, re.M | re.S)[0])
    assert typed.give("review")["passed"]
    page = opened(context, uri + link)
    assert in_first_screen(page, "by the policy team: review 1, by ravi").startswith("PASS by")
    with context.expect_page() as shown:
        page.get_by_role("link", name="its run and report").click()
    shown.value.get_by_text("review clf v2").first.wait_for(timeout=60_000)

    assert typed.give("promote")["objections"] == []
    page = opened(context, uri + link)
    in_first_screen(page, "champion")
    assert typed.left() == []
