from typing_extensions import Buffer

from ctcore.strays import StrayTable

def course_of(frame: Buffer, count: int, strays: StrayTable | None = None) -> tuple[int | None, int | None] | None:
    """The worker, of `count`, that an Ethernet frame belongs to, and of a fragment the one that gathers its datagram.

    None: whoever receives it keeps it. (owner, None): a whole packet. (owner, gatherer): a first fragment, (None, gatherer): another one, or one that
    says nothing of its owner. Raises ValueError.
    """
