"""Replace a folder atomically."""

import contextlib
import ctypes
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

CHECKPOINT_FILES = ("config.json", "modelopt_nb.json", ".safetensors", ".bin", ".pth", ".index.json")


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder to write into, which replaces ``folder`` when the block ends without an error.

    If the process is killed, the old or the new folder is complete. A hidden ``.<name>.saving-...`` may remain; delete it.
    Files of the old folder that belong to no checkpoint, such as a ``README.md``, are kept.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.saving-{uuid.uuid4().hex[:8]}")
    try:
        new.mkdir()
        yield new
        for path in folder.iterdir() if folder.exists() else ():
            if not path.name.endswith(CHECKPOINT_FILES) and not (new / path.name).exists():
                shutil.copytree(path, new / path.name) if path.is_dir() else shutil.copy2(path, new / path.name)
        for path in (*(p for p in new.rglob("*") if p.is_file()), new):
            _flush(path)
        _exchange(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _flush(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder cannot be opened on Windows
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(new: Path, folder: Path) -> None:
    """Exchange two folders atomically where the system can; ``folder`` need not exist."""
    if not folder.exists():
        os.rename(new, folder)
        return
    swap = {"linux": ("renameat2", (-100, os.fsencode(new), -100, os.fsencode(folder), 2)),
            "darwin": ("renamex_np", (os.fsencode(new), os.fsencode(folder), 2))}.get(sys.platform)  # fmt: skip
    if swap and getattr(ctypes.CDLL(None), swap[0], lambda *_: -1)(*swap[1]) == 0:
        return
    old = folder.with_name(f".{folder.name}.old-{uuid.uuid4().hex[:8]}")
    os.rename(folder, old)  # between the two renames there is no folder, and never a mixture
    os.rename(new, folder)
    shutil.rmtree(old)
