"""The built site: no warning, no dead end, and each page in a real browser.

Pages are opened from their files, as someone does who has only the folder.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import axe_core_python
import pytest

import mi_helpers as mi
from mi_helpers.claims import VERDICTS
from tests import browser

ROOT = Path(__file__).parents[2]
needs_browser = pytest.mark.skipif(not browser.available(), reason="no Chrome or Chromium")
ACCESSIBLE = (  # a page of each kind
    "index",
    "notebooks/00_tour",
    "scorecard",
    "graph",
    "reference/engine",
    "how/own_prompts",
    "errors/MI-E01",
    "search",
)
COMPLAINTS = """
window.complaints = [];
const error = console.error;
console.error = (...what) => { complaints.push(what.join(" ")); error(...what); };
addEventListener("error", (e) => complaints.push(e.message || `not loaded: ${e.target.src}`), true);
addEventListener("unhandledrejection", (e) => complaints.push(String(e.reason)));
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; a warning fails its build."""
    pytest.importorskip("myst_nb")
    out = tmp_path_factory.mktemp("site") / "book"
    command = [sys.executable, str(ROOT / "docs" / "make.py"), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_each_verdict_has_a_colour_that_can_be_read_on_dark_pages() -> None:
    css = (ROOT / "docs/style/book.css").read_text(encoding="utf-8")
    for _, colour in VERDICTS.values():
        assert f'html[data-theme="dark"] b[style*="{colour}"]' in css


class Links(HTMLParser):
    """The addresses that a page leads to or loads, its anchors, and its faults of access."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.faults: list[str] = []
        self.tables: list[bool] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        self.addresses += [given[key] for key in ("href", "src") if given.get(key)]
        if tag == "img" and not given.get("alt", "").strip():
            self.faults.append(f"a picture without words: {given.get('src')}")
        if tag == "iframe" and not given.get("title", "").strip():
            self.faults.append(f"a frame without a title: {given.get('src')}")
        if tag == "table":
            self.tables.append(False)
        if tag == "th" and self.tables:
            self.tables[-1] = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "table" and not self.tables.pop():
            self.faults.append("a table without headers")


def pages(site: Path) -> list[Path]:
    """All pages but the explorers' own, which have a test of their own."""
    others = {"explorers", "_static"}
    return sorted(path for path in site.rglob("*.html") if path.parent.name not in others)


