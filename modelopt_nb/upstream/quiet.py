"""Silence what ModelOpt prints on every call."""

import contextlib
import functools
import io
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import TextIO
from unittest import mock

SILENCED = (
    "Real quantization has been applied",
    "Skipping extension modelopt_cuda_ext",
    "Received a module with monkey patched",
    ".*is not calibrated, skip smoothing",  # of layers that stay dense
    "Received custom quantization formats",
    "Full backward hook is firing",
)


class OtherThreads(io.TextIOBase):
    """Pass on what other threads print, such as a notebook's cells while a widget quantizes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.silenced = stream, threading.get_ident()
        self.flush = stream.flush

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.silenced else self.stream.write(text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence ModelOpt's prints, progress bars and standing warnings in this thread."""
    from modelopt.torch.quantization import model_calib  # slow, and not needed to import the kit

    no_bar = functools.partial(model_calib.tqdm, disable=True)
    printed = contextlib.redirect_stdout(OtherThreads(sys.stdout))
    with warnings.catch_warnings(), printed, mock.patch.object(model_calib, "tqdm", no_bar):
        for message in SILENCED:
            warnings.filterwarnings("ignore", message=message)
        yield
