"""What the sections of a node's configuration are made of. Not here: the sections (config, config_offload)."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Unknown keys are mistakes, and so are values of another kind: "no" is text, and would not be false but true of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _prefix(text: str) -> str:
    try:
        ip_network(text)
    except ValueError:
        raise ValueError(f"expected {_instead(text)}, not {text!r}") from None
    return text


def _instead(text: str) -> str:
    """What is expected instead of a prefix that is none."""
    try:
        address = ip_address(text.partition("/")[0])
    except ValueError:
        return "a prefix, as '10.0.0.0/8'"
    try:
        ip_network(text, strict=False)
    except ValueError:
        return f"a prefix length from 0 to {address.max_prefixlen}"
    return "a prefix without bits behind it, as '10.0.0.0/8'"


# Of an interface; or of a NIC's function, of which config.load() is told the interface.
Name = Annotated[str, Field(min_length=1, max_length=192, pattern=r"^([^/\s]{1,15}|[0-9A-Za-z:]{1,32}@[0-9A-Za-z_.-]*[:/][0-9A-Za-z_.:/-]*)$")]
Prefix = Annotated[str, AfterValidator(_prefix)]
