"""One atlas and one headless Chromium for all tests of the pages."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convscope.pages.atlas import write_atlas
from tests.pages.fake_records import Atlas, atlas

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
Page = Any
"""Playwright's page; the module may be absent."""


class Window:
    """One page that must stay silent: no error, no dialog, no request but for files."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, **options}
        )
        self.page: Page = self.context.new_page()
        self.address = address
        self.faults: list[str] = []
        self.page.on("console", lambda m: self.faults.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda e: self.faults.append(f"error: {e}"))
        self.page.on("dialog", self._dialog)
        self.page.on("requestfailed", self._failed)
        self.page.on("request", self._request)

    def _dialog(self, dialog: Any) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _failed(self, request: Any) -> None:
        """A picture still on its way when the screen is left is given up: that is no fault."""
        if request.failure != "net::ERR_ABORTED":
            self.faults.append(f"failed: {request.url}: {request.failure}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "about:")):
            self.faults.append(f"request: {request.url}")

    def open(self, place: str) -> Page:
        """The page, newly loaded, when its screen stands."""
        self.page.goto("about:blank")
        self.page.goto(self.address + place)
        return self.shown()

    def go(self, place: str) -> Page:
        """The page after following a link to another screen of the same atlas."""
        self.page.evaluate("to => { location.hash = to }", place)
        self.page.wait_for_function(
            "to => document.querySelector('#screen').dataset.address === to", arg=place
        )
        return self.page

    def shown(self, title: str | None = None) -> Page:
        """The page when its screen stands; with this title if one is given."""
        self.page.wait_for_selector("#screen h1")
        if title is not None:
            self.page.wait_for_function(
                "t => document.querySelector('#screen h1').innerText === t", arg=title
            )
        return self.page

    def press(self, key: str, title: str) -> Page:
        self.page.keyboard.press(key)
        return self.shown(title)

    def loaded(self) -> None:
        """Wait until all pictures in view are there."""
        self.page.wait_for_function(
            """() => [...document.images].filter(i => i.checkVisibility()).filter(i => {
                const box = i.getBoundingClientRect();
                return box.top < innerHeight && box.left < innerWidth;
            }).every(i => i.complete && i.naturalWidth > 0)"""
        )

    def closed(self) -> None:
        self.context.close()
        assert self.faults == []


def pixels(element: Any) -> np.ndarray:
    """What stands on the screen there."""
    picture = Image.open(io.BytesIO(element.screenshot())).convert("RGB")
    return np.asarray(picture).astype(float)


@pytest.fixture(scope="session")
def records() -> Atlas:
    return atlas()


@pytest.fixture(scope="session")
def address(records: Atlas, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of an atlas in a folder whose name would break a carelessly made URL."""
    page = write_atlas(
        tmp_path_factory.mktemp("an atlas # 100 %") / "größe",
        records.card,
        records.table,
        records.pictures,
        records.layers,
        training=records.training,
        evolution=records.evolution,
        occlusion=records.occlusion,
    )
    return page.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Not kept for the session: its event loop would be in the way of other tests' own."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip("there is no /usr/bin/chromium on this machine")
    with api.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def one_window(browser: Any, address: str) -> Iterator[Window]:
    opened = Window(browser, address)
    yield opened
    opened.context.close()


@pytest.fixture
def window(one_window: Window) -> Iterator[Window]:
    """The shared window; `open` loads the page anew, so that no test sees another's choices."""
    one_window.faults.clear()
    yield one_window
    assert one_window.faults == []


@pytest.fixture(params=["light", "dark"])
def schemed(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Window]:
    opened = Window(browser, address, color_scheme=request.param)
    yield opened
    opened.closed()
