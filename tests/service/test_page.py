"""The page and the interactive documentation in a real browser, against the real service and the bundles that ship."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from starlette.responses import JSONResponse

from ltdi import load_bundle, load_head
from service.settings import Settings
from tests.conftest import SENTENCES
from tests.service.conftest import Running

pytest.importorskip("selenium", reason="selenium is not installed: `make install-dev`")
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is missing: `make system-deps`")
texts = pytest.mark.skipif(not SENTENCES, reason="the extra `text` is not installed")
SECONDS = 60


class Page:
    """A browser on one service, and what a reader does with it."""

    def __init__(self, driver: Chrome, url: str, downloads: Path) -> None:
        self.driver, self.url, self.downloads = driver, url, downloads

    def open(self, path: str = "") -> None:
        """A page, fresh; waits until it knows the models."""
        self.driver.get("about:blank")
        self.driver.get_log("performance"), self.driver.get_log("browser")
        self.driver.get(f"{self.url}/{path}")
        if not path.startswith("docs"):
            self.until(lambda: "Asking" not in self.one("#model-note").text and "loaded" not in self.one("#model-note").text)

    def one(self, selector: str) -> WebElement:
        """The first element."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """Every element."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition: Callable[[], object]) -> object:
        """Wait for something to become true."""
        return WebDriverWait(self.driver, SECONDS, 0.05).until(lambda _: condition())

    def write(self, selector: str, text: str) -> None:
        """Replace what stands in a field."""
        field = self.one(selector)
        field.clear()
        field.send_keys(text)

    def make(self) -> str:
        """Press the button; what the page says of the head."""
        self.one("#make").click()
        self.until(lambda: self.one("#make").is_enabled() and (self.one("#made").is_displayed() or self.trouble()))
        assert not self.trouble(), self.trouble()
        return self.one("#about").text

    def refused(self) -> str:
        """Press the button; what the page says is wrong."""
        self.one("#make").click()
        return self.until(self.trouble)

    def trouble(self) -> str:
        """The error that is shown."""
        return " ".join(element.text for element in self.all(".error") if element.is_displayed())

    def answers(self) -> dict[str, str]:
        """The likeliest class of each item that was tried."""
        found = self.until(lambda: self.all("#answers li"))
        items = [line.find_element(By.CSS_SELECTOR, ".item") for line in found]
        names = [e.text or e.find_element(By.TAG_NAME, "img").get_attribute("alt") for e in items]
        return dict(zip(names, [e.text for e in self.all("#answers .best")], strict=True))

    def download(self, selector: str, name: str) -> bytes:
        """Click and wait for the whole file: the browser first makes an empty one of its name, and fills another."""
        file = self.downloads / name
        file.unlink(missing_ok=True)
        self.one(selector).click()
        self.until(lambda: file.exists() and file.stat().st_size and not [*self.downloads.glob("*.crdownload")])
        return file.read_bytes()

    def addresses(self) -> set[str]:
        """Every address that was asked for since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}

    def own(self) -> bool:
        """Whether all of them are the service's, and the browser found nothing to complain about."""
        asked = self.addresses()
        elsewhere = [a for a in asked if not a.startswith((self.url, "data:", "blob:", "about:"))]
        complaints = [e["message"] for e in self.driver.get_log("browser") if " 422 " not in e["message"]]
        assert asked and not elsewhere and not complaints, (elsewhere, complaints)
        return True


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(downloads: Path) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-background-networking", "window-size=1100,900"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = Chrome(options=options, service=ChromeService(DRIVER))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def page(driver: Chrome, downloads: Path) -> Iterator[Page]:
    names = ["omniglot", "minilm"] if SENTENCES else ["omniglot"]
    server = Running(Settings(), [load_bundle(name, device="cpu") for name in names])
    yield Page(driver, str(server.client.base_url), downloads)
    server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Drawings by class: bars that stand and bars that lie, and one more of each."""
    for label in ("standing", "lying"):
        (tmp_path / "task" / label).mkdir(parents=True)
        for i in range(4):
            drawing = torch.full((40, 40), 255, dtype=torch.uint8)
            drawing[5:35, 12 + 4 * i : 16 + 4 * i] = 0
            drawing = drawing if label == "standing" else drawing.T.contiguous()
            place = tmp_path / "task" / label / f"{label} {i}.png" if i else tmp_path / f"new {label}.png"
            Image.fromarray(drawing.numpy()).save(place)
    return tmp_path


def drop(page: Page, selector: str, *places: Path) -> None:
    """Drop files or folders, as a mouse would, on the first element of a selector."""
    element = page.one(selector)
    page.driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", element)
    box = page.driver.execute_script("return arguments[0].getBoundingClientRect().toJSON()", element)
    at = {"x": box["left"] + box["width"] / 2, "y": box["top"] + 8}
    data = {"items": [], "files": [str(place) for place in places], "dragOperationsMask": 1}
    for step in ("dragEnter", "dragOver", "drop"):
        page.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": step, "data": data} | at)


def choose(page: Page, place: Path) -> None:
    """Choose a folder by the button."""
    page.one("#folder").send_keys(str(place))


def drop_beside(page: Page, place: Path) -> None:
    """Drop a folder beside the classes."""
    drop(page, "#images h2", place)


@pytest.mark.parametrize("give", [choose, drop_beside])
def test_a_folder_of_images_becomes_a_head_that_names_new_images(page: Page, folder: Path, give: Callable) -> None:
    page.open("#images")
    give(page, folder / "task")
    page.until(lambda: len(page.all("#images-classes .thumbs img")) == 6)
    assert {e.get_attribute("value") for e in page.all("#images-classes .name")} == {"standing", "lying"}
    said = page.make()
    assert "2 classes" in said and "held back" in said
    page.one("#query-drop input").send_keys("\n".join(str(folder / f"new {label}.png") for label in ("standing", "lying")))
    page.until(lambda: len(page.all("#answers li")) == 2)
    assert page.answers() == {"new standing.png": "standing", "new lying.png": "lying"}
    assert page.own()


def test_images_can_be_dropped_on_a_class_and_drawn_and_taken_away(page: Page, folder: Path) -> None:
    page.open("#images")
    drop(page, "#images-classes .card", *sorted((folder / "task" / "standing").iterdir()))
    page.until(lambda: len(page.all("#images-classes .thumbs img")) == 3)
    page.one("#images-classes .thumbs button").click()
    assert len(page.all("#images-classes .thumbs img")) == 2
    page.all("#images-classes .draw")[1].click()
    hand = ActionChains(page.driver).move_to_element_with_offset(page.one("#pad canvas"), -100, 0)
    hand.click_and_hold().move_by_offset(200, 0).release().perform()
    page.one("#pad-done").click()
    page.until(lambda: len(page.all("#images-classes .thumbs img")) == 3)
    assert "has examples but no name" in page.refused()
    for field, name in zip(page.all("#images-classes .name"), ("up", "flat"), strict=True):
        field.send_keys(name)
    page.make()
    drop(page, "#query-drop", folder / "new lying.png", folder / "new standing.png")
    page.until(lambda: len(page.all("#answers li")) == 2)
    assert page.answers() == {"new lying.png": "flat", "new standing.png": "up"}


@texts
def test_names_alone_become_a_head_and_then_sentences_a_better_one(page: Page) -> None:
    page.open()
    said = page.make()
    assert "3 classes" in said and "No class has examples to spare" in said
    assert page.answers() == {"my visa card is gone": "lost_card", "please pay me back": "refund"}
    first = page.download("#file", "head.safetensors")
    sentences = "where is my money\nI want it back", "card stolen\nlost it", "what have I got left\nhow much is there"
    for field, examples in zip(page.all("#texts-classes .examples"), sentences, strict=True):
        field.send_keys(examples)
    assert page.one("#stale").is_displayed()
    page.write("#log", "is my parcel lost?\nsomeone took my card\nhow much do I have left")
    assert "held back" in page.make() and not page.one("#stale").is_displayed()
    page.write("#queries", "a thief has my card")
    page.one("#try .main").click()
    page.until(lambda: len(page.all("#answers li")) == 1)
    assert page.answers() == {"a thief has my card": "lost_card"}
    assert page.download("#file", "head.safetensors") != first
    assert page.own()


def test_the_downloaded_files_are_the_head(page: Page, folder: Path) -> None:
    page.open("#images")
    page.one("#folder").send_keys(str(folder / "task"))
    page.until(lambda: len(page.all("#images-classes .thumbs img")) == 6)
    page.make()
    head, bundle = load_head(page.download("#file", "head.safetensors")), load_bundle("omniglot", device="cpu")
    queries = [str(folder / f"new {label}.png") for label in ("standing", "lying")]
    assert head.predict(bundle.embed(queries)) == ["standing", "lying"] and sorted(head.labels) == ["lying", "standing"]
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    session = onnxruntime.InferenceSession(page.download("#onnx", "head.onnx"), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"features": bundle.embed(queries).numpy()})
    assert [head.labels[row] for row in probabilities.argmax(-1)] == ["standing", "lying"]


def test_errors_are_shown_in_words_beside_the_button(page: Page, folder: Path) -> None:
    page.open("#images")
    assert "at least two classes" in page.refused()
    broken = folder / "task" / "lying" / "broken.png"
    broken.write_bytes((folder / "new lying.png").read_bytes()[:60])
    page.one("#folder").send_keys(str(folder / "task"))
    page.until(lambda: len(page.all("#images-classes .thumbs img")) == 7)
    assert not page.trouble()
    refused = page.refused()
    assert 'broken.png of class "lying": The image cannot be read' in refused and "PNG, JPEG or WebP" in refused
    assert not page.one("#made").is_displayed() and page.one("#make").is_enabled()
    page.one("#images-classes [title='remove broken.png']").click()
    page.make()


def test_labels_may_hold_any_character(page: Page, folder: Path) -> None:
    page.open("#images")
    for card, (name, kind) in enumerate({'a/b "c" <i>': "standing", "größer %22": "lying"}.items()):
        page.all("#images-classes .name")[card].send_keys(name)
        page.all("#images-classes input[type=file]")[card].send_keys(str(folder / f"new {kind}.png"))
    page.make()
    page.one("#query-drop input").send_keys(str(folder / "new lying.png"))
    assert page.answers() == {"new lying.png": "größer %22"}
    assert load_head(page.download("#file", "head.safetensors")).labels == ['a/b "c" <i>', "größer %22"]


def test_a_service_that_has_gone_away_is_said_to_have(driver: Chrome, downloads: Path, toy, folder: Path) -> None:
    server = Running(Settings(), [toy])
    page = Page(driver, str(server.client.base_url), downloads)
    page.open()
    assert "toy tells 2 to 64 classes apart" in page.one("#model-note").text
    assert page.one("[value=images]").is_selected()
    page.one("[value=texts]").click()
    assert "No model here reads texts: toy reads images" in page.one("#model-note").text
    assert not page.one("#make").is_enabled()
    page.one("[value=images]").click()
    page.one("#folder").send_keys(str(folder / "task"))
    page.until(lambda: len(page.all("#images-classes .thumbs img")) == 6)
    server.stop()
    assert "cannot be reached" in page.refused()


@pytest.mark.parametrize("path", ["#images", "#texts"])
def test_nothing_sticks_out_of_a_narrow_screen(page: Page, folder: Path, path: str) -> None:
    narrow = {"width": 340, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
    try:
        page.open(path)
        if path == "#images":
            page.one("#folder").send_keys(str(folder / "task"))
            page.until(lambda: len(page.all("#images-classes .thumbs img")) == 6)
        if page.one("#make").is_enabled():
            page.make()
        inside = "const e = document.scrollingElement; return [e.scrollWidth, innerWidth]"
        content, width = page.driver.execute_script(inside)
        assert content <= width == 340
        assert all(e.rect["width"] >= 24 and e.rect["height"] >= 24 for e in page.all("button") if e.is_displayed())
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


class WantsKey:
    """What stands before a service: work and models only with a key."""

    def __init__(self, app: Callable) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        guarded = scope["type"] == "http" and (scope["method"] == "POST" or scope["path"] == "/models")
        if not guarded or (b"authorization", b"Bearer right") in scope["headers"]:
            await self.app(scope, receive, send)
            return
        problem = {"title": "The key is missing or wrong", "detail": "send a key as a bearer token"}
        await JSONResponse(problem, 401)(scope, receive, send)


def test_a_service_that_wants_a_key_is_given_one(driver: Chrome, downloads: Path, toy, folder: Path) -> None:
    server = Running(Settings(), [toy], lambda app: app.add_middleware(WantsKey))
    page = Page(driver, str(server.client.base_url), downloads)
    try:
        page.open()
        assert "The key is missing or wrong" in page.one("#model-note").text
        page.one("#key").send_keys("right\n")
        page.until(lambda: "toy tells" in page.one("#model-note").text)
        page.one("#folder").send_keys(str(folder / "task"))
        page.until(lambda: len(page.all("#images-classes .thumbs img")) == 6)
        page.make()
        page.one("#query-drop input").send_keys(str(folder / "new lying.png"))
        assert set(page.answers()) == {"new lying.png"}
    finally:
        server.stop()


def test_the_interactive_documentation_loads_nothing_from_elsewhere(page: Page) -> None:
    page.open("docs")
    page.until(lambda: len(page.all(".opblock")) >= 10)
    page.one("#operations-default-generate_head_generate_head_post button").click()
    page.until(lambda: page.all(".opblock-body .responses-table"))
    time.sleep(0.5)
    asked = page.addresses()
    assert {a.removeprefix(page.url) for a in asked} >= {"/docs", "/openapi.json", "/docs/assets/swagger-ui-bundle.js"}
    assert all(a.startswith((page.url, "data:", "blob:")) for a in asked), asked
