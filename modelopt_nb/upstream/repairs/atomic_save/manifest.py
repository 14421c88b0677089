"""Describe every file and tensor of a packed checkpoint in ``modelopt_nb.json``, and verify them on load."""

import contextlib
import hashlib
import json
import math
import os
import pickle
import re
from collections.abc import Container, Mapping, Sequence
from contextvars import ContextVar
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from modelopt_nb.upstream.repairs.base import METADATA

STATES = MANIFEST, STATE = "modelopt_nb.json", "modelopt_state.pth"  # the kit's, and ModelOpt's own
#: How the ``from_pretrained`` that runs asks the hub: its ``token`` and ``local_files_only``.
HUB: ContextVar[Any] = ContextVar("hub", default=None)
FORMAT = int(METADATA["modelopt_nb"])
PACKAGES = ("modelopt-nb", "torch", "diffusers", "nvidia-modelopt", "transformers")
UNUSED = ("weight_quantizer._amax", "weight_quantizer._global_amax")  # in checkpoints of ModelOpt alone


class CheckpointError(ValueError):
    """A folder does not hold the checkpoint that was saved. The message names the file and, if known, the tensor."""


def write_manifest(folder: Path, class_name: str) -> None:
    """Write the manifest of all files in ``folder``: size, digest, and a digest per tensor."""
    files = {path.name: _describe(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."}
    versions = {d.name: d.version for d in distributions() if d.name in PACKAGES}
    manifest = {"format": FORMAT, "class": class_name, "versions": versions, "files": files}
    text = json.dumps(manifest | {"digest": _digest(manifest)}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def verify(files: Sequence[str | os.PathLike], class_name: str) -> None:
    """Raise CheckpointError if the checkpoint of ``files`` does not match its manifest; only the kit's have one."""
    paths = [Path(f) for f in files]
    folder, path = paths[0].parent, paths[0].parent / MANIFEST
    _verify_pickle(folder / STATE)
    if not path.exists():
        headers = {p: _read(p, lambda file: file.metadata() or {}) for p in paths if p.suffix == ".safetensors"}
        ours = [p.name for p, header in headers.items() if METADATA.keys() & header.keys()]
        config = folder / "config.json"
        if ours or (config.exists() and b'"modelopt"' in config.read_bytes()):
            _fetch(path)
        if not path.exists():
            if ours:
                raise CheckpointError(f"{path} is missing; cannot verify {ours[0]} and the other files")
            return
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        digest, made = manifest.pop("digest"), manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a manifest: it was altered or cut off ({error!r})") from None
    if isinstance(made, int) and made > FORMAT:
        raise CheckpointError(f"{path}: format {made}. Allowed: up to {FORMAT}; a newer modelopt_nb wrote it")
    if digest != _digest(manifest):
        raise CheckpointError(f"{path} was altered: its digest does not match its contents")
    if manifest["class"] != class_name:
        raise CheckpointError(f"{path}: the weights are of class {manifest['class']}, and not {class_name}")
    for name, entry in manifest["files"].items():
        _verify_file(folder / name, entry)
    if unknown := [p for p in paths if p.name not in manifest["files"]]:
        raise CheckpointError(f"{unknown[0]} is not a file of the checkpoint that {MANIFEST} describes")


def verify_config(folder: Path) -> None:
    """Raise CheckpointError if ``config.json`` does not match the manifest, before anything in it is believed."""
    path, entry = folder / "config.json", None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        entry = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"][path.name]
    if entry and path.exists():
        _verify_file(path, entry)


def verify_cached_config(repo: str, options: Mapping[str, Any]) -> None:
    """Verify the ``config.json`` of a hub id in the hub's cache, as :func:`verify_config` does, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    name, path = "/".join(filter(None, (options.get("subfolder"), "config.json"))), None
    with contextlib.suppress(ValueError):  # not the form of a hub id
        path = try_to_load_from_cache(repo, name, options.get("cache_dir"), options.get("revision"))
    if isinstance(path, str):
        folder = Path(path).parent
        if b'"modelopt"' in Path(path).read_bytes() and not (folder / MANIFEST).exists():
            _fetch(folder / MANIFEST)
        verify_config(folder)


def _verify_pickle(path: Path) -> None:
    """Refuse ModelOpt's own state file if torch's weights-only unpickler does; nothing here uses its contents."""
    try:
        if path.exists():
            torch.load(path, weights_only=True, map_location="meta")
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is refused, and not run: {str(error).splitlines()[0]}") from None


def _verify_file(path: Path, entry: dict[str, Any]) -> None:
    recorded, where = entry.get("tensors", {}), ""
    if not path.exists():
        held = f", with {', '.join(list(recorded)[:3])} ..." if recorded else ""
        raise CheckpointError(f"{path} is missing{held}")
    size = path.stat().st_size
    if size == entry["bytes"] and _sha256(path) == entry["sha256"]:
        return
    with contextlib.suppress(CheckpointError):
        now = _read(path, _tensor_digests) if recorded else {}
        hit = [name for name, digest in recorded.items() if now.get(name) != digest]
        where = f", in {', '.join(hit[:3])}{' and more' if len(hit) > 3 else ''}" if hit else ""
    where = where or (", in its header" if recorded else "")
    sizes = "" if size == entry["bytes"] else f", {size} bytes instead of {entry['bytes']}"
    raise CheckpointError(f"{path} was altered or cut off{sizes}{where}")


def verify_tensors(files: Sequence[Path], expected: Mapping[str, torch.Tensor], packed: Container[str]) -> None:
    """Raise CheckpointError if safetensors do not hold the ``expected`` tensors: names, shapes, bytes of ``packed`` ones."""
    found = {name: (file, *described) for file in files for name, described in _shapes(file).items()}
    if not found:
        return
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"{files[0].parent}: {', '.join(missing[:3])} is missing, {len(missing)} in all")
    if extra := sorted(x for x in found.keys() - expected.keys() if not x.endswith(UNUSED)):
        raise CheckpointError(f"{found[extra[0]][0]}: {', '.join(extra[:3])} is not of this model, {len(extra)} in all")
    for name, tensor in expected.items():
        file, shape, bits = found[name]
        if shape != tuple(tensor.shape):
            raise CheckpointError(f"{file}: {name} has shape {shape}. Allowed by config.json: {tuple(tensor.shape)}")
        size, needed = math.prod(shape) * bits // 8, tensor.numel() * tensor.element_size()
        if (name in packed or "weight_quantizer." in name) and size != needed:
            raise CheckpointError(f"{file}: {name} takes {size} bytes. Allowed by config.json: {needed}")


def tensor_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in safetensors files."""
    return {name: shape for file in files for name, (shape, _) in _shapes(file).items()}


def _fetch(path: Path) -> None:
    """Download the manifest of a checkpoint in the hub's cache, which holds only files that were asked for."""
    parts = path.parts
    at = len(parts) - 1 - parts[::-1].index("snapshots") if "snapshots" in parts else 0
    kind, _, repo = parts[at - 1].partition("--")
    if at and kind == "models":
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        with contextlib.suppress(EntryNotFoundError, OSError):  # also no such repository, no right, and no network
            name, cache = "/".join(parts[at + 2 :]), Path(*parts[: at - 1])
            hf_hub_download(repo.replace("--", "/"), name, revision=parts[at + 1], cache_dir=cache, **HUB.get() or {})


def _read(path: Path, extract: Any) -> dict[str, Any]:
    """Return what ``extract`` reads of a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return extract(file)
    except SafetensorError as error:
        raise CheckpointError(f"{path} was altered or cut off in its header: {error}") from None


def _shapes(path: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return shape and bits per element of every tensor; nothing for a file of another kind."""

    def extract(file: Any) -> dict[str, Any]:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {n: (tuple(s.get_shape()), int(re.findall(r"\d+", s.get_dtype())[0])) for n, s in slices.items()}

    return _read(path, extract) if path.suffix == ".safetensors" else {}


def _describe(path: Path) -> dict[str, Any]:
    tensors = {"tensors": _read(path, _tensor_digests)} if path.suffix == ".safetensors" else {}
    return {"bytes": path.stat().st_size, "sha256": _sha256(path), **tensors}


def _tensor_digests(file: Any) -> dict[str, str]:
    """Return a digest of every tensor's dtype, shape and bytes."""

    def digest(tensor: torch.Tensor) -> str:
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        return hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode() + data.tobytes()).hexdigest()

    return {name: digest(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
