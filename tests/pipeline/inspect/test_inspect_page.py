"""The page of inspect --html, in headless Chromium: it cuts as the library does, asks for nothing, runs no document."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import Browser
from helpers.dataset_examples import (
    ENTROPY,
    MONOTONIC,
    NONE,
    RISE,
    STATIC,
    document,
    documents,
    in_two_parts,
    save_dataset,
)

from pipeline.__main__ import main
from pipeline.inspect.page import LISTED, MOST_DOCUMENTS, chosen_documents, dataset_page, safe_values
from pipeline.inspect.survey import SHOWN_BYTES, survey
from shared.io.display.page import PAGE
from shared.io.display.terminal import one_line
from shared.io.files.outputs import Output
from shared.patching.grid import GRID, dequantise, quantise, snap
from shared.patching.lengths import patch_lengths
from shared.patching.settings import PatchingSettings
from shared.shards.document import Row
from shared.shards.manifest import SidecarType
from shared.shards.open import open_dataset
from shared.shards.spans import spans_of
from shared.vocabulary import document_tokens

TINY = 24
"""Entropies at the beginning of a spoilt document that are next to nothing."""
EXACT = PatchingSettings(rule="entropy", theta=2.7, max_length=40)


def page_of(folder: Path, *options: str) -> Path:
    """The page that the command writes."""
    file = folder.parent / f"{folder.name}.html"
    assert main(["inspect", str(folder), "--html", str(file), *options]) == 0
    Output(file, PAGE)  # may be replaced: it is known as ours
    return file


def load(browser: Browser, file: Path) -> None:
    """Open a page that must neither complain nor ask for anything."""
    browser.open(file)
    check_quiet(browser, file)


def check_quiet(browser: Browser, file: Path) -> None:
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [file.as_uri()]


def some_rows(patching: PatchingSettings, seed: int = 0) -> list[Row]:
    """Documents of many lengths and kinds of bytes, one longer than what is shown."""
    random = np.random.default_rng(seed)
    texts = [random.integers(0, 256, n).astype(np.uint8).tobytes() for n in (64, 65, 130, 1000)]
    texts += ["Größe 大きさ размер ".encode() * 12, b"some plain text\n\twith tabs " * 170]
    return [
        document(f"{seed}-{number}", ("code", "prose")[number % 2], text, patching) for number, text in enumerate(texts)
    ]


def spoilt(row: Row, patching: PatchingSettings) -> Row:
    """The same document with entropies that meet thresholds exactly, lie between two of float16, or are no number."""
    assert row.entropies is not None
    random = np.random.default_rng(len(row.text))
    entropies = row.entropies.copy()
    places = random.permutation(len(entropies))
    few = len(entropies) // 8
    entropies[places[:few]] = random.choice(GRID, few)
    halves = random.random(few).astype(np.float16)
    ties = (halves.astype(np.float32) + np.nextafter(halves, np.float16(9)).astype(np.float32)) / 2
    entropies[places[few : 2 * few]] = ties
    entropies[places[2 * few : 2 * few + 2]] = [np.nan, np.inf]
    entropies[:TINY] = random.random(TINY) * 2.0**-16  # so small that float16 has few digits left for them
    lengths = patch_lengths(document_tokens(row.text), patching.for_subset(row.subset), entropies)
    return Row(row.id, row.subset, row.text, 0, lengths, entropies)


def random_settings(random: np.random.Generator, sidecar: str, rows: list[Row]) -> PatchingSettings:
    """A rule on entropies that the sidecar can decide, with limits of any size.

    Half of the thresholds are values that documents meet exactly, or are nearer to one than float32 can tell.
    """
    rule: Any = "entropy" if sidecar == "uint8" else random.choice(["entropy", "monotonic", "entropy_rise"])
    theta = float(random.uniform(-0.5, 5)) if rule == "monotonic" else float(random.uniform(0, 5.5))
    if sidecar == "uint8":
        theta = snap(theta)
    dtype = str(random.choice(["float32", "float16"])) if rule != "entropy" else "float32"
    theta_rise = float(random.uniform(-2, 3))
    if sidecar == "float32" and random.random() < 0.5:
        entropies = rows[random.integers(len(rows))].entropies
        assert entropies is not None
        place = int(random.choice([random.integers(TINY), random.integers(len(entropies) - 1)]))
        nudge = random.choice([-1e-13, 0, 1e-13])
        rises = np.diff(entropies.astype(dtype).astype(np.float32))
        met = [float(values[place] + nudge) for values in (entropies, rises)]
        if np.isfinite(met).all():
            theta, theta_rise = met[rule == "monotonic"], met[1]
    low, whole = int(random.choice([1, 1, 2, 3, 7])), bool(random.integers(2))
    return PatchingSettings(
        rule=rule,
        theta=theta,
        theta_rise=theta_rise if rule == "entropy_rise" else None,
        min_length=low,
        max_length=int(random.choice([low, low + 1, 9, 64, 512])) + 3 * whole,
        whole_characters=whole,
        entropy_dtype=dtype,  # type: ignore[arg-type]
        reference_starts=bool(random.integers(2)) if rule != "entropy" else False,
        grid=sidecar == "uint8",
    )


def chat(patching: PatchingSettings, seed: int) -> Row:
    """A document with special ids between its bytes, and random entropies."""
    random = np.random.default_rng(seed)
    text = b"so many words, and then some " * 3
    ends = np.sort(random.integers(0, len(text), 5)).tolist()
    spans = spans_of([*((end, 260 + n % 3, n % 2 == 0) for n, end in enumerate(ends)), (len(text), None, True)])
    row = Row(f"chat-{seed}", "prose", text, spans=spans)
    entropies = (random.random(row.size + 1) * 5).astype(np.float32)
    lengths = patch_lengths(row.tokens(True), patching.for_subset(row.subset), entropies)
    return replace(row, entropies=entropies, patch_lengths=lengths)


def expected_starts(row: Row, patching: PatchingSettings, sidecar: str) -> list[int]:
    """Where the library's patches begin, as far as the page shows the document."""
    assert row.entropies is not None
    lengths = patch_lengths(row.tokens(True), patching, row.entropies)
    if sidecar == "uint8":  # what was stored decides as what was scored
        replayed = patch_lengths(row.tokens(True), patching, dequantise(quantise(row.entropies)))
        assert np.array_equal(lengths, replayed)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    shown = row.size + 2 if row.size <= SHOWN_BYTES else SHOWN_BYTES + 1
    return starts[starts < shown].tolist()


