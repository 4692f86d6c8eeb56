"""The report in a real browser: as a file of its own, and in MLflow's artifact view."""

import os
import shutil
from pathlib import Path

import pytest
import records
from servers import mlflow_server

from mlflow_unlearn.report.case_page import case_page
from mlflow_unlearn.report.inbox_page import inbox_page
from mlflow_unlearn.report.page import page

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
WIDTHS = {"wide": 1280, "narrow": 390}
SCHEMES = ("light", "dark")
VIEWS = [(scheme, width) for scheme in SCHEMES for width in WIDTHS]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("MLFLOW_UNLEARN_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    """A plain record, one with everything that can be said, and one full of what breaks layouts."""
    folder = tmp_path_factory.mktemp("reports")
    long = "y" * 2000 + records.HOSTILE * 10
    bad = [f"{'W' * 60} {records.HOSTILE} {index}" for index in range(60)]
    hostile = records.evidence(
        classes=bad,
        request_ids=[long],
        requests=[records.request(long, reason=long, requester=long, of=long, carried_out_by=long)],
        incomplete=long,
    )
    hostile = hostile.model_copy(update={"result": hostile.result.model_copy(update={"name": long})})
    pages = {"plain": records.evidence(), "story": records.sequence(), "hostile": hostile, "exact": records.exact(24)}
    paths = {}
    for name, record in pages.items():
        paths[name] = folder / f"{name}.html"
        shown = records.samples(named=name == "plain")
        paths[name].write_text(page(record, records.verdict(record), shown), encoding="utf-8")
    paths["audited"] = folder / "audited.html"
    told = page(records.evidence(), records.verdict(records.evidence()), audit=records.audit())
    paths["audited"].write_text(told, encoding="utf-8")
    return paths


class Opened:
    """A page in a window of its own, with what it asked for and what it complained about."""

    def __init__(self, browser, scheme: str, width: int, height: int = 900) -> None:
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda told: self.errors.append(told.text) if told.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def serious(found) -> list[str]:
    return [
        f"{one['id']}: {[node['html'][:200] for node in one['nodes'][:3]]}"
        for one in found.response["violations"]
        if one["impact"] in ("serious", "critical")
    ]


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
UNREACHABLE = """[...document.querySelectorAll('*')].filter(one =>
    one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX == 'auto' &&
    !one.matches('[tabindex="0"][role=region][aria-label]')).length"""
DRAWINGS = """[...document.querySelectorAll('svg[role=img]')].map(svg => ({
    title: svg.querySelector('title').textContent, description: svg.querySelector('desc').textContent,
    table: svg.closest('figure').querySelectorAll('details table td').length,
    inside: [...svg.querySelectorAll('text')].every(text => {
        const [box, frame] = [text.getBoundingClientRect(), svg.getBoundingClientRect()];
        return box.left >= frame.left - 1 && box.right <= frame.right + 1 && box.bottom <= frame.bottom + 1}) }))"""


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [
        ("story", "light", "wide"),
        ("story", "dark", "narrow"),
        ("hostile", "dark", "narrow"),
        ("plain", "light", "wide"),
        ("exact", "light", "wide"),
        ("exact", "dark", "narrow"),
        ("audited", "light", "wide"),
        ("audited", "dark", "narrow"),
    ]
    + [
        pytest.param(*view, marks=pytest.mark.slow)
        for view in (
            *(("story", "dark", "wide"), ("story", "light", "narrow")),
            *(("plain", "dark", "narrow"), ("hostile", "light", "wide")),
            *(("plain", "dark", "wide"), ("plain", "light", "narrow")),
            *(("exact", "dark", "wide"), ("exact", "light", "narrow")),
        )
    ],
)
def test_as_a_file_of_its_own(browser, reports, shots, name, scheme, width):
    with Opened(browser, scheme, WIDTHS[width]) as window:
        window.page.goto(reports[name].as_uri())
        assert window.page.evaluate(OVERFLOW) <= 0
        window.page.screenshot(path=shots / f"{name}-{scheme}-{width}.png", full_page=True)
        drawings = window.page.evaluate(DRAWINGS)
        assert len(drawings) > 7
        for one in drawings:
            assert one["title"] and one["description"] and one["table"], one
            assert one["inside"], one["title"]
        window.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert window.page.evaluate(OVERFLOW) <= 0
        assert serious(axe.Axe().run(window.page)) == []
        assert window.errors == []
        assert [url for url in window.requests if not url.startswith("data:")] == [reports[name].as_uri()]


@pytest.mark.slow
def test_the_keyboard_reaches_the_verdict_first_and_every_wide_table(browser, reports):
    with Opened(browser, "light", 390) as window:
        window.page.goto(reports["story"].as_uri())
        window.page.keyboard.press("Tab")
        focused = "document.activeElement.getBoundingClientRect().left >= 0 && document.activeElement.className"
        assert window.page.evaluate(focused) == "skip"
        window.page.keyboard.press("Enter")
        assert window.page.evaluate("document.activeElement.id") == "main"
        while window.page.evaluate("document.activeElement.matches('main, .term, .answers a')"):
            window.page.keyboard.press("Tab")
        assert window.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Checks of the policy"
        assert window.page.evaluate(UNREACHABLE) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "story", "exact", "audited"])
def test_the_first_screen_answers_the_five_questions(browser, reports, name):
    """What was asked, by whom, did it work, how sure is that, what now: at 1,280 × 800, without scrolling."""
    with Opened(browser, "light", 1280, 800) as window:
        window.page.goto(reports[name].as_uri())
        for place in ("h1", "#verdict .word", "#verdict .answers", "#verdict .stats"):
            box = window.page.locator(place).bounding_box()
            assert 0 <= box["y"] and box["y"] + box["height"] <= 800, place
        asked = window.page.locator("#verdict .answers dt").all_inner_texts()
        assert asked[:2] == ["What was asked", "By whom"] and asked[-1] == "What now"


FOCUSED = "getComputedStyle(document.activeElement).outlineStyle"


@pytest.mark.slow
def test_the_keyboard_goes_to_the_glossary_and_back(browser, reports):
    with Opened(browser, "light", 1280, 800) as window:
        window.page.goto(reports["plain"].as_uri())
        active = "document.activeElement"
        while not window.page.evaluate(f"{active}.matches('#use-advantage')"):
            window.page.keyboard.press("Tab")
        assert window.page.evaluate(FOCUSED) == "solid"
        window.page.keyboard.press("Enter")
        explained = window.page.locator("#term-advantage")
        assert (
            explained.bounding_box()["y"] < 800
            and window.page.locator(":target").get_attribute("id") == "term-advantage"
        )
        window.page.keyboard.press("Tab")
        assert window.page.evaluate(f"{active}.getAttribute('aria-label')") == "Back to where advantage comes first"
        assert window.page.evaluate(FOCUSED) == "solid"
        window.page.keyboard.press("Enter")
        assert window.page.locator(":target").get_attribute("id") == "use-advantage"
        assert 0 <= window.page.locator("#use-advantage").bounding_box()["y"] < 800
        for link in window.page.locator("a[href^='#']").all():
            assert window.page.locator(f"[id='{link.get_attribute('href')[1:]}']").count() == 1


def test_it_prints_in_light_colours_without_the_tables_behind_figures(browser, reports, shots):
    with Opened(browser, "dark", 1280) as window:
        window.page.goto(reports["story"].as_uri())
        window.page.pdf(path=shots / "story.pdf", format="A4", print_background=True)
        assert (shots / "story.pdf").read_bytes().startswith(b"%PDF")
        window.page.emulate_media(media="print", color_scheme="dark")
        assert window.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert window.page.locator("figure .data").first.is_hidden()
        assert window.page.locator(".skip").is_hidden()
        window.page.set_viewport_size({"width": 673, "height": 1000})  # A4 within its margins
        assert window.page.evaluate(OVERFLOW) <= 0


@pytest.mark.nightly
@pytest.mark.parametrize(("scheme", "width"), VIEWS)
@pytest.mark.parametrize("name", ["case", "hostile-case"])
def test_a_case(browser, shots, tmp_path, name, scheme, width):
    """As in a dossier: one file, no script, nothing loaded, every wide table within reach of the keyboard."""
    case = records.case(records.HOSTILE * 3, many=20) if name == "hostile-case" else records.case()
    path = tmp_path / "index.html"
    digests = {f"versions/clf-{n}/{'x' * 40}.json": records.digest(n) for n in range(9)}
    held = records.holders(records.HOSTILE * 3, many=20) if name == "hostile-case" else records.holders()
    failures = ["y" * 400][: len(name) - 4]
    path.write_text(case_page(case, failures=failures, holders=held, digests=digests), encoding="utf-8")
    with Opened(browser, scheme, WIDTHS[width]) as window:
        window.page.goto(path.as_uri())
        window.page.screenshot(path=shots / f"{name}-{scheme}-{width}.png", full_page=True)
        assert window.page.evaluate(OVERFLOW) <= 0
        assert window.page.evaluate(UNREACHABLE) == 0
        assert serious(axe.Axe().run(window.page)) == []
        assert window.errors == []
        assert [url for url in window.requests if not url.startswith("data:")] == [path.as_uri()]
        if name == "case" and width == "wide":
            bottom = window.page.evaluate("document.querySelector('#answer').getBoundingClientRect().bottom")
            assert bottom <= 900  # the whole answer, without scrolling
        window.page.keyboard.press("Tab")
        window.page.keyboard.press("Enter")
        assert window.page.evaluate("document.activeElement.id") == "main"
        window.page.emulate_media(media="print", color_scheme=scheme)
        assert window.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        window.page.set_viewport_size({"width": 673, "height": 1000})  # A4 within its margins
        assert window.page.evaluate(OVERFLOW) <= 0


INBOXES = {
    "inbox-empty": records.inbox(0),
    "inbox-one": records.inbox(1),
    "inbox": records.inbox(12),
    "inbox-200": records.inbox(200, versions=6),
    "inbox-hostile": records.inbox(9, records.HOSTILE * 3, versions=20),
}


@pytest.mark.nightly
@pytest.mark.parametrize(("scheme", "width"), VIEWS)
@pytest.mark.parametrize("name", INBOXES)
def test_the_inbox(browser, shots, tmp_path, name, scheme, width):
    """Of no case, one, several, 200, and of hostile ones: one file, nothing loaded, the answer in the first screen."""
    path = tmp_path / "inbox.html"
    path.write_text(inbox_page(INBOXES[name], "2026-11-27"), encoding="utf-8")
    with Opened(browser, scheme, WIDTHS[width]) as window:
        window.page.goto(path.as_uri())
        window.page.screenshot(path=shots / f"{name}-{scheme}-{width}.png", full_page=True)
        assert window.page.evaluate(OVERFLOW) <= 0
        bottom = window.page.evaluate("document.querySelector('#answer').getBoundingClientRect().bottom")
        assert bottom <= 900 or name == "inbox-hostile"
        assert window.page.locator(".cases > li").filter(visible=True).count() <= 24
        window.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert window.page.locator(".cases > li").filter(visible=True).count() == len(INBOXES[name])
        assert window.page.evaluate(OVERFLOW) <= 0
        if len(INBOXES[name]) < 100:  # there are no other elements among many, and it takes a minute
            assert serious(axe.Axe().run(window.page)) == []
        assert window.errors == []
        assert [url for url in window.requests if not url.startswith("data:")] == [path.as_uri()]
        window.page.keyboard.press("Tab")
        window.page.keyboard.press("Enter")
        assert window.page.evaluate("document.activeElement.id") == "main"
        window.page.emulate_media(media="print", color_scheme=scheme)
        assert window.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        window.page.set_viewport_size({"width": 673, "height": 1000})  # A4 within its margins
        assert window.page.evaluate(OVERFLOW) <= 0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URI of an MLflow server."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, f"sqlite:///{folder / 'mlflow.db'}") as uri:
        yield uri


@pytest.fixture(scope="module")
def artifact(server, reports) -> str:
    """The address of the report in MLflow's UI."""
    import mlflow

    client = mlflow.MlflowClient(server)
    experiment = client.create_experiment("reports")
    run = client.create_run(experiment, run_name="digits").info.run_id
    client.log_text(run, reports["story"].read_text(encoding="utf-8"), "evidence/report.html")
    client.set_terminated(run)
    return f"{server}/#/experiments/{experiment}/runs/{run}/artifacts/evidence/report.html"


@pytest.mark.nightly
@pytest.mark.parametrize("width", WIDTHS)
def test_in_the_artifact_view_of_mlflow(browser, server, artifact, shots, width):
    with Opened(browser, "light", WIDTHS[width]) as window:
        window.page.goto(artifact)
        frame = window.page.frame_locator("iframe.mlflow-html-iframe")
        frame.locator("h1").wait_for(timeout=60_000)
        window.page.screenshot(path=shots / f"mlflow-{width}.png")
        assert frame.locator("h1").inner_text() == "digits, version 4"
        assert frame.locator(".word").inner_text().strip() == "FAIL"
        sandbox = window.page.locator("iframe.mlflow-html-iframe").get_attribute("sandbox")
        assert sandbox is not None and "allow-same-origin" not in sandbox
        assert frame.locator("svg[role=img]").count() > 7
        inside = [one for one in window.page.frames if one != window.page.main_frame][0]
        assert inside.evaluate(OVERFLOW) <= 0
        inside.evaluate("document.querySelector('.skip').focus()")
        inside.evaluate("document.querySelector('.skip').click()")
        assert frame.locator("h1").inner_text() == "digits, version 4"  # the link has not left the page
        local = (server, "data:", f"blob:{server}")
        assert [url for url in window.requests if not url.startswith(local)] == []
