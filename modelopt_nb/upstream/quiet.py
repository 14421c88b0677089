"""Silence what ModelOpt prints on every call."""

import contextlib
import functools
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast
from unittest import mock

SILENCED = (
    "Real quantization has been applied",
    "Skipping extension modelopt_cuda_ext",
    "Received a module with monkey patched",
    ".*is not calibrated, skip smoothing",  # of layers that stay dense
    "Received custom quantization formats",
    "Full backward hook is firing",
    ".*which matches no layer",  # said before, when the model was packed
)
_lock, _inside, _undo = threading.RLock(), Counter(), contextlib.ExitStack()  # threads inside; what the last one undoes


class OtherThreads:
    """Pass on what other threads print, such as a notebook's cells while a widget quantizes."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() in _inside else self.stream.write(text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence ModelOpt's prints, progress bars and standing warnings in this thread.

    Blocks may be nested, and overlap in several threads: the first changes the process, the last restores it.
    """
    from modelopt.torch.quantization import model_calib  # slow, and not needed to import the kit

    thread = threading.get_ident()
    with _lock:
        if not _inside:
            no_bar = functools.partial(model_calib.tqdm, disable=True)
            _undo.enter_context(warnings.catch_warnings())
            _undo.enter_context(contextlib.redirect_stdout(cast(Any, OtherThreads(sys.stdout))))
            _undo.enter_context(mock.patch.object(model_calib, "tqdm", no_bar))
            for message in SILENCED:
                warnings.filterwarnings("ignore", message=message)
        _inside[thread] += 1
    try:
        yield
    finally:
        with _lock:
            _inside.subtract([thread])
            if not _inside[thread]:
                del _inside[thread]
            if not _inside:
                _undo.close()