@pytest.mark.parametrize(("sidecar", "patching"), [("uint8", ENTROPY), ("float32", RISE), ("float32", MONOTONIC)])
def test_the_browser_cuts_exactly_as_the_library_does(tmp_path: Path, browser: Browser, sidecar, patching) -> None:
    rows = [spoilt(row, patching) for seed in range(2) for row in some_rows(patching, seed)]
    rows += [chat(patching, seed) for seed in range(2)]
    save_dataset(tmp_path / "data", [rows], patching, sidecar=sidecar)
    load(browser, page_of(tmp_path / "data", "--documents", "20"))
    random = np.random.default_rng(5)
    chosen = [random_settings(random, sidecar, rows) for _ in range(30 if sidecar == "uint8" else 45)]
    sent = json.dumps([one.model_dump() for one in chosen])
    found = browser.evaluate(
        f"{sent}.map((one) => opened.map((entry) => [entry.id, Array.from(cutAgain(entry, one))]))"
    )
    by_id = {row.id: row for row in rows}
    assert {id for id, _ in found[0]} == by_id.keys()
    for one, cut in zip(chosen, found, strict=True):
        for id, starts in cut:
            assert starts == expected_starts(by_id[id], one, sidecar), (id, one)
    assert browser.evaluate("dataset.replayable && foundAgain() === opened.length")
    assert "the same settings give the same boundaries" in browser.evaluate("at('outcome').textContent")


