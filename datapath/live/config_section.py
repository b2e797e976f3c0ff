"""What the sections of a node's configuration are made of. Not here: the sections (config, config_offload)."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Unknown keys are mistakes, and so are values of another kind: "no" is text, and would not be false but true of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _prefix(text: str) -> str:
    try:
        ip_network(text)
    except ValueError:
        raise ValueError(f"expected a prefix without bits behind it, as '10.0.0.0/8', not {text!r}") from None
    return text


Name = Annotated[str, Field(min_length=1, max_length=15, pattern=r"^[^/\s]+$")]  # of an interface
Prefix = Annotated[str, AfterValidator(_prefix)]
