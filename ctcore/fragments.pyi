from ctcore.config import Config
from ctcore.fragment_values import Answer, Fragment

class Reassembler:
    """Fragments in, whole datagrams out: Linux's reassembly before connection tracking, of IPv4 (ip_fragment) and IPv6 (nf_conntrack_reasm).

    Settings: ipfrag_high_thresh, frag6_high_thresh, ipfrag_max_dist, seed, and the timeouts ipfrag_time and frag6_timeout. Memory is what the two
    limits say and a little more, reserved at once and used as needed. Raises ConfigError, MemoryError.
    """

    config: Config
    def __init__(self, config: Config | None = None) -> None: ...
    def add(self, fragment: Fragment, now: int) -> Answer:
        """Take a fragment. now: ns; time never goes back: an earlier one counts as the latest. Raises ConfigError for a fragment that cannot be."""
    def expire(self, now: int) -> None:
        """Let time pass (ns), and give up what has waited for too long."""
    def counters(self) -> dict[str, int]:
        """By the names of ctcore.fragment_values.COUNTERS: datagrams put together; fragments dropped, by reason; datagrams that died, by why, and
        the fragments lost with them."""
    def waiting(self) -> tuple[int, int]:
        """Datagrams that are not whole yet, of IPv4 and IPv6."""
    def charged(self) -> tuple[int, int]:
        """Bytes they are charged for, of IPv4 and IPv6: what the limits are compared with."""
    def check(self) -> None:
        """Prove the invariants of fragments.pyx. Raises AssertionError."""