SHOWN_TEXT = """
Array.from(document.querySelectorAll("#text .patch"), (span) => Array.from(span.childNodes).flatMap((node) =>
  node.dataset?.hex ? node.dataset.hex.match(/../g).map((hex) => parseInt(hex, 16))
  : node.classList?.contains("special") ? [] : Array.from(new TextEncoder().encode(node.textContent))))
"""


def shown_patches(browser: Browser) -> list[bytes]:
    """The bytes that the elements of the text show, one string a patch."""
    return [bytes(patch) for patch in browser.evaluate(SHOWN_TEXT)]


def patches_of(row: Row, starts: list[int]) -> list[bytes]:
    text = row.text[:SHOWN_BYTES]
    return [text[max(a - 1, 0) : b - 1] for a, b in zip(starts, [*starts[1:], len(text) + 1])]


def test_the_slider_snaps_to_the_grid_and_recuts_the_text_byte_for_byte(tmp_path: Path, browser: Browser) -> None:
    rows = some_rows(ENTROPY)
    save_dataset(tmp_path / "data", [rows], ENTROPY, sidecar="uint8")
    file = page_of(tmp_path / "data", "--documents", "20")
    load(browser, file)
    by_id = {row.id: row for row in rows}
    assert browser.evaluate("[at('theta').min, at('theta').max, at('theta').step]") == ["0", "254", "1"]
    for number in range(browser.evaluate("opened.length")):
        browser.evaluate(f"showDocument({number})")
        row = by_id[browser.evaluate("opened[current].id")]
        stored = expected_starts(row, ENTROPY.for_subset(row.subset), "uint8")
        browser.evaluate("at('stored').click()")
        assert shown_patches(browser) == patches_of(row, stored)
        browser.evaluate("at('theta').value = 99, at('theta').dispatchEvent(new Event('input')), 0")
        moved = ENTROPY.for_subset(None).model_copy(update={"theta": float(GRID[99])})
        assert shown_patches(browser) == patches_of(row, expected_starts(row, moved, "uint8"))
    browser.evaluate("at('theta-exact').value = '3.141', at('theta-exact').dispatchEvent(new Event('change')), 0")
    assert browser.evaluate("cutting.theta") == snap(3.141)
    browser.evaluate("at('min-length').value = '40', at('min-length').dispatchEvent(new Event('change')), 0")
    assert browser.evaluate("[cutting.min_length, at('min-length').value]") == [1, "1"]  # more than the maximum of 16
    check_quiet(browser, file)


def test_mean_patch_sizes_are_those_of_the_library(tmp_path: Path, browser: Browser) -> None:
    patching = PatchingSettings(rule="entropy", theta=3.0, max_length=512).on_grid()
    rows = [document(str(n), "x", bytes(range(97, 117)) * 10, patching) for n in range(9)]
    for row in rows:
        assert row.entropies is not None
        row.entropies[0] = 1.0  # as of one model: all documents begin alike
    rows = [
        Row(r.id, r.subset, r.text, 0, patch_lengths(document_tokens(r.text), patching, r.entropies), r.entropies)
        for r in rows
    ]
    save_dataset(tmp_path / "data", [rows], patching, sidecar="uint8")
    load(browser, page_of(tmp_path / "data", "--documents", "20"))
    for g in (0, 30, 46, 150, 220):
        theta = float(GRID[g])
        moved = patching.model_copy(update={"theta": theta})
        patches = sum(len(patch_lengths(document_tokens(row.text), moved, row.entropies)) - 1 for row in rows)
        size = sum(len(row.text) for row in rows) / patches
        browser.evaluate(f"at('theta').value = {g}, at('theta').dispatchEvent(new Event('input')), 0")
        words = browser.evaluate("at('outcome').textContent")
        # No limit takes hold here, so that the estimate from the histogram is exact.
        assert [float(found) for found in re.findall(r"\d+\.\d+", words)] == [pytest.approx(size, abs=6e-4)] * 2
        assert "estimate" in words


BOMB = "</script><img src=x onerror='window.struck=1'><script>window.struck=1</script>"
BOMB += "<!--<script>&lt;{{script}}\u202e\u2028"


