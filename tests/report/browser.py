"""A headless browser, driven over a pipe by the DevTools protocol: a window of any width, dark or light, its pixels."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)
SECONDS = 120.0


class Browser:
    """One tab of a running browser.

    Args:
        command: Descriptor that the browser reads commands from.
        answer: Descriptor that it writes answers to.
    """

    def __init__(self, command: int, answer: int) -> None:
        self._command, self._answer = command, answer
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._command, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def open(self, page: Path, *, width: int, dark: bool = False) -> None:
        """Opens a page in a window of a width [CSS px] and waits until it is laid out."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests.clear()
        self.call("Page.navigate", url=page.as_uri())
        end = time.monotonic() + SECONDS
        while self.run("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < end, "the page must load"
            time.sleep(0.05)
        self.run("Promise.all([...document.images].map(image => image.decode())).then(() => 0)")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page, whatever the page allows itself."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def picture(self, *, vision: str = "none", clip: Mapping[str, float] | None = None) -> NDArray[np.uint8]:
        """Pixels (height, width, 3) of the whole page, or of a part, as somebody with a kind of vision sees them."""
        self.call("Emulation.setEmulatedVisionDeficiency", type=vision)
        size = self.run("({width: innerWidth, height: document.documentElement.scrollHeight})")
        part = {"x": 0, "y": 0, **size, **(clip or {}), "scale": 1}
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=part)
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB"))

    def _next(self) -> dict[str, Any]:
        """The next message; requests of the page are kept on the way."""
        while b"\0" not in self._buffer:
            assert select.select([self._answer], [], [], SECONDS)[0], "the browser must answer, it says nothing"
            read = os.read(self._answer, 1 << 20)
            assert read, "the browser must live, it ended"
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Runs Chromium with an empty profile in a folder."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program is not None, "chromium must be installed: make test-report installs it"
    commands, answers = os.pipe(), os.pipe()
    # The browser reads commands from descriptor 3 and answers on 4; 10 and 11 keep them apart meanwhile.
    wiring = 'exec 10<&"$1" 11>&"$2"; exec 3<&10 4>&11 10<&- 11>&-; shift 2; exec "$@"'
    arguments = ["bash", "-c", wiring, "bash", str(commands[0]), str(answers[1])]
    process = subprocess.Popen(
        [*arguments, program, *SWITCHES, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(commands[0], answers[1]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands[0])
    os.close(answers[1])
    try:
        yield Browser(commands[1], answers[0])
    finally:
        process.terminate()
        process.wait(timeout=SECONDS)
        os.close(commands[1])
        os.close(answers[0])
