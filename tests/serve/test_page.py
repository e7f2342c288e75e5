"""The page in a real browser against a real server. Skipped where there is no Chromium with its driver."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from deepnarrow.measure.palette import DARK, LIGHT, contrast

from .process import save_small, serving

WEB = resources.files("deepnarrow") / "serve" / "web"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1240,900",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing outside can be reached, whatever is tried
)  # fmt: skip


class Page:
    """The page as a user has it: what is typed and pressed, what is read."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url = browser, url
        browser.get(url)
        self.until("return document.querySelector('#server').dataset.state !== 'waiting'")

    def run(self, script: str, *more: object) -> Any:
        return self.browser.execute_script(script, *more)

    def until(self, script: str, seconds: float = 30.0) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(script):
                return found
            time.sleep(0.02)
        raise AssertionError(f"never came true: {script}\n{self.run('return document.body.innerText')}")

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def count(self, selector: str) -> int:
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def focused(self) -> str:
        return self.run("return document.activeElement.id || document.activeElement.className")

    def press(self, *keys: str) -> None:
        self.browser.switch_to.active_element.send_keys(*keys)

    def write(self, text: str, selector: str = "#text") -> None:
        field = self.find(selector)
        field.clear()
        field.send_keys(text)

    def answer(self, text: str) -> str:
        """Type, press Ctrl Enter, wait, and give what the newest answer says."""
        before = self.count(".card")
        self.write(text)
        self.press(keys().CONTROL, keys().ENTER)
        self.until(f"return document.querySelectorAll('.card').length > {before}")
        self.until("return document.querySelector('.card').dataset.state !== 'running'")
        return self.text(".card .output")

    def mistakes(self) -> list[str]:
        """What the console said, and what was asked of others than the server, since the last time."""
        said = [entry["message"] for entry in self.browser.get_log("browser")]
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        return said + [url for url in asked if not url.startswith(self.url)]


def keys() -> Any:
    return pytest.importorskip("selenium.webdriver.common.keys").Keys


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("serve") / "small")


@pytest.fixture(scope="module")
def served(small_folder: Path) -> Iterator[str]:
    long = ["--max-new-tokens", "20000"]  # an answer that is there to be stopped, however late the click comes
    with serving([str(small_folder), *long], small_folder.parent / "log") as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    if not CHROMIUM or not DRIVER:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.fixture
def page(browser: Any, served: str) -> Iterator[Page]:
    """A page just opened; whatever the test did, the console is clean and nobody else was asked anything."""
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    opened = Page(browser, served + "/")
    yield opened
    assert opened.mistakes() == []


def test_opens_with_the_models_of_the_server_and_the_cursor_in_the_text(page: Page, small_folder: Path) -> None:
    assert page.run("return [...document.querySelectorAll('#model option')].map(one => one.value)") == [
        small_folder.name
    ]
    assert page.run("return document.querySelector('#server').dataset.state") == "up"
    assert page.browser.title.startswith(small_folder.name)
    assert page.focused() == "text"


def test_streams_an_answer_with_its_times(page: Page) -> None:
    page.run(
        "window.seen = []; new MutationObserver(() => {"
        "  const length = document.querySelector('.card .output')?.textContent.length ?? 0;"
        "  if (length !== window.seen.at(-1)) window.seen.push(length);"
        "}).observe(document.querySelector('#list'), {childList: true, subtree: true, characterData: true})"
    )
    page.run("document.querySelector('#max-tokens').value = 500")  # long enough to come in pieces, however slow this is
    text = page.answer("The quick brown fox")
    seen = page.run("return window.seen")
    assert text.strip()
    assert len(seen) >= 3, "the answer came at once, not word by word"
    assert seen == sorted(seen)
    assert seen[-1] == len(text)
    names = page.run("return [...document.querySelectorAll('.card .times dt')].map(one => one.textContent)")
    assert names == ["Queue", "Encode", "First token", "Then", "Whole"]
    values = page.run("return [...document.querySelectorAll('.card .times dd')].map(one => one.textContent)")
    assert all(re.fullmatch(r"[\d.]+ (ms|s|tokens/s)", value) for value in values), values
    assert re.search(r"\d+.tokens?\. Seen from this page: first token after [\d.]+.m?s", page.text(".card .seen"))
    assert page.run("return [...document.querySelectorAll('.card .track i')].every(one => one.offsetWidth > 0)")
    assert page.text("#status").startswith("Done")
    assert page.run("return document.querySelector('.card .output').hasAttribute('aria-busy')") is False


