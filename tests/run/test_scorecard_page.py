"""The scorecard of many runs: its table, its Markdown and its page, opened in a real browser."""

import asyncio
import base64
import io
import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mi_helpers.claims import Record
from mi_helpers.run import cli as runs
from mi_helpers.run import page as scorecard_page
from mi_helpers.run import scorecard, sweep
from mi_helpers.run.execute import PLOTLY
from tests.run import sweeping
from tests.run.sweeping import write_notebook

EVIL = "<script>alert(1)</script> & \"quotes\" | 'pipes' ]( </style>"
PAPERS = ("Wang et al. 2022, section 3", "Zhang & Nanda 2023; Wang et al. 2022 (0.5)", "identity")
WORDS = {"✔": "holds", "✘": "does not hold", "?": "undecided", "–": "not applicable"}


def record(id: str, model: str, mark: str, value: float | None, **more: Any) -> Record:
    why = {"?": "about 60 would decide", "–": "no task"}.get(mark)
    base = {"model": model, "verdict": WORDS[mark], "value": value, "why": why, "source": PAPERS[0]}
    return sweeping.record(id, **{**base, **more})


def save(root: Path, name: str, records: list[Record], **given: Any) -> Path:
    """A folder of runs, one for each notebook and seed of the records."""
    folder = root / "papermill_runs" / name
    for notebook, seed in dict.fromkeys((r["notebook"], r["seed"]) for r in records):
        own = [r for r in records if (r["notebook"], r["seed"]) == (notebook, seed)]
        save_run(folder, notebook, own, {"MODEL": own[0]["model"], "SEED": seed, **given})
    return folder


def save_run(
    folder: Path, notebook: str, records: list[Record], given: dict[str, Any], error: Any = None
) -> Path:
    """One run; the folder that its executed notebook belongs in."""
    kept = folder / "runs" / f"{notebook}-{given['MODEL']}-{given['SEED']}"
    kept.mkdir(parents=True)
    inputs = {"notebook": notebook, "parameters": given}
    run = {"identity": "", "asked": given, "inputs": inputs, "error": error, "seconds": 1.0}
    (kept / "run.json").write_text(sweep.to_json({**run, "records": records}))
    return kept


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_runs(tmp_path)


def make_runs(tmp_path: Path) -> Path:
    """Runs of two models, one with two seeds, one with a failure; and a reference."""
    (tmp_path / "notebooks").mkdir()
    both = {"low": 1.0, "high": 3.0, "n": 8, "unit": "nats"}
    for seed, mark in ((0, "✔"), (1, "✘")):
        save(tmp_path, "all", [
            record("00.x", "m-2", mark, 2.0 + seed, seed=seed, **both, says=EVIL, rule=EVIL),
            record("00.y", "m-2", "✔", 1e-5, seed=seed, source=PAPERS[1], kind="check"),
            record("00.w", "m-2", "?", 1.0, seed=seed, low=0.5, high=1.5, n=8, null=EVIL),
            record("01.z", "m-2", "–", None, seed=seed, source=PAPERS[2], why=EVIL),
        ])  # fmt: skip
    last = [
        record("00.x", "m-10", "✔", -0.5, low=-1.0, high=1.0, n=8, says=EVIL, rule=EVIL),
        record("00.y", "m-10", "✘", 0.2, source=PAPERS[1], kind="check"),
    ]
    folder = save(tmp_path, "all", last)
    save_run(folder, "01_topic", [], {"MODEL": "m-10", "SEED": 0}, f"cell 1: {EVIL}")
    old = [
        record("00.x", "m-2", "✘", 0.5, says="x"),
        record("00.y", "m-2", "✔", 2e-5, kind="check"),
    ]
    made = save(tmp_path, "old", old)
    reference = tmp_path / "papermill_runs/reference/m-2"
    reference.mkdir(parents=True)
    (made / "runs/00_topic-m-2-0/run.json").rename(reference / "00_topic.json")
    return tmp_path


