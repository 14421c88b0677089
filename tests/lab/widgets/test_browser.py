"""The widgets in a real JupyterLab, driven by a real browser on loopback."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from tests.conftest import CHROMIUM

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore"),  # the browser's own
]
ROOT = Path(__file__).resolve().parents[3]
NOTEBOOK = ROOT / "notebooks" / "09_explorer.ipynb"
SHOTS = ROOT / "output" / "browser"
STEPS = 2  # denoising steps
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on loopback with a copy of the notebook, quicker by fewer steps."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub(r"STEPS = \d+", f"STEPS = {STEPS}", cell.source)
    notebook.cells = [c for c in notebook.cells if "play(" not in c.source]  # two players of code: nothing to click
    notebook.cells.append(nbformat.v4.new_code_cell("mnb.Explorer(pipeline, ['FP8'])"))
    nbformat.write(notebook, folder / NOTEBOOK.name)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}",
               "--LabApp.extension_manager=readonly"]  # fmt: skip
    settings = {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces"),
    }
    news = folder / ".settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')  # its question would cover the widgets
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | settings)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((folder / "lab.log").read_text()[-2000:])
        yield address
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@pytest.fixture(scope="module")
def page(lab):
    """The notebook, open in the browser and run from top to bottom."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1300, "height": 1400})
        page.set_default_timeout(60_000)
        page.goto(f"{lab}/lab/tree/{NOTEBOOK.name}?reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_function(
            "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        )
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        error = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
        page.wait_for_selector(f".mnb-blind-test, {error}", timeout=180_000)
        assert not page.locator(error).count(), page.locator(error).first.inner_text()
        page.wait_for_function("document.querySelectorAll('.mnb-explorer figure dl dt').length > 20")
        yield page
        browser.close()


@pytest.fixture
def explorer(page):
    view = page.locator(".mnb-explorer").first
    view.scroll_into_view_if_needed()
    return view


def message(view) -> str:
    return view.locator(".mnb-message").inner_text()


def until(view, words: str, timeout: float = 60) -> None:
    """Wait until the message contains ``words``."""
    end = time.monotonic() + timeout
    while words not in message(view):
        assert time.monotonic() < end, message(view)
        time.sleep(0.05)


def run(view) -> None:
    """Press Run, and wait for new rows of the history."""
    rows = view.locator("tbody tr").count()
    view.locator("[data-do=run]").click()
    end = time.monotonic() + 120
    while view.locator("tbody tr").count() == rows or not view.locator("[data-do=run]").is_enabled():
        assert time.monotonic() < end, message(view)
        time.sleep(0.05)


def shot(view, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    view.screenshot(path=SHOTS / f"{name}.png")


def test_change_type_and_prompt_and_run(explorer):
    shot(explorer, "explorer-light")
    explorer.locator("[data-field=prompt]").fill("an owl on a green background")
    explorer.locator("[data-group=scheme] label", has_text="INT8 channel").click()
    run(explorer)
    names = explorer.locator("figure strong").all_inner_texts()
    assert names == ["dense", "INT8 channel", "NF4", "INT4"]
    assert all(
        explorer.locator("figure .mnb-layer:first-child img").nth(i).evaluate("i => i.naturalWidth") == 512
        for i in range(4)
    )
    assert explorer.locator("figure dd").count() >= 4 * 8


def test_drag_the_divider_and_zoom_together(explorer):
    explorer.get_by_label("Divider", exact=True).check()
    frame = explorer.locator("figure .mnb-frame").nth(1)
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    mouse = explorer.page.mouse
    mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    mouse.down()
    mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"], steps=5)
    mouse.up()
    clips = explorer.locator(".mnb-over").evaluate_all("nodes => nodes.map(n => getComputedStyle(n).clipPath)")
    assert len(clips) == 3
    assert len(set(clips)) == 1
    assert float(explorer.locator("[data-field=divider]").input_value()) == pytest.approx(25, abs=2)
    frame.press("ArrowRight")
    assert float(explorer.locator("[data-field=divider]").input_value()) == pytest.approx(30, abs=2)
    frame.press("+")
    places = explorer.locator(".mnb-layer img").evaluate_all("nodes => nodes.map(n => getComputedStyle(n).transform)")
    assert len(set(places)) == 1
    assert places[0].startswith("matrix(1.5")
    shot(explorer, "divider")
    explorer.get_by_label("Difference", exact=True).check()
    shot(explorer, "difference")
    explorer.get_by_role("button", name="Fit").click()
    explorer.get_by_label("Side by side").check()


def test_stop_half_way_keeps_what_is_finished(explorer):
    explorer.locator("[data-field=steps]").fill("200")
    explorer.locator("[data-do=run]").click()
    explorer.page.wait_for_function("document.querySelector('.mnb-explorer progress').value > 2")
    start = time.monotonic()
    explorer.locator("[data-do=stop]").click()
    until(explorer, "Stopped")
    assert time.monotonic() - start < 5
    assert explorer.locator("[data-do=run]").is_enabled()
    explorer.locator("[data-field=steps]").fill(str(STEPS))
    explorer.locator("[data-do=run]").click()
    until(explorer, "From the cache")


def test_restore_from_history(explorer):
    explorer.locator("button[data-run='1']").first.click()
    until(explorer, "Run 1, from the cache")
    assert explorer.locator("[data-field=prompt]").input_value() == "a fox face on a blue background"
    assert explorer.locator("figure strong").all_inner_texts() == ["dense", "INT8", "NF4", "INT4"]


def test_history_sorts(explorer):
    header = explorer.locator("th button", has_text="weights MiB")
    header.click()
    column = explorer.locator("thead th").all_inner_texts().index("weights MiB ▲")
    cells = explorer.locator(f"tbody td:nth-child({column + 1})")
    values = [float(text) for text in cells.all_inner_texts()]
    assert values == sorted(values)
    header.click()
    values = [float(text) for text in cells.all_inner_texts()]
    assert values == sorted(values, reverse=True)


def test_choices_that_cannot_work_say_why(explorer):
    explorer.locator("[data-chip='0']").click()
    assert "CUDA" in explorer.locator("[data-group=activations] .mnb-reasons").inner_text()
    label = explorer.locator("[data-group=activations] label", has_text="NVFP4").first
    assert "CUDA" in label.get_attribute("title")
    assert label.locator("input").is_disabled()


def test_layers_are_left_dense_from_the_tree(explorer):
    explorer.locator(".mnb-layers > summary").click()
    explorer.locator("[data-field=find]").fill("blocks.0.attn1")
    explorer.locator("[data-layer='transformer_blocks.0.attn1']").check()
    assert "transformer_blocks.0.attn1" in explorer.locator(".mnb-left-dense").inner_text()
    explorer.locator("[data-field=pattern]").fill("nothing_like_it")
    explorer.locator("[data-do=leave]").click()
    wrong = explorer.locator("[data-error=excluded]")
    wrong.wait_for()
    assert "matches no layer" in wrong.inner_text()
    shot(explorer, "wrong-input")
    explorer.get_by_label("Quantize nothing_like_it").click()
    explorer.get_by_label("Quantize transformer_blocks.0.attn1", exact=True).click()
    wrong.wait_for(state="hidden")
    explorer.get_by_label("Quantize transformer_blocks.0.attn1", exact=True).wait_for(state="detached")


def test_a_prompt_with_markup_is_text(explorer):
    prompt = "a <script>window.broken = 1</script><img src=x onerror='window.broken = 1'> fox"
    explorer.locator("[data-field=prompt]").fill(prompt)
    run(explorer)
    assert prompt in explorer.locator(".mnb-history").inner_text()
    assert explorer.page.evaluate("window.broken") is None
    explorer.locator("[data-field=prompt]").fill(" ")
    explorer.locator("[data-error=prompt]").wait_for()
    assert "Allowed" in explorer.locator("[data-error=prompt]").inner_text()
    explorer.locator("[data-field=prompt]").fill("a fox face on a blue background")


def test_text_typed_before_the_kernel_answers_is_kept(explorer):
    field = explorer.locator("[data-field=prompt]")
    explorer.locator("[data-do=add]").click()
    field.press("ControlOrMeta+a")
    field.press_sequentially("a whale, typed while the kernel adds a variant")
    explorer.locator("[data-chip='3']").wait_for()
    time.sleep(0.5)
    assert field.input_value() == "a whale, typed while the kernel adds a variant"
    explorer.locator("[data-chip='remove 3']").click()
    explorer.locator("[data-chip='3']").wait_for(state="detached")
    rows = explorer.locator("tbody tr").count()
    field.press("Enter")
    explorer.page.wait_for_function(f"document.querySelectorAll('.mnb-explorer tbody tr').length > {rows}")
    until(explorer, "Generated in")
    assert "a whale, typed" in explorer.locator(".mnb-history").inner_text()


def test_the_notebooks_shortcuts_leave_the_widget_alone(explorer):
    cells = explorer.page.locator(".jp-Notebook .jp-Cell")
    before = cells.count()
    for target in ("[data-do=code]", "[data-group=scheme] input:checked", "figure .mnb-frame >> nth=0"):
        explorer.locator(target).first.focus()
        for key in "ddaxx":
            explorer.page.keyboard.press(key)
    time.sleep(0.3)
    assert cells.count() == before
    assert explorer.is_visible()


def test_two_widgets_share_no_ids_or_radio_groups(page):
    page.wait_for_function("document.querySelectorAll('.mnb-explorer').length > 1")
    ids = page.eval_on_selector_all(".mnb [id]", "nodes => nodes.map((node) => node.id)")
    assert len(ids) == len(set(ids)) > 8
    groups = page.eval_on_selector_all(
        ".mnb",
        "views => views.map((v) => [...new Set([...v.querySelectorAll('input[type=radio]')].map((i) => i.name))])",
    )
    names = [name for group in groups for name in group]
    assert len(names) == len(set(names)) > 8


def test_show_code_and_save(explorer):
    explorer.locator("[data-do=code]").click()
    explorer.locator(".mnb-code").wait_for()
    assert "modelopt_nb.quantize" in explorer.locator(".mnb-code code").inner_text()
    for kind, begins in (("csv", b"run,prompt"), ("png", b"\x89PNG")):
        with explorer.page.expect_download() as download:
            explorer.locator(f"[data-export={kind}]").click()
        assert Path(download.value.path()).read_bytes().startswith(begins)


def test_three_rounds_of_the_blind_test_by_keyboard(page):
    view = page.locator(".mnb-blind-test").first
    view.scroll_into_view_if_needed()
    for number in (1, 2, 3):
        view.locator(f"text=Round {number}:").wait_for()
        view.locator(".mnb-pick").first.wait_for()
        view.focus()
        until(view, "quantized?")
        page.keyboard.press("1" if number % 2 else "2")
        until(view, "dB from dense")
        assert view.locator(".mnb-truth").count() == 1
        if number == 3:
            shot(view, "blind-test-light")
        page.keyboard.press("n")
    answered = [int(text.split(" of ")[1]) for text in view.locator("tbody td:nth-child(2)").all_inner_texts()]
    assert sum(answered) == 3
    assert max(answered) == 1  # balanced


def test_dark_theme_and_narrow_window(page, explorer):
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_selector("[data-jp-theme-light=false]", state="attached")
    page.set_viewport_size({"width": 900, "height": 2400})
    page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
    time.sleep(1)
    shot(explorer, "explorer-dark")
    shot(page.locator(".mnb-blind-test").first, "blind-test-dark")
    assert explorer.evaluate("e => e.scrollWidth <= e.clientWidth + 1")
    ink, paper = (explorer.evaluate(f"e => getComputedStyle(e).{what}") for what in ("color", "backgroundColor"))
    assert contrast(ink, paper) > 7
    for selector in (".mnb-about", "dt", "legend"):
        soft = explorer.locator(selector).first.evaluate("e => getComputedStyle(e).color")
        assert contrast(soft, paper) > 4.5, selector


def contrast(ink: str, paper: str) -> float:
    """The contrast of two CSS colours by WCAG 2, with the ink's transparency over the paper."""

    def channels(colour: str) -> list[float]:
        return [float(x) for x in re.findall(r"[\d.]+", colour)]

    below = channels(paper)[:3]
    *above, alpha = [*channels(ink), 1.0][:4]
    blended = [alpha * a + (1 - alpha) * b for a, b in zip(above, below, strict=True)]

    def light(rgb: list[float]) -> float:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    bright, dim = sorted((light(blended), light(below)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_no_traceback_anywhere(page):
    text = page.locator(".jp-Notebook").inner_text()
    assert "Traceback" not in text
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0


def test_every_control_has_a_name(explorer):
    nameless = explorer.evaluate("""e => [...e.querySelectorAll('input, button')].filter(c =>
        !(c.labels?.length || c.ariaLabel || c.getAttribute('aria-label') || c.textContent.trim())).map(c => c.outerHTML)""")
    assert json.dumps(nameless) == "[]"
