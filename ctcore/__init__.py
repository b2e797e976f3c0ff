"""ctcore: connection tracking as Linux does it, without I/O and without a clock.

`Tracker` is the compiled engine, `ctcore.model.ModelTracker` its readable twin; both take a Batch and give an array of decisions.
"""

from ctcore.batch import Batch
from ctcore.config import Config
from ctcore.errors import CaptureError, ConfigError, CtmirrorError, SpecError
from ctcore.tracker import Tracker

__all__ = ["Batch", "CaptureError", "Config", "ConfigError", "CtmirrorError", "SpecError", "Tracker"]
