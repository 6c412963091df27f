"""The explorers in a real browser: JupyterLab and voila, keyboard and mouse, uploads, a closed kernel. Screenshots in runs/browser."""

import io
import json
import os
import re
import shutil
import statistics
from pathlib import Path

import pytest
from PIL import Image

from tests import browser

pytestmark = pytest.mark.browser
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
)

playwright.expect.set_options(timeout=120_000)
NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
SMALL = "small"
PATIENCE = 300_000  # ms; a busy machine takes long to start a kernel, and nothing here measures that
SLIDER_TO_PICTURE = float(os.environ.get("DDSA_LAB_PATIENCE", "20")) * 1000


@pytest.fixture(scope="module")
def chrome():
    path = browser.chromium()
    if path is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, headless=True, args=browser.FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    import nbformat

    root = tmp_path_factory.mktemp("lab")
    for notebook in NOTEBOOKS.glob("0*.ipynb"):
        shutil.copy(notebook, root)
    names = ("topk_microscope", "side_by_side")
    cells = [
        nbformat.v4.new_code_cell(f"from ddsa_lab.viz import widgets\n\nwidgets.{name}()") for name in names
    ]
    small = nbformat.v4.new_notebook(cells=cells)
    small.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(small, root / f"{SMALL}.ipynb")
    with browser.Lab(root).running() as running:
        yield running


@pytest.fixture
def page(chrome):
    opened = chrome.new_page(viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(PATIENCE)
    yield opened
    opened.close()


def run_all(page, lab, notebook: str) -> None:
    """Open a notebook, run all cells, and wait until the last has run."""
    page.goto(lab.address(notebook), wait_until="commit")
    page.locator(".jp-NotebookPanel .jp-Notebook").wait_for()
    lab.wait_for_kernel(PATIENCE / 1000)
    page.get_by_text("| Idle").first.wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.locator(".ddsa-explorer").first.wait_for()
    lab.wait_until_idle(PATIENCE / 1000)
    page.get_by_text("| Idle").first.wait_for()


def microscope(scope):
    """The first microscope of a page, scrolled into view."""
    found = (
        scope.locator(".ddsa-explorer")
        .filter(has=scope.locator(".ddsa-title", has_text="Top-k microscope"))
        .first
    )
    found.wait_for()
    found.evaluate("(part) => part.scrollIntoView()")
    return found


def seen(explorer) -> tuple[str, str, str]:
    """What a reader sees of a microscope: its numbers, the restored picture's pixels, the attention's."""
    images = explorer.locator("img")
    return (
        explorer.locator(".ddsa-numbers").inner_text(),
        browser.pixels(images.nth(1)),
        browser.pixels(images.nth(4)),
    )


def wait_for_change(page, explorer, before: tuple[str, str, str]) -> tuple[str, str, str]:
    """Wait until numbers and both pictures differ from `before`, and stand still."""
    end = page.evaluate("performance.now()") + SLIDER_TO_PICTURE
    while page.evaluate("performance.now()") < end:
        now = seen(explorer)
        page.wait_for_timeout(800)
        if all(new != old for new, old in zip(now, before)) and seen(explorer) == now:
            return now
    raise AssertionError(f"not all has changed: {[new != old for new, old in zip(seen(explorer), before)]}")


def check_identity(explorer) -> None:
    """The status line says by how much the fused row and the identity differ: rounding."""
    text = explorer.locator(".ddsa-status").inner_text()
    assert float(re.search(r"differ by at most ([\d.e+-]+\d)", text)[1]) < 1e-6, text


def use_keep_slider(page, explorer, name: str) -> None:
    """By keyboard, then by mouse: numbers and pixels follow, and the identity holds."""
    handle = browser.slider(explorer, "keep").locator(".noUi-handle")
    readout = browser.slider(explorer, "keep").locator(".widget-readout")
    first = seen(explorer)
    browser.shot(page, f"{name}_1_before")
    handle.focus()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    playwright.expect(readout).to_have_text("0.40")
    by_key = wait_for_change(page, explorer, first)
    check_identity(explorer)
    browser.shot(page, f"{name}_2_keyboard")
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 22, y, steps=10)
    page.mouse.up()
    wait_for_change(page, explorer, by_key)
    assert float(readout.inner_text()) < 0.4
    check_identity(explorer)
    browser.shot(page, f"{name}_3_mouse")


@pytest.mark.parametrize("notebook", [SMALL, "00_start_here", "06_topk_explorer"])
def test_microscope_in_jupyterlab(page, lab, notebook):
    if not (lab.root / f"{notebook}.ipynb").is_file():
        pytest.skip(f"there is no notebook {notebook} yet")
    watch = browser.Watch(page)
    run_all(page, lab, f"{notebook}.ipynb")
    assert (
        page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts()
        == []
    )
    assert (
        page.locator(
            ".jp-OutputArea-output .ansi-red-intense-fg, .jp-RenderedText:has-text('Traceback')"
        ).count()
        == 0
    )
    explorer = microscope(page)
    use_keep_slider(page, explorer, notebook)
    assert watch.found() == []
    lab.close_kernels()


