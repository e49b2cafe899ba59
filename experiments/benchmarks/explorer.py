"""The explorer's overview at 50,000 latents, in Chromium: first paint, sorting, filtering, brushing, memory.

A table of made-up latents with as many columns as a whole experiment gives, opened from the disk (file://) and served
(HTTP, this machine), each time by a new browser with an empty profile; files are in the page cache of the system. From
the call to the page until the change is painted:

    first_paint    the browser's first-contentful-paint, from the start of the navigation
    rows           the table's rows stand on the screen, both plots are drawn
    sort           a click on a header: the first one sorts a column anew, the second one turns it round
    filter, brush  the text applied (without the 150 ms that the field waits for further letters), a range of the CDS

Medians of the runs; slowest: of the kind's changes the one whose median is largest. At 60 frames a second some 30 of
these milliseconds are waiting for frames. peak_mb: resident memory of the page's own process at its peak (VmHWM), after
all of it, most of which is the browser itself; heap_mb: of its JavaScript.

    python experiments/benchmarks/explorer.py --save
"""

from __future__ import annotations

import re
import shutil
import statistics
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from harness import make_parser, print_rows, save

from infoscope.explorer.format import pack, pack_texts, put
from infoscope.explorer.page_files import write_page
from infoscope.explorer.server import open_server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
N_OTHERS = 45
"""Columns beside those that the table shows at first: about 60 in all, as the demo's table has."""
WATCH = """
addEventListener("DOMContentLoaded", () => {
  const look = () => {
    if (document.querySelector(".slick-row") && document.querySelectorAll(".chart canvas").length === 2) {
      requestAnimationFrame(() => setTimeout(() => { window.rowsAt = performance.now(); }));
    } else requestAnimationFrame(look);
  };
  look();
});
"""
CHANGE = """
(act) => new Promise((resolve) => {
  const read = () => document.querySelector("#n-rows").textContent
    + [...document.querySelectorAll(".slick-row")].sort((a, b) => a.dataset.row - b.dataset.row).slice(0, 5)
      .map((row) => row.textContent).join();
  const before = read(), start = performance.now();
  if (act.sort) document.querySelector(`.slick-header-column[data-id=${act.sort}]`).click();
  else infoscope.go(act);
  const look = () => {
    if (read() === before) requestAnimationFrame(look);
    else requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
  };
  look();
})
"""
SORTS = ("firing_rate", "firing_rate", "cds_minus_chance", "name", "name", "mass", "group", "cds")
FILTERS = (
    "cds > 0.1 & rate < 0.01",
    'name ~ "7" & !undecided',
    "",
    'cds > 0.05 | (mass > 0.1 & group = "low")',
    "",
)
BRUSHES = ("0.02,0.05", "0.03,0.2", "0.1,")


