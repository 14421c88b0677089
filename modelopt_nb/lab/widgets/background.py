"""A widget that works in a background thread."""

import contextlib
import io
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import anywidget
from matplotlib.figure import Figure
from traitlets import Dict, Enum, Unicode

from modelopt_nb.lab.widgets.workbench import Stopped, Workbench

STATIC = Path(__file__).with_name("static")
PROGRESS_INTERVAL = 0.1  # seconds between two updates of the progress

_log = logging.getLogger(__name__)


def view_code(name: str) -> str:
    """Return the front end of a widget: the shared JavaScript and its own file in ``static``, as one module."""
    return "\n".join((STATIC / file).read_text(encoding="utf-8") for file in ("shared.js", f"{name}.js"))


class BackgroundWidget(anywidget.AnyWidget):
    """A widget that runs one job at a time in a background thread and shows its ``status`` and ``progress``.

    A subclass has its front end in ``_esm`` (:func:`view_code`).
    """

    _css = STATIC / "widgets.css"
    status = Enum(["idle", "running", "stopping"], "idle").tag(sync=True)
    progress = Dict().tag(sync=True)  # done and total, in denoising steps; left, in seconds
    message = Unicode().tag(sync=True)
    about = Unicode().tag(sync=True)

    #: Names of the methods that the view may call.
    ACTIONS: ClassVar[tuple[str, ...]] = ()
    #: Traits that hold images, and their empty values. They are emptied on closing, to keep a notebook's file small.
    IMAGES: ClassVar[dict[str, Any]] = {}

    def __init__(self, workbench: Workbench, **traits: Any) -> None:
        self.workbench = workbench
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="modelopt_nb")
        self._job: Future[None] | None = None
        #: The error that ended the last job, or None; the widget shows its message.
        self.error: Exception | None = None
        super().__init__(about=workbench.about, **traits)
        self.on_msg(self._receive)

    def _receive(self, widget: Any, content: Any, buffers: Any) -> None:
        """Call the method that the view asks for; show its error as the message."""
        if isinstance(content, Mapping) and content.get("do") in self.ACTIONS:
            try:
                getattr(self, content["do"])(*content.get("with", ()))
            except (ValueError, TypeError, IndexError) as error:
                self.message = str(error)

    def _start(self, total: int, work: Callable[[], str]) -> None:
        """Run ``work`` in the background thread; the string that it returns becomes the message.

        An error becomes the message too, and :attr:`error`. ``total`` is in denoising steps (:meth:`_step`).
        """
        self._done, self._total, self._since, self._shown_at, self.error = 0, total, time.monotonic(), 0.0, None
        self.workbench.stopping = False  # before the thread starts, so that an early stop() is not lost
        self.status, self.progress = "running", {"done": 0, "total": total, "left": None}

        def job() -> None:
            try:
                self.message = work()
            except Stopped:
                self.message = "Stopped. What was finished is kept."
            except Exception as error:  # nothing else would show an error of a thread
                self.error = error
                _log.debug("%s", self, exc_info=error)
                self.message = f"{type(error).__name__}: {error}"
            finally:
                self.status, self.progress = "idle", {}

        self._job = self._worker.submit(job)

    def _step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._shown_at > PROGRESS_INTERVAL:
            self._shown_at = now
            left = (now - self._since) / self._done * max(self._total - self._done, 0)
            self.progress = {"done": min(self._done, self._total), "total": self._total, "left": left}

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the job is over. Raises TimeoutError after ``timeout`` seconds."""
        if self._job is not None:
            self._job.result(timeout)

    def stop(self) -> None:
        """End the job within one denoising step; what was finished is kept."""
        if self.status == "running":
            self.status = "stopping"
            self.workbench.stop()

    def close(self) -> None:
        """Stop the job and close the widget."""
        with contextlib.suppress(AttributeError):  # while ipywidgets is being torn down
            self.stop()
            self._worker.shutdown(wait=False)
            for name, empty in self.IMAGES.items():
                self.set_trait(name, empty)
        super().close()

    def figure(self) -> Figure | None:
        """Return what the widget shows as a figure; None if it shows no image."""
        raise NotImplementedError

    def png(self) -> bytes | None:
        """Return :meth:`figure` as a PNG file."""
        if (figure := self.figure()) is None:
            return None
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Return the widget, with its figure for places without a front end."""
        bundle, png = super()._repr_mimebundle_(**kwargs), self.png()
        return bundle if png is None or bundle is None else ({**bundle[0], "image/png": png}, bundle[1])
