"""From the short word to the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from inpaint_distill.errors import ConfigError, near_names
from inpaint_distill.teachers.base import Teacher
from inpaint_distill.teachers.ema import EMATeacher
from inpaint_distill.teachers.module import ModuleTeacher
from inpaint_distill.teachers.reconstruction import FrozenTeacher, OnlineTeacher

if TYPE_CHECKING:
    from collections.abc import Callable

    from inpaint_distill.config import Config

__all__ = ["make_teacher"]


def make_teacher(choice: str | Teacher | nn.Module | None, config: Config) -> Teacher:
    """Return the teacher for a short word, a teacher object, any module, or what the configuration says.

    Raises:
        ConfigError: No such teacher.
    """
    if isinstance(choice, Teacher):
        return choice
    if isinstance(choice, nn.Module):
        return ModuleTeacher(choice)
    kinds: dict[str, Callable[[], Teacher]] = {
        "ema": lambda: EMATeacher(config.ema_decay),
        "frozen": lambda: FrozenTeacher(steps=config.teacher_steps, lr=config.teacher_lr, seed=config.seed),
        "online": lambda: OnlineTeacher(config.teacher_lr),
    }
    kind = choice or config.teacher
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"teacher {kind!r}", "no such teacher", f"use {near_names(str(kind), kinds)}, or a module")
    return kinds[kind]()
