"""Which of several workers a connection belongs to: the same for the packets of both directions, and for all who compute it.

Theory of operation: each end of a tuple, address and port, becomes 64 bits; their sum does not know which one was first. It is mixed with the
protocol, and the upper half, as a fraction of 2^32, is the place among `count` equal shares. Of ICMP the id stands for both ports.
What has neither ports nor an id is the first share's, and so are the usual ports of what helpers read: only one tracker can know what they announce
(strays). Zones do not count: equal tuples of different zones are one worker's.
One tuple: 10.0.0.1:40000 > 10.0.0.2:80 tcp and 10.0.0.2:80 > 10.0.0.1:40000 tcp are the same worker's, whatever their directions are.
Invariants: no secret is in it, so it is the same after a restart; strangers can have all their connections meet one worker, but collide nowhere:
tables have keyed hashes of their own (hashing). The twin is ctcore.model.steering.
Not here: frames (datapath.live.steer), which tuples translation may choose (nat).
"""

from libc.string cimport memcpy

from ctcore.types cimport Key


def owner(bytes key not None, count):
    """Who of `count` workers a tuple belongs to.   key: the 40 bytes of a Key (KEY_DTYPE); count: 1 to MOST_SHARES."""
    cdef Key tuple
    if len(key) != sizeof(Key):
        raise ValueError(f"key: {len(key)} bytes: expected {sizeof(Key)}")
    if not 1 <= count <= MOST_SHARES:
        raise ValueError(f"count = {count}: expected 1 to {<int>MOST_SHARES}")
    memcpy(&tuple, <const char *>key, sizeof(Key))
    return owner_of(&tuple, count)
