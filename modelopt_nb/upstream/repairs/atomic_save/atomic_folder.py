"""Replace the checkpoint in a folder atomically: a process killed at any moment leaves the old or the new one.

A save writes into a hidden folder in the target folder. Under a lock it then writes a journal of what moves and what
goes, moves file by file, and removes the journal. A load or save that finds a journal completes it first.
"""

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from modelopt_nb.upstream.repairs.atomic_save.manifest import MANIFEST, STATES, CheckpointError

PIPELINE = "model_index.json"
JOURNAL, LOCK, SAVING = ".modelopt_nb.journal", ".modelopt_nb.lock", ".modelopt_nb.saving-"
WEIGHTS = re.compile(r"(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index)?")


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder to save into. Its files replace the checkpoint in ``folder`` if the block ends well.

    Shards and indexes of the old checkpoint are removed. No other file is touched.

    Raises:
        ValueError: A file cannot be moved into its place. Nothing has changed.
    """
    folder = Path(os.path.realpath(folder))
    if any(part.startswith(SAVING) for part in folder.parts):  # a component of a pipeline that is being saved
        folder.mkdir(exist_ok=True)
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    root, new = _root(folder), folder / f"{SAVING}{uuid.uuid4().hex[:8]}"
    with _settled(root):
        for left in folder.glob(f"{SAVING}*"):  # by a killed process; a living one holds the lock in it
            with contextlib.suppress(Timeout), FileLock(left / LOCK, timeout=0):
                shutil.rmtree(left)
        new.mkdir()
        living = FileLock(new / LOCK)
        living.acquire()
    try:
        yield new
        paths = [path for path in new.rglob("*") if path.name != LOCK]
        for path in (*paths, new):
            _flush(path)
        files = sorted(path.relative_to(new).as_posix() for path in paths if path.is_file())
        files.sort(key=lambda name: (name != PIPELINE, name.endswith(MANIFEST)))
        with _settled(root):
            _check_places(folder, new, paths)
            stale = [path.relative_to(folder).as_posix() for path in _stale(folder, new, paths)]
            journal = {"new": new.relative_to(root).as_posix(), "files": files, "stale": stale}
            (new / JOURNAL).write_text(json.dumps(journal), encoding="utf-8")
            _flush(new / JOURNAL)
            os.replace(new / JOURNAL, root / JOURNAL)  # from here on the new checkpoint counts
            _flush(root)
            _finish(root)
    finally:
        living.release()
        if not (root / JOURNAL).exists():
            shutil.rmtree(new, ignore_errors=True)


def load_whole(folder: Path, load: Callable[[], Any], locked: bool = False) -> Any:
    """Return what ``load`` reads of one checkpoint in ``folder``: under the lock, if a save disturbed the first try."""
    root = _root(Path(os.path.realpath(folder)))
    with _settled(root) if locked or (root / JOURNAL).exists() else contextlib.nullcontext():
        before = _stamp(root)
        try:
            result = load()
        except Exception:
            if locked or before == _stamp(root):
                raise
        else:
            if locked or before == _stamp(root):
                return result
    return load_whole(folder, load, locked=True)


def manifests(folder: Path) -> list[Path]:
    """List the manifests in the folder of a model or a pipeline."""
    return [path for path in (folder / MANIFEST, *folder.glob(f"[!.]*/{MANIFEST}")) if path.exists()]


def _root(folder: Path) -> Path:
    """Return the folder that has the journal and the lock: of a component, its pipeline's."""
    return folder.parent if (folder.parent / PIPELINE).exists() else folder


def _stamp(root: Path) -> object:
    """Identify the checkpoints in a folder; equals nothing during a save."""
    stamp = []
    for path in (root / PIPELINE, *manifests(root)):
        with contextlib.suppress(FileNotFoundError):
            stamp.append((path, path.stat().st_ino, path.stat().st_mtime_ns))
    return object() if (root / JOURNAL).exists() else stamp


@contextlib.contextmanager
def _settled(root: Path) -> Iterator[None]:
    """Hold the lock of a folder in which no save is unfinished."""
    with contextlib.ExitStack() as stack:
        try:
            lock = FileLock(root / LOCK, mode=0o664, is_singleton=True)
            stack.enter_context(lock.acquire(poll_interval=0.01))
            stack.callback(_remove, lock)
            _finish(root)
        except OSError as error:
            raise CheckpointError(
                f"{root} must be written, to save there or to complete an unfinished save: {error}. Allowed: a folder"
                f" that can be written, or a copy of it with its hidden files"
            ) from error
        yield


def _remove(lock: BaseFileLock) -> None:
    """Remove the file of a lock before its release, which is safe: filelock tries again if it locked a removed file."""
    with contextlib.suppress(OSError):  # Windows keeps an open file
        if lock.lock_counter == 1:
            os.unlink(lock.lock_file)


def _finish(root: Path) -> None:
    """Do what is left of a journal. It may come with a download: refuse one that reaches other folders."""
    journal = root / JOURNAL
    if not journal.exists():
        return
    try:
        entry = json.loads(journal.read_text(encoding="utf-8"))
        new = root / entry["new"]
        moves = [(new / name, new.parent / name) for name in entry["files"]]
        stale = [new.parent / name for name in entry["stale"]]
        paths = [new, *stale, *(path for move in moves for path in move)]
        inside = (p.parent.resolve().is_relative_to(root) and ".." not in p.parts for p in paths)
        if not new.name.startswith(SAVING) or new.is_symlink() or not all(inside):
            raise ValueError("it names other folders")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{journal} is not the journal of a save in this folder ({error!r}): delete it") from None
    for source, target in moves:
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    for path in stale:
        path.unlink(missing_ok=True)
    for path in {root, *(target.parent for _, target in moves)}:
        _flush(path)
    shutil.rmtree(new, ignore_errors=True)
    journal.unlink()


def _check_places(folder: Path, new: Path, paths: list[Path]) -> None:
    for path in paths:
        old = folder / path.relative_to(new)
        writable = not (old.is_symlink() or os.path.ismount(old)) and os.access(old, os.W_OK)
        if os.path.lexists(old) and not (old.is_dir() and writable if path.is_dir() else not old.is_dir()):
            raise ValueError(
                f"{old} cannot be replaced together with the rest. Allowed: a file for a file; for a component a folder"
                f" that can be written, not a link or a mount point, or its own save_pretrained"
            )


def _stale(folder: Path, new: Path, paths: list[Path]) -> Iterator[Path]:
    """Yield the files of old checkpoints of the same names and variants that no new file replaces."""
    for parent in {path.parent for path in paths}:
        names = {path.name for path in parent.iterdir()}
        owned = {_weights(name) for name in names} - {None}
        for old in (folder / parent.relative_to(new)).glob("*") if owned else ():
            if not (old.name in names or old.is_dir()) and (old.name in STATES or _weights(old.name) in owned):
                yield old


def _weights(name: str) -> str | None:
    """Return name and variant of a file or index of weights, without the number of its shard."""
    return WEIGHTS.sub("", name).removesuffix(".json") if WEIGHTS.search(name) else None


def _flush(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder cannot be opened on Windows
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
