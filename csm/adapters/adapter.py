"""An adapter: what it adapts, its tensors, and of which model it is.

Arrays may be of any framework; whoever reads a folder passes in what loads a file (`csm.adapters.folder`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from csm.adapters.origin import Origin
from csm.adapters.plan import AdapterPlan


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory, whatever form it has on disk.

    Attributes:
        plan: the adapted modules, their ranks and scales.
        factors: its tensors, by the names and in the shapes of `plan.tensor_shapes`.
        whole: parameters that were trained as they are and take the base's place, by transformers' names.
        origin: the model it was trained on; None where nothing says so.
    """

    plan: AdapterPlan
    factors: Mapping[str, Any]
    whole: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
