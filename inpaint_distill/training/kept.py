"""What a finished run leaves in its study: its result, its images for the panels, its trained host and distiller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inpaint_distill.errors import StateError
from inpaint_distill.files import read_json
from inpaint_distill.losses.build import term_weights
from inpaint_distill.state import read_state

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from inpaint_distill.training.settings import BoostSettings, Run

__all__ = ["AGAIN", "DISTILLER", "HOST", "IMAGES", "RESULT", "is_finished", "kept_file", "read_kept", "read_result"]

RESULT, IMAGES, HOST, DISTILLER = "json", "safetensors", "host.safetensors", "distiller"  # endings of a run's files
AGAIN = "delete it and go on with --resume: the run is done again"  # which is_finished makes true

_HOLDS = {IMAGES: "the images of a run", HOST: "the trained host of a run", DISTILLER: "the distiller of a run"}
_KINDS = {IMAGES: "images", HOST: "host", DISTILLER: "distiller"}
_EARLIER = (IMAGES, HOST)  # earlier versions wrote them as plain safetensors files, without kind and checksum


def kept_file(folder: Path, run: Run, ending: str) -> Path:
    """Return where a run's file lies.

    Args:
        folder: That of the study's runs.
        run: The run.
        ending: Which file.
    """
    return folder / f"{run.name}.{ending}"


def is_finished(folder: Path, run: Run, settings: BoostSettings) -> bool:
    """Tell whether a run has left all its files; where one is missing, the run has to be done again.

    Args:
        folder: That of the study's runs.
        run: The run.
        settings: The study.

    Raises:
        StateError: One of them is damaged: better now than after the hours that the other runs may take.
    """
    endings = [] if run.trial else [IMAGES, HOST]
    config = settings.distillation_for(run.arm, run.steps)
    # Without any of these a distiller never looks at its host, and has nothing to be saved.
    if not run.trial and config is not None and (term_weights(config) or config.completion or config.fusion):
        endings.append(DISTILLER)
    files = {ending: kept_file(folder, run, ending) for ending in endings}
    result = kept_file(folder, run, RESULT)
    if not all(file.exists() for file in (result, *files.values())):
        return False
    read_result(result)
    for ending, file in files.items():
        read_kept(file, ending)
    return True


def read_result(file: Path) -> dict[str, Any]:
    """Read the result of a run.

    Raises:
        StateError: It is missing or damaged.
    """
    return read_json(file, "the result of a run", AGAIN)


def read_kept(file: Path, ending: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and values of another file of a run.

    Raises:
        StateError: It is missing or damaged, or holds something else.
    """
    kind = _KINDS[ending]
    tensors, values = read_state(file, _HOLDS[ending], AGAIN, plain={"kind": kind} if ending in _EARLIER else None)
    if values.get("kind") != kind:
        raise StateError(f"{_HOLDS[ending]} saved in {file}", f"a file of kind {values.get('kind')!r:.100}", AGAIN)
    return tensors, values
