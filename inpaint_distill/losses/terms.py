"""All terms of one distiller, looked at together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

if TYPE_CHECKING:
    from inpaint_distill.host.watch import Views
    from inpaint_distill.losses.term import Term

__all__ = ["Terms"]


class Terms(nn.ModuleDict):
    """The terms by name, with the networks that they train and the meta-networks that they do not."""

    @property
    def each(self) -> dict[str, Term]:
        """The terms."""
        return cast("dict[str, Term]", dict(self.items()))

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at the teacher."""
        return any(term.needs_teacher for term in self.each.values())

    @property
    def looks_at(self) -> dict[str, str]:
        """Which part of the views each term compares."""
        return {name: term.looks_at for name, term in self.each.items()}

    @property
    def channel_weights(self) -> dict[str, Tensor]:
        """Mean over the last batch of each ``rho`` and ``phi``, (C,)."""
        return {name: weights for term in self.each.values() for name, weights in term.channel_weights.items()}

    def forward(self, student: Views, teacher: Views, hole: Tensor) -> dict[str, Tensor]:
        """Compute every term, unweighted, as (levels,).

        Args:
            student: What the host showed.
            teacher: What the teacher showed.
            hole: (B, 1, H, W), 1 in the hole.
        """
        return {
            name: term(getattr(student, term.looks_at), getattr(teacher, term.looks_at), hole)
            for name, term in self.each.items()
        }

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that the distillation loss trains."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the networks' weights."""
        return dict(self.state_dict()), {}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take them back."""
        self.load_state_dict(tensors)
