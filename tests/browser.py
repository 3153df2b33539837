"""A page in a real headless browser, driven as a person would: by keys, clicks and looks."""

import asyncio
import base64
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from choreographer import Browser
from choreographer.browsers.chromium import Chromium

SECONDS = 60


def available() -> bool:
    """Whether a Chrome or Chromium is on this machine."""
    return Chromium.find_browser(skip_local=False) is not None


class Page:
    """One page, in a browser of its own that ends with `close`."""

    def __init__(self, path: Path, width: int = 1280, height: int = 800) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._browser = self._wait(self._open())
        self._tab = self._wait(self._browser.create_tab("about:blank"))
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Page.enable")
        self.send("Page.navigate", url=path.as_uri())
        self.until("document.readyState === 'complete'")

    async def _open(self) -> Browser:
        return await Browser()

    def send(self, command: str, **params: Any) -> dict[str, Any]:
        """A command of the browser's debugging protocol, and its result."""
        answer = self._wait(self._tab.send_command(command, params))
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']}")
        return answer["result"]

    def js(self, expression: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        options = {"returnByValue": True, "awaitPromise": True}
        found = self.send("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"])[:500])
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        waiting = (
            "new Promise((done, fail) => { const started = Date.now(); const look = () => "
            f"({expression}) ? done(true) : Date.now() - started > {SECONDS * 500} ? "
            "fail(new Error('never true')) : setTimeout(look, 50); look(); })"
        )
        self.js(waiting)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            at = {"x": x, "y": y, "button": "left", "clickCount": 1}
            self.send("Input.dispatchMouseEvent", type=kind, **at)

    def click_on(self, selector: str) -> None:
        """Click in the middle of the first element that matches."""
        box = f"document.querySelector({selector!r}).getBoundingClientRect()"
        at = self.js(
            f"(() => {{ const b = {box}; return [b.x + b.width/2, b.y + b.height/2]; }})()"
        )
        self.click(*at)

    def key(self, key: str) -> None:
        """Press and release a key, such as Enter or ArrowLeft."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38,
                 "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip
        code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {"text": key}
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def write(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def picture(self) -> bytes:
        """A PNG of what is on the screen."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        self._wait(self._browser.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)
