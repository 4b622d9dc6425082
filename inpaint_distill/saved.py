"""What a saved distiller's file holds, and whether it fits the one that is to take it (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inpaint_distill.config import Config, from_dict, to_dict
from inpaint_distill.errors import ConfigError, StateError
from inpaint_distill.injection import Injected
from inpaint_distill.state import read_state, write_state

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from typing_extensions import Self

    from inpaint_distill.host.hole import HoleSource

__all__ = ["SavedDistiller"]

_KIND = "distiller"
_HELD = {"config": dict, "step": int, "stages": list, "parts": dict}


@dataclass(frozen=True)
class SavedDistiller:
    """A distiller's state, as :meth:`write` puts it into one safetensors file.

    Attributes:
        step: Optimizer steps made.
        config: All settings.
        stages: Labels of the tapped stages, shallow to deep.
        tensors: State of the parts,
        parts: and their JSON values, by part.
        teacher: The teacher's kind; ``None`` where an earlier version did not write it.
        injected: Description of the blocks, if there are any.
    """

    step: int
    config: Config
    stages: list[str]
    tensors: dict[str, Tensor]
    parts: dict[str, Any]
    teacher: str | None = None
    injected: dict[str, Any] | None = None

    def write(self, path: str | Path) -> None:
        """Write the file.

        Raises:
            StateError: The folder does not exist or cannot be written.
        """
        values = {"step": self.step, "config": to_dict(self.config), "stages": self.stages, "parts": self.parts}
        more = {"teacher": self.teacher, "injected": self.injected}
        given = {key: value for key, value in more.items() if value is not None}
        write_state(path, self.tensors, {"kind": _KIND, **values, **given})

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file.

        Raises:
            StateError: It cannot be read, holds something else, or settings that this version does not know.
        """
        asked = _asked(path)
        tensors, values = read_state(path)
        if values.get("kind") != _KIND:
            raise StateError(asked, "a host", "load it with load_host()")
        for key, kind in _HELD.items():
            if not isinstance(values.get(key), kind):
                fix = "give a file written by Distiller.save()"
                raise StateError(asked, f"{key} = {values.get(key)!r:.100}", fix)
        try:
            config = from_dict(Config, values["config"])
        except ConfigError as error:
            raise StateError(asked, f"{error.asked}: {error.found}", "use the version that saved it") from None
        more = (values.get("teacher"), values.get("injected"))
        return cls(values["step"], config, values["stages"], tensors, values["parts"], *more)

    def check(self, path: str | Path, config: Config, teacher: str) -> None:
        """Compare with the settings, and the kind of the teacher, of the distiller that is to take it.

        Raises:
            StateError: They differ.
        """
        saved, own = to_dict(self.config), to_dict(config)
        if changed := [key for key in own if saved[key] != own[key]]:
            found = f"saved with other settings of {', '.join(changed)}"
            raise StateError(_asked(path), found, "attach with the configuration it was saved with")
        if self.teacher is not None and self.teacher != teacher:
            found = f"saved with a teacher of kind {self.teacher!r:.100}; this is {teacher!r}"
            raise StateError(_asked(path), found, "attach with the teacher it was saved with")

    def check_host(self, stages: list[str], *, blocks: bool) -> HoleSource | None:
        """Compare with the host, once it has been planned; return where its call carries the hole, for its blocks.

        Raises:
            StateError: Its stages differ, or the blocks cannot be read.
        """
        asked, fix = "a saved distiller", "load it into the host it was saved from"
        if self.stages != stages:
            found = f"saved from stages {', '.join(map(str, self.stages))}; these are {', '.join(stages)}"
            raise StateError(asked, found, fix)
        if not blocks:
            return None
        try:
            return Injected.read_source(self.injected or {})
        except (LookupError, TypeError) as error:
            found = f"no blocks that can be read ({type(error).__name__}: {error})"
            raise StateError(asked, found, fix) from None


def _asked(path: str | Path) -> str:
    return f"the distiller saved in {path}"
