"""The executable specification: the engine once more in plain Python, to be read and to be compared with.

Start with tracker.py, a packet's straight line; tcp.py holds the guards, tcp_window.py the inequalities, table.py whom early drop evicts,
act.py what the `ct` actions of a pipeline do.
It is slow and keeps everything in dicts. The same tests run both, and hypothesis compares them field by field.
"""

from ctcore.model.tracker import ModelTracker

__all__ = ["ModelTracker"]
