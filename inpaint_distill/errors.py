"""The one exception tree: what was asked, what was found, what to do."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CaptureError",
    "ConfigError",
    "DataError",
    "InpaintDistillError",
    "InputError",
    "LookaheadWarning",
    "NumericsError",
    "NumericsWarning",
    "OptimizerError",
    "OptimizerWarning",
    "PlanError",
    "ReplayError",
    "StateError",
    "TeacherWarning",
    "near_names",
]


class InpaintDistillError(Exception):
    """Root of every error that a user can cause.

    Args:
        asked: What the user, or the step at hand, asked for.
        found: What was there instead.
        fix: What to do about it.

    >>> print(InpaintDistillError("stage 'enc9'", "no such module", "use one of enc1, enc2"))
    asked: stage 'enc9'
    found: no such module
    to do: use one of enc1, enc2
    """

    def __init__(self, asked: str, found: str, fix: str) -> None:
        super().__init__(asked, found, fix)
        self.asked = asked
        self.found = found
        self.fix = fix

    def __str__(self) -> str:
        return f"asked: {self.asked}\nfound: {self.found}\nto do: {self.fix}"


class ConfigError(InpaintDistillError):
    """A setting that does not exist, has the wrong type or contradicts another."""


class InputError(InpaintDistillError):
    """An image or a mask of the wrong shape, range or content."""


class PlanError(InpaintDistillError):
    """Stages that cannot be found in the host, or found more than once."""


class ReplayError(InpaintDistillError):
    """The host's own call cannot be repeated with the complete image."""


class CaptureError(InpaintDistillError):
    """A tapped feature is missing, carries no gradient or was overwritten."""


class NumericsError(InpaintDistillError):
    """NaN or inf where a term looked, or in the term itself."""


class OptimizerError(InpaintDistillError):
    """The optimizer given does not train the host given, or cannot train what is added to it."""


class StateError(InpaintDistillError):
    """A saved state that cannot be read or does not fit."""


class DataError(InpaintDistillError):
    """A folder of images or masks that cannot be used."""


class TeacherWarning(UserWarning):
    """A teacher from which little can be learned."""


class LookaheadWarning(UserWarning):
    """Meta-networks that cannot be trained as asked."""


class NumericsWarning(UserWarning):
    """Terms left out of a step because of NaN or inf."""


class OptimizerWarning(UserWarning):
    """An optimizer that never steps."""


def near_names(wanted: str, names: Iterable[str], limit: int = 5) -> str:
    """Name at most ``limit`` existing names that resemble ``wanted``, for an error text.

    >>> near_names("enc_9", ["enc_1", "enc_2", "dec_1"])
    'enc_2, enc_1, dec_1'
    """
    names = list(names)
    close = difflib.get_close_matches(wanted, names, n=limit, cutoff=0.4)
    return ", ".join(close or names[:limit]) or "nothing"
