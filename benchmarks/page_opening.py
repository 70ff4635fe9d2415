"""Seconds until the page of `play` answers, and the frames it draws beside an empty picture's.

Each opening has a browser process of its own. The empty picture, a WebGL canvas of the same
size that is only cleared, tells how many frames a second the browser allows here:

    python benchmarks/page_opening.py
"""

import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from playwright.sync_api import sync_playwright
from racing import save
from rich.console import Console

from tdmpc_opt.configs import PlayConfig
from tdmpc_opt.play.play import page_server

_FRAMES = """(seconds) => new Promise((done) => {
  let frames = 0;
  const start = performance.now();
  const count = (now) => {
    frames += 1;
    if (now - start < 1000 * seconds) requestAnimationFrame(count);
    else done((1000 * frames) / (now - start));
  };
  requestAnimationFrame(count);
})"""

_EMPTY = """() => {
  document.body.innerHTML = "<canvas style='position:fixed;inset:0;width:100%;height:100%'>";
  const canvas = document.querySelector("canvas");
  [canvas.width, canvas.height] = [innerWidth, innerHeight];
  const gl = canvas.getContext("webgl2");
  const draw = (now) => {
    gl.clearColor((now / 1000) % 1, 0, 0, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    requestAnimationFrame(draw);
  };
  requestAnimationFrame(draw);
}"""


@dataclass(frozen=True)
class Config:
    """What to time."""

    task: str = "walker-walk"
    """Task that is shown."""
    agent: str = "mt30-1m"
    """Agent that acts, by its policy."""
    width: int = 1000
    """Width of the window in pixels."""
    height: int = 640
    """Height of the window in pixels."""
    rounds: int = 6
    """Openings."""
    settle: float = 4.0
    """Seconds before frames are counted, in which a slow machine gives up detail."""
    seconds: float = 3.0
    """Seconds of counting."""
    flags: tuple[str, ...] = (
        *("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"),
        "--enable-unsafe-swiftshader",
    )
    """Of Chromium; these let it draw where there is no graphics card."""
    output: Path = Path("results/bench-page.json")
    """Result file."""


def main(config: Config) -> None:
    """Open the page several times, write the result file and print it."""
    found = [_opened(config) for _ in range(config.rounds)]
    columns = {key: [round(one[key], 2) for one in found] for key in found[0]}
    medians = {key: statistics.median(values) for key, values in columns.items()}
    save("page-opening", config, {"openings": columns, "medians": medians})
    for key, value in medians.items():
        Console().print(f"{key}: {value:.2f} ({min(columns[key])} to {max(columns[key])})")


def _opened(config: Config) -> dict[str, float]:
    with _page(config) as (page, address):
        start = time.perf_counter()
        page.goto(f"{address}?task={config.task}&agent={config.agent}&seed=0")
        page.wait_for_selector("body:not(.loading)", timeout=120_000)
        seconds = time.perf_counter() - start
        time.sleep(config.settle)
        if page.is_visible("#message"):
            raise SystemExit(f"the page says: {page.inner_text('#message-text')}")
        frames = page.evaluate(_FRAMES, config.seconds)
        page.goto("about:blank")
        page.evaluate(_EMPTY)
        time.sleep(1)
        return {
            "seconds_to_answer": seconds,
            "frames_per_second": frames,
            "frames_per_second_empty": page.evaluate(_FRAMES, config.seconds),
        }


@contextmanager
def _page(config: Config) -> Iterator[tuple[Any, str]]:
    """Serve the page and open an empty tab of a new browser."""
    names = ("chromium", "google-chrome", "chrome")
    executable = next((path for name in names if (path := shutil.which(name))), None)
    with (
        page_server(PlayConfig(checkpoints=(), port=0)) as server,
        sync_playwright() as playwright,
    ):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        browser = playwright.chromium.launch(executable_path=executable, args=[*config.flags])
        size = {"width": config.width, "height": config.height}
        try:
            yield browser.new_page(viewport=size), server.address
        finally:
            browser.close()
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