def collect(root: Path, *names: str, **options: Any) -> scorecard.Table:
    folders = [root / "papermill_runs" / name for name in names]
    return scorecard.collect(folders, root, **options)


def test_claims_are_rows_models_are_columns_and_seeds_share_a_cell(root: Path) -> None:
    table = collect(root, "all")
    assert list(table.claims) == ["00.x", "00.w", "00.y", "01.z"]  # as made, checks last
    assert table.columns == ["m-2", "m-10"]
    first, second = table.columns
    assert [e.record["value"] for e in table.cells["00.x", first]] == [2.0, 3.0]
    assert scorecard.outcome(table.cells["00.x", first]) == "✔ 1 of 2"
    assert scorecard.outcome(table.cells["00.w", first]) == "?"
    assert scorecard.outcome(table.cells["00.y", second]) == "✘"
    assert ("01.z", second) not in table.cells
    assert [run.error for run in table.failed] == [f"cell 1: {EVIL}"]


def test_claims_stand_in_the_order_in_which_they_were_made(root: Path) -> None:
    made = [record(f"00.{id}", "m-2", "✔", 1.0) for id in ("b", "c", "a")]
    save(root, "order", made)
    assert list(collect(root, "order").claims) == ["00.b", "00.c", "00.a"]


def test_the_headline_counts_replications_and_checks_apart(root: Path) -> None:
    assert scorecard.tally(collect(root, "all").records) == (
        "2 of 7 replications hold, 1 do not, 2 undecided, 2 not applicable; "
        "2 of 3 checks of our own code hold"
    )


def test_what_changed_against_the_reference_is_told(root: Path) -> None:
    table = collect(root, "all")
    assert [(e.change.kind, e.change.id, e.record["seed"]) for e in table.changes if e.change] == [
        ("flip", "00.x", 0), ("moved", "00.y", 0),
    ]  # fmt: skip
    assert collect(root, "reference").changes == []


def test_what_runs_of_a_model_were_given_makes_columns(root: Path) -> None:
    for n in (8, 16):
        save(root, f"n{n}", [record("00.x", "m-2", "✔", n)], N=n)
    assert [r.get("variant") for r in collect(root, "n8").records] == ["N=8"]
    table = collect(root, "n16", "n8", "reference")  # several folders have columns of their own
    names = ["m-2, n8, N=8", "m-2, n16, N=16", "m-2, reference"]
    assert table.columns == names


def test_a_scorecard_with_variants_is_compared_run_by_run(root: Path) -> None:
    one = [record("00.x", "m", "✔", 1.0, variant="N=4"), record("00.x", "m", "✔", 1.0)]
    other = [record("00.x", "m", "✘", 1.0, variant="N=4"), record("00.x", "m", "✔", 1.0)]
    assert [c.kind for c in scorecard.compare(one, other)] == ["flip"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Wang et al. 2022, section 3.2 (0.59 on GPT-2 small)", ["Wang et al. 2022"]),
        ("Zhang & Nanda 2023; Wang et al. 2022", ["Zhang & Nanda 2023", "Wang et al. 2022"]),
        ("nostalgebraist 2020", ["nostalgebraist 2020"]),
        ("Miller et al. 2024, arXiv 2407.08734", ["Miller et al. 2024"]),
        ("arXiv 2004.10928, definition", ["arXiv 2004.10928"]),
        ("common observation on GPT-2; measured here", ["beyond the papers"]),
    ],
)
def test_papers_are_read_off_sources(source: str, expected: list[str]) -> None:
    assert scorecard.papers(record("00.x", "m", "✔", 1.0, source=source)) == expected


