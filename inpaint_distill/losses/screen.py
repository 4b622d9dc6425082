"""Keep NaN and inf out of the terms, and say where they were seen (ours)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from inpaint_distill.errors import NumericsError, NumericsWarning
from inpaint_distill.host.tree import rebuild
from inpaint_distill.host.watch import Views
from inpaint_distill.losses.attention_rows import UNSEEN_BIAS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from inpaint_distill.host.attention import AttentionMap
    from inpaint_distill.losses.term import Term

__all__ = ["Screen"]


class _Place(NamedTuple):
    """Where something may be not finite: a view, or a level of a term that was finite in all it looked at."""

    whose: Literal["student", "teacher"] | None
    kind: str  # "features" or "attention", as Term.looks_at; the term's own name where `whose` is None
    level: int


class Screen:
    """Look at what the terms compare before they do, and at what they give.

    A term that would see NaN or inf is left out of that step: it is exactly 0 and so are its gradients, of the host as
    of its own networks. It keeps its place in the graph, so that distributed training still finds every parameter.

    Nothing here waits for an accelerator but :meth:`check`.

    Args:
        choice: What :meth:`check` does about it: ``raise``, or ``skip``, which warns of each place once.
        terms: The terms, by name.
        stages: Names of the levels of the features, for the texts.
        sites: The same of the attention.

    Attributes:
        skipped: How often each term has been left out, on the device.
    """

    def __init__(
        self,
        choice: Literal["raise", "skip"],
        terms: Mapping[str, Term],
        stages: Sequence[str] = (),
        sites: Sequence[str] = (),
    ) -> None:
        self.choice = choice
        self.terms = dict(terms)
        self.labels = {"features": tuple(stages), "attention": tuple(sites)}
        self.skipped: dict[str, Tensor] = {}
        self._good: dict[_Place, Tensor] = {}
        self._first: dict[_Place, Tensor] = {}  # the step at which each was first not finite, -1 for never
        self._told: set[_Place] = set()

    def views(self, student: Views, teacher: Views) -> tuple[Views, Views]:
        """Return the views of a step with zeros in place of each one that is not finite."""
        self._good = {}
        return self._clean("student", student), self._clean("teacher", teacher)

    def values(self, terms: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """Return the terms (levels,) of :meth:`views`, those that saw NaN or inf, or came to it themselves, as 0."""
        kept = {}
        for name, value in terms.items():
            own = value.detach().isfinite()
            seen = [each for place, each in self._good.items() if name in self._seers(place)]
            good = torch.stack([own.all(), *seen]).all()
            kept[name] = _where(good, value)
            self.skipped[name] = self.skipped.get(name, 0) + (~good).long()
            self._good |= {_Place(None, name, level): each for level, each in enumerate(own.unbind())}
        looked_at = {place: each for place, each in self._good.items() if self._seers(place)}
        for place, each in looked_at.items():
            first = self._first.get(place, torch.full_like(each, -1, dtype=torch.long))
            self._first[place] = torch.where(each | (first >= 0), first, step)
        return kept

    def check(self, step: int) -> None:
        """Read what has been seen up to this step, and raise or warn; waits for the device.

        Raises:
            NumericsError: Something was not finite, and the choice is to raise.
        """
        if not self._first:
            return
        places = list(self._first)
        steps = torch.stack([self._first[place] for place in places]).tolist()
        bad = sorted((first, order) for order, first in enumerate(steps) if first >= 0)
        if bad and self.choice == "raise":
            first, order = bad[0]
            self._first = {}
            raise NumericsError(*self._explain(places[order], first, step))
        news: dict[tuple[str | None, str], tuple[str, str, str]] = {}
        for first, order in bad:
            place = places[order]
            if place not in self._told:  # of several levels, what is behind the first follows from it
                self._told.add(place)
                news.setdefault(place[:2], self._explain(place, first, step))
        for asked, found, fix in news.values():
            warnings.warn(f"left out: {asked}; {found}; {fix}", NumericsWarning, stacklevel=3)

    def _clean(self, whose: Literal["student", "teacher"], seen: Views) -> Views:
        flags = {("features", level): _finite(feature) for level, feature in enumerate(seen.features)}
        flags |= {("attention", level): _finite_map(each, whose) for level, each in enumerate(seen.attention)}
        self._good |= {_Place(whose, kind, level): good for (kind, level), good in flags.items()}
        features = [_where(flags["features", level], each) for level, each in enumerate(seen.features)]
        maps = [_where_map(flags["attention", level], each) for level, each in enumerate(seen.attention)]
        return Views(features, maps)

    def _seers(self, place: _Place) -> list[str]:
        """Return the terms that look at a place, or are it."""
        if place.whose is None:
            return [place.kind]
        here = {name: term for name, term in self.terms.items() if term.looks_at == place.kind}
        return [name for name, term in here.items() if place.whose == "student" or term.needs_teacher]

    def _explain(self, place: _Place, first: int, step: int) -> tuple[str, str, str]:
        names = self._seers(place)
        asked = f"the term{'s' if len(names) > 1 else ''} {', '.join(names)} at step {first}"
        if place.whose is None:
            kind = self.terms[place.kind].looks_at
            found = f"NaN or inf in level {place.level} of the term, though all {kind} are finite: too large to square"
        else:
            what = "feature of stage" if place.kind == "features" else "attention"
            found = f"NaN or inf in the {place.whose}'s {what} {self.labels[place.kind][place.level]}"
        if first < step:
            found += f" (an accelerator is asked every so many steps, now at step {step})"
        if self.choice == "skip":
            return asked, found, "distiller.log counts such steps as 'skipped/...'"
        fix = "look at that batch and at the learning rate, or leave float16"
        if place.whose == "teacher":
            fix = "look at the teacher's weights and at that batch, or run it in bfloat16 or float32"
        return asked, found, f"{fix}; Config(nonfinite='skip') leaves the term out of such a step instead"


def _where(good: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor, or zeros without a gradient; on the CPU, where looking costs nothing, without a copy."""
    if good.device.type == "cpu" and bool(good):
        return tensor
    return torch.where(good, tensor, 0)


def _where_map(good: Tensor, seen: AttentionMap) -> AttentionMap:
    map: AttentionMap = rebuild(seen, lambda _, tensor: _where(good, tensor))
    return map


def _finite(tensor: Tensor) -> Tensor:
    """Tell whether all of a tensor is finite, in one pass."""
    low, high = torch.aminmax(tensor.detach())
    return low.isfinite() & high.isfinite()


def _finite_map(seen: AttentionMap, whose: str | None) -> Tensor:
    """Tell whether what is compared of an attention layer is finite.

    The input of a softmax may be -inf where a key is masked, and a row of which every key is masked is NaN by rights.
    """
    found = []
    logits = seen.logits if whose == "teacher" else None
    if seen.query is not None and seen.key is not None:
        found += [_finite(seen.query), _finite(seen.key)]
    elif logits is not None:
        found.append(logits.detach().amax() < torch.inf)
    elif seen.rows is not None:
        rows = seen.rows.detach().sum(-1).isfinite()
        found.append((rows if seen.bias is None else rows | (seen.bias <= UNSEEN_BIAS).all(-1)).all())
    if seen.bias is not None:
        found.append(seen.bias.detach().amax() < torch.inf)
    if whose == "teacher" and seen.entering is not None:
        found.append(_finite(seen.entering))
    return torch.stack(found).all()