def test_every_notebook_and_room_has_its_page(site: Path) -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        page = site / "notebooks" / f"{path.stem}.html"
        assert page.is_file(), path.stem
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        plots = [o for c in cells for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
        assert page.read_text(encoding="utf-8").count('class="mi-figure"') == len(plots)
        assert (site / "notebooks" / path.name).read_bytes() == path.read_bytes()
    for room in mi._ROOMS:
        text = (site / "reference" / f"{room}.html").read_text(encoding="utf-8")
        module = getattr(mi, room)
        public = [n for n in getattr(module, "__all__", ()) if callable(getattr(module, n))]
        assert [n for n in public if f'id="mi_helpers.{room}.{n}"' not in text] == []


def test_no_link_leads_nowhere_and_nothing_comes_from_elsewhere(site: Path) -> None:
    found = {path: Links(path) for path in pages(site)}
    faults = []
    for path, links in found.items():
        where = path.relative_to(site)
        faults += [f"{where}: {fault}" for fault in links.faults]
        for address in links.addresses:
            parts = urlsplit(address)
            if parts.scheme in ("http", "https", "mailto", "data"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                faults.append(f"{where}: {address} is not there")
            elif parts.fragment and target in found:
                anchors = found[target].anchors
                if unquote(parts.fragment) not in anchors:
                    faults.append(f"{where}: {address} has no such anchor")
        text = path.read_text(encoding="utf-8")
        for tag in re.findall(
            r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=\"https?:[^>]*>", text
        ):
            if 'rel="canonical"' not in tag:
                faults.append(f"{where} loads {tag}")
    assert faults == []


@pytest.fixture(scope="module")
def page(site: Path) -> Iterator[browser.Page]:
    """One page for all tests, which go where they need to."""
    opened = browser.Page(site / "index.html")
    opened.send("Page.addScriptToEvaluateOnNewDocument", source=COMPLAINTS)
    yield opened
    opened.close()


def go(page: browser.Page, path: Path, query: str = "") -> None:
    page.send("Page.navigate", url=path.as_uri() + query)
    page.until(f"location.pathname.endsWith({path.name!r}) && document.readyState === 'complete'")


@needs_browser
def test_each_page_opens_without_a_complaint(site: Path, page: browser.Page) -> None:
    faults = []
    for path in pages(site):
        go(page, path)
        where = path.relative_to(site)
        faults += [f"{where}: {text}" for text in page.js("window.complaints")]
        broken = "[...document.images].filter(i => i.loading !== 'lazy' && !i.naturalWidth).length"
        faults += [f"{where}: {n} pictures did not load" for n in [page.js(broken)] if n]
        lists = "document.querySelectorAll('dl > :first-child:not(dt)').length"
        faults += [f"{where}: {n} lists without terms" for n in [page.js(lists)] if n]
    assert faults == []


@needs_browser
def test_pages_are_accessible(site: Path, page: browser.Page) -> None:
    """axe-core finds nothing serious on a page of each kind, in either theme."""
    axe = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    ask = "axe.run(document, {resultTypes: ['violations']}).then(found => found.violations"
    ask += ".filter(v => ['serious', 'critical'].includes(v.impact))"
    ask += ".map(v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.target.join(' ')).join(', ')))"
    faults = []
    for name in ACCESSIBLE:
        for theme in ("light", "dark"):
            go(page, site / f"{name}.html")
            page.js("document.head.append(Object.assign(document.createElement('style'), "
                    "{textContent: '* { transition: none !important }'}))")  # fmt: skip
            page.js(f"document.documentElement.dataset.theme = {theme!r}")
            page.js(axe + "; true")
            faults += [f"{name}, {theme}: {text}" for text in page.js(ask)]
    assert faults == []


@needs_browser
def test_figures_come_alive_with_one_script(site: Path, page: browser.Page) -> None:
    go(page, site / "notebooks" / "00_tour.html")
    page.js("document.querySelectorAll('.mi-figure').forEach(f => f.scrollIntoView())")
    for number in range(page.js("document.querySelectorAll('.mi-figure').length")):
        page.js(f"document.querySelectorAll('.mi-figure')[{number}].scrollIntoView()")
        page.until(f"document.querySelectorAll('.mi-figure')[{number}].dataset.live")
    drawn = "[...document.querySelectorAll('.mi-figure')].every(f => f.querySelector('.main-svg'))"
    assert page.js(drawn)
    assert page.js("document.querySelectorAll('script[src*=plotly]').length") == 1
    words = page.js("document.querySelector('.mi-figure [role=group]').getAttribute('aria-label')")
    assert "residual stream" in words
    assert page.js("window.complaints") == []


@needs_browser
def test_a_word_is_found_by_the_search(site: Path, page: browser.Page) -> None:
    go(page, site / "search.html", "?q=denoising")
    page.until("document.querySelectorAll('#search-results li a').length > 0")
    found = page.js("[...document.querySelectorAll('#search-results li a')].map(a => a.pathname)")
    assert any("/notebooks/" in path for path in found)
    assert all(Path(unquote(path)).is_file() for path in found)


@needs_browser
def test_a_reader_clicks_through_an_explorer(site: Path, page: browser.Page) -> None:
    (frame,) = re.findall(r'src="(explorers/[^"]+)"', (site / "graph.html").read_text())
    go(page, site / frame)
    page.until("document.querySelector('#count').textContent.trim() !== ''")
    page.click_on("#query")
    page.write("1")
    page.until("document.querySelectorAll('#found button').length > 0")
    page.click_on("#found button")
    page.until("document.querySelectorAll('#panel .context').length > 0")
    first = page.js("document.querySelector('#panel h2').textContent")
    page.js("document.querySelector('#panel .two button').scrollIntoView({block: 'center'})")
    page.click_on("#panel .two button")
    page.until(f"document.querySelector('#panel h2').textContent !== {first!r}")
    assert page.js("window.complaints") == []


@needs_browser
def test_a_phone_shows_every_page_in_its_width(site: Path, page: browser.Page) -> None:
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.send("Emulation.setDeviceMetricsOverride", **size)
    try:
        for name in ("index", "notebooks/00_tour", "scorecard", "reference/engine", "graph"):
            go(page, site / f"{name}.html")
            assert page.js("document.documentElement.scrollWidth") <= 390, name
    finally:
        page.send("Emulation.setDeviceMetricsOverride", **size | {"width": 1280, "mobile": False})