def test_markdown_keeps_texts_as_texts_and_links_the_notebooks(root: Path) -> None:
    write_notebook(root / "papermill_runs/all/runs/00_topic-m-10-0/00_topic.ipynb", "1")
    folder = root / "papermill_runs/with space"
    text = scorecard_page.markdown(collect(root, "all"), folder)
    assert "<script>" not in text
    assert "\\| 'pipes'" in text
    assert "| [✔ -0.5 [-1, 1]](../all/runs/00_topic-m-10-0/00_topic.ipynb) |" in text
    assert "✔ 1 of 2<br>seed 0: ✔ 2 [1, 3] nats (flip)<br>seed 1: ✘ 3 [1, 3] nats" in text
    assert "seed 1: ? 1 [0.5, 1.5]: about 60 would decide" in text
    assert "| **all** | ✔ 1 ✘ 1 ? 2 – 2 | ✔ 1 ✘ 0 ? 0 – 0 |" in text
    assert "| checks of our own code | ✔ 2 ✘ 0 ? 0 – 0 | ✔ 0 ✘ 1 ? 0 – 0 |" in text
    flip = "✘ does not hold 0.5 -&gt; ✔ holds 2 [1, 3] nats"
    assert f"- flip 00.x {flip} (00_topic, m-2, seed 0)" in text
    assert "- 01_topic, m-10, seed 0: cell 1: &lt;script&gt;" in text