def test_the_same_text_has_the_same_answer_and_both_are_kept(page: Page) -> None:
    first = page.answer("once")
    second = page.answer("twice")
    assert page.answer("once") == first
    assert page.run("return [...document.querySelectorAll('.card .input')].map(one => one.textContent)") == [
        "once", "twice", "once",
    ]  # fmt: skip
    assert page.run("return [...document.querySelectorAll('.card .output')].map(one => one.textContent)") == [
        first, second, first,
    ]  # fmt: skip
    page.find(".card .remove").click()
    assert page.count(".card") == 2
    page.find("#clear").click()
    assert page.count(".card") == 0
    assert page.find("#empty").is_displayed()
    page.browser.refresh()
    assert page.count(".card") == 0, "history is of the page alone"
    assert page.run("return localStorage.length + sessionStorage.length + document.cookie.length") == 0


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stops(page: Page, way: str) -> None:
    page.run("document.querySelector('#max-tokens').value = document.querySelector('#max-tokens').max")
    page.write("a long story " * 3)
    page.press(keys().CONTROL, keys().ENTER)
    page.until("return document.querySelector('.card .output')?.textContent.length > 3")
    if way == "button":
        page.find("#stop").click()
    else:
        page.press(keys().ESCAPE)
    page.until("return document.querySelector('.card').dataset.state !== 'running'")
    assert page.run("return document.querySelector('.card').dataset.state") == "stopped"
    text = page.text(".card .output")
    assert text
    assert page.text(".card .seen").startswith("Stopped after")
    assert page.find("#generate").is_enabled()
    assert not page.find("#stop").is_displayed()
    page.run("document.querySelector('#max-tokens').value = 8")
    assert page.answer("a short one")  # the server has room again
    assert page.run("return document.querySelectorAll('.card .output')[1].textContent") == text


def test_is_used_by_keyboard_alone(page: Page) -> None:
    order = []
    for _ in range(14):
        order.append(page.focused())
        page.press(keys().TAB)
    assert order[:6] == ["text", "chip", "chip", "chip", "chip", "generate"]
    assert "max-tokens" in order
    assert "key" in order
    page.find(".chip").send_keys(keys().ENTER)
    assert "<extra_id_0>" in page.run("return document.querySelector('#text').value")
    assert page.focused() == "text"
    page.run("document.querySelector('#max-tokens').value = 8")
    page.find("#generate").send_keys(keys().ENTER)
    page.until("return document.querySelector('.card')?.dataset.state === 'done'")
    assert page.focused() == "generate"
    ring = page.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid", "what has the focus is seen to have it"


def test_settings_reach_the_server(page: Page) -> None:
    page.run("document.querySelector('#max-tokens').value = 5")
    page.run("document.querySelector('[name=search][value=sample]').click()")
    page.write("7", "#seed")
    first = page.answer("a seed")
    assert page.answer("a seed") == first
    assert "sampled" in page.text(".card .how")
    assert re.match(r"5.tokens", page.text(".card .seen"))
    assert "Cut off" in page.text(".card .seen")
    page.find(".card .again").click()
    assert page.run("return document.querySelector('#text').value") == "a seed"


def test_choices_are_all_that_is_answered(page: Page) -> None:
    if not page.run("return !document.querySelector('[data-needs=choices]').hidden"):
        pytest.fail("the server does not offer choices")
    page.run("document.querySelector('[name=constraint][value=choices]').click()")
    page.write("positive\nnegative", "#choices")
    assert page.answer("a fine film").strip() in ("positive", "negative")
    page.run("document.querySelector('[name=constraint][value=regex]').click()")
    page.write("[0-9]{3}", "#regex")
    assert re.fullmatch(r"\d{3}", page.answer("how many").strip())