@pytest.fixture(scope="module")
def hostile() -> Row:
    return document(f"id {BOMB}", f"subset {BOMB}", BOMB.encode() * 2 + b"\xff\x00\x1b[31m", ENTROPY)


@pytest.fixture
def struck(tmp_path: Path, browser: Browser, hostile: Row) -> Browser:
    """Its page, opened."""
    save_dataset(tmp_path / "data", [[hostile]], ENTROPY, sidecar="uint8")
    load(browser, page_of(tmp_path / "data"))
    return browser


def test_nothing_in_a_hostile_document_becomes_markup(struck: Browser) -> None:
    assert struck.evaluate("typeof window.struck") == "undefined"
    assert struck.evaluate("document.querySelectorAll('img').length") == 0
    assert struck.evaluate("document.scripts.length") == 2


def test_a_hostile_document_is_shown_as_text(struck: Browser, hostile: Row) -> None:
    assert struck.evaluate("opened[0].id") == one_line(hostile.id)  # nothing that reorders what stands beside it
    assert b"".join(shown_patches(struck)) == hostile.text
    assert one_line(BOMB) in struck.evaluate("at('about').textContent")


def test_the_policy_refuses_what_would_be_taken_for_code(struck: Browser) -> None:
    struck.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data:x onerror=\"window.struck=1\">')")
    struck.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert struck.evaluate("typeof window.struck") == "undefined"
    assert any("Content Security Policy" in str(complaint) for complaint in struck.complaints())


def test_bytes_of_cut_characters_and_invalid_ones_are_shown_as_such(tmp_path: Path, browser: Browser) -> None:
    text = ("x大" * 30).encode() + b"\xff\xe5\xa4"
    row = document("a", "x", text, EXACT)
    save_dataset(tmp_path / "data", [[row]], EXACT, sidecar="float32")
    load(browser, page_of(tmp_path / "data"))
    browser.evaluate("at('theta-exact').value = '0', at('theta-exact').dispatchEvent(new Event('change')), 0")
    assert shown_patches(browser)[1:] == [*(text[place : place + 1] for place in range(len(text))), b""]  # EOS
    marks = browser.evaluate("Array.from(document.querySelectorAll('#text .byte[data-hex]'), (mark) => mark.className)")
    assert marks == ["byte"] * 90 + ["byte invalid"] * 3
    first = browser.evaluate("document.querySelector('#text .byte[data-hex]').dataset.character")
    assert first == "大"
    assert browser.evaluate("document.querySelector('#text').textContent.startsWith('BOSxE5A4A7x')")


def opened(browser: Browser, folder: Path, patching: PatchingSettings, sidecar: SidecarType) -> Browser:
    """The page of a dataset with that rule and sidecar."""
    save_dataset(folder, [some_rows(patching)], patching, sidecar=sidecar)
    load(browser, page_of(folder))
    return browser


LACKING = [
    (NONE, "none", ["--sidecar uint8", "unpatched"]),
    (STATIC, "none", ["--sidecar uint8"]),
    (NONE, "float32", ["unpatched"]),
    (MONOTONIC, "uint8", ["--sidecar float32"]),
]


@pytest.mark.parametrize(("patching", "sidecar", "words"), LACKING)
def test_what_a_dataset_lacks_is_said_with_the_command_that_adds_it(
    tmp_path: Path, browser: Browser, patching, sidecar, words
) -> None:
    warnings = opened(browser, tmp_path / "data", patching, sidecar).evaluate("at('warnings').textContent")
    assert [word for word in words if word not in warnings] == []


@pytest.mark.parametrize(("patching", "sidecar", "words"), LACKING)
def test_text_is_shown_always_and_a_curve_and_thresholds_where_there_is_a_sidecar(
    tmp_path: Path, browser: Browser, patching, sidecar, words
) -> None:
    page = opened(browser, tmp_path / "data", patching, sidecar)
    hidden = [page.evaluate(f"at('{part}').hidden") for part in ("cutting", "curve")]
    assert hidden == [sidecar == "none"] * 2
    assert b"".join(shown_patches(page))[:60]


