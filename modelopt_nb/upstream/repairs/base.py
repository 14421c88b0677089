"""What every repair is: a fault of an upstream release, a probe for it, and what replaces what."""

from abc import ABC, abstractmethod
from typing import Any

Patch = tuple[Any, str, Any]  # owner, attribute or key, replacement
#: In the header of every safetensors file that is saved: a manifest of this format belongs to it.
METADATA = {"modelopt_nb": "1"}
_ABSENT = object()


class Repair(ABC):
    """One repair: what is ``broken``, in which ``versions``, and where upstream discusses it (``issue``).

    ``applied`` says whether it is on in this process.
    """

    name: str
    broken: str
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue: str
    applied = False

    @abstractmethod
    def needed(self) -> bool:
        """Probe the installed release for the fault."""

    @abstractmethod
    def patches(self) -> list[Patch]:
        """List what replaces what."""

    @property
    def state(self) -> str:
        """Say whether the repair is on, needed, or unnecessary."""
        if self.applied:
            return "on"
        return "needed; call enable()" if self.needed() else "steps aside, upstream works"

    def apply(self) -> None:
        """Switch the repair on."""
        patches = self.patches()
        self._originals = [(owner, name, _members(owner).get(name, _ABSENT)) for owner, name, _ in patches]
        for owner, name, value in patches:
            _set(owner, name, value)
        self.applied = True

    def remove(self) -> None:
        """Switch the repair off."""
        for owner, name, value in reversed(self._originals):
            _set(owner, name, value)
        self.applied = False


def _members(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else vars(owner)


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        if value is _ABSENT:
            del owner[name]
        else:
            owner[name] = value
    elif value is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, value)
