"""The book in a real browser: light, dark and narrow, with the network blocked."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import torch
import yaml

from solutions.decoding import temperature, top_k, top_p

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# Every piece of text whose contrast with what lies behind it is below 4.5:1 (WCAG 2.2, 1.4.3).
FAINT = """() => {
  const numbers = colour => (colour.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const over = (front, back) => {
    const alpha = front[3] ?? 1;
    return [0, 1, 2].map(i => alpha * front[i] + (1 - alpha) * back[i]);
  };
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement)
      layers.unshift(numbers(getComputedStyle(e).backgroundColor));
    return layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const luminance = colour => colour.slice(0, 3).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const found = new Set();
  for (const element of document.querySelectorAll("article *, nav.course-nav *")) {
    if (element.closest("svg, mjx-container, .headerlink, [hidden]")) continue;
    if (!element.getClientRects().length) continue;
    const text = [...element.childNodes].filter(n => n.nodeType === 3)
      .map(n => n.textContent.trim()).join("");
    if (!text) continue;
    const back = behind(element);
    const [dark, pale] = [luminance(back), luminance(over(numbers(getComputedStyle(element).color),
      back))].sort((a, b) => a - b);
    const ratio = (pale + 0.05) / (dark + 0.05);
    if (ratio < 4.5)
      found.add(`${ratio.toFixed(1)} ${element.tagName}.${element.className} ${text.slice(0, 40)}`);
  }
  return [...found];
}"""

LOOKS = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (360, "light"),
         "dark phone": (360, "dark")}  # fmt: skip


class Handler(SimpleHTTPRequestHandler):
    """Serves the book under `/course/`, as the course's server does, or as a plain host would."""

    def __init__(self, *args, course, **kwargs):
        self.course = course
        super().__init__(*args, **kwargs)

    def do_GET(self):
        if self.course and self.path == "/course/status":
            answer = json.dumps({"course": "attention-to-detail"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(answer)
            return
        self.path = self.path.removeprefix("/course")
        super().do_GET()

    def log_message(self, *args):
        pass


def serve(folder, course):
    handler = partial(Handler, course=course, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def site(book_html):
    server = serve(book_html, course=True)
    yield f"http://127.0.0.1:{server.server_port}/course"
    server.shutdown()


@pytest.fixture(scope="module")
def plain_host(book_html):
    server = serve(book_html, course=False)
    yield f"http://127.0.0.1:{server.server_port}/course"
    server.shutdown()


@pytest.fixture
def visit(browser):
    """Open pages in a given look; afterwards, none may have asked another host or have raised."""
    contexts, foreign, errors = [], [], []

    def guard(route):
        host = urlsplit(route.request.url).hostname
        if host in (None, "127.0.0.1"):
            route.continue_()
        else:
            foreign.append(route.request.url)
            route.abort()

    def open_page(look="light"):
        width, theme = LOOKS[look]
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
        context.route("**/*", guard)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(f"{page.url}: {error}"))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not foreign, f"asked of another host: {foreign}"
    assert not errors, errors


@pytest.fixture(scope="module")
def names(root):
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"]] + [entry["file"] for part in toc["parts"] for entry in part["chapters"]]


def settle(page):
    """Wait until MathJax, if the page has it, has set its formulas."""
    page.wait_for_load_state("load")
    page.evaluate("() => window.MathJax?.startup?.promise")


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_reads_in_every_look(visit, site, names, look):
    page = visit(look)
    width, theme = LOOKS[look]
    for name in names:
        page.goto(f"{site}/{name}.html")
        settle(page)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        scroll = page.evaluate("document.documentElement.scrollWidth")
        assert scroll <= width, f"{name}: {scroll} px wide on {width}"

        formulas = page.locator("article .math").count()
        assert page.locator("article .math mjx-container").count() >= formulas, name
        assert page.locator("mjx-merror").count() == 0, f"{name}: a formula with an error"
        text = page.locator("article").inner_text()
        assert "\\(" not in text and "\\[" not in text, f"{name}: a formula was not set"

        faint = page.evaluate(FAINT)
        assert not faint, f"{name}: {faint[:8]}"

        loose = page.evaluate(
            """() => [...document.querySelectorAll('.figure-box svg')]
                 .filter(svg => !svg.getBoundingClientRect().width).length"""
        )
        assert loose == 0, f"{name}: a figure of no width"


@pytest.mark.parametrize("look", ["light", "dark"])
def test_figures_take_the_colour_of_the_page(visit, site, look):
    page = visit(look)
    page.goto(f"{site}/book/intro.html")
    found = page.evaluate(
        """() => {
             const svg = document.querySelector('.figure-box svg');
             let plate = svg;
             while (plate && getComputedStyle(plate).backgroundColor === 'rgba(0, 0, 0, 0)')
               plate = plate.parentElement;
             const green = colour => +colour.match(/[\\d.]+/g)[1];
             const styles = [getComputedStyle(svg).fill, getComputedStyle(plate).backgroundColor];
             return styles.map(green);
           }"""
    )
    ink, paper = found if look == "light" else reversed(found)
    assert ink < 80 and paper > 180, found


def test_search_finds_a_chapter(visit, site):
    page = visit()
    page.goto(f"{site}/book/intro.html")
    page.keyboard.press("Control+k")
    page.locator("dialog input[type=search]").fill("alphabetical")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=alphabetical*")
    page.locator("#search-results a", has_text="Glossary").first.wait_for()


def pages_with(book_html, attribute):
    """The pages that have something to play with."""
    pages = [
        path
        for path in sorted(book_html.glob("book/*.html"))
        if f"{attribute}=" in path.read_text(encoding="utf-8")
    ]
    assert pages, f"no page has {attribute}"
    return pages


def test_a_slider_follows_the_arrow_keys(visit, site, book_html):
    page = visit()
    for path in pages_with(book_html, "data-slider"):
        page.goto(f"{site}/book/{path.name}")
        box = page.locator(".figure-slider").first
        control, shown = box.locator("input"), box.locator("svg > g.frame:not([display])")
        values = json.loads(box.get_attribute("data-slider"))["values"]
        alts = json.loads(box.get_attribute("data-slider"))["alts"]
        assert shown.count() == 1
        control.focus()
        page.keyboard.press("Home")
        for i in range(len(values)):
            assert box.locator("output").inner_text() == values[i]
            assert control.get_attribute("aria-valuetext") == values[i]
            assert box.locator("svg").get_attribute("aria-label") == alts[i]
            assert box.locator("svg > g.frame").nth(i).get_attribute("display") is None
            assert shown.count() == 1
            page.keyboard.press("ArrowRight")


def test_a_sampler_draws_what_its_sliders_say(visit, site, book_html):
    page = visit()
    for path in pages_with(book_html, "data-sampler"):
        page.goto(f"{site}/book/{path.name}")
        box = page.locator(".figure-sampler").first
        logits = torch.tensor(json.loads(box.get_attribute("data-sampler"))["logits"]).double()
        for t, k, p in [(1, len(logits), 1), (0.5, len(logits), 0.9), (2, 4, 1), (0.1, 2, 0.5)]:
            for name, value in (("t", t), ("k", k), ("p", p)):
                box.locator(f"input[name={name}]").evaluate(
                    "(i, v) => { i.value = v; i.dispatchEvent(new Event('input')); }", str(value)
                )
            expected = top_p(top_k(temperature(logits, t), k), p).softmax(-1)
            widths = box.locator("rect.now").evaluate_all(
                "r => r.map(x => +x.getAttribute('width'))"
            )
            assert widths == pytest.approx((280 * expected).tolist(), abs=1e-3)
            left = int((expected > 0).sum())
            said = box.locator("svg").get_attribute("aria-label")
            assert said.startswith(f"{left} of {len(logits)} tokens are left")
            assert box.locator("text.value", has_text="out").count() == len(logits) - left


def chapter(names):
    return next(name for name in names if name.startswith("book/0"))


def test_the_course_s_server_gets_a_button(visit, site, names):
    page = visit()
    name = chapter(names)
    with page.expect_response("**/course/status"):
        page.goto(f"{site}/{name}.html")
    page.wait_for_timeout(200)
    buttons = page.locator("a.notebook-button")
    assert buttons.count() == 2
    assert "/lab/tree/exercises/" in buttons.first.evaluate("a => a.href")
    assert "/course/" not in buttons.first.evaluate("a => a.href")
    assert page.locator(".notebook-hint").count() == 0


@pytest.mark.parametrize("where", ["a plain host", "the disk"])
def test_elsewhere_the_button_becomes_a_hint(visit, plain_host, book_html, names, where):
    page = visit()
    name = chapter(names)
    base = plain_host if where == "a plain host" else book_html.as_uri()
    page.goto(f"{base}/{name}.html")
    hint = page.locator(".notebook-hint").first
    hint.wait_for()
    assert "python3 course.py learn" in hint.inner_text()
    assert page.locator("a.notebook-button").count() == 0
    file = urlsplit(hint.locator("a").evaluate("a => a.href")).path
    assert file.endswith(".ipynb")
    if where == "a plain host":
        assert page.request.get(hint.locator("a").evaluate("a => a.href")).ok
