"""What a browser shows of the report: on a phone, in the dark, without colour vision, and without asking for anything.

Every check has a page beside it on which it fails.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from daptq.report import write_report
from tests.report.browser import Browser, browser
from tests.unit.made_up_results import add_variants, synthetic_benchmark, synthetic_result, typed, video

pytestmark = pytest.mark.report

PHONE, DESKTOP = 360, 1100
LEAST_CONTRAST = 4.5  # WCAG 2.2, success criterion 1.4.3, level AA
# Mean difference of two marks, in grey levels of 255, above which they are told apart: black for white in 5 % of them.
DISTINCT = 12.0

# Contrast of every text with what is behind it: (ratio, text), the lowest first.
CONTRASTS = """
(() => {
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || ['title', 'desc', 'style', 'script'].includes(element.localName)) continue;
    if (!element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const ink = element.namespaceURI.endsWith('svg') ? style.fill : style.color;
    const [a, b] = [luminance(rgba(ink)), luminance(behind(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.data.trim().slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
})()
"""

# Places of the elements that a selector finds.
PLACES = """
[...document.querySelectorAll(%r)].map(element => element.getBoundingClientRect())
  .map(box => ({x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height}))
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every section, five policies, and long names."""
    result = copy.deepcopy(synthetic_result())
    for number, name in enumerate(
        ("runs/with-a-rather-long-name-for-a-phone/W3A8", "runs/another_one_without_any_space_in_it")
    ):
        result["policies"].append({**result["policies"][2 - number], "name": name})
        result["comparisons"].append({**copy.deepcopy(result["comparisons"][1 - number]), "policy": name})
    low = {"low": -9.0, "high": 4.0, "difference": -2.5}
    result["comparisons"][2]["paired"].update(low)
    path = tmp_path_factory.mktemp("page") / "report.html"
    return write_report(typed(add_variants(result)), path, benchmark=synthetic_benchmark(), videos=video(result))


@pytest.fixture(scope="module")
def spoilt(page: Path) -> Callable[[str], Path]:
    """The page with some more HTML at its beginning, and the permission for it."""

    def write(html: str) -> Path:
        path = page.with_name("spoilt.html")
        text = page.read_text(encoding="utf-8").replace("default-src 'none'", "default-src * data: 'unsafe-inline'")
        path.write_text(text.replace("<main>", f"<main>{html}", 1), encoding="utf-8")
        return path

    return write


def overflow(tab: Browser) -> int:
    """How far the page reaches beyond the right edge of the window [CSS px]."""
    reach = tab.run("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) - innerWidth")
    return int(reach)


def written(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which rows of pixels (height,) hold text or figures: many steps from one grey level to another."""
    steps = np.abs(np.diff(picture[..., 1].astype(np.int16), axis=1)) > 40
    return steps.sum(axis=1) >= 6


def least_difference(tab: Browser, selector: str, whole: NDArray[np.uint8]) -> float:
    """Mean difference in grey levels of the two most alike elements, in the corner that all of them have."""
    places = tab.run(PLACES % selector)
    assert len(places) >= 2
    width, height = (min(round(place[side]) for place in places) for side in ("width", "height"))
    corners = [(round(place["x"]), round(place["y"])) for place in places]
    pictures = [whole[y : y + height, x : x + width].mean(axis=-1) for x, y in corners]
    return min(float(np.abs(one - other).mean()) for one, other in combinations(pictures, 2))


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_nothing_reaches_beyond_the_window(tab: Browser, page: Path, width: int) -> None:
    tab.open(page, width=width)
    assert tab.run("innerWidth") == width
    assert overflow(tab) <= 0


def test_the_check_of_the_width_can_fail(tab: Browser, spoilt: Callable[[str], Path]) -> None:
    tab.open(spoilt('<div style="width: 500px">wide</div>'), width=PHONE)
    # A phone zooms out to show all of it; the window is then as wide as the page.
    assert overflow(tab) > 0 or tab.run("innerWidth") > PHONE


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out(tab: Browser, page: Path, dark: bool) -> None:
    tab.open(page, width=DESKTOP, dark=dark)
    tab.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    contrasts = tab.run(CONTRASTS)
    assert len(contrasts) > 500
    assert contrasts[0][0] >= LEAST_CONTRAST, contrasts[:5]


def test_the_check_of_contrast_can_fail(tab: Browser, spoilt: Callable[[str], Path]) -> None:
    for code in ('<p style="color: #999">pale</p>', '<svg><text style="fill: #999">pale</text></svg>'):
        tab.open(spoilt(code), width=DESKTOP)
        (ratio, text), (second, _) = tab.run(CONTRASTS)[:2]
        assert text == "pale"
        assert ratio < LEAST_CONTRAST <= second


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_screenshot_shows_the_page_by_day_and_by_night(tab: Browser, page: Path, width: int) -> None:
    pictures = {}
    for dark in (False, True):
        tab.open(page, width=width, dark=dark)
        pictures[dark] = tab.picture()
        assert pictures[dark].shape[1] == width
        rows = written(pictures[dark])
        assert rows.mean() > 0.3
        assert all(part.any() for part in np.array_split(rows, 20))  # all the way down
        assert not written(np.full_like(pictures[dark], 200)).any()
    assert np.median(pictures[False]) > 240
    assert np.median(pictures[True]) < 40
    assert pictures[False].shape == pictures[True].shape


@pytest.mark.parametrize("vision", ["deuteranopia", "protanopia", "tritanopia", "achromatopsia"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_series_are_told_apart_without_colour_vision(tab: Browser, page: Path, vision: str, dark: bool) -> None:
    tab.open(page, width=DESKTOP, dark=dark)
    whole = tab.picture(vision=vision)
    assert least_difference(tab, "#success .legend .key", whole) > DISTINCT
    assert least_difference(tab, "#cost .group:nth-of-type(1) rect.bar", whole) > DISTINCT
    # The first card of each outcome.
    cards = ".verdict.%s:not(.verdict.%s ~ .verdict.%s) h2 .symbol"
    signs = ", ".join(cards % ((outcome,) * 3) for outcome in ("pass", "fail", "undecided"))
    assert least_difference(tab, signs, whole) > DISTINCT


def test_the_check_of_colour_vision_can_fail(tab: Browser, spoilt: Callable[[str], Path]) -> None:
    square = '<b class="probe" style="display: inline-block; width: 18px; height: 18px; background: %s"></b>'
    tab.open(spoilt(square % "rgb(200, 60, 60)" + square % "rgb(40, 130, 60)"), width=DESKTOP)
    assert least_difference(tab, ".probe", tab.picture()) > DISTINCT
    assert least_difference(tab, ".probe", tab.picture(vision="achromatopsia")) < DISTINCT


def test_the_page_asks_for_nothing(tab: Browser, page: Path) -> None:
    tab.open(page, width=DESKTOP)
    assert [url for url in tab.requests if not url.startswith("data:")] == [page.as_uri()]


def test_the_check_of_requests_can_fail(tab: Browser, spoilt: Callable[[str], Path]) -> None:
    tab.open(spoilt('<link rel="stylesheet" href="nowhere.css">'), width=DESKTOP)
    assert any(url.endswith("nowhere.css") for url in tab.requests)


def test_an_animation_waits_plays_and_pauses(tab: Browser, page: Path) -> None:
    tab.open(page, width=PHONE)
    (place,) = tab.run(PLACES % ".video .screen")
    assert (place["width"], place["height"]) == pytest.approx((place["width"], place["width"] / 2.03), abs=1)
    state = "getComputedStyle(document.querySelector('.video img')).animationPlayState"
    moment = "document.querySelector('.video img').getAnimations()[0].ready.then(one => one.currentTime)"
    assert tab.run(state) == "paused"
    start = tab.picture(clip=place)
    assert np.array_equal(tab.picture(clip=place), start)
    tab.run("document.querySelector('.video label').click()")
    assert tab.run(state) == "running"
    # A frame of eight in 12 s lasts 1.5 s of the animation's own time.
    tab.run("document.querySelector('.video img').getAnimations()[0].currentTime += 3000")
    tab.run("document.querySelector('.video label').click()")
    assert tab.run(state) == "paused"
    stopped = tab.run(moment)
    later = tab.picture(clip=place)
    assert not np.array_equal(later, start)
    assert tab.run(moment) == stopped
