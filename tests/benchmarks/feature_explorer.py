"""The explorer's page at 10 000 features and 50 000 edges, drawn without a graphics card.

`python -m tests.benchmarks.feature_explorer` prints one record: milliseconds of processor time a
frame (all processes of the browser, so that a busy machine does not enter) while the view moves,
when edges are left out, and at rest, with all of them; and how long a click and a search keep the
page busy. A headless browser draws by the processor; with a graphics card frames cost next to
nothing.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from mi_helpers.features import explore as feature_explorer
from tests.browser import Page
from tests.features.test_feature_explorer import graph

FRAMES = 20
MOVE = """(async () => {
  renderer.setSetting("hideEdgesOnMove", true);
  for (let i = 0; i < %d; i++) {
    renderer.getMouseCaptor().isMoving = %s;
    const drawn = new Promise((done) => renderer.once("afterRender", done));
    renderer.getCamera().setState({ x: 0.5 + 0.002 * i, ratio: 0.9 });
    await drawn;
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  }
})()"""


def busy() -> float:
    """Processor seconds of the browser so far."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def frame_ms(page: Page, moving: bool) -> float:
    """Milliseconds of processor time a frame."""
    before = busy()
    page.js(MOVE % (FRAMES, "true" if moving else "false"))
    return round(1000 * (busy() - before) / FRAMES)


def took_ms(page: Page, work: str) -> float:
    """Milliseconds for which a piece of the page's own code ran."""
    clock = "performance.now()"
    return round(page.js(f"(() => {{ const start = {clock}; {work}; return {clock} - start; }})()"))


def measure(features: int = 10_000, edges: int = 53_000) -> dict[str, Any]:
    """One record of the page on a random graph (some of whose edges fall on each other)."""
    nodes, joined, cards = graph(features, edges)
    start = time.process_time()
    made = feature_explorer.explorer(nodes, joined, cards)
    built = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        page = Page(made.save(Path(folder) / "explorer.html"))
        try:
            return {
                "work": "feature_explorer",
                "features": made.features,
                "edges": made.edges,
                "page_mb": round(len(made.page.encode()) / 1e6, 1),
                "build_s": round(built, 1),
                "frame_at_rest_cpu_ms": frame_ms(page, moving=False),
                "frame_moving_cpu_ms": frame_ms(page, moving=True),
                "select_ms": took_ms(page, "select(5)"),
                "first_search_ms": took_ms(page, "search('upon')"),
                "search_ms": took_ms(page, "search('w12x9')"),
            }
        finally:
            page.close()


if __name__ == "__main__":
    print(json.dumps(measure()))