def test_mistakes_are_told_where_they_are_made(page: Page) -> None:
    page.write("")
    page.press(keys().CONTROL, keys().ENTER)
    assert page.count(".card") == 0
    assert page.text("#status") == "Write a text for the model first."
    page.write("a text")
    page.run("document.querySelector('#max-tokens').value = ''")
    page.press(keys().CONTROL, keys().ENTER)
    assert page.count(".card") == 0
    assert page.focused() == "max-tokens"
    assert page.run("return document.querySelector('#max-tokens').getAttribute('aria-invalid')") == "true"


def test_what_the_server_refuses_is_shown(page: Page) -> None:
    page.run("document.querySelector('#text').value = 'word '.repeat(200000)")
    page.find("#generate").click()
    page.until("return document.querySelector('.card')?.dataset.state === 'failed'")
    assert page.text(".card .alert strong") in ("The text is too long", "The server does not take this")
    assert len(page.text(".card .alert p")) > 10
    assert page.find(".card .alert").get_attribute("role") == "alert"
    said = [entry["message"] for entry in page.browser.get_log("browser")]
    assert len(said) == 1, said
    assert "Failed to load resource" in said[0]  # which Chromium itself says of every refusal


def test_nothing_that_is_written_becomes_part_of_the_page(page: Page) -> None:
    wicked = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    page.run("document.querySelector('#max-tokens').value = 4")
    page.answer(wicked)
    assert page.text(".card .input") == wicked
    assert page.count(".card img, .card script") == 0
    assert "taken" not in page.browser.title


def test_a_server_with_keys_asks_for_one(browser: Any, small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key-of-thirty-two-characters-or-more\n")
    with serving([str(small_folder), "--api-key-file", str(tmp_path / "keys")], tmp_path / "log") as url:
        page = Page(browser, url + "/")
        assert page.text("#server-text") == "This server asks for a key"
        assert page.focused() == "key"
        page.write("a-key-of-thirty-two-characters-or-more", "#key")
        page.press(keys().TAB)
        page.until("return document.querySelector('#server').dataset.state === 'up'")
        page.run("document.querySelector('#max-tokens').value = 4")
        assert page.answer("open") is not None
        assert page.run("return document.querySelector('.card').dataset.state") == "done"
    page.write("anyone there?")  # nobody: the server is gone
    page.press(keys().CONTROL, keys().ENTER)
    page.until("return document.querySelector('.card').dataset.state === 'failed'")
    assert page.text(".card .alert strong") == "The connection broke"
    browser.get_log("browser")


def test_narrow_screens_hold_it(page: Page) -> None:
    try:
        page.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 340, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        )
        page.browser.refresh()
        page.run("document.querySelector('#max-tokens').value = 20")
        page.answer("a" * 300)
        assert page.run("return document.documentElement.scrollWidth") <= 340
        assert page.run("return document.querySelector('#settings').open") is False
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_policy_lets_nothing_in_from_elsewhere() -> None:
    page = (WEB / "index.html").read_text("utf-8")
    assert not re.search(r"""(?:src|href)="(?!style\.css|page\.js|icon\.svg|#)""", page)
    assert " style=" not in page
    assert "<style" not in page
    assert not re.search(r"""\son[a-z]+=""", page)
    for name in ("style.css", "page.js"):
        assert not re.search(r"https?://|@import|innerHTML|\beval\(", (WEB / name).read_text("utf-8")), name


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_the_reports_and_can_be_read(theme: str) -> None:
    sheet = (WEB / "style.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)
    found = dict(re.findall(r"--([a-z]+\w*): (#[0-9a-f]{6});", blocks[theme == "dark"]))
    wanted = DARK if theme == "dark" else LIGHT
    assert {name: value for name, value in found.items() if name in wanted}.items() <= wanted.items()
    for name in ("ink", "soft", "accent", "pick"):
        assert contrast(found[name], found["card"]) >= 4.5, name
        assert contrast(found[name], found["paper"]) >= 4.5, name
    assert contrast(found["accent"], found["glow"]) >= 4.5
    assert contrast(found["ink"], found["grid"]) >= 4.5
    on_accent = re.search(r"--on-accent: (#[0-9a-f]{6})", blocks[theme == "dark"])
    assert on_accent
    assert contrast(on_accent[1], found["accent"]) >= 4.5
    for name in ("faint", "series0", "series1", "series2"):
        assert contrast(found[name], found["card"]) >= 3, name
