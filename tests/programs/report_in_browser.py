"""What a report does in Chromium, as JSON: `python report_in_browser.py PAGE CHROMIUM AXE PICTURES [look]`.

For a Python with playwright in it. PICTURES: a folder for screenshots. `look`: only that. No judgement here: the test
reads what was seen.
"""

import json
import os
import sys
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, sync_playwright

PAGE, CHROMIUM, AXE, PICTURES = sys.argv[1:5]
WIDE, HIGH = 1200, 900
VIEWS = {"light": (WIDE, HIGH), "dark": (WIDE, HIGH), "phone": (390, 844), "phone-dark": (390, 844)}
HERE = "document.activeElement"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
# Pairs of texts within one plot whose boxes meet.
OVERLAPS = """[...document.querySelectorAll('.plot svg')].flatMap((svg) => {
  const texts = [...svg.querySelectorAll('text')].map((one) => [one.textContent, one.getBoundingClientRect()]);
  return texts.flatMap(([name, a], i) => texts.slice(i + 1)
    .filter(([, b]) => a.right > b.left + 1 && b.right > a.left + 1 && a.bottom > b.top + 3 && b.bottom > a.top + 3)
    .map(([other]) => `${name} | ${other}`));
})"""


def opened(browser: Browser, said: list[str], view: str = "light", script: bool = True) -> Page:
    """The page in a fresh context without a network; what the console says is kept."""
    width, height = VIEWS[view]
    context = browser.new_context(
        offline=True,
        viewport={"width": width, "height": height},
        color_scheme="dark" if view.endswith("dark") else "light",
        is_mobile=view.startswith("phone"),
        java_script_enabled=script,
    )
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
    page.goto(Path(PAGE).absolute().as_uri())
    return page


def violations(page: Page) -> list[str]:
    """What axe-core finds, with all folded parts open."""
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.evaluate(Path(AXE).read_text("utf-8") + "; 0")
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [f"{one['id']}: {node['html'][:160]}" for one in found["violations"] for node in one["nodes"]]


def looks(browser: Browser) -> dict[str, object]:
    """Every view: the console, the checker, whether the page is wider than the window, a picture."""
    found: dict[str, object] = {}
    for view in VIEWS:
        said: list[str] = []
        page = opened(browser, said, view)
        page.screenshot(path=f"{PICTURES}/{view}.png", full_page=True)
        found[view] = {
            "console": said,
            "too_wide": page.evaluate("document.documentElement.scrollWidth - innerWidth"),
            "overlaps": page.evaluate(OVERLAPS),
            "background": page.evaluate(BACKGROUND),
            "violations": violations(page),
        }
        page.context.close()
    said = []
    page = opened(browser, said, "dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    found["print"] = {
        "console": said,
        "closed": page.evaluate("document.querySelectorAll('details:not([open])').length"),
        "controls": page.locator(".controls:visible").count(),
        "background": page.evaluate(BACKGROUND),
    }
    page.pdf(path=f"{PICTURES}/print.pdf")
    page.context.close()
    return found


def labelled(page: Page, part: str, label: str, kind: str = "select") -> Locator:
    """A control by its label."""
    return page.locator(f"{part} label", has_text=label).locator(kind)


def shown(page: Page) -> list[int]:
    """The settings whose rows are shown, in their order."""
    rows: list[int] = page.locator("#variants tbody tr:not([hidden])").evaluate_all(
        "all => all.map((r) => r.dataset.n * 1)"
    )
    return rows


def on_plot(page: Page) -> dict[str, object]:
    """Hovering and walking by keys."""
    mark = page.locator("#scatter .point").nth(3)
    mark.hover()
    name = page.evaluate(f"DATA.names[{mark.get_attribute('data-n')}]")
    found: dict[str, object] = {"hover": {"name": name, "tip": page.locator(".tip").inner_text()}}
    page.keyboard.press("Escape")
    found["escaped"] = page.locator(".tip").is_hidden()
    page.mouse.move(0, 0)
    page.locator("#scatter .point[tabindex='0']").focus()
    walk = []
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowDown"):
        page.keyboard.press(key)
        walk.append(page.evaluate(f"[{HERE}.dataset.n * 1, {HERE}.getAttribute('aria-label')]"))
    found |= {"walk": walk, "tip_on_focus": page.locator(".tip").is_visible()}
    found["stops"] = page.locator("#scatter .point[tabindex='0']").count()
    page.keyboard.press("Enter")
    found["entered"] = page.evaluate(f"{HERE}.textContent")
    box = page.evaluate(f"{HERE}.getBoundingClientRect().toJSON()")
    return {**found, "row_in_view": box["top"] > 0 and box["bottom"] < HIGH}


