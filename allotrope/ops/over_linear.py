"""What a tactic over a weight that is not wide takes from the linear tactic that it makes its weight for."""

from __future__ import annotations

from allotrope.ops.tactic import Tactic, granule


class OverLinear:
    """Named like the linear tactic `inner`, and as fit for graphs: making the weight asks nothing of the host."""

    inner: Tactic

    @property
    def name(self) -> str:
        """The linear tactic's."""
        return self.inner.name

    @property
    def capturable(self) -> bool:
        """As the linear tactic is."""
        return self.inner.capturable

    @property
    def rows_of_a_tile(self) -> int:
        """See `granule`."""
        return granule(self.inner)