class Tags(HTMLParser):
    """The elements and the texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_one_file_and_texts_stay_texts(root: Path) -> None:
    page = scorecard_page.html_page(collect(root, "all"), root, title=EVIL)
    found = Tags(page)
    assert found.texts.count(EVIL) >= 4  # title, heading, claim and why, whole
    assert [name for name, _ in found.tags].count("script") == 1  # the page's own
    for _, attributes in found.tags:
        for key in ("src", "href"):
            assert (attributes.get(key) or "data:").startswith(("data:", "papermill_runs/"))
    assert not re.search(r"url\(|@import|https?:", page)


def test_the_same_runs_in_any_order_make_the_same_files(root: Path) -> None:
    save(root, "n8", [record("00.x", "m-2", "✔", 8)], N=8)
    for name, order in (("one", ("all", "n8")), ("two", ("n8", "all"))):
        scorecard_page.write(collect(root, *order), root / name)
    for path in (root / "one").iterdir():
        assert path.read_bytes() == (root / "two" / path.name).read_bytes()


def png(width: int = 800, height: int = 500) -> str:
    """A picture of stripes, as a notebook holds it."""
    from PIL import Image

    stripes = np.zeros((height, width, 3), dtype=np.uint8)
    stripes[:, ::50] = 255
    file = io.BytesIO()
    Image.fromarray(stripes).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def add_figures(run: Path) -> None:
    """An executed notebook with a plotly figure, a plain picture and a broken one."""
    path = write_notebook(run / "runs/00_topic-m-2-0/00_topic.ipynb", "1")
    notebook = json.loads(path.read_text())
    title = {"layout": {"title": {"text": f"Effect<br>of {EVIL}"}}}
    datas: list[dict[str, Any]] = [
        {"image/png": png(), PLOTLY: title}, {"image/png": png(50, 40)}, {"image/png": "broken"},
    ]  # fmt: skip
    notebook["cells"][1]["outputs"] = [
        {"output_type": "display_data", "metadata": {}, "data": data} for data in datas
    ]
    path.write_text(json.dumps(notebook))


def test_figures_become_small_pictures_with_their_titles(root: Path) -> None:
    from PIL import Image

    add_figures(root / "papermill_runs/all")
    path = root / "papermill_runs/all/runs/00_topic-m-2-0/00_topic.ipynb"
    made = scorecard_page.thumbnails(path, 0)
    assert len(made) == 2
    title, address = made[0]
    assert title.startswith("Effect of ")
    picture = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    assert (picture.format, picture.size) == ("WEBP", (360, 225))
    page = scorecard_page.html_page(collect(root, "all"), root)
    pictures = [a for name, a in Tags(page).tags if name == "img"]
    assert [(p["src"] or "")[:23] for p in pictures] == ["data:image/webp;base64,"] * 2
    assert "<script>alert" not in page


def test_a_run_that_is_done_again_has_its_new_pictures(root: Path) -> None:
    path = root / "papermill_runs/all/runs/00_topic-m-2-0/00_topic.ipynb"
    add_figures(root / "papermill_runs/all")
    assert "<figure>" in scorecard_page.html_page(collect(root, "all"), root)
    write_notebook(path, "1")  # the same run again, without figures
    os.utime(path, ns=(1, 1))
    assert "<figure>" not in scorecard_page.html_page(collect(root, "all"), root)


def test_what_holds_no_run_or_is_damaged_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    for arguments, message in (
        (["nowhere"], "no run and no reference in nowhere"),
        (["notebooks"], "no run and no reference in notebooks"),
        ([], "name at least one run"),
    ):
        assert runs.main(["scorecard", *arguments]) == 2
        assert message in capsys.readouterr().err
    (root / "papermill_runs/all/runs/00_topic-m-2-0/run.json").write_text("[{]")
    assert runs.main(["scorecard", "all"]) == 2
    assert "00_topic-m-2-0/run.json is not the record of a run" in capsys.readouterr().err


README = "before\n<!-- scorecard -->\nold\n<!-- /scorecard -->\nafter\n"


def test_the_summary_in_a_readme_is_generated(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    (root / "README.md").write_text(README)
    assert runs.main(["scorecard", "--readme"]) == 0
    table = (
        "| replications: ✔ hold ✘ do not ? undecided – n/a | m-2 |\n|---|---|\n"
        "| 00_topic | ✔ 0 ✘ 1 ? 0 – 0 |\n| **all** | ✔ 0 ✘ 1 ? 0 – 0 |\n"
        "| checks of our own code | ✔ 1 ✘ 0 ? 0 – 0 |\n"
    )
    assert (root / "README.md").read_text() == README.replace("old\n", table)
    assert "`00.x` x" in (root / "papermill_runs/reference/scorecard.md").read_text()
    (root / "README.md").write_text("no markers")
    assert runs.main(["scorecard", "--readme"]) == 2
    assert "has no <!-- scorecard --> markers" in capsys.readouterr().err


def test_the_readmes_summary_is_that_of_the_committed_references() -> None:
    here = Path(__file__).parents[2]
    readme = (here / "README.md").read_text(encoding="utf-8")
    table, folder = collect(here, "reference"), here / "papermill_runs/reference"
    assert scorecard_page.renewed(readme, table) == readme, "mi scorecard --readme"
    page = (folder / "scorecard.md").read_text(encoding="utf-8")
    assert scorecard_page.markdown(table, folder) == page, "mi scorecard --readme"


def test_the_times_in_a_readme_are_those_of_the_references(root: Path) -> None:
    file = root / "papermill_runs/reference/m-2/00_topic.json"
    slow = json.loads(file.read_text()) | {"seconds": 151.0}
    file.write_text(json.dumps(slow))
    rows = "| [00_topic](a.ipynb) | what? | {} |\n| [01_new](b.ipynb) | why? | 9 min |\n"
    table = collect(root, "reference")
    assert scorecard_page.renewed(rows.format("1 min"), table) == rows.format("3 min")


class Browser:
    """A page in a headless Chrome or Chromium, spoken to through choreographer."""

    def __init__(self) -> None:
        from choreographer import Browser as Headless

        self._loop = asyncio.new_event_loop()
        self._browser = Headless(headless=True, enable_sandbox=False)
        self._run(self._browser.open())

    def show(self, file: Path) -> None:
        """Open a file and wait until it is there."""
        self._tab = self._run(self._browser.create_tab("about:blank"))
        self._send("Page.enable")
        self._send("Emulation.setDeviceMetricsOverride", width=1400, height=900,
                   deviceScaleFactor=1, mobile=False)  # fmt: skip
        self._send("Page.navigate", url=file.resolve().as_uri())
        ready = "document.readyState == 'complete' && location.protocol == 'file:'"
        while not self.get(ready):
            self._run(asyncio.sleep(0.05))

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, 60))

    def _send(self, command: str, **parameters: Any) -> Any:
        return self._run(self._tab.send_command(command, params=parameters or None))["result"]

    def get(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self._send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self) -> bytes:
        return base64.b64decode(self._send("Page.captureScreenshot")["data"])

    def close(self) -> None:
        self._run(self._browser.close())
        self._loop.close()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page of all runs, with figures, in a browser."""
    from choreographer.browsers.chromium import Chromium

    if not Chromium.find_browser(skip_local=False):
        pytest.skip("there is no Chrome or Chromium on this machine")
    root = make_runs(tmp_path_factory.mktemp("opened"))
    add_figures(root / "papermill_runs/all")
    page, _, _ = scorecard_page.write(collect(root, "all"), root / "out")
    browser = Browser()
    try:
        browser.show(page)
        yield browser
    finally:
        browser.close()  # one left open would keep this process from ending


