"""The networks that see the complete image."""

from inpaint_distill.teachers.ema import EMATeacher
from inpaint_distill.teachers.module import ModuleTeacher
from inpaint_distill.teachers.reconstruction import FrozenTeacher, OnlineTeacher

__all__ = ["EMATeacher", "FrozenTeacher", "ModuleTeacher", "OnlineTeacher"]
