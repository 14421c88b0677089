"""What every repair is: a fault of an upstream release, a probe for it, and what replaces what."""

import contextlib
from abc import ABC, abstractmethod
from typing import Any
from unittest import mock

Patch = tuple[Any, str, Any]  # owner, attribute or key, replacement
#: In the header of every safetensors file that is saved: a manifest of this format belongs to it.
METADATA = {"modelopt_nb": "1"}


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
        with contextlib.ExitStack() as undo:
            for owner, name, value in self.patches():
                entry = mock.patch.dict(owner, {name: value}) if isinstance(owner, dict) else None
                undo.enter_context(entry or mock.patch.object(owner, name, value, create=True))
            self._undo = undo.pop_all()
        self.applied = True

    def remove(self) -> None:
        """Switch the repair off."""
        self._undo.close()
        self.applied = False
