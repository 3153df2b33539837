"""How a figure shows in a notebook: as interactive plotly, and as a PNG where no script runs.

The PNG is drawn by a headless Chrome or Chromium through kaleido. One browser stays open for all
figures of a process, because starting one takes seconds and a figure only half a second. Where
none is found or none starts, figures are interactive alone, and one warning says so.
"""

import asyncio
import atexit
import base64
import contextlib
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

from plotly.io.base_renderers import MimetypeRenderer

SCALE = 1.25  # PNG pixels per figure pixel: sharp in GitHub's column, small enough to commit
START_S, DRAW_S, STOP_S = 120, 90, 10


class Chrome:
    """A headless browser in a thread of its own, so that a notebook's event loop is not in its way.

    Raises whatever kaleido raises if there is no browser or it does not start in START_S seconds.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.process = os.getpid()
        self._kaleido = self._wait(self._start(), START_S)
        atexit.register(self.close)

    async def _start(self) -> Any:
        from kaleido import Kaleido

        return await Kaleido(mathjax=False, timeout=DRAW_S)  # MathJax would come from the network

    def png(self, figure: dict[str, Any]) -> bytes:
        """The figure as PNG bytes; raises if it takes longer than DRAW_S seconds."""
        options = {"format": "png", "scale": SCALE}
        return squeeze(self._wait(self._kaleido.calc_fig(figure, opts=options), DRAW_S + 5))

    def close(self) -> None:
        """Ends the browser. A browser that does not answer ends with this process's pipe to it."""
        atexit.unregister(self.close)
        if self.process == os.getpid() and self._loop.is_running():
            with contextlib.suppress(Exception):
                self._wait(self._kaleido.close(), STOP_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(STOP_S)
            self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except FutureTimeoutError:
            future.cancel()
            raise TimeoutError(f"the browser did not answer within {seconds} s") from None


def squeeze(png: bytes) -> bytes:
    """The same picture in a quarter fewer bytes: browsers compress PNGs in haste."""
    chunks, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        chunks.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    pixels = zlib.compress(zlib.decompress(b"".join(d for k, d in chunks if k == b"IDAT")), 9)
    kept = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    squeezed = png[:8]
    for kind, data in [*kept[:-1], (b"IDAT", pixels), kept[-1]]:  # the last one is IEND
        body = kind + data
        squeezed += struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    return squeezed


@dataclass
class _Shared:
    chrome: Chrome | None = None
    gave_up: bool = False


class InteractiveAndStatic(MimetypeRenderer):
    """Plotly's JSON for pages that run scripts, and a PNG for those that do not."""

    def __init__(self) -> None:
        # Plotly draws with a shallow copy of its renderer: what copies share lies in one object.
        self._shared = _Shared()

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, Any]:
        bundle: dict[str, Any] = {"application/vnd.plotly.v1+json": fig_dict}
        png = self._png(fig_dict)
        return bundle if png is None else bundle | {"image/png": base64.b64encode(png).decode()}

    def _png(self, figure: dict[str, Any]) -> bytes | None:
        shared = self._shared
        if shared.gave_up:
            return None
        try:
            if shared.chrome is None or shared.chrome.process != os.getpid():  # none, or a parent's
                shared.chrome = Chrome()
            return shared.chrome.png(figure)
        except Exception as error:  # whatever stops it, the interactive figure is still there
            shared.gave_up = True
            if shared.chrome is not None:
                shared.chrome.close()
            why = str(next(iter(error.args), type(error).__name__)).split("\n")[0]
            warnings.warn(
                f"Figures are interactive only, without PNG: {why} (Debian and Ubuntu: "
                "apt-get install chromium; elsewhere: plotly_get_chrome)",
                stacklevel=2,
            )
            return None
