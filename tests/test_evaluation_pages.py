"""The report and the listening test in a real browser: nothing is fetched, nothing complains, players play, keys rate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, browser_program
from click.testing import CliRunner
from conftest import spoken

from csm.cli.main import main as csm
from evaluation.judges import Judges
from evaluation.opinions import Stimulus, make_test
from evaluation.page import html_report
from evaluation.score import Kind, Reference, Sample, Scores, score_system

pytestmark = pytest.mark.slow

RATE = 24_000
TEXTS = [f'number {word} <b>&amp; "more"</b>' for word in ("one", "two", "three", "four", "five")]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(browser_program(), tmp_path / "profile")
    yield opened
    opened.close()


def waves() -> dict[tuple[str, str], np.ndarray]:
    names = ("reference", "base", "step-000010", "step-000020")
    return {(name, text): spoken(1.0, 7 * n + m) for n, name in enumerate(names) for m, text in enumerate(TEXTS)}


def report(sounds: dict[tuple[str, str], np.ndarray]) -> str:
    def samples(name: str) -> list[Sample]:
        return [Sample(text, text, 0, sounds[name, text], RATE, "end") for text in TEXTS]

    judges = Judges(recogniser=lambda wave, rate: "number one", hearer="a parrot")
    reference = Reference.from_recordings("recordings", samples("reference"), judges=judges)
    kinds: dict[str, Kind] = {"base": "base", "step-000010": "checkpoint", "step-000020": "checkpoint"}
    systems = [score_system(name, samples(name), reference, kind, judges) for name, kind in kinds.items()]
    forgotten = [
        {"system": name, "speaker": 0, "is_target": False, "samples": 5, "speaker_similarity": 0.9, "word_error_rate": 0.1,
         "stopped": 1.0, "predicted_mos": None, "against_base": {}, "lost": ["word_error_rate"],
         "reasons": {"predicted_mos": "No opinions were predicted."}}
        for name in kinds
    ]  # fmt: skip
    scores = Scores.of(reference, systems, ("number", "two"), "en", forgotten)
    return html_report(scores, lambda system, row: (sounds[system, row["text"]], RATE))


def test_the_report_plays_and_asks_for_nothing(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report(waves()), encoding="utf-8")
    browser.open(page)
    assert browser.run("document.querySelectorAll('audio').length") == 20
    assert browser.run("[...document.querySelectorAll('h3')].map((one) => one.textContent)") == TEXTS, "texts are text"
    assert browser.run("document.querySelectorAll('figure').length") >= 2
    heads = browser.run("[...document.querySelectorAll('h2')].map((one) => one.textContent)")
    assert {"Terms", "Forgetting", "Against the base", "By checkpoint", "Samples"} <= set(heads)
    plays = """(async () => {
      const [one, other] = document.querySelectorAll('audio');
      await one.play();
      await new Promise((done) => one.addEventListener('timeupdate', done, { once: true }));
      await other.play();
      return [one.paused, other.paused, one.duration, one.error === null];
    })()"""
    paused, other_paused, seconds, whole = browser.run(plays)
    assert (paused, other_paused, whole) == (True, False, True), "one player at a time"
    assert 0.9 < seconds < 1.2
    browser.run("document.querySelector('canvas.mel').scrollIntoView()")
    drawn = "(() => { const c = document.querySelector('canvas.mel');"
    drawn += "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v && v < 255) })()"
    browser.run("new Promise((done) => setTimeout(done, 1000))")
    assert browser.run(drawn)
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out"
    browser.picture(tmp_path / "report.png")
    assert browser.requests == [page.as_uri()]
    assert browser.complaints == []


def test_keys_rate_and_choose_and_the_answers_can_be_collected(browser: Browser, tmp_path: Path) -> None:
    """Samples of step-000010 are rated 5 and preferred, the base's 2; by keys alone, once back and again."""
    sounds = waves()
    systems = ("base", "step-000010")
    stimuli = [Stimulus(name, text, 0, sounds[name, text], RATE) for name in systems for text in TEXTS[:3]]
    document, key = make_test(stimuli, seed=1)
    page = tmp_path / "listening.html"
    page.write_text(document, encoding="utf-8")
    assert '"base"' not in document, "blind"
    assert "step-0" not in document
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    browser.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    browser.open(page)
    order = browser.run("state.order")
    browser.press(" ")
    browser.until("!document.querySelector('#stage audio').paused")
    assert (
        browser.run("document.querySelector('#stage .said').textContent").strip("“”") == key["items"][order[0]]["text"]
    )
    browser.press("1")
    browser.press("Backspace")
    for name in order:
        browser.press("5" if key["items"][name]["system"] == "step-000010" else "2")
    browser.picture(tmp_path / "pair.png")
    for pair in browser.run("state.pairOrder"):
        better = "ab"[[key["items"][one]["system"] for one in pair].index("step-000010")]
        browser.press(better)
    assert browser.run("document.querySelector('#stage').textContent").startswith("That was all")
    browser.run("document.getElementById('rater').value = 'Zoë 1'; document.getElementById('save').click()")
    browser.until("true")
    for _ in range(100):
        saved = [path for path in downloads.iterdir() if path.suffix == ".json"]
        if saved:
            break
        browser.run("new Promise((done) => setTimeout(done, 100))")
    (tmp_path / "key.json").write_text(json.dumps(key))
    done = CliRunner().invoke(csm, ["evaluate", "collect", str(saved[0]), str(tmp_path / "key.json"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {name: one["mean_opinion"] for name, one in found["systems"].items()} == {"base": 2.0, "step-000010": 5.0}
    assert found["pairs"] == [{"systems": ["base", "step-000010"], "preferred": [0, 3], "no_preference": 0}]
    assert browser.requests == [page.as_uri()]
    assert browser.complaints == []
