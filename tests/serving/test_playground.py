"""The page in a real browser, served as a user has it: headless Chromium, driven through its own driver."""

from __future__ import annotations

import browser
import pytest
from cascade_fakes import Scripted
from served import served

from lacy_jax.cascade import FactTablePartner, generate
from lacy_jax.errors import PartnerError

pytestmark = browser.needed


@pytest.fixture(scope="module")
def driver():
    with browser.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(model, tokenizer, world):
    app = {"examples": [world.prompt(0), world.prompt(1)]}
    gates = ("call_prob", "entropy")
    with served(model, tokenizer, FactTablePartner(world), app=app, gates=gates) as (address, _):
        yield address


def find(driver, selector):
    return driver.find_element("css selector", selector)


def wait(driver, condition, what):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 60, poll_frequency=0.05).until(lambda _: condition(), what)


def visit(driver, address, size=browser.DESKTOP, dark=False):
    width, height = size
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get_log("browser")
    browser.visit(driver, address)
    wait(driver, lambda: "tiny" in find(driver, "#serving").text, "the page knows what is served")


def slide(driver, name, value):
    driver.execute_script(
        "const e = document.getElementById('ask').elements[arguments[0]]; e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}))", name, value,
    )  # fmt: skip


def write(driver):
    """Press the button and wait for the end."""
    find(driver, "button.main").click()
    wait(driver, lambda: find(driver, "#stop").get_attribute("disabled"), "the text is written")


def texts(driver):
    """Per side: (the whole text, the partner's parts)."""
    return driver.execute_script(
        "return [...document.querySelectorAll('.side')].map(s => [s.querySelector('.text').textContent,"
        "[...s.querySelectorAll('.partner')].map(p => p.textContent).join('')])"
    )


@pytest.mark.parametrize("size", [browser.DESKTOP, browser.PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_both_texts_are_those_of_generate_and_the_page_scrolls_only_downwards(
    driver, address, model, tokenizer, world, size, dark
):
    visit(driver, address, size, dark)
    slide(driver, "budget", 20)
    assert find(driver, "#shown-budget").text == "20 %"
    write(driver)
    partner, prompt = FactTablePartner(world), world.prompt(0)
    options = {"gate": "call_prob", "max_new_tokens": 48, "progress": False}
    wanted = [generate(model, tokenizer, [prompt], who, budget=0.2, **options)[0] for who in (partner, None)]
    for (text, lent), one in zip(texts(driver), wanted, strict=True):
        assert text == prompt + one.text
        assert lent == "".join(one.text[a:b] for a, b, who in one.spans if who == "partner")
    shares = [float(m.get_attribute("aria-valuenow")) for m in driver.find_elements("css selector", ".meter")]
    assert shares == pytest.approx([100 * one.call_share for one in wanted], abs=0.1)
    assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.strip("rgb()").split(","))) < 300) == dark
    assert driver.get_log("browser") == []


def test_the_text_appears_while_it_is_written_and_can_be_stopped(driver, address, world):
    visit(driver, address)
    driver.execute_script(
        "window.seen = new Set(); new MutationObserver(() => seen.add(document.querySelectorAll('.side [data-t]').length))"
        ".observe(document.getElementById('sides'), {childList: true, subtree: true})"
    )
    write(driver)
    assert driver.execute_script("return seen.size") > 3
    assert find(driver, "#error").text == ""


def test_a_token_says_its_score_and_what_the_model_would_have_written(driver, address):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    visit(driver, address)
    write(driver)
    call = find(driver, ".side .partner")
    ActionChains(driver).move_to_element(call).perform()
    about = find(driver, ".side .about")
    for part in ("by the partner", "gate score", "a call, answered", "the model itself"):
        assert part in about.text
    assert len(about.find_elements("css selector", "p code")) == 5
    # By keyboard: the text takes the focus, arrows go from token to token.
    text = find(driver, ".side .text")
    driver.execute_script("arguments[0].focus()", text)
    before = about.text
    text.send_keys(Keys.ARROW_RIGHT)
    assert about.text != before
    assert len(driver.find_elements("css selector", ".text .on")) == 1
    box = find(driver, "#prompt")
    box.clear()
    box.send_keys("He was", Keys.CONTROL, Keys.ENTER)
    wait(driver, lambda: texts(driver) and texts(driver)[0][0].startswith("He was"), "Ctrl+Enter writes")
    wait(driver, lambda: find(driver, "#stop").get_attribute("disabled"), "the text is written")


def test_without_the_partner_there_is_one_text_of_the_model(driver, address):
    visit(driver, address)
    find(driver, "[name=partner]").click()
    write(driver)
    ((text, lent),) = texts(driver)
    assert text
    assert lent == ""


def test_an_error_of_the_server_is_shown(driver, model, tokenizer):
    broken = Scripted(PartnerError("partner scripted: down"))
    app = {"examples": ["He was"]}
    with served(model, tokenizer, broken, stop_on_failure=True, app=app) as (address, _):
        visit(driver, address)
        write(driver)
        assert find(driver, "[role=alert]").text == "partner scripted: down"
        slide(driver, "prompt", "He " * 300)
        write(driver)
        assert "the model's context is 128" in find(driver, "[role=alert]").text
    # The browser itself notes that an answer was 400; no script failed.
    assert all("status of 400" in entry["message"] for entry in driver.get_log("browser"))


def test_a_key_is_asked_for(driver, model, tokenizer):
    with served(model, tokenizer, app={"keys": ["secret"]}) as (address, _):
        browser.visit(driver, address)
        wait(driver, lambda: "API key is needed" in find(driver, "[role=alert]").text, "the error is shown")
        find(driver, "[name=key]").send_keys("secret\t")
        wait(driver, lambda: "tiny" in find(driver, "#serving").text, "the page knows what is served")
        assert find(driver, "[role=alert]").text == ""
        driver.get_log("browser")
