"""Which device is whose: the host's end of each pod's link (a veth, or the representor of a VF), and the conntrack zone of what passes there.

What counts, in this order: a mapping file, the pod's annotations, a template. The mapping is YAML, `NAMESPACE/POD: DEVICE` or
`NAMESPACE/POD: {device: DEVICE, zone: N}`; a template has {namespace}, {name}, {node} and {hash} in it, the last being the first eleven hexadecimal
digits of the SHA-256 of NAMESPACE/POD. Zones that nobody chose are given in the order of NAMESPACE/POD, the lowest that is free first.
Invariants: no device and no zone twice; every name is one that Linux takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from datapath.names import printable
from datapath.pipeline.flower_keys import is_function
from datapath.pipeline.policy.device_names import TEMPLATE, digits
from datapath.pipeline.policy.documents import read_values
from datapath.pipeline.policy.errors import PolicyError
from datapath.pipeline.policy.objects import Pod

DEVICE_ANNOTATION, ZONE_ANNOTATION = "ctmirror/device", "ctmirror/zone"
ZONES = range(1, 0x10000)  # 0 is the host's own
# 15 bytes at most (IFNAMSIZ); what shells and tc would read otherwise is left out.
_DEVICE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.@+=~-]{1,15}")
_WORD = re.compile(r"\{([^{}]*)\}")


class Attachment(NamedTuple):
    """Where a pod is attached."""

    device: str
    zone: int


class Wish(NamedTuple):
    """What somebody wants for a pod; None: nothing. place: who, for messages."""

    device: Any
    zone: Any
    place: str


def read_mapping(name: str) -> dict[str, Wish]:
    """Wishes by NAMESPACE/POD. Raises PolicyError."""
    shown, found = printable(name), {}
    for data in read_values(name):
        if not isinstance(data, dict):
            raise PolicyError(f"{shown}: expected a mapping of NAMESPACE/POD to a device")
        for key, value in data.items():
            place = f"{shown}: '{printable(str(key))}'"
            fields = value if isinstance(value, dict) else {"device": value}
            if set(fields) - {"device", "zone"} or not isinstance(key, str) or key.count("/") != 1:
                raise PolicyError(f"{place}: expected NAMESPACE/POD: DEVICE, or NAMESPACE/POD: {{device: DEVICE, zone: N}}")
            found[key] = Wish(fields.get("device"), fields.get("zone"), place)
    return found


def check_known(mapping: Mapping[str, Wish], titles: Sequence[str]) -> None:
    """Raise PolicyError for the pods of a mapping that are none of these: a device that nobody gets is meant for one whose name is another."""
    wrong = []
    for title, wish in mapping.items():
        if title not in titles:
            near = get_close_matches(title, titles, n=1)
            wrong.append(f"{wish.place}: no such pod with an address in the files" + (f": did you mean {printable(near[0])}?" if near else ""))
    if wrong:
        raise PolicyError(*wrong)


def attach(pods: Iterable[Pod], template: str = TEMPLATE, mapping: Mapping[str, Wish] | None = None) -> dict[str, Attachment]:
    """Device and zone of every pod, by NAMESPACE/POD. Raises PolicyError for a name that Linux does not take, and for what is there twice."""
    ordered = sorted(pods, key=lambda pod: pod.title)
    mapping = mapping or {}
    wanted: dict[int, str] = {}
    devices: dict[str, str] = {}
    for pod in ordered:
        wishes = [*([mapping[pod.title]] if pod.title in mapping else []), _annotated(pod)]
        device, place = next(
            ((wish.device, wish.place) for wish in wishes if wish.device is not None), (None, f"--device-of '{template}': {pod.title}")
        )
        device = expand(template, pod) if device is None else device
        if not isinstance(device, str) or not (_DEVICE.fullmatch(device) or is_function(device)):
            raise PolicyError(f"{place}: '{printable(str(device))}': expected a device's name of at most 15 letters, digits and -_.@+=~")
        if device in devices:
            raise PolicyError(f"{place}: '{device}' is the device of {devices[device]}; expected a device for each pod")
        devices[device] = pod.title
        for wish in (each for each in wishes if each.zone is not None):
            zone = _zone(wish)
            if zone in wanted:
                raise PolicyError(f"{wish.place}: zone {zone} is that of {wanted[zone]}; expected a zone for each pod")
            wanted[zone] = pod.title
            break
    return _with_zones({title: device for device, title in devices.items()}, {title: zone for zone, title in wanted.items()})


def _with_zones(devices: Mapping[str, str], wanted: Mapping[str, int]) -> dict[str, Attachment]:
    free = iter(sorted(set(ZONES) - set(wanted.values())))
    found = {}
    for title, device in devices.items():
        zone = wanted.get(title) or next(free, None)
        if zone is None:
            raise PolicyError(f"{len(devices):,} pods: expected at most {len(ZONES):,}, as many as there are zones; --node picks those of one node")
        found[title] = Attachment(device, zone)
    return found


def _annotated(pod: Pod) -> Wish:
    notes = pod.annotations or {}
    return Wish(notes.get(DEVICE_ANNOTATION), notes.get(ZONE_ANNOTATION), f"annotations of pod {pod.title}")


def _zone(wish: Wish) -> int:
    text = str(wish.zone)
    if isinstance(wish.zone, bool) or not re.fullmatch("[0-9]{1,5}", text) or int(text) not in ZONES:
        raise PolicyError(f"{wish.place}: zone '{printable(text)}': expected a number from {ZONES[0]} to {ZONES[-1]}")
    return int(text)


def expand(template: str, pod: Pod) -> str:
    """A template for one pod. Raises PolicyError for a word that is not known."""
    words = {"namespace": pod.namespace, "name": pod.name, "node": pod.node, "hash": digits(pod.title)}

    def value(found: re.Match[str]) -> str:
        if found[1] not in words:
            raise PolicyError(
                f"--device-of '{printable(template)}': '{{{printable(found[1])}}}': expected {{namespace}}, {{name}}, {{node}} or {{hash}}"
            )
        return words[found[1]]

    return _WORD.sub(value, template)
