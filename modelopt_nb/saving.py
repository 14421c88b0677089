"""A packed model on disk: safetensors and JSON, written whole or not at all, and checked before it is used.

``modelopt_nb.json`` beside the weights lists every file with its size and digest, and every tensor with its digest, so
that a file that was altered, cut off or mixed in from another save is refused, with the name of the tensor it hit.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MANIFEST = "modelopt_nb.json"
FORMAT = 1
PACKAGES = ("modelopt-nb", "torch", "diffusers", "nvidia-modelopt", "transformers")
METADATA = {"modelopt_nb": str(FORMAT)}  # in the header of every safetensors file: a manifest belongs to it
LEFT_OVER = (
    "weight_quantizer._amax",
    "weight_quantizer._global_amax",
)  # ModelOpt's own files have them; no one reads them
WEIGHTS = (".safetensors", ".bin", ".pth", ".index.json")


class CheckpointError(ValueError):
    """A folder that does not hold what was saved; the message names the file and, where it can, the tensor."""


@contextlib.contextmanager
def written_whole(folder: str | os.PathLike) -> Iterator[Path]:
    """Give a folder beside ``folder`` to write into, and let it take ``folder``'s place at the end of the block.

    A process that is killed leaves the old folder or the new one, and what it had written so far in a hidden folder
    ``.<name>.saving-...`` beside it, which can be deleted. Files of the old folder that are no checkpoint, such as
    a ``README.md``, are in the new one too.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.saving-{uuid.uuid4().hex[:8]}")
    try:
        beside.mkdir()
        yield beside
        if folder.exists():
            _carry_over(folder, beside)
        for path in (*(p for p in beside.rglob("*") if p.is_file()), beside):
            _flush(path)
        _exchange(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _carry_over(old: Path, new: Path) -> None:
    for path in old.iterdir():
        stale = path.name in (MANIFEST, "config.json") or path.name.endswith(WEIGHTS)
        if not stale and not (new / path.name).exists():
            shutil.copytree(path, new / path.name) if path.is_dir() else shutil.copy2(path, new / path.name)


def _flush(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder cannot be opened on Windows
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(new: Path, folder: Path) -> None:
    """Let ``new`` and ``folder`` take each other's place at once, where the system can; ``folder`` need not exist."""
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


def write_manifest(folder: Path, class_name: str) -> None:
    """Describe every file of ``folder``, in ``modelopt_nb.json`` beside them."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path), **_tensors(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    versions = {name: version(name) for name in PACKAGES}
    manifest = {"format": FORMAT, "class": class_name, "versions": versions, "files": files}
    text = json.dumps(manifest | {"digest": _digest(manifest)}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check(files: Sequence[str | os.PathLike], class_name: str) -> None:
    """Refuse the checkpoint that ``files`` are of where it is not what was saved.

    Raises:
        CheckpointError: A file that is missing, cut off or altered, a newer format, another class of model.
    """
    files = [Path(f) for f in files]
    folder = files[0].parent
    _check_pickle(folder / "modelopt_state.pth")
    path = folder / MANIFEST
    if not path.exists():
        _fetch(path)
    if not path.exists():
        for file in files:
            if file.suffix == ".safetensors" and METADATA.keys() & header(file)[0].get("__metadata__", {}).keys():
                raise CheckpointError(f"{path} is missing, which says what {file.name} and the others have to be")
        return
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        made = manifest["format"]
        digest = manifest.pop("digest")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a manifest: it was altered or cut off ({error!r})") from None
    if isinstance(made, int) and made > FORMAT:
        raise CheckpointError(f"{path}: format {made}. Allowed: up to {FORMAT}; a newer modelopt_nb wrote it")
    if digest != _digest(manifest):
        raise CheckpointError(f"{path} was altered: its digest does not fit what it says")
    if manifest["class"] != class_name:
        raise CheckpointError(f"{path}: the weights are of class {manifest['class']}, and not {class_name}")
    for name, entry in manifest["files"].items():
        _check_file(folder / name, entry)
    for file in files:
        if file.name not in manifest["files"]:
            raise CheckpointError(f"{file} is not a file of the checkpoint that {MANIFEST} describes")


def _check_pickle(path: Path) -> None:
    """Refuse ModelOpt's own state file where torch's weights-only unpickler does; nothing here needs what it holds."""
    import pickle

    import torch

    try:
        if path.exists():
            torch.load(path, weights_only=True, map_location="meta")
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is refused, and nothing in it was run: {reason}") from None


def check_tensors(files: Sequence[Path], expected: Mapping[str, torch.Tensor], packed: Container[str]) -> None:
    """Refuse safetensors that do not hold the ``expected`` tensors, each of its shape and, where ``packed``, its bytes.

    Raises:
        CheckpointError: A tensor that is missing, that nothing expects, or that does not fit.
    """
    found = tensors(files)
    if not found:
        return
    where = files[0].parent
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"{where}: {', '.join(missing[:3])} is missing, {len(missing)} in all")
    if extra := sorted(x for x in found.keys() - expected.keys() if not x.endswith(LEFT_OVER)):
        raise CheckpointError(f"{found[extra[0]][1]}: {', '.join(extra[:3])} is not of this model, {len(extra)} in all")
    for name, tensor in expected.items():
        described, file = found[name]
        shape, (first, last) = tuple(described["shape"]), described["data_offsets"]
        if shape != tuple(tensor.shape):
            raise CheckpointError(f"{file}: {name} has shape {shape}. Allowed by config.json: {tuple(tensor.shape)}")
        size = tensor.numel() * tensor.element_size()
        if (name in packed or "weight_quantizer." in name) and last - first != size:
            raise CheckpointError(f"{file}: {name} takes {last - first} bytes. Allowed by config.json: {size}")


def _check_file(path: Path, entry: dict[str, Any]) -> None:
    if not path.exists():
        held = f", with {', '.join(list(entry['tensors'])[:3])} ..." if "tensors" in entry else ""
        raise CheckpointError(f"{path} is missing{held}")
    if path.stat().st_size == entry["bytes"] and _sha256(path) == entry["sha256"]:
        return
    found = path.stat().st_size
    size = "" if found == entry["bytes"] else f", {found} bytes instead of {entry['bytes']}"
    where = ""
    if "tensors" in entry:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            now = _tensors(path)["tensors"]
            hit = [name for name, digest in entry["tensors"].items() if now.get(name) != digest]
            where = f", in {', '.join(hit[:3])}{' and more' if len(hit) > 3 else ''}" if hit else ", in its header"
        where = where or ", in its header"
    raise CheckpointError(f"{path} was altered or cut off{size}{where}")


def _fetch(path: Path) -> None:
    """Bring the manifest of a checkpoint that lies in the hub's cache, where only files that were asked for are."""
    parts = path.parts
    if "snapshots" not in parts:
        return
    at = len(parts) - 1 - parts[::-1].index("snapshots")
    kind, _, repo = parts[at - 1].partition("--")
    if kind != "models":
        return
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with contextlib.suppress(EntryNotFoundError, LocalEntryNotFoundError):
        name, cache = "/".join(parts[at + 2 :]), Path(*parts[: at - 1])
        hf_hub_download(repo.replace("--", "/"), name, revision=parts[at + 1], cache_dir=cache)


def header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begin.

    Source: the format's page, https://huggingface.co/docs/safetensors.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size - 8:
            raise CheckpointError(f"{path} is cut off in its header")
        return json.loads(file.read(length)), 8 + length


def tensors(files: Sequence[Path]) -> dict[str, tuple[dict[str, Any], Path]]:
    """How safetensors files describe each of their tensors, and in which file it is."""
    return {
        name: (described, file)
        for file in files
        if file.suffix == ".safetensors"
        for name, described in header(file)[0].items()
        if name != "__metadata__"
    }


def shapes(files: Sequence[Path]) -> dict[str, list[int]]:
    """The shape of every tensor in safetensors files."""
    return {name: described["shape"] for name, (described, _) in tensors(files).items()}


def _tensors(path: Path) -> dict[str, dict[str, str]]:
    """A digest for every tensor of a safetensors file, its dtype and shape included."""
    if path.suffix != ".safetensors":
        return {}
    described, start = header(path)
    digests = {}
    with open(path, "rb") as file:
        for name, tensor in described.items():
            if name != "__metadata__":
                first, last = tensor["data_offsets"]
                file.seek(start + first)
                kind = f"{tensor['dtype']} {tensor['shape']} ".encode()
                digests[name] = hashlib.sha256(kind + file.read(last - first)).hexdigest()
    return {"tensors": digests}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
