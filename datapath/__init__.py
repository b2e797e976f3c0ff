"""datapath: packets in and out. Captures, the wire parser, the worker that runs both through the tracker, and the command line."""

from datapath.capture import PcapSource
from datapath.frame import FRAME_DTYPE, frames_of
from datapath.worker import Pipeline

__all__ = ["FRAME_DTYPE", "PcapSource", "Pipeline", "frames_of"]
