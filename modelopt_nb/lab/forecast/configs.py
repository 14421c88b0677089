"""Find the configurations of a pipeline's components: in a folder, on the hub, shipped here, or of a loaded pipeline."""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import transformers
from torch import nn

from modelopt_nb.lab.pipelines.load import EMBEDDED
from modelopt_nb.lab.pipelines.prompts import DATA

SHIPPED = DATA / "architectures"
VERSIONS = f"Diffusers {diffusers.__version__} and Transformers {transformers.__version__}"
#: What to do about an error of the hub, by the name of its class.
HINTS = {
    "GatedRepoError": "is gated: accept its terms on its page, then run `hf auth login`",
    "RepositoryNotFoundError": "does not exist or is private: check its name, or run `hf auth login`",
}


class Part(NamedTuple):
    """A component: its class, of Diffusers or Transformers, and the configuration that it is built from."""

    name: str
    cls: Any
    config: Mapping[str, Any]


class PipelineParts(NamedTuple):
    """A pipeline's components, the size that it generates by default, and what is left out, and why."""

    title: str
    parts: list[Part]
    size: Mapping[str, int] = {}
    left_out: Mapping[str, str] = {}


def architectures() -> list[str]:
    """Return the names of the published pipelines in ``data/architectures``, for :func:`modelopt_nb.forecast`."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def read_parts(source: Any) -> PipelineParts:
    """Return the components of ``source``; see :func:`modelopt_nb.forecast` for what it may be, and its errors."""
    if isinstance(source, Mapping):
        configs = {"model": source} if source.keys() & {"_class_name", "architectures"} else source
        return PipelineParts("configuration", [_part_of(name, config) for name, config in configs.items()])
    loaded = {"model": source} if isinstance(source, nn.Module) else getattr(source, "components", None)
    if loaded is not None:
        models = {name: part for name, part in loaded.items() if isinstance(part, nn.Module)}
        parts = [Part(name, type(m), _config_of(m)) for name, m in models.items() if hasattr(m, "config")]
        if not parts:
            raise ValueError(f"{type(source).__name__} has no configuration. Allowed: models of {VERSIONS}")
        left_out = {name: "it has no configuration" for name, m in models.items() if not hasattr(m, "config")}
        return PipelineParts(type(source).__name__, parts, left_out=left_out)
    if source is not None and not isinstance(source, (str, Path)):
        allowed = "a folder, a hub id, a name in architectures(), a configuration, a pipeline or a model"
        raise TypeError(f"model_or_config is a {type(source).__name__}. Allowed: {allowed}")
    text = str(EMBEDDED if source is None else source)
    path, shipped = Path(text), {name.lower(): name for name in architectures()}
    if path.is_dir():
        return _from_files(path.name, lambda name: _load(path / name), f"the folder {text!r}")
    if text.lower() in shipped:
        entry = _load(SHIPPED / f"{shipped[text.lower()]}.json")
        parts = [
            Part(name, _class(name, c["library"], c["class"]), c["config"]) for name, c in entry["components"].items()
        ]
        return PipelineParts(entry["name"], parts, entry["size"] | {"batch": entry["batch"]}, entry.get("left_out", {}))
    if len(path.parts) == 2 and not path.is_absolute() and not text.startswith("."):
        return _from_files(text, lambda name: _load(_download(text, name)), f"the hub's {text}")
    wrong = f"model_or_config={text!r} is no folder, no hub id 'owner/name' and no name in architectures()"
    raise FileNotFoundError(f"{wrong}: {', '.join(shipped.values())}")


def _from_files(title: str, read: Callable[[str], dict[str, Any]], where: str) -> PipelineParts:
    """Read a pipeline's ``model_index.json`` and ``config.json`` files, or one model's ``config.json``."""
    try:
        index = read("model_index.json")
    except FileNotFoundError:
        try:
            return PipelineParts(title, [_part_of("model", read("config.json"))])
        except FileNotFoundError as error:
            wrong = f"{where} has neither model_index.json nor config.json"
            raise FileNotFoundError(f"{wrong}. Allowed: a pipeline or a model of {VERSIONS}") from error
    parts, left_out = [], {}
    for name, entry in index.items():
        if not isinstance(entry, list) or len(entry) != 2 or None in entry:
            continue  # an option, or a component that the pipeline does without
        try:
            parts.append(Part(name, _class(name, *entry), read(f"{name}/config.json")))
        except FileNotFoundError:
            left_out[name] = f"it has no {name}/config.json"
        except TypeError:
            continue  # a tokenizer, a scheduler
    if not parts:
        raise ValueError(f"{where} has no component with a config.json. Allowed: a pipeline or a model of {VERSIONS}")
    return PipelineParts(title, parts, left_out=left_out)


def _load(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Download or save it again") from error


def _download(repo: str, name: str) -> Path:
    """Return one file of a hub repository. Raises FileNotFoundError if that has no such file, ConnectionError."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(repo, name))
    except (OSError, ValueError, errors.EntryNotFoundError) as error:
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise FileNotFoundError(name) from error
        hint = f"cannot be reached ({type(error).__name__}): check its name and the network, or use architectures()"
        raise ConnectionError(f"The hub's {repo} {HINTS.get(type(error).__name__, hint)}") from error


def _part_of(name: str, config: Any) -> Part:
    """Read the class from a configuration itself."""
    named = (config.get("_class_name") or (*(config.get("architectures") or ()), None)[0]) if config else None
    if named is None:
        allowed = "a config.json with _class_name (Diffusers) or architectures (Transformers)"
        raise ValueError(f"the configuration of {name!r} names no class. Allowed: {allowed}")
    return Part(name, _class(name, "diffusers" if hasattr(diffusers, named) else "transformers", named), config)


def _class(name: str, library: str, cls: str) -> type[nn.Module]:
    """Return a class. Raises ValueError if the installed releases have none, TypeError for what is no model."""
    try:
        own = library in ("diffusers", "transformers")
        found = getattr(importlib.import_module(library if own else f"diffusers.pipelines.{library}"), cls)
    except (AttributeError, ImportError, RuntimeError) as error:
        wrong = f"component {name!r} is a {cls}, which {VERSIONS} do not have"
        raise ValueError(f"{wrong}. Update them, or correct the name") from error
    if not issubclass(found, nn.Module):
        raise TypeError(f"component {name!r} is a {cls}, which is no model")
    return found


def _config_of(model: Any) -> Mapping[str, Any]:
    return model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)