def test_an_unpatched_dataset_with_a_sidecar_can_be_cut(tmp_path: Path, browser: Browser) -> None:
    page = opened(browser, tmp_path / "data", NONE, "float32")
    assert len(shown_patches(page)) == 2  # BOS, and all text
    page.evaluate("at('rule').value = 'monotonic', at('rule').dispatchEvent(new Event('change')), 0")
    assert len(shown_patches(page)) > 2


def test_rules_that_need_exact_entropies_are_off_without_them(tmp_path: Path, browser: Browser) -> None:
    page = opened(browser, tmp_path / "data", MONOTONIC, "uint8")
    assert page.evaluate("Array.from(at('rule').options, (one) => one.disabled)") == [False, False, True, True]


def test_both_splits_are_in_one_page_and_an_empty_one_is_said_to_be(tmp_path: Path, browser: Browser) -> None:
    shards = documents(ENTROPY)
    save_dataset(tmp_path / "data" / "train", shards, ENTROPY, sidecar="uint8")
    save_dataset(tmp_path / "data" / "validation", [], ENTROPY, sidecar="uint8", split="validation")
    file = page_of(tmp_path / "data")
    load(browser, file)
    # All rows at once: the figures are those of the manifest.
    manifest = open_dataset(tmp_path / "data" / "train").manifest
    assert browser.evaluate("dataset.histograms[0].lengths.reduce((a, b) => a + b)") == manifest.totals.patches
    assert browser.evaluate("dataset.types.reduce((sum, kind) => sum + kind.bytes, 0)") == manifest.totals.bytes
    browser.evaluate("at('dataset').value = 1, at('dataset').dispatchEvent(new Event('change')), 0")
    assert "holds no document" in browser.evaluate("at('warnings').textContent")
    check_quiet(browser, file)


def test_it_fits_a_phone_and_follows_dark_mode(tmp_path: Path, browser: Browser) -> None:
    save_dataset(tmp_path / "data", [some_rows(ENTROPY)], ENTROPY, sidecar="uint8")
    file = page_of(tmp_path / "data")
    papers = set()
    try:
        browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.call("Emulation.setEmulatedMedia", features=features)
            load(browser, file)
            papers.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert browser.evaluate("document.documentElement.scrollWidth") == 360
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
        browser.call("Emulation.setEmulatedMedia", features=[])
    assert len(papers) == 2


def test_pointing_at_the_curve_marks_the_patch_and_says_what_is_known(tmp_path: Path, browser: Browser) -> None:
    row = document("a", "x", b"some text " * 20, EXACT)
    save_dataset(tmp_path / "data", [[row]], EXACT, sidecar="float32")
    load(browser, page_of(tmp_path / "data"))
    browser.evaluate("""
      (() => {
        const box = at("plot").getBoundingClientRect();
        const x = box.left + (7.5 / (opened[0].count - 1)) * box.width;
        at("plot").dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: box.top + 5 }));
      })()""")
    starts = expected_starts(row, EXACT, "float32")
    patch = sum(start <= 8 for start in starts) - 1
    words = browser.evaluate("at('readout').textContent")
    assert words.startswith(f"patch {patch} of ")
    assert f"byte 7, {row.entropies[7]:.3f} nats" in words
    assert browser.evaluate("document.querySelector('#text .on').dataset.patch") == str(patch)


def test_a_page_shows_a_bounded_number_of_documents_and_every_subset_first(tmp_path: Path) -> None:
    rows = [document(f"{n}-{k}", f"s{n:03d}", b"some text " * 8, ENTROPY) for n in range(40) for k in range(4)]
    save_dataset(tmp_path, [rows], ENTROPY, sidecar="uint8")
    found = survey(open_dataset(tmp_path), 4)
    documents_, left_out = chosen_documents(found)
    assert len(documents_) == MOST_DOCUMENTS
    assert left_out == 8 + 160 - MOST_DOCUMENTS
    assert {example.subset for group, example in documents_ if group.startswith("sampled")} == {
        f"s{n:03d}" for n in range(40)
    }


