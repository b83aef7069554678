"""Headless Chromium, driven over a pipe by the DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

CHROMIUM: Final = shutil.which("chromium")
# The limit for processes that hang.
PATIENCE_S: Final = 120
OPTIONS: Final = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Browser:
    """Chromium; each message is a JSON object, followed by a NUL."""

    def __init__(self, directory: Path) -> None:
        assert CHROMIUM
        (child_in, self._to), (self._from, child_out) = os.pipe(), os.pipe()
        words = [*OPTIONS, f"--user-data-dir={directory}", "--remote-debugging-pipe"]
        # Chromium reads from descriptor 3 and writes to 4.
        command = f'exec 3<&{child_in} 4>&{child_out}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", command, "bash", CHROMIUM, *words],
            pass_fds=(child_in, child_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        self.events: list[dict[str, Any]] = []
        """Messages that answer no call."""
        self._number = 0
        self._held = b""

    def call(self, method: str, session: str | None = None, **words: object) -> dict[str, Any]:
        self._number += 1
        asked: dict[str, Any] = {"id": self._number, "method": method, "params": words}
        if session:
            asked["sessionId"] = session
        os.write(self._to, json.dumps(asked).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            got = os.read(self._from, 1 << 16)
            assert got, "chromium has ended"
            self._held += got
        whole, _, self._held = self._held.partition(b"\0")
        found: dict[str, Any] = json.loads(whole)
        return found

    def open(self, url: str = "about:blank") -> "Tab":
        target = self.call("Target.createTarget", url=url)["targetId"]
        return Tab(self, self.call("Target.attachToTarget", targetId=target, flatten=True))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._to)
        os.close(self._from)


class Tab:
    """One page of the browser."""

    def __init__(self, browser: Browser, attached: dict[str, Any]) -> None:
        self.browser = browser
        self.session: str = attached["sessionId"]

    def call(self, method: str, **words: object) -> dict[str, Any]:
        return self.browser.call(method, self.session, **words)

    def value(self, expression: str) -> Any:  # noqa: ANN401  (what the script returns)
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def shoot(self, path: Path) -> None:
        """Save a picture of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browsing(directory: Path) -> Iterator[Browser]:
    """Yield a browser with a new profile, and kill it afterwards, or when it hangs."""
    browser = Browser(directory)
    watch = threading.Timer(PATIENCE_S, browser.process.kill)
    watch.start()
    try:
        yield browser
    finally:
        watch.cancel()
        browser.close()
