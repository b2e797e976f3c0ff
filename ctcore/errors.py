"""Exceptions: the caller's mistakes, each saying where and what was expected. Bad packets are reasons, never exceptions."""

from __future__ import annotations


class CtmirrorError(Exception):
    """Anything ctmirror raises on purpose; its text is one line, fit for a user."""


class ConfigError(CtmirrorError, ValueError):
    """A setting that does not exist or cannot have that value."""


class SpecError(CtmirrorError):
    """A text of ctcore/spec does not parse: file, line, and what was expected."""


class CaptureError(CtmirrorError):
    """A capture cannot be read, or not to its end: file, offset, and what was expected."""


class StateError(CtmirrorError):
    """A saved state cannot be taken up: where, and what was expected. Nothing has changed then."""


class OutputError(CtmirrorError):
    """A file cannot be written: its name, and why. Never about what is read, so that nobody takes a full disk for a damaged capture."""