def test_a_document_in_parts_is_shown_from_its_beginning(tmp_path: Path) -> None:
    row = document("a", "x", b"some text " * 20, ENTROPY)
    save_dataset(tmp_path, [in_two_parts(row)], ENTROPY, sidecar="float32")
    found = survey(open_dataset(tmp_path), 1)
    (example,) = found.hardest
    assert row.text.startswith(example.text)
    assert not example.whole
    assert example.size == len(row.text)
    assert example.mean == pytest.approx(float(row.entropies.mean()), abs=1e-5)
    assert int(found.figures.lengths.sum()) == len(row.patch_lengths) - 1
    assert int(found.figures.entropies.sum()) == len(row.entropies)


def test_a_sample_is_bounded_seeded_and_takes_subsets_in_turn(tmp_path: Path) -> None:
    shards = [[document(f"{n}", "few" if n == 3 else "many", b"text " * 200, ENTROPY)] for n in range(12)]
    save_dataset(tmp_path, shards, ENTROPY, sidecar="uint8")
    dataset = open_dataset(tmp_path)
    found = [survey(dataset, 20, budget=3000, seed=seed) for seed in (1, 1, 2)]
    assert [one.figures.bytes.tolist() for one in found] == [[1000, 2000]] * 3
    ids = [[example.id for example in one.random["many"]] for one in found]
    assert ids[0] == ids[1] != ids[2]
    assert survey(dataset, 1).figures.bytes.tolist() == [1000, 11000]


def test_subsets_that_the_sample_misses_are_named(tmp_path: Path) -> None:
    shards = [[document(str(n), f"s{n:02d}", b"text " * 200, ENTROPY)] for n in range(30)]
    save_dataset(tmp_path, shards, ENTROPY, sidecar="uint8")
    dataset = open_dataset(tmp_path)
    found = survey(dataset, 3, budget=4500)
    page = dataset_page(dataset, found)
    assert "a sample of 5.0 kB of 30.0 kB" in page["sampled"]
    (warning,) = page["warnings"]
    read = {own["name"] for own in page["histograms"]} - {"all"}
    assert len(read) == 5
    assert len(set(re.findall(r"s\d\d", warning)) - read) == LISTED
    assert "and 5 more" in warning


def test_controls_show_the_threshold_of_the_subset_in_view(tmp_path: Path, browser: Browser) -> None:
    patching = PatchingSettings(rule="entropy", theta=3.0, thetas={"en": 2.0, "fr": 4.0}, max_length=512).on_grid()
    rows = [
        document(f"{name}{n}", name, b"some words " * (9 + n), patching) for name in ("en", "fr", "de") for n in (1, 2)
    ]
    save_dataset(tmp_path / "data", [rows], patching, sidecar="uint8")
    load(browser, page_of(tmp_path / "data", "--documents", "20"))
    assert browser.evaluate("opened[current].group").startswith("sampled")  # not the least predictable one
    for number in range(browser.evaluate("opened.length")):
        browser.evaluate(f"showDocument({number})")
        theta = patching.for_subset(browser.evaluate("opened[current].subset")).theta
        assert theta is not None
        assert browser.evaluate("Number(at('theta-exact').value)") == pytest.approx(theta, abs=1e-6)
        assert browser.evaluate("grid[at('theta').value]") == pytest.approx(theta, abs=1e-6)
    assert "grid True" not in browser.evaluate("document.body.textContent")
    assert not re.search(r"[0-9a-f]{40}", browser.evaluate("document.body.innerText"))


def test_names_in_the_data_of_a_page_hold_nothing_invisible() -> None:
    hostile = {"a\u202e": ["\x1b[31m\n", 1, None, ("\u200b", 2.5)], "plain": True}
    assert safe_values(hostile) == {r"a\u202e": [r"\x1b[31m\n", 1, None, [r"\u200b", 2.5]], "plain": True}
