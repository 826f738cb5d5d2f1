"""A headless Chromium, driven by chromedriver over its own protocol: JSON over HTTP.

Both are Debian packages, and nothing else is needed: https://www.w3.org/TR/webdriver2.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

MISSING = "no Chromium here: install the Debian packages chromium and chromium-driver"

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

KEYS = {
    "ArrowLeft": "\ue012",
    "ArrowUp": "\ue013",
    "ArrowRight": "\ue014",
    "ArrowDown": "\ue015",
    "Enter": "\ue007",
    "Escape": "\ue00c",
    "Home": "\ue011",
}


def missing() -> bool:
    """Whether there is no Chromium here, or nothing to drive it with."""
    return shutil.which("chromium") is None or shutil.which("chromedriver") is None


@contextlib.contextmanager
def browser(folder: Path) -> Generator[Browser]:
    """A Chromium with nothing in its profile, which lies in a folder."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert driver.stdout is not None
        port = next(
            line.rsplit(" ", 1)[1].strip(" .\n")
            for line in driver.stdout
            if "started successfully on port" in line
        )
        opened = Browser(f"http://127.0.0.1:{port}", folder)
        try:
            yield opened
        finally:
            opened.close()
    finally:
        driver.terminate()
        driver.wait()
        if driver.stdout is not None:
            driver.stdout.close()


class Browser:
    """One window of Chromium."""

    def __init__(self, driver: str, profile: Path) -> None:
        options = {
            "binary": shutil.which("chromium"),
            "args": [*FLAGS, f"--user-data-dir={profile}"],
            "perfLoggingPrefs": {"enableNetwork": True, "enablePage": False},
        }
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self._at = f"{driver}/session"
        made = self._send("POST", "", {"capabilities": {"alwaysMatch": capabilities}})
        self._at += f"/{made['sessionId']}"
        self.screen(1280, 800)

    def close(self) -> None:
        """End it."""
        self._send("DELETE", "")

    def open(self, page: Path, fragment: str = "") -> None:
        """Go to a file, and wait until its first view is there."""
        self._send("POST", "/url", {"url": "about:blank"})
        self._send("POST", "/url", {"url": page.as_uri() + fragment})
        self.wait("document.documentElement.dataset.ready")

    def go(self, fragment: str) -> None:
        """Go to another place of the page."""
        self.run("location.hash = arguments[0]", fragment)
        self.settle()

    def run(self, script: str, *args: object) -> Any:
        """What a script gives; it runs in the page."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(args)})

    def get(self, expression: str) -> Any:
        """The value of an expression in the page."""
        return self.run(f"return ({expression})")

    def wait(self, expression: str, seconds: float = 20) -> Any:
        """The value of an expression, once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.get(expression)):
            assert time.monotonic() < end, f"{expression} is {value!r} for {seconds} s"
            time.sleep(0.02)
        return value

    def settle(self) -> None:
        """Wait until what was done is drawn."""
        script = (
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )
        self._send("POST", "/execute/async", {"script": script, "args": []})

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that fit a selector."""
        return self.get(
            f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)"
        )

    def click(self, selector: str) -> None:
        """Click the first element that fits a selector, with the mouse."""
        x, y = self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]",
            selector,
        )
        self.mouse("move", x, y)
        self.mouse("press", x, y)
        self.mouse("release", x, y)
        self.settle()

    def mouse(self, what: str, x: float, y: float, **more: object) -> None:
        """``move``, ``press``, ``release`` or ``wheel`` at a place of the window."""
        kinds = {"move": "mouseMoved", "press": "mousePressed", "release": "mouseReleased"}
        event = {"type": kinds.get(what, "mouseWheel"), "x": x, "y": y, **more}
        if what in ("press", "release"):
            event |= {"button": "left", "clickCount": 1}
        if what == "wheel":
            event = {"deltaX": 0, "deltaY": 0, **event}
        self.devtools("Input.dispatchMouseEvent", event)

    def touch(self, what: str, *points: tuple[float, float]) -> None:
        """``Start``, ``Move`` or ``End`` of fingers."""
        fingers = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        self.devtools("Input.dispatchTouchEvent", {"type": f"touch{what}", "touchPoints": fingers})

    def key(self, key: str) -> None:
        """Press a key and let go."""
        value = KEYS.get(key, key)
        actions = [{"type": kind, "value": value} for kind in ("keyDown", "keyUp")]
        self._send(
            "POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]}
        )
        self.settle()

    def type(self, text: str) -> None:
        """Press one key after another."""
        for letter in text:
            self.key(letter)

    def screen(self, width: int, height: int, *, phone: bool = False, ratio: float = 1) -> None:
        """The size of the window's inside."""
        size = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": phone}
        self.devtools("Emulation.setDeviceMetricsOverride", size)
        self.devtools("Emulation.setTouchEmulationEnabled", {"enabled": phone})

    def scheme(self, name: str) -> None:
        """What the system prefers: ``light`` or ``dark``."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.devtools("Emulation.setEmulatedMedia", {"features": features})

    def picture(self) -> bytes:
        """A PNG of the window's inside."""
        return base64.b64decode(self._send("GET", "/screenshot"))

    def log(self) -> list[str]:
        """What the console said since one last asked."""
        return [entry["message"] for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """The addresses that were asked for since one last asked."""
        entries = self._send("POST", "/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [e for e in events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def devtools(self, method: str, params: Mapping[str, object]) -> Any:
        """A command of the DevTools protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": method, "params": params})

    def _send(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(
            self._at + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with _opener(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                said = json.load(error)["value"]
            raise AssertionError(f"{said['error']}: {said['message'].splitlines()[0]}") from None


_opener: Callable[..., Any] = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
"""Knows of no proxy: the driver is on this machine."""
