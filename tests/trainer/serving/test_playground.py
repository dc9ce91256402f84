"""The page at / in headless Chromium: it shows what the API answers, asks for nothing else, and needs no pointer."""

import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.browser import Browser
from helpers.model_folders import entropy_folder, model_folder
from helpers.serving import PATIENCE, Running, chat_model, running

from shared.patching import PatchingSettings
from shared.vocabulary import EOS
from trainer.generation.generator import Generator
from trainer.generation.sampling import WRITABLE
from trainer.generation.text import visible
from trainer.serving.app import PAGE_HEADERS, PLAYGROUND

KEY = b"a key"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = sorted(PLAYGROUND.iterdir())
CELLS = "[...document.querySelectorAll('#pane .c:not(.given)')]"
CTRL, SHIFT = 2, 8


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Generator]:
    """One that knows chats and cuts by entropy, one that does neither, and one with entropies and no patches."""
    folder = tmp_path_factory.mktemp("playground")
    static = model_folder(folder / "static", PatchingSettings(rule="static", stride=4), None)
    entropy = entropy_folder(folder / "entropy")
    return {"tiny": Generator(chat_model(folder)), "static": Generator(static), "entropy": Generator(entropy)}


@pytest.fixture(scope="module")
def server(generators: dict[str, Generator]) -> Iterator[Running]:
    with running(generators) as served:
        yield served


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text ends by itself."""
    writable = WRITABLE.copy()
    writable[EOS] = False
    monkeypatch.setattr("trainer.generation.sampling.WRITABLE", writable)


class Page:
    """The page as a person sees it."""

    def __init__(self, browser: Browser, server: Running) -> None:
        self.browser, self.server = browser, server
        browser.screen(1280, 860)
        browser.visit(f"{server.url}/")

    def js(self, expression: str) -> Any:
        return self.browser.evaluate(expression)

    def text(self, id: str) -> str:
        return str(self.js(f"document.getElementById('{id}').innerText"))

    def wait_for(self, id: str, text: str) -> None:
        self.browser.wait(f"document.getElementById('{id}').innerText.includes({json.dumps(text)})")

    def set(self, **values: Any) -> None:
        """Values of fields, as if they had been typed."""
        for id, value in values.items():
            field = f"document.getElementById('{id.replace('_', '-')}')"
            kind = "checked" if isinstance(value, bool) else "value"
            self.js(f"{field}.{kind} = {json.dumps(value)}, {field}.dispatchEvent(new Event('input'))")

    def choose(self, model: str, view: str = "text") -> None:
        self.js(f"model.value = '{model}', model.dispatchEvent(new Event('change'))")
        self.js(f"document.querySelector('[value={view}]').click()")

    def click(self, id: str) -> None:
        self.js(f"document.getElementById('{id}').click()")

    def write(self, prompt: str, **values: Any) -> None:
        self.set(prompt=prompt, reseed=False, **values)
        self.click("write")

    def finish(self) -> None:
        self.browser.wait("document.getElementById('write').innerText === 'Write'")

    def written(self) -> list[tuple[str, bool]]:
        """Of each byte that is shown as written: its hex, and whether a patch begins with it."""
        cells = self.js(f"{CELLS}.map((cell) => [cell.dataset.hex, cell.dataset.starts ?? ''])")
        return [
            (hex[2 * place : 2 * place + 2], str(place) in starts.split())
            for hex, starts in cells
            for place in range(max(1, len(hex) // 2))
        ]

    def tab_to(self, id: str, modifiers: int = 0) -> None:
        for _ in range(40):
            if self.js("document.activeElement.id") == id:
                return
            self.browser.press("Tab", modifiers)
        raise AssertionError(f"no way to {id} by Tab")


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    """Opened, with the model that knows chats; nothing may be wrong or have been asked of others at the end."""
    opened = Page(browser, server)
    opened.wait_for("status", "Ready")
    yield opened
    assert [url for url in browser.requests() if not url.startswith((f"{server.url}/", "data:"))] == []
    assert [one for one in browser.complaints() if "400 (Bad Request)" not in json.dumps(one)] == []
    browser.call("Emulation.clearDeviceMetricsOverride")


def answer(server: Running, path: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    with server.http() as client:
        return dict(client.post(path, json={"model": "tiny", "details": True, "temperature": 0.8, **body}).json())


# ---- What is written.


def test_the_page_loads_its_own_files_and_nothing_else(page: Page) -> None:
    names = {url.removeprefix(page.server.url) for url in page.browser.requests()}
    assert names >= {"/", "/style.css", "/app.js", "/v1/models"}
    options = page.js("[...document.getElementById('model').options].map(({ value }) => value)")
    assert options == ["tiny", "static", "entropy"]


def test_it_writes_what_the_api_answers(page: Page) -> None:
    page.write("The patch", length=60, seed=7)
    page.finish()
    api = answer(page.server, prompt="The patch", max_tokens=60, seed=7)
    (choice,) = api["choices"]
    assert page.written() == [(entry["hex"], entry["starts"]) for entry in choice["details"]]
    shown = page.js(f"{CELLS}.map((cell) => cell.textContent).join('')")
    assert shown == "".join(map(visible, choice["text"]))
    assert page.js("document.querySelectorAll('.given').length") == len("The patch")
    usage = api["usage"]
    assert page.text("text-total").startswith(f"{usage['completion_tokens']} bytes, ")
    assert f", {usage['patches']['completion']} patch" in page.text("text-total")
    assert page.text("prompt-total").startswith("9 bytes, ")
    assert page.text("bytes-rate") != "–"
    assert page.text("first-byte") != "–"


def test_bars_are_as_high_as_the_entropy(page: Page) -> None:
    page.write("é", length=30, seed=3)
    page.finish()
    heights = page.js(
        f"{CELLS}.flatMap((cell) => [0, 1, 2, 3].map((n) => cell.style.getPropertyValue(`--e${{n}}`)).filter(Boolean))"
    )
    details = answer(page.server, prompt="é", max_tokens=30, seed=3)["choices"][0]["details"]
    expected = [min(1, entry["entropy"] / math.log(256)) for entry in details]
    assert list(map(float, heights)) == pytest.approx(expected, abs=1e-3)
    theta = page.server.engine.generator.identity.patching.theta
    line = page.js("document.getElementById('pane').style.getPropertyValue('--theta-at')")
    assert float(line) == pytest.approx(theta / math.log(256), abs=1e-3)


def test_every_setting_reaches_the_model(page: Page) -> None:
    values = {"temperature": 0.9, "top_p": 0.7, "theta": 5.2, "seed": 11}
    stop = answer(page.server, prompt="x", max_tokens=50, utf8=True, **values)["choices"][0]["text"][9:11]
    api = answer(page.server, prompt="x", max_tokens=50, utf8=True, stop=[stop], **values)["choices"][0]
    assert "\n" not in stop
    page.write("x", length=50, utf8=True, stop=stop, **values)
    page.finish()
    assert page.written() == [(entry["hex"], entry["starts"]) for entry in api["details"]]
    page.click("theta-default")
    page.write("x", length=20, stop="", utf8=False, temperature=0.8, top_p=1)
    page.finish()
    again = answer(page.server, prompt="x", max_tokens=20, seed=11)["choices"][0]
    assert page.written() == [(entry["hex"], entry["starts"]) for entry in again["details"]]


def test_a_slider_and_its_number_are_one(page: Page) -> None:
    page.set(temperature_slider="1.25")
    assert page.js("document.getElementById('temperature').value") == "1.25"
    page.set(length="2000")
    assert page.js("document.getElementById('length-slider').value") == "2000"
    assert page.js("document.getElementById('reseed').checked")
    page.set(seed="5")
    assert not page.js("document.getElementById('reseed').checked")


def test_a_model_without_entropies_has_neither_bars_nor_theta(page: Page) -> None:
    page.choose("static")
    assert not page.js("document.getElementById('theta-field').checkVisibility()")
    assert not page.js("document.getElementById('legend-entropy').checkVisibility()")
    assert page.js("document.querySelector('[value=chat]').disabled")
    page.write("static", length=20, seed=1)
    page.finish()
    details = answer(page.server, model="static", prompt="static", max_tokens=20, seed=1)["choices"][0]["details"]
    assert page.written() == [(entry["hex"], entry["starts"]) for entry in details]
    assert page.js(f"{CELLS}.every((cell) => cell.style.length === 0)")


def test_an_entropy_model_has_bars_and_no_patches(page: Page) -> None:
    page.choose("entropy")
    for id, there in {"theta-field": False, "legend-patches": False, "legend-entropy": True}.items():
        assert page.js(f"document.getElementById('{id}').checkVisibility()") == there
    page.write("x", length=20, seed=1)
    page.finish()
    assert page.js(f"{CELLS}.every((cell) => cell.style.getPropertyValue('--e0'))")
    assert page.text("text-total").endswith("bytes")


def test_a_chat_goes_on(page: Page) -> None:
    page.choose("tiny", "chat")
    page.write("Hello?", length=25, seed=2, system="Be brief.")
    page.finish()
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    api = answer(page.server, "/v1/chat/completions", messages=asked, max_tokens=25, seed=2)["choices"][0]
    assert page.written() == [(entry["hex"], entry["starts"]) for entry in api["details"]]
    assert page.js("document.getElementById('prompt').value") == ""
    page.write("And then?", length=25, seed=3)
    page.finish()
    asked += [{"role": "assistant", "content": api["message"]["content"]}, {"role": "user", "content": "And then?"}]
    then = answer(page.server, "/v1/chat/completions", messages=asked, max_tokens=25, seed=3)["choices"][0]
    assert page.written() == [(entry["hex"], entry["starts"]) for entry in api["details"] + then["details"]]
    page.click("clear")
    assert page.js("document.querySelectorAll('.turn').length") == 0


# ---- Ends and errors.


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("how", ["button", "clear", "view"])
def test_what_is_stopped_frees_its_row(page: Page, how: str) -> None:
    page.write("", length=100_000, seed=1)
    page.browser.wait(f"{CELLS}.length > 5")
    assert page.text("write") == "Stop"
    assert not page.server.engine.idle
    if how == "view":
        page.choose("tiny", "chat")
    else:
        page.click("write" if how == "button" else "clear")
    page.finish()
    assert "Stopped" in page.text("status")
    assert page.js(f"{CELLS}.length > 0") == (how == "button")
    deadline = time.monotonic() + PATIENCE
    while not page.server.engine.idle:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_error_of_the_server_is_shown_in_words(page: Page) -> None:
    page.write("x", stop="\n".join("abcdefghijklmnopq"))
    page.wait_for("error", "stop")
    assert page.js("document.getElementById('empty').checkVisibility()")
    page.write("x", stop="", length=5)
    page.finish()
    assert page.text("error") == ""
    page.choose("tiny", "chat")
    page.write("Hello?", stop="\n".join("abcdefghijklmnopq"))
    page.wait_for("error", "stop")
    # What was never answered may be asked again.
    assert page.js("document.getElementById('prompt').value") == "Hello?"
    assert page.js("document.querySelectorAll('.turn').length") == 0


def test_a_field_that_cannot_be_is_not_sent(page: Page) -> None:
    page.write("x", temperature="-1")
    assert page.js("document.activeElement.id") == "temperature"
    assert [url for url in page.browser.requests() if url.endswith("completions")] == []


def test_a_lost_connection_is_told(page: Page) -> None:
    ends = 'new Response("data: {\\"choices\\":[]}\\n\\ndata: {\\"cho")'
    page.js(f"globalThis.fetch = async () => {ends}, 0")
    page.write("x")
    page.wait_for("error", "The connection was lost.")
    page.js("globalThis.fetch = async () => { throw new TypeError(); }, 0")
    page.write("x")
    page.wait_for("error", "cannot be reached")


def test_a_server_that_wants_a_key_gets_it(browser: Browser, generators: dict[str, Generator]) -> None:
    with running({"tiny": generators["tiny"]}, keys=[KEY]) as server:
        page = Page(browser, server)
        page.wait_for("error", "API key")
        assert page.js("document.activeElement.id") == "key"
        browser.type(KEY.decode())
        browser.press("Enter")
        page.wait_for("status", "Ready")
        page.write("x", length=8, seed=1)
        page.finish()
        assert page.text("status").endswith(("for", "itself"))


# ---- How it is used.


@pytest.mark.usefixtures("endless")
def test_keys_alone_do_everything(page: Page) -> None:
    browser = page.browser
    page.set(reseed=False)
    page.tab_to("prompt")
    browser.type("Keys")
    page.tab_to("write")
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.tab_to("length")
    page.js("document.activeElement.select()")
    browser.type("100000")
    browser.press("Enter", CTRL)
    browser.wait(f"{CELLS}.length > 20")
    browser.press("Escape")
    page.finish()
    page.wait_for("status", "Stopped after")
    page.tab_to("pane", SHIFT)
    assert page.text("readout").startswith("K")
    browser.press("ArrowRight")
    assert re.match(r"e\s+0x65\s+\d\.\d\d nats\s+[\d.]+% likely", page.text("readout"))
    browser.press("ArrowDown")
    assert "begins" in page.text("readout")
    browser.press("Home")
    browser.press("ArrowUp")
    assert page.text("readout").startswith("K")
    assert page.js("getComputedStyle(document.querySelector('.on')).outlineStyle") == "solid"


def test_what_is_looked_at_is_in_view(page: Page) -> None:
    page.browser.screen(390, 844)
    page.write("\n" * 60, length=5, seed=1)
    page.finish()
    page.js("document.getElementById('pane').focus()")
    place = "document.querySelector('.on').getBoundingClientRect()"
    dock = "document.getElementById('dock').getBoundingClientRect()"
    for key in ["Home"] + 20 * ["ArrowRight"] + ["End"]:
        page.browser.press(key)
        assert page.js(f"{place}.top >= 0 && {place}.bottom <= {dock}.top"), key


def test_every_field_has_a_name(page: Page) -> None:
    nameless = """[...document.querySelectorAll('input, select, textarea')]
        .filter((field) => !field.labels.length && !field.ariaLabel).map(({ id }) => id)"""
    assert page.js(nameless) == []


@pytest.mark.parametrize("width", [360, 390, 768, 1024])
def test_nothing_is_wider_than_the_screen(page: Page, width: int) -> None:
    page.browser.screen(width, 844, mobile=width < 500)
    page.write("W" * 300 + "\t" * 9 + "\u6587" * 90, length=40, seed=1)
    page.finish()
    assert page.js("document.documentElement.scrollWidth") <= width
    rights = "[...document.querySelectorAll('.c')].map((cell) => cell.getBoundingClientRect().right)"
    assert page.js(f"Math.max(...{rights})") <= page.js("document.getElementById('pane').getBoundingClientRect().right")
    if width < 1024:
        page.click("open-settings")
        assert page.js("document.getElementById('settings').scrollWidth") <= width
        page.click("close-settings")


def test_what_is_there_does_not_move_while_text_grows(page: Page) -> None:
    page.browser.screen(390, 844)
    before = "['write', 'prompt', 'figures'].map((id) => document.getElementById(id).getBoundingClientRect().top)"
    places = page.js(before)
    page.write("\n" * 60, length=50, seed=1)
    page.finish()
    assert page.js(before) == pytest.approx(places, abs=1)
    # Whoever is at the end is kept there.
    assert page.js("innerHeight + scrollY >= document.documentElement.scrollHeight - 8")


def test_the_dark_has_other_colours(page: Page) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page.browser.prefer(prefers_color_scheme=scheme)
        colours.append(page.js("getComputedStyle(document.documentElement).backgroundColor"))
    page.browser.prefer()
    assert len(set(colours)) == 2


# ---- Text that would disturb a page.


def details(data: bytes) -> str:
    return json.dumps([{"hex": f"{byte:02x}", "starts": False, "entropy": 1.0} for byte in data])


def passage(page: Page, *parts: str) -> Any:
    """Cells [text, hex, kind] of a passage that has these entries."""
    return page.js(
        f"""import('/passage.js').then(({{ Passage, characterOf }}) => {{
            const passage = new Passage();
            document.getElementById('pane').append(passage.element);
            for (const part of [{", ".join(parts)}]) passage.append(part);
            return [...passage.element.querySelectorAll('.c')].map((cell) =>
                [cell.textContent, cell.dataset.hex, characterOf(cell).kind]);
        }})"""
    )


@pytest.mark.parametrize(
    "data",
    [
        "Größe 大きさ 🧵".encode(),
        b"\xff\xc3\xa9\xc3(\xe2\x82\xf0\x9f\x92\xed\xa0\x80\xf4\x90\x80\x80\xc0\xaf",
        b"\xe2\x82",
        bytes(range(256)),
        "\ufffd\ufeff".encode(),
    ],
)
def test_bytes_are_decoded_as_python_does(page: Page, data: bytes) -> None:
    cells = passage(page, details(data))
    assert "".join(text for text, _, _ in cells) == "".join(map(visible, data.decode("utf-8", "replace")))
    assert "".join(hex for _, hex, _ in cells) == data.hex()
    assert {len(text) for text, _, _ in cells} == {1}
    assert all(kind == "invalid" for text, hex, kind in cells if text == "\ufffd" and hex not in ("efbfbd", *C1))


C1 = [chr(code).encode().hex() for code in range(0x80, 0xA0)]


def test_neither_markup_nor_directions_act(page: Page) -> None:
    text = "<img src=x onerror=alert(1)><script>alert(1)</script>\u202egnp\u2066\u2028\x00\x1b[2J"
    cells = passage(page, details(text.encode()))
    assert "".join(shown for shown, _, _ in cells) == "".join(map(visible, text))
    assert page.js("document.querySelectorAll('.passage img, .passage script').length") == 0


def test_special_ids_are_names(page: Page) -> None:
    special = json.dumps([{"hex": "", "starts": True, "entropy": None, "special": "user"}])
    assert passage(page, special) == [["<user>", "", "special"]]


def test_long_text_stays_quick_and_whole(page: Page) -> None:
    """Ten thousand bytes without an end of line, a few at a time: the browser never lays out all of them again."""
    data = b"patch " * 1700
    parts = [details(data[at : at + 30]) for at in range(0, len(data), 30)]
    assert "".join(text for text, _, _ in passage(page, *parts)) == data.decode()
    lines = page.js(
        """[...document.querySelectorAll('.passage .line')].map((line) => line.querySelectorAll('.c').length)"""
    )
    assert max(lines) < 1000
    # The blocks end where lines are wrapped: all of them but the last are full.
    full = page.js(
        """[...document.querySelectorAll('.passage .line')].slice(0, -1).every((line) => {
            const last = line.querySelector('.c:last-of-type').getBoundingClientRect();
            return last.right > line.getBoundingClientRect().right - 7 * last.width;
        })"""
    )
    assert full


# ---- Without a browser.


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_are_served_with_their_types_under_a_strict_policy(server: Running, file: Path) -> None:
    with server.http() as client:
        found = client.get("/" if file.name == "index.html" else f"/{file.name}")
    assert found.status_code == 200
    assert found.headers["content-type"].partition(";")[0] == TYPES[file.suffix]
    assert found.content == file.read_bytes()
    for name, value in PAGE_HEADERS.items():
        assert found.headers[name] == value
    assert "unsafe" not in found.headers["content-security-policy"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_name_no_other_place_and_write_no_markup(file: Path) -> None:
    text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//\w+\.\w|\burl\(|@import", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", text)


def test_a_key_guards_the_api_and_not_the_page(generators: dict[str, Generator]) -> None:
    with running({"tiny": generators["tiny"]}, keys=[KEY]) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/").status_code == 200
        assert client.get("/v1/models").status_code == 401
