"""What a form of adapters on disk must say of itself, and the accounting of a file against the model it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from csm.adapters.adapter import Adapter
from csm.adapters.plan import AdapterPlan
from csm.config import ModelConfig
from csm.errors import CsmError
from csm.weights import Shapes, parameter_shapes

FACTOR, WHOLE, COPY, CODEC = "factor", "whole", "copy", "codec"

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """What a tensor of a file is, and our name of it.

    Roles: `factor`; `whole`, a parameter to take the base's place; `copy` of a parameter of the base; `codec`, an adapter of
    the codec, which must do nothing.
    """

    role: str
    name: str


class Form(Protocol):
    """PEFT's or csm-mlx's way to write an adapter: an adapter_config.json (`values`) and a file of tensors."""

    file: str

    def plan(self, values: Values, found: Shapes, model: ModelConfig, source: str) -> AdapterPlan:
        """What the adapter adapts. Raises CsmError for options that mean another computation."""
        ...

    def places(self, values: Values, found: Shapes, model: ModelConfig) -> dict[str, Place]:
        """What each tensor is; those that do not belong are left out."""
        ...

    def shapes(self, plan: AdapterPlan, values: Values, found: Shapes, model: ModelConfig) -> Shapes:
        """The tensors that must be there, in the shapes of the file."""
        ...

    def upright(self, place: Place, tensor: Any, plan: AdapterPlan, model: ModelConfig) -> Any:
        """A tensor of the file in our shape and order."""
        ...

    def written(self, adapter: Adapter, model: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """The tensors and the config of an adapter. Raises CsmError where the form cannot express it."""
        ...


def account(
    form: Form, values: Values, found: Shapes, model: ModelConfig, source: str
) -> tuple[AdapterPlan, dict[str, Place]]:
    """The plan of an adapter and what each of its tensors is, from config and header alone.

    Raises:
        CsmError: options that csm does not know; or tensors missing, unexpected or mis-shaped, all named.
    """
    plan = form.plan(values, found, model, source)
    places = form.places(values, found, model)
    wanted = form.shapes(plan, values, found, model)
    parameters = parameter_shapes(model)
    adapted = {f"{site.path}.weight" for site in plan.sites}
    faults = [f"{name} is missing" for name in wanted if name not in found]
    for name, shape in found.items():
        place = places.get(name)
        if place and place.role == CODEC:
            continue
        right = wanted.get(name) or (parameters.get(place.name) if place and place.role != FACTOR else None)
        if place is None or right is None:
            faults.append(f"{name} is of no module that it adapts")
        elif shape != right:
            faults.append(f"{name} is {list(shape)}, wanted {list(right)}")
        elif place.role == WHOLE and place.name in adapted:
            faults.append(f"{name} is there whole, and adapted besides")
    if faults:
        many = f" ({len(faults)} tensors)" if len(faults) > 1 else ""
        raise CsmError(f"the adapter {source} does not fit the model{many}: {'; '.join(faults)}.")
    return plan, places
