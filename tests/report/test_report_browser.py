"""The page in a real browser: headless Chromium, driven through its own driver; nothing is downloaded."""

from __future__ import annotations

import json

import browser
import fake_runs as fake
import pytest

from lacy_jax.report import page as report

pytestmark = browser.needed


@pytest.fixture(scope="module")
def driver():
    with browser.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of three runs with texts of five methods at two budgets."""
    folder = tmp_path_factory.mktemp("page") / "quickstart"
    samples = fake.make_samples()
    for policy in ("ntp", "loss", "lacy"):
        run = fake.make_run(folder / policy, policy)
        (run / "samples").mkdir()
    results = fake.make_results(samples)
    for method, texts in samples.items():
        policy, _, gate = method.partition("+")
        gate = gate or ("alone" if policy == "ntp" else "call_margin")
        results["runs"][method]["gate"] = None if gate == "alone" else gate
        for budget in (0.0,) if gate == "alone" else (0.05, 0.22):
            lines = [json.dumps({**text, "gate": gate, "budget": budget}) + "\n" for text in texts]
            (folder / policy / "samples" / f"{gate}-{100 * budget:g}.jsonl").write_text("".join(lines))
    (folder / "results.json").write_text(json.dumps(results))
    return report.report_command([folder]).resolve().as_uri()


def _open(driver, page, size, dark=False):
    width, height = size
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get_log("browser")
    browser.visit(driver, page)


def _shown(driver):
    """Data of the cards that the filter leaves."""
    return driver.execute_script(
        "return [...document.querySelectorAll('#samples .card')].filter(c => !c.hidden && !c.closest('details').hidden)"
        ".map(c => ({...c.dataset}))"
    )


def _set(driver, name, value):
    """As a reader would: the control changes and says so."""
    driver.execute_script(
        "const e = document.querySelector('#samples form').elements[arguments[0]]; e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}))",
        name,
        value,
    )


def _check(driver, facet, *values):
    """Leave just these boxes of a facet checked, by clicks."""
    boxes = driver.find_elements("css selector", f"#samples input[name='{facet}']")
    assert boxes, f"no filter by {facet}"
    for box in boxes:
        if box.is_selected() != (box.get_attribute("value") in values):
            box.click()


@pytest.mark.parametrize("size", [browser.DESKTOP, browser.PHONE], ids=["desktop", "phone"])
def test_the_page_renders_without_errors_and_scrolls_only_downwards(driver, page, size):
    _open(driver, page, size)
    assert driver.get_log("browser") == []
    assert "lacy_jax" in driver.title
    assert len(driver.find_elements("css selector", "svg[role=img]")) > 15
    for details in driver.find_elements("css selector", "details"):
        driver.execute_script("arguments[0].open = true", details)
    overflow = driver.execute_script(
        "const w = document.documentElement.clientWidth;"
        "const inside = e => e.closest('.scroll, pre') !== null && !e.matches('.scroll, pre');"
        "return {page: document.documentElement.scrollWidth - w, wide: [...document.querySelectorAll('body *')]"
        ".filter(e => !inside(e) && !e.matches('.skip') && e.getBoundingClientRect().right > w + 1).map(e => e.outerHTML.slice(0, 80))}"
    )
    assert overflow == {"page": 0, "wide": []}


def test_filters_by_method_gate_and_budget(driver, page):
    _open(driver, page, browser.DESKTOP)
    budgets = {card["budget"] for card in _shown(driver)}
    assert budgets == {"alone", "22\N{NO-BREAK SPACE}%"}, "the budget of the headline is shown at first"
    _check(driver, "method", "lacy", "ntp+margin")
    assert {card["method"] for card in _shown(driver)} == {"lacy", "ntp+margin"}
    _check(driver, "gate", "margin")
    assert {card["method"] for card in _shown(driver)} == {"ntp+margin"}
    _check(driver, "budget", "5\N{NO-BREAK SPACE}%")
    left = _shown(driver)
    assert {(card["gate"], card["budget"]) for card in left} == {("margin", "5\N{NO-BREAK SPACE}%")}
    status = driver.find_element("css selector", "#samples [role=status]").text
    assert status.startswith(f"{len(left)} of ")
    _check(driver, "budget")
    assert _shown(driver) == []
    assert "nothing fits" in driver.find_element("css selector", "#samples [role=status]").text
    driver.find_element("css selector", "#samples button[type=reset]").click()
    driver.execute_async_script("setTimeout(arguments[0])")
    assert {card["budget"] for card in _shown(driver)} == budgets


def test_filters_by_origin_truth_and_words(driver, page):
    _open(driver, page, browser.DESKTOP)
    everything = _shown(driver)
    for truth in ("true", "false"):
        for origin in ("partner", "own"):
            _set(driver, "truth", truth)
            _set(driver, "origin", origin)
            kept = _shown(driver)
            assert all(f"{truth}-{origin}" in card["facts"].split() for card in kept)
            assert len(kept) == sum(f"{truth}-{origin}" in card["facts"].split() for card in everything)
    _set(driver, "truth", "unverified")
    assert _shown(driver) == []
    _set(driver, "truth", "")
    _set(driver, "origin", "")
    name = everything[-1]["entity"].split(" (")[0]
    search = driver.find_element("css selector", "#samples input[type=search]")
    search.send_keys(name.upper())
    found = _shown(driver)
    assert found
    assert all(name.lower() in card["entity"].lower() for card in found)
    assert driver.execute_script(
        "return [...document.querySelectorAll('details.prompt:not([hidden])')].every(d => d.open)"
    )


def test_the_filter_works_by_keyboard_alone(driver, page):
    from selenium.webdriver.common.keys import Keys

    _open(driver, page, browser.DESKTOP)
    reached = set()
    driver.execute_script("document.querySelector('#samples').scrollIntoView()")
    for _ in range(80):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = driver.switch_to.active_element
        if name := focused.get_attribute("name"):
            reached.add(name)
            ring = driver.execute_script("return getComputedStyle(arguments[0]).outlineStyle", focused)
            assert ring != "none", f"no visible focus on {name}"
        if name == "method":
            before = len(_shown(driver))
            focused.send_keys(Keys.SPACE)
            assert len(_shown(driver)) < before
            focused.send_keys(Keys.SPACE)
            assert len(_shown(driver)) == before
    assert {"method", "gate", "budget", "origin", "truth", "words"} <= reached


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_depends_on_colour_and_text_has_contrast(driver, page, dark):
    _open(driver, page, browser.DESKTOP, dark)
    marks = driver.execute_script(
        "const style = (s, p) => [...new Set([...document.querySelectorAll(s)].map(e => getComputedStyle(e)[p]))];"
        "return {true: style('.card .fact.true', 'textDecorationStyle'), false: style('.card .fact.false', 'textDecorationStyle'),"
        "box: style('.card mark', 'boxShadow'), dashes: [...document.querySelectorAll('figure')].map(f =>"
        "[...f.querySelectorAll('.legend .curve')].map(c => c.getAttribute('stroke-dasharray')))}"
    )
    assert (marks["true"], marks["false"]) == (["solid"], ["wavy"])
    assert "none" not in marks["box"]
    assert all(len(set(dashes)) == len(dashes) for dashes in marks["dashes"])
    low = driver.execute_script(_CONTRAST)
    assert low == []


# Text whose contrast with what lies behind it is below 4.5 (WCAG 2.2, 1.4.3).
_CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = (c) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data; };
const light = (c) => { const [r, g, b] = [...rgba(c)].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b; };
const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (rgba(c)[3] > 250) return c; }
  return 'white'; };
const bad = new Map();
for (const e of document.querySelectorAll('body *')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || e.closest('script, option, [hidden]')) continue;
  const style = getComputedStyle(e), front = e instanceof SVGElement ? style.fill : style.color;
  const a = light(front), b = light(behind(e)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) bad.set(`${e.tagName}.${e.getAttribute('class')} ${front} on ${behind(e)}`, ratio);
}
return [...bad];
"""
