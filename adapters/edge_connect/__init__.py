"""EdgeConnect (Nazeri et al., ICCVW 2019): the image completion network, guided by an edge map."""

from __future__ import annotations

from inpaint_distill.adapters.edge_connect.adapter import EdgeConnectAdapter
from inpaint_distill.adapters.edge_connect.network import EdgeConnectGenerator

__all__ = ["EdgeConnectAdapter", "EdgeConnectGenerator"]
