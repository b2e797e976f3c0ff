"""ctcore: connection tracking as Linux does it, without I/O and without a clock.

`Tracker` is the compiled engine, `ctcore.model.ModelTracker` its readable twin; both take a Batch and give an array of decisions.
Names are imported when they are used: settings and errors need no NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctcore.batch import Batch
    from ctcore.config import Config
    from ctcore.errors import CaptureError, ConfigError, CtmirrorError, OutputError, SpecError, StateError
    from ctcore.filter import Filter
    from ctcore.tracker import Tracker

__all__ = ["Batch", "CaptureError", "Config", "ConfigError", "CtmirrorError", "Filter", "OutputError", "SpecError", "StateError", "Tracker"]

_HOMES = {
    "Batch": "batch", "Config": "config", "CaptureError": "errors", "ConfigError": "errors", "CtmirrorError": "errors", "OutputError": "errors",
    "SpecError": "errors", "StateError": "errors", "Filter": "filter", "Tracker": "tracker",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ctcore' has no attribute '{name}'")
    return getattr(import_module(f"ctcore.{_HOMES[name]}"), name)
