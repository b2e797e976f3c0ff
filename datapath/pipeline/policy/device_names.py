"""What a pod's device is called where nobody says it. Not here: who says it (devices)."""

from __future__ import annotations

from hashlib import sha256

TEMPLATE = "veth{hash}"


def digits(title: str) -> str:
    """The {hash} of a template: the first eleven hexadecimal digits of the SHA-256 of NAMESPACE/POD."""
    return sha256(title.encode("utf-8", "surrogateescape")).hexdigest()[:11]


def default_device(title: str) -> str:
    """The device of a pod, NAMESPACE/POD, by the template that is taken if none is given."""
    return TEMPLATE.replace("{hash}", digits(title))
