from typing import Any, NamedTuple

from numpy.typing import NDArray
from typing_extensions import Buffer

from ctcore.batch import Batch
from ctcore.config import Config
from ctcore.ct_action import Acted, Association, CtAction
from ctcore.filter import Filter
from ctcore.nat_rules import NatPool
from ctcore.strays import StrayTable

class ExpectationRow(NamedTuple):
    """timeout: seconds left; src: an address, or "any"; sport: 0 is any.

    kind: its class, each with a limit of its own; inactive: fits nothing yet; follow: what its connection's addresses become: "" (nothing), "master",
    "pptp" or "sip"; if any, dir is the master's direction in which its packets go, and saved and saved_port their destination before translation.
    """

    master: int
    src: str
    dst: str
    proto: int
    sport: int
    dport: int
    zone: int
    timeout: float
    permanent: bool
    kind: int
    inactive: bool
    follow: str
    dir: int
    saved: str
    saved_port: int

class Tracker:
    """One connection table: batches of parsed packets in, decisions out, as Linux conntrack would judge them.

    All memory is reserved at the start, for config.capacity connections (274 bytes each once used). Source: Linux nf_conntrack_in.
    Raises MemoryError if it cannot be had.
    """

    config: Config
    def __init__(self, config: Config | None = None) -> None: ...
    def advance(self, batch: Batch, rewrites: NDArray[Any] | None = None) -> NDArray[Any]:
        """Judge the packets of a batch in order.

        rewrites: a REWRITE_DTYPE[len(batch)] to be filled in with what is to be changed in each packet before it leaves: where `flags` is not 0.

        Returns DECISION_DTYPE[len(batch)]: conn is the connection's ordinal or -1, timeout ticks (1/config.hz s) left after the packet or -1, dir
        255 and l4state 255 where there is none. Each packet's time (ns) moves the clock on; a time before the last one counts as the last one.
        """
    def act(self, batch: Batch, action: CtAction, before: Association = ...) -> Acted:
        """Do one `ct` action of a pipeline on one packet.

        batch: one parsed packet that is no fragment; the zone of its key is set to the action's. before: what the packet's last action returned,
        NO_ASSOCIATION for its first one; it is spent by this call, whatever comes of the packet.

        Returns what becomes of the packet, the decision on it (as advance() makes it; conn is -1 while a connection is not confirmed), what of the
        frame is to be changed because of this action before anything looks at it again, and what the packet carries to its next action. A
        connection that is not confirmed lives in there and nowhere else: leave() or the next action takes it. 256 of them may be carried at a time;
        a packet that would be one more is dropped (table_full). One that is confirmed may end meanwhile: by the packet itself (a RST as the only
        answer), and then the packet keeps it; by somebody else, and then the packet is looked up anew. Calls of advance() and act() may be mixed;
        config.nat's and config.helpers' rules are for the former. With config.nat_actions and no rules, advance() makes null bindings, as it does
        where no rule matches.

        Raises ConfigError, before anything happens, for an action that this tracker cannot do, an association that is spent or of another tracker,
        and batches of other sizes; ValueError for a batch that has been through a tracker.
        Source: Linux tcf_ct_act.
        """
    def leave(self, association: Association) -> None:
        """A packet is over: what it carries that is not confirmed comes to nothing. The association is spent. Raises ConfigError as act() does."""
    def edits(self) -> NDArray[Any]:
        """The edits of the last advance() that asked for rewrites, or of the last act(), EDIT_DTYPE[k].

        `first_edit` and `n_edits` of a rewrite name a packet's own.
        """
    @property
    def now(self) -> int:
        """The latest time seen, ns."""
    @property
    def count(self) -> int:
        """Connections in the table."""
    @property
    def slots(self) -> int:
        """How many slots of the pool were ever in use. A connection keeps its slot for life, so large tables can be read a range of slots at a time:
        one that lives all the while is found once."""
    @property
    def events_waiting(self) -> int:
        """Events that nobody has taken yet."""
    @property
    def events_lost(self) -> int:
        """Events that found the buffer full."""
    def expire(self, now: int) -> None:
        """Move the clock to `now` (ns, 64 bits) without a packet; what has expired goes. Raises ConfigError if it does not fit."""
    def conns(self) -> NDArray[Any]:
        """All connections as they are, CONN_DTYPE[count], by ordinal (flow[0].id); timeout is ticks left."""
    def conn(self, ordinal: int) -> NDArray[Any]:
        """One connection as it is, CONN_DTYPE[1]. Raises ConfigError if it does not live."""
    def offsets(self, ordinal: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """By how much a connection's TCP sequence numbers are moved, of each direction: (position, before, after), in its sender's own numbers.

        `before` is added to numbers up to position, `after` to later ones. All 0 where no helper has changed a payload. Raises ConfigError if it does
        not live. Source: Linux nf_ct_seq_offset.
        """
    def find(self, key: Buffer) -> NDArray[Any] | None:
        """The connection one of whose tuples is `key` (the 40 bytes of a KEY_DTYPE), CONN_DTYPE[1], or None; it may have expired by now."""
    def events(self) -> NDArray[Any]:
        """The events since the last call, oldest first, EVENT_DTYPE[k]; which kinds says config.events. time is ns."""
    def evictions(self) -> NDArray[Any]:
        """Who was evicted since the last call, and for whom, oldest first, EVICTION_DTYPE[k]; config.eviction_buffer are kept at most."""
    @property
    def evictions_lost(self) -> int:
        """Evictions that found that buffer full."""
    def zone_counts(self) -> dict[int, int]:
        """How many connections each zone has, of those that have any."""
    def forget_events(self) -> int:
        """Empty the buffer of events without a look at them; how many they were. As long as it is full, a further one costs next to nothing."""
    def select(self, filter: Filter, *, slots: range | None = None) -> NDArray[Any]:
        """The connections that fit, as they are: CONN_DTYPE[k], by ordinal; timeout is ticks left. A whole tuple is looked up.

        slots: only those in these slots; the same in delete() and update(). Raises ConfigError.
        """
    def census(self, *, slots: range | None = None) -> NDArray[Any]:
        """What kind each connection is, uint32[k], in no order that means anything: zone << 16 | protocol << 8 | state.

        The state of TCP and SCTP is theirs; of all others it is 0 (no reply seen), 1 (seen) or 2 (assured). A zone of one direction is that
        direction's. It reads two lines of each connection and copies nothing: a fraction of what select() takes.
        """
    def delete(self, filter: Filter, *, slots: range | None = None) -> int:
        """Delete the connections that fit, and say how many they were. Their destroy events have the end `flushed`."""
    def flush(self, filter: Filter | None = None) -> int:
        """Delete those that fit, or every connection; says how many."""
    def update(
        self,
        filter: Filter,
        *,
        slots: range | None = None,
        mark: int | None = None,
        mark_mask: int = 0xFFFFFFFF,
        label: int | None = None,
        label_mask: int = ...,
        timeout: int | None = None,
        status: int = 0,
    ) -> int:
        """Change the connections that fit, and say how many it was done to. An update event tells of each what changed.

        mark, label: new = value | old & ~mask. timeout: seconds from now; 0 ends a connection at once; of one with a fixed timeout it is refused, and
        so nothing of it changes. status: bits of Status to set; seen-reply, assured and fixed-timeout can be set, none can be taken back.
        Source: ctnetlink_change_conntrack. Raises ConfigError, before anything changes.
        """
    def set_mark(self, ordinal: int, mark: int, mask: int = 0xFFFFFFFF) -> None:
        """Set a connection's 32-bit mark: mark | old & ~mask. Raises ConfigError if it does not live or a number does not fit."""
    def set_label(self, ordinal: int, label: int, mask: int = ...) -> None:
        """Set a connection's 128-bit label: label | old & ~mask. Raises ConfigError if it does not live or a number does not fit."""
    def expect(
        self,
        master: int,
        src: str,
        dst: str,
        proto: int,
        dport: int,
        *,
        sport: int = 0,
        zone: int = 0,
        timeout: float = 300.0,
        permanent: bool = False,
    ) -> None:
        """Announce a connection: the first packet from src (any port, or sport) to dst:dport within `timeout` seconds is RELATED to the master.

        master: a live connection's ordinal; src, dst: addresses of one family. One shot unless permanent. Raises ConfigError.
        """
    def expectations(self) -> list[ExpectationRow]:
        """What is still expected."""
    @property
    def expectation_slots(self) -> int:
        """How many places of expectations were ever in use: one keeps its place for life."""
    def expected(self, *, slots: range) -> tuple[list[ExpectationRow], NDArray[Any]]:
        """The expectations in these places, and of each the connection that it belongs to as it is, CONN_DTYPE[k]. Raises ConfigError."""
    def prefer(self, port: int | None = None, destination: int | None = None, announced: int | None = None) -> None:
        """Let the next search for a NAT port begin at this one (0 to 65535) instead of a random one, so that two trackers can be kept in step.

        port: of the source, or the id; destination: the same for a destination's port, which is searched at random if the rule says so; announced: of
        what a helper announces next where its own port is another one's. A closed connection gives way at once on a port that is preferred, since
        the search that is followed may have begun elsewhere. What is above the asked-for one is legal. None: as the seed has it.
        """
    def widen(self, config: Config) -> None:
        """Be able to do what actions of other rules ask: more ranges of config.nat, behind those that there are, nat_actions, helper_actions. All
        other settings stay, and so do ranges and connections. What was not translated until now takes 50 ns for each connection there is. Raises
        ConfigError if config.nat does not begin with the ranges there are, MemoryError; then everything is as it was."""
    def nat_pools(self) -> list[NatPool]:
        """Each NAT rule's range as a pool, in the order of config.nat."""
    def save(self) -> memoryview:
        """The state, for restore(): connections with all that later packets are judged by, helpers' memories, expectations. Read-only bytes.

        Nothing changes here. Connections in a flow table are saved as if they were handed back at this moment. Not saved: counters, events and
        evictions that nobody has taken, what packets carry that is not confirmed, fragments (which are no tracker's).
        """
    def restore(self, state: Buffer, now: int | None = None) -> None:
        """Take up a saved state, all of it or nothing: this tracker must be empty.

        The clock then stands at `now` (ns), or where it stood at save(); so what timeouts were left is left from there on. Whoever wants the time
        in between to count moves the clock on (expire, or the next packet). hz and zone_dir must be as they were, and there must be room: max,
        helper_max, expect_max, reserves; limits of zones are for new connections only. Connections that are translated want a tracker that
        translates; rules are known again by what they say. seed may be another one; draws of ports go on with the old one's.

        No events tell of it. Raises StateError, and then nothing has changed; ConfigError for a `now` that is no time.
        """
    def tell_strays(self, strays: StrayTable) -> None:
        """Enter what is expected, and connections that were, in a table by which packets are steered to this tracker, the first one of those that
        share the work. It must be empty. Raises ConfigError."""
    def take_share(self, state: Buffer, now: int | None = None) -> tuple[int, int, int]:
        """Take up of a saved state what is this tracker's share (config.share), beside what is there: how many connections were entered, and of those
        that are its own how many were not: since answers to them would come to another share (they are translated), and for want of places.

        For states of trackers that shared the work otherwise: each takes its share of each state, in the same order. Ordinals stay as they are. The
        rest is as in restore(), but that states must have no helpers and expectations, and that connections of the states before may be there after
        a StateError.
        """
    def adopt(self, conns: NDArray[Any]) -> tuple[int, dict[str, int]]:
        """Enter connections of somebody else's beside those that are there: how many were, and of the others how many for which reason.

        conns: CONN_DTYPE[n] in one piece: both tuples, status, timeout (ticks left), start, mark, label, counters; of TCP state, scales and flags, of
        SCTP state and tags; `helper` where this tracker has helpers. Ordinals are new, masters and windows unknown: of TCP, windows are learnt
        from the next packet of each direction, and the connection is judged liberally from then on. No events tell of it. Nobody is evicted.
        Raises ValueError if it is no such array.
        """
    def counters(self) -> dict[str, int]:
        """Counts since the start, by the names of `conntrack -S` where it has them."""
    def check(self) -> None:
        """Prove that table, wheel and slab agree. Raises AssertionError naming what does not."""