def on_table(page: Page) -> dict[str, object]:
    """Sorting, filtering, copying."""
    found: dict[str, object] = {}
    head = page.locator("#variants thead th[data-sort='accuracy 0']")
    orders = []
    for _ in range(2):
        head.locator("button").press("Enter")
        orders.append([head.get_attribute("aria-sort"), shown(page)])
    found["sorted"] = orders
    labelled(page, "#filters", "Blocks").select_option(label="12")
    labelled(page, "#filters", "latency at most", "input").fill("1500")
    found |= {"filtered": shown(page), "status": page.locator("#filter-status").inner_text()}
    found["dimmed"] = page.locator("#scatter .point.dim").count()
    search = page.locator("#filters input[type='search']")
    search.fill("--k 4 ")
    found["searched"] = shown(page)
    search.fill("")
    labelled(page, "#filters", "Blocks").select_option(label="any")
    labelled(page, "#filters", "latency at most", "input").fill("")
    labelled(page, "#filters", "On the front only", "input").check()
    found["front_only"] = shown(page)
    labelled(page, "#filters", "On the front only", "input").uncheck()
    row = page.locator("#variants tbody tr").nth(4)
    row.locator("button").click()
    found["copied"] = {
        "clipboard": page.evaluate("navigator.clipboard.readText()"),
        "command": row.locator("code").inner_text(),
        "said": page.locator("#filter-status").inner_text(),
    }
    return found


def on_choices(page: Page) -> dict[str, object]:
    """Axes, kinds of questions, workloads, columns, knobs held, stages, order of scores, theme, window."""
    labelled(page, "#scatter-controls", "Cost").select_option("prefill_ms")
    labelled(page, "#scatter-controls", "Questions").select_option(label="count")
    labelled(page, "#scatter-controls", "Workload").select_option("caption")
    labelled(page, "#scatter-controls", "Error bars").select_option("all")
    page.locator("#front summary").click()
    found: dict[str, object] = {
        "caption": page.locator("#front table caption").first.inner_text(),
        "rows": page.locator("#front table").first.locator("tbody th").all_inner_texts(),
        "tables": page.locator("#front table:visible").count(),
        "axis": page.locator("#scatter svg text.label").all_text_contents(),
        "columns": page.locator("#variants thead th:visible").all_inner_texts(),
    }
    labelled(page, "#column-groups", "latency by stage", "input").check()
    found["more_columns"] = page.locator("#variants thead th:visible").all_inner_texts()
    labelled(page, "#knob-controls", "k held at").select_option(label="2")
    found["held"] = page.locator("#knob-plots svg").evaluate_all("all => all.map((one) => one.ariaLabel)")
    labelled(page, "#stage-controls", "Of").select_option("flops")
    found["stages"] = page.locator("#stages svg").get_attribute("aria-label")
    page.locator("#score-controls select").select_option("score")
    page.locator("#scores rect.score").first.hover()
    found["score_tip"] = page.locator(".tip").inner_text()
    before = page.evaluate(BACKGROUND)
    page.locator("#theme").click()
    found["theme"] = [before, page.evaluate(BACKGROUND), page.locator("#theme").inner_text()]
    page.set_viewport_size({"width": 500, "height": 800})
    page.wait_for_function("document.querySelector('#scatter svg').getAttribute('viewBox').split(' ')[2] < 500")
    found["resized"] = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return found


def acts(browser: Browser) -> dict[str, object]:
    """What hands and keys lead to, each in a fresh page."""
    said: list[str] = []
    found: dict[str, object] = {"console": said}
    for act in (on_plot, on_table, on_choices):
        page = opened(browser, said)
        found |= act(page)
        page.context.close()
    page = opened(browser, said, script=False)
    found["without_script"] = {
        "rows": page.locator("#variants tbody tr:visible").count(),
        "columns": page.locator("#variants thead th:visible").count(),
        "theme": page.locator("#theme").is_visible(),
    }
    page.context.close()
    return found


def main() -> None:
    """Look, act, print."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if root else [])
        print(json.dumps({"looks": looks(browser), "acts": None if "look" in sys.argv else acts(browser)}))
        browser.close()


if __name__ == "__main__":
    main()