def choose(browser: Browser, id: str, value: str) -> int:
    """Set a box of the page to a value; how many claims then show."""
    name = "checked" if value in ("true", "false") else "value"
    literal = value if name == "checked" else json.dumps(value)
    script = f"const box = document.getElementById('{id}'); box.{name} = {literal};"
    browser.get(f"{{ {script} box.dispatchEvent(new Event('change', {{bubbles: true}})) }}")
    shown = browser.get("[...document.querySelectorAll('tr[data-papers]')].filter(r => "
                        "r.offsetParent !== null).length")  # fmt: skip
    assert browser.get("document.getElementById('shown').textContent") == f"{shown} of 4 claims"
    return shown


def test_in_a_browser_the_page_filters_and_shows_its_figures(opened: Browser) -> None:
    assert (
        opened.get("document.querySelector('h1').textContent")
        == "Which findings hold on which model"
    )
    assert choose(opened, "paper", "") == 4
    assert choose(opened, "paper", "Zhang & Nanda 2023") == 1
    assert choose(opened, "paper", "beyond the papers") == 1
    heads = "[...document.querySelectorAll('thead th')].filter(h => !h.hidden).length"
    assert opened.get(heads) == 3
    assert choose(opened, "words", "nowhere to be found") == 0
    assert opened.get(heads) == 1  # models without any of the claims that show are left out
    assert choose(opened, "words", "") == 1
    assert choose(opened, "paper", "Wang et al. 2022") == 3
    assert choose(opened, "paper", "") == 4
    assert choose(opened, "words", "ALERT") == 3  # a claim's text, a null, a reason
    assert choose(opened, "words", "") == 4
    assert choose(opened, "replications", "true") == 3
    assert choose(opened, "replications", "false") == 4
    assert choose(opened, "differs", "true") == 2
    assert choose(opened, "differs", "false") == 4
    assert choose(opened, "changed", "true") == 2
    assert choose(opened, "changed", "false") == 4
    opened.get("document.querySelectorAll('details').forEach(d => { d.open = true })")
    opened.get("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
    drawn = "[...document.images].map(i => i.decode().then(() => i.naturalWidth))"
    widths = opened._send("Runtime.evaluate", expression=f"Promise.all({drawn})",
                          awaitPromise=True, returnByValue=True)  # fmt: skip
    assert widths["result"]["value"] == [360, 50]


def test_in_a_browser_verdicts_differ_in_colour_and_nothing_overflows(opened: Browser) -> None:
    colours = {
        kind: opened.get(f"getComputedStyle(document.querySelector('td.{kind}')).backgroundColor")
        for kind in ("holds", "fails", "open", "skips", "mixed")
    }
    assert len(set(colours.values())) == 5
    assert opened.get("document.documentElement.scrollWidth <= innerWidth")
    assert opened.get("document.querySelectorAll('td svg circle').length") == 5
    picture = opened.screenshot()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000  # not a blank page