def write_explorer(folder: Path, d_sae: int) -> Path:
    """Write an explorer of made-up latents without pictures and return its index.html."""
    draw = np.random.default_rng(0)
    cds = np.where(draw.random(d_sae) < 0.1, np.nan, draw.beta(1.5, 20, d_sae))
    rate = 10 ** draw.uniform(-5, -0.5, d_sae)
    columns: dict[str, np.ndarray] = {
        "cds": cds,
        "cds_low": cds - 0.01,
        "cds_high": cds + 0.01,
        "cds_minus_chance": cds - 0.05,
        "group": np.where(np.isnan(cds), "unscored", np.where(cds > 0.06, "high", "low")),
        "undecided": draw.random(d_sae) < 0.3,
        "firing_rate": rate.astype(np.float32),
        "mass": (rate * draw.random(d_sae)).astype(np.float32),
        "support": draw.random(d_sae),
        "label_entropy": 2 * draw.random(d_sae),
        "ms": draw.random(d_sae),
        "name": np.array([f"name {i}" for i in draw.integers(0, 5000, d_sae)]),
        "outlier_ratio": draw.random(d_sae),
    } | {f"other_{n}": draw.random(d_sae) for n in range(N_OTHERS)}
    for name, values in columns.items():
        put(folder, f"seed0/columns/{name}", pack_texts(values) if values.dtype.kind == "U" else pack(values))
    kinds = {"U": "text", "b": "switch"}
    listed = [
        {"name": name, "heading": name, "unit": "1", "source": "score", "kind": kinds.get(values.dtype.kind, "number")}
        for name, values in columns.items()
    ]
    view: dict[str, Any] = {
        "id": "seed0",
        "title": "made-up latents",
        "facts": {},
        "d_sae": d_sae,
        "grid": 16,
        "shift": 1,
        "diagonal": "main",
        "k_cds": 8,
        "k_max": 16,
        "set": "train",
        "groups": {"names": ["low", "high"], "rule": "half of the mass", "gamma": 0.06},
        "landmarks": [{"name": "chance", "value": 0.11}, {"name": "position-locked", "value": 0.14}],
        "columns": listed,
        "block_size": 64,
        "images": {},
    }
    put(folder, "manifest", {"format": 1, "title": "benchmark", "facts": {}, "sets": {}, "views": [view]})
    return write_page(folder, "benchmark")


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve an explorer to this machine, as `infoscope view` does, and yield its address."""
    with open_server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


def read_peak_mb(pid: int) -> float:
    match = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1]) / 1e6


def measure_once(address: str) -> dict[str, float]:
    """Open the page in a new browser; return milliseconds, of each change by its number, and MB of memory."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(WATCH)
        page.goto(address)
        page.wait_for_function("() => window.rowsAt")
        paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        found = {"first_paint_ms": page.evaluate(paint), "rows_ms": page.evaluate("window.rowsAt")}
        for kind, changes in (
            ("sort", [{"sort": name} for name in SORTS]),
            ("filter", [{"filter": text} for text in FILTERS]),
            ("brush", [{"brush": text, "filter": ""} for text in BRUSHES]),
        ):
            times = [page.evaluate(CHANGE, change) for change in changes]
            found |= {f"{kind}_ms {n}": one for n, one in enumerate(times)}
        session = browser.new_browser_cdp_session()
        processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
        found["peak_mb"] = max(read_peak_mb(one["id"]) for one in processes if one["type"] == "renderer")
        of_page = page.context.new_cdp_session(page)
        of_page.send("HeapProfiler.collectGarbage")
        metrics = of_page.send("Runtime.getHeapUsage")
        found["heap_mb"] = (metrics["usedSize"] + metrics.get("backingStorageSize", 0)) / 1e6
        browser.close()
        return found


def summarize(runs: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the runs; of the changes of a kind their median, and the slowest one's."""
    values = {name: statistics.median(one[name] for one in runs) for name in runs[0]}
    row: dict[str, float] = {}
    for name in dict.fromkeys(name.split()[0] for name in values):
        of = [value for key, value in values.items() if key.split()[0] == name]
        row |= {name: statistics.median(of)} | ({f"slowest_{name}": max(of)} if len(of) > 1 else {})
    return row


def measure(options: Any) -> list[dict[str, Any]]:
    with TemporaryDirectory() as name:
        index = write_explorer(Path(name), options.d_sae)
        n_bytes = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())
        with serve(Path(name)) as served, ThreadPoolExecutor(1) as thread:  # Playwright wants a thread without a loop
            addresses = {"from the disk": index.as_uri(), "served": served}
            runs: dict[str, list[dict[str, float]]] = {side: [] for side in addresses}
            for _ in range(options.repeats):
                for side, address in addresses.items():
                    runs[side].append(thread.submit(measure_once, address).result())
    rows = [{"side": side} | summarize(found) for side, found in runs.items()]
    print_rows(rows, f"{options.d_sae:,} latents, {13 + N_OTHERS} columns, {n_bytes / 1e6:.0f} MB on the disk")
    return rows


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--d-sae", type=int, default=50_000)
    options = parser.parse_args()
    options.device = "cpu"  # where the page is drawn, whatever is asked for
    if CHROMIUM is None:
        raise SystemExit("Expected Chromium, found none: apt install chromium.")
    if options.tiny:
        vars(options).update(d_sae=500, repeats=1)
    rows = measure(options)
    if options.save:
        save(f"explorer-{options.d_sae}", options, rows=rows)


if __name__ == "__main__":
    main()