def photo(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((width, height)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def upload(page, explorer, name: str, content: bytes) -> None:
    kind = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    explorer.locator("input[type=file]").set_input_files(files=kind)


def use_upload(page, explorer, name: str) -> None:
    """A photo is shown; what is none is a sentence, and so is what is too large."""
    status = explorer.locator(".ddsa-status")
    explorer.evaluate("(part) => part.scrollIntoView()")
    before = browser.pixels(explorer.locator("img").nth(2))
    upload(page, explorer, "mine.png", photo(640, 320))
    playwright.expect(status).to_contain_text("mine.png: 640 x 320 pixels, shrunk to 512 x 256")
    assert browser.pixels(explorer.locator("img").nth(2)) != before
    browser.shot(page, f"{name}_upload")
    upload(page, explorer, "notes.txt", b"these are my notes")
    playwright.expect(status.locator(".bad")).to_contain_text("notes.txt")
    upload(page, explorer, "film.mov", os.urandom(12_000_000))
    playwright.expect(explorer.get_by_text("film.mov has 12 MB and is no photo")).to_be_visible()
    browser.shot(page, f"{name}_bad_upload")


def test_uploads_half_a_screen_and_a_closed_kernel(page, lab):
    watch = browser.Watch(page)
    run_all(page, lab, f"{SMALL}.ipynb")
    beside = page.locator(".ddsa-explorer").filter(has=page.locator("input[type=file]")).first
    use_upload(page, beside, "lab")
    page.set_viewport_size({"width": 640, "height": 800})
    page.keyboard.press("Control+b")  # the file browser leaves little of half a screen
    explorer = microscope(page)
    page.wait_for_timeout(1500)
    for part in (explorer, explorer.locator("img").nth(4)):
        box = part.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 641, box
    browser.shot(page, "lab_half_screen")
    assert watch.found() == []
    lab.close_kernels()
    handle = browser.slider(explorer, "keep").locator(".noUi-handle")
    handle.focus()
    page.keyboard.press("ArrowLeft")
    playwright.expect(explorer.get_by_text("The kernel does not answer")).to_be_visible()
    browser.shot(page, "lab_closed_kernel")


def test_the_page_without_code(page, tmp_path):
    watch = browser.Watch(page)
    with browser.voila(tmp_path) as address:
        page.goto(address, wait_until="commit")
        explorer = microscope(page)
        explorer.locator("img").nth(4).wait_for()
        browser.SHOTS.mkdir(parents=True, exist_ok=True)
        assert page.locator(".jp-InputArea").count() == 0
        browser.pixels(explorer.locator("img").nth(4))
        explorer.screenshot(path=browser.SHOTS / "microscope.png")  # figures/microscope.png is such a one
        use_keep_slider(page, explorer, "voila")
        titles = page.locator(".lm-TabBar-tab")
        assert titles.count() == 6
        for i in range(1, 6):
            titles.nth(i).click()
            shown = page.locator(".ddsa-explorer:visible")
            playwright.expect(shown.locator(".ddsa-status")).not_to_be_empty()
            shown.locator("img").first.wait_for()
            page.wait_for_timeout(1500)
            assert shown.locator(".ddsa-status .bad").count() == 0
            browser.shot(page, f"voila_tab_{i}")
            if i == 1:
                use_upload(page, shown, "voila")
        start = page.locator(".ddsa-explorer:visible").get_by_role("button", name="start")
        start.click()
        status = page.locator(".ddsa-explorer:visible .ddsa-status")
        playwright.expect(status).to_contain_text(re.compile(r"step [1-9]\d"))
        page.get_by_role("button", name="pause").click()
        playwright.expect(status).to_contain_text("Paused")
        browser.shot(page, "voila_training")
        page.get_by_role("button", name="stop").click()
        playwright.expect(status).to_contain_text("stopped")
        assert watch.found() == []


def test_the_page_asks_for_its_token(page, tmp_path):
    with browser.voila(tmp_path) as address:
        page.goto(address.partition("?")[0], wait_until="load")
        assert page.locator(".ddsa-explorer").count() == 0
        assert "login" in page.url or page.get_by_text("403").count()


# In the browser's own clock: when a key went down, and when the picture drawn for it was ready to be shown.
STOPWATCH = """(image) => {
  document.addEventListener("keydown", () => { window.pressed = performance.now(); window.shown = null; }, true);
  image.addEventListener("load", () => { window.shown = performance.now(); });
}"""


def slider_latencies(page, explorer, count: int) -> list[float]:
    """Milliseconds from each move of the keep slider to the first new picture of the attention."""
    explorer.locator("img").nth(4).evaluate(STOPWATCH)
    browser.slider(explorer, "keep").locator(".noUi-handle").focus()
    found = []
    for move in range(count + 3):  # the first ones warm up
        page.keyboard.press("ArrowLeft" if move % 16 < 8 else "ArrowRight")
        page.wait_for_function("window.shown !== null")
        found.append(page.evaluate("window.shown - window.pressed"))
        page.wait_for_timeout(400)  # whatever else follows has been drawn
    return found[3:]


def test_pictures_come_at_once(page, tmp_path):
    """Bars for a quiet machine: 150 ms from slider to picture, 1 s from the connected kernel to a first picture.

    Machines that run tests are rarely quiet, so this fails at four times that; what was measured is written down.
    """
    connected = []
    with browser.voila(tmp_path) as address:
        page.wait_for_timeout(15_000)  # the kernel that waits for a visitor draws its page
        page.on("websocket", lambda _: connected.append(page.evaluate("performance.now()")))
        page.goto(address, wait_until="commit")
        explorer = microscope(page)
        board = explorer.locator("img").nth(4)
        board.wait_for()
        browser.pixels(board)
        first = page.evaluate("performance.now()") - connected[0]
        times = slider_latencies(page, explorer, 20)
    measured = {
        "slider_to_picture_ms": {"median": statistics.median(times), "worst": max(times)},
        "first_picture_ms": first,
    }
    browser.SHOTS.mkdir(parents=True, exist_ok=True)
    (browser.SHOTS / "latency.json").write_text(json.dumps(measured, indent=1))
    print(measured)
    assert statistics.median(times) < 4 * 150
    assert first < 4 * 1000
