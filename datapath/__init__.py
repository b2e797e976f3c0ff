"""datapath: packets in and out. Captures, the wire parser, the worker that runs both through the tracker, and the command line.

Names are imported when they are used: the command line's --help needs none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datapath.capture import PcapSource
    from datapath.frame import FRAME_DTYPE, frames_of
    from datapath.sink import PcapSink
    from datapath.worker import Pipeline

__all__ = ["FRAME_DTYPE", "PcapSink", "PcapSource", "Pipeline", "frames_of"]

_HOMES = {"FRAME_DTYPE": "frame", "PcapSink": "sink", "PcapSource": "capture", "Pipeline": "worker", "frames_of": "frame"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'datapath' has no attribute '{name}'")
    return getattr(import_module(f"datapath.{_HOMES[name]}"), name)
