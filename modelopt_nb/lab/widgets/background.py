"""A widget that works in a background thread."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
from traitlets import Dict, Enum, Unicode

from modelopt_nb.lab.widgets.workbench import Stopped, Workbench

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATIC = Path(__file__).with_name("static")


_log = logging.getLogger(__name__)


class BackgroundWidget(anywidget.AnyWidget):
    """A widget that works in a thread beside the kernel's: one thing at a time, told by ``status`` and ``progress``."""

    _esm, _css = STATIC / "widgets.js", STATIC / "widgets.css"
    kind = Unicode().tag(sync=True)
    status = Enum(["idle", "running", "stopping"], "idle").tag(sync=True)
    progress = Dict().tag(sync=True)  # done and total, in denoising steps; left, in seconds
    message = Unicode().tag(sync=True)
    about = Unicode().tag(sync=True)

    def __init__(self, workbench: Workbench, **traits: Any) -> None:
        self.workbench = workbench
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="modelopt_nb")
        self._job: Future | None = None
        #: The error that ended the last work, where one did; the widget shows its message.
        self.error: Exception | None = None
        super().__init__(about=workbench.about, **traits)
        self.on_msg(self._told)

    #: What the view may ask for: names of methods without arguments, or with those that it sends.
    ACTIONS: tuple[str, ...] = ()
    #: Traits that hold pictures, and what they are when they hold none: a closed widget stays in a notebook's file.
    HEAVY: dict[str, Any] = {}

    def _told(self, widget: Any, content: Mapping[str, Any], buffers: Any) -> None:
        if isinstance(content, Mapping) and content.get("do") in self.ACTIONS:
            try:
                getattr(self, content["do"])(*content.get("with", ()))
            except (ValueError, TypeError, IndexError) as error:
                self.message = str(error)

    def _begin(self, total: int, work: Callable[[], str]) -> None:
        """Run ``work``, which returns the last message, beside the kernel. What it raises is told, and kept in ``error``."""
        self._done, self._total, self._since, self._told_at, self.error = 0, total, time.monotonic(), 0.0, None
        self.workbench.stopping = False  # here, so that a stop that comes before the first step counts
        self.status, self.progress = "running", {"done": 0, "total": total, "left": None}

        def whole() -> None:
            try:
                self.message = work()
            except Stopped:
                self.message = "Stopped. What was finished is kept."
            except Exception as error:  # the person at the widget is told; nobody else would be, in a thread
                self.error = error
                _log.debug("%s", self, exc_info=error)
                self.message = f"{type(error).__name__}: {error}"
            finally:
                self.status, self.progress = "idle", {}

        self._job = self._worker.submit(whole)

    def _tick(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._told_at > 0.1:
            self._told_at = now
            left = (now - self._since) / self._done * max(self._total - self._done, 0)
            self.progress = {"done": min(self._done, self._total), "total": self._total, "left": left}

    def wait(self, timeout: float | None = None) -> None:
        """Return when the work is over. Raises TimeoutError after ``timeout`` seconds."""
        if self._job is not None:
            self._job.result(timeout)

    def close(self) -> None:
        """Stop, and close the widget."""
        with contextlib.suppress(AttributeError):  # while ipywidgets is being torn down
            self.stop()
            self._worker.shutdown(wait=False)
            for name, nothing in self.HEAVY.items():
                self.set_trait(name, nothing)
        super().close()

    def figure(self) -> Figure | None:
        """What is shown, as a figure; None before anything is."""
        raise NotImplementedError

    def png(self) -> bytes | None:
        """:meth:`figure` as a PNG file."""
        if (figure := self.figure()) is None:
            return None
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget; and where there is no front end, what it shows as a picture."""
        bundle, png = super()._repr_mimebundle_(**kwargs), self.png()
        return bundle if png is None else ({**bundle[0], "image/png": png}, bundle[1])

    def stop(self) -> None:
        """End the work within one denoising step; what was finished is kept."""
        if self.status == "running":
            self.status = "stopping"
            self.workbench.stop()
