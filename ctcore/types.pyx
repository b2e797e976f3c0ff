"""NumPy's view of the structs of types.pxd, and the enums as Python names.

The dtypes are taken from the C layout (offsets and sizes as the compiler sees them), so that an array of records is the engine's own memory
seen from outside: nothing is converted. Not here: behaviour.
"""

from enum import IntEnum

import numpy as np

assert sizeof(Key) == 40 and sizeof(Flow) == 64 and sizeof(Entry) == 256 and sizeof(Decision) == 32


# Enums that are nameless in C.
Dir = IntEnum("Dir", {
    "ORIG": ORIG, "REPLY": REPLY,
}, module=__name__)
Manip = IntEnum("Manip", {
    "MANIP_SRC": MANIP_SRC, "MANIP_DST": MANIP_DST,
}, module=__name__)
TcpState = IntEnum("TcpState", {
    "TCP_NONE": TCP_NONE, "SYN_SENT": SYN_SENT, "SYN_RECV": SYN_RECV, "TCP_ESTABLISHED": TCP_ESTABLISHED, "FIN_WAIT": FIN_WAIT,
    "CLOSE_WAIT": CLOSE_WAIT, "LAST_ACK": LAST_ACK, "TIME_WAIT": TIME_WAIT, "CLOSE": CLOSE, "SYN_SENT2": SYN_SENT2,
    "N_TCP_STATES": N_TCP_STATES, "TCP_INVALID": TCP_INVALID, "TCP_IGNORE": TCP_IGNORE, "N_TCP_TIMEOUTS": N_TCP_TIMEOUTS,
    "TIMEOUT_RETRANS": TIMEOUT_RETRANS, "TIMEOUT_UNACK": TIMEOUT_UNACK,
}, module=__name__)
TcpIndex = IntEnum("TcpIndex", {
    "TCP_SYN": TCP_SYN, "TCP_SYNACK": TCP_SYNACK, "TCP_FIN": TCP_FIN, "TCP_ACK": TCP_ACK, "TCP_RST": TCP_RST,
    "TCP_NO_FLAG": TCP_NO_FLAG, "N_TCP_INDEXES": N_TCP_INDEXES,
}, module=__name__)
SctpState = IntEnum("SctpState", {
    "SCTP_NONE": SCTP_NONE, "SCTP_CLOSED": SCTP_CLOSED, "SCTP_COOKIE_WAIT": SCTP_COOKIE_WAIT,
    "SCTP_COOKIE_ECHOED": SCTP_COOKIE_ECHOED, "SCTP_ESTABLISHED": SCTP_ESTABLISHED, "SCTP_SHUTDOWN_SENT": SCTP_SHUTDOWN_SENT,
    "SCTP_SHUTDOWN_RECD": SCTP_SHUTDOWN_RECD, "SCTP_SHUTDOWN_ACK_SENT": SCTP_SHUTDOWN_ACK_SENT,
    "SCTP_HEARTBEAT_SENT": SCTP_HEARTBEAT_SENT, "N_SCTP_STATES": N_SCTP_STATES, "SCTP_INVALID": SCTP_INVALID,
}, module=__name__)


cdef object _dtype(list fields, size_t size):
    """A structured dtype of (name, format, offset) triples."""
    return np.dtype({
        "names": [f[0] for f in fields], "formats": [f[1] for f in fields], "offsets": [f[2] for f in fields], "itemsize": size,
    })

# One of each, to measure the offsets of members on.
cdef Key _k
cdef Packet _p
cdef Decision _d
cdef Rewrite _r
cdef Edit _edit
cdef Tcp _t
cdef Sctp _s
cdef Flow _f
cdef Entry _e
cdef Event _v
cdef Eviction _x


cdef size_t at(const void *whole, const void *member):
    return <size_t>member - <size_t>whole


KEY_DTYPE = _dtype([
    ("src", ("u1", 16), at(&_k, &_k.src)), ("dst", ("u1", 16), at(&_k, &_k.dst)), ("sport", "u2", at(&_k, &_k.sport)),
    ("dport", "u2", at(&_k, &_k.dport)), ("zone", "u2", at(&_k, &_k.zone)), ("proto", "u1", at(&_k, &_k.proto)),
    ("family", "u1", at(&_k, &_k.family)),
], sizeof(Key))

PACKET_DTYPE = _dtype([
    ("key", KEY_DTYPE, at(&_p, &_p.key)), ("now", "i8", at(&_p, &_p.now)), ("l4", "u8", at(&_p, &_p.l4)), ("hash", "u4", at(&_p, &_p.hash)),
    ("flow", "u4", at(&_p, &_p.flow)), ("seq", "u4", at(&_p, &_p.seq)), ("ack", "u4", at(&_p, &_p.ack)), ("l4_len", "u4", at(&_p, &_p.l4_len)),
    ("l4_have", "u4", at(&_p, &_p.l4_have)), ("ip_len", "u4", at(&_p, &_p.ip_len)), ("wire_len", "u4", at(&_p, &_p.wire_len)),
    ("win", "u2", at(&_p, &_p.win)), ("doff", "u1", at(&_p, &_p.doff)), ("tcp_flags", "u1", at(&_p, &_p.tcp_flags)),
    ("l4_reason", "u1", at(&_p, &_p.l4_reason)), ("verdict", "u1", at(&_p, &_p.verdict)), ("reason", "u1", at(&_p, &_p.reason)),
    ("state", "u1", at(&_p, &_p.state)), ("hop_limit", "u1", at(&_p, &_p.hop_limit)), ("flaw", "u1", at(&_p, &_p.flaw)), ("l3_off", "u2", at(&_p, &_p.l3_off)),
    ("index", "u4", at(&_p, &_p.index)),
], sizeof(Packet))

DECISION_DTYPE = _dtype([
    ("conn", "i8", at(&_d, &_d.conn)), ("timeout", "i4", at(&_d, &_d.timeout)), ("mark", "u4", at(&_d, &_d.mark)),
    ("zone", "u2", at(&_d, &_d.zone)), ("status", "u2", at(&_d, &_d.status)), ("state", "u1", at(&_d, &_d.state)),
    ("dir", "u1", at(&_d, &_d.dir)), ("verdict", "u1", at(&_d, &_d.verdict)), ("reason", "u1", at(&_d, &_d.reason)),
    ("l4state", "u1", at(&_d, &_d.l4state)), ("proto", "u1", at(&_d, &_d.proto)), ("family", "u1", at(&_d, &_d.family)),
    ("offload", "u1", at(&_d, &_d.offload)),
], sizeof(Decision))

REWRITE_DTYPE = _dtype([
    ("to", KEY_DTYPE, at(&_r, &_r.to)), ("seq_delta", "i4", at(&_r, &_r.seq_delta)), ("ack_delta", "i4", at(&_r, &_r.ack_delta)),
    ("first_edit", "u4", at(&_r, &_r.first_edit)), ("n_edits", "u2", at(&_r, &_r.n_edits)), ("flags", "u1", at(&_r, &_r.flags)),
], sizeof(Rewrite))

EDIT_DTYPE = _dtype([
    ("at", "u4", at(&_edit, &_edit.at)), ("old_len", "u2", at(&_edit, &_edit.old_len)), ("new_len", "u2", at(&_edit, &_edit.new_len)),
    ("text", ("u1", 64), at(&_edit, &_edit.text)),
], sizeof(Edit))

TCP_SIDE_DTYPE = np.dtype([("end", "u4"), ("maxend", "u4"), ("maxwin", "u4"), ("maxack", "u4")])

TCP_DTYPE = _dtype([
    ("side", (TCP_SIDE_DTYPE, 2), at(&_t, &_t.side)), ("last_seq", "u4", at(&_t, &_t.last_seq)), ("last_ack", "u4", at(&_t, &_t.last_ack)),
    ("last_end", "u4", at(&_t, &_t.last_end)), ("last_win", "u2", at(&_t, &_t.last_win)), ("scale", ("u1", 2), at(&_t, &_t.scale)),
    ("flags", ("u1", 2), at(&_t, &_t.flags)), ("last_index", "u1", at(&_t, &_t.last_index)), ("last_dir", "u1", at(&_t, &_t.last_dir)),
    ("retrans", "u1", at(&_t, &_t.retrans)), ("last_wscale", "u1", at(&_t, &_t.last_wscale)), ("last_flags", "u1", at(&_t, &_t.last_flags)),
    ("state", "u1", at(&_t, &_t.state)),
], sizeof(Tcp))

SCTP_DTYPE = _dtype([
    ("vtag", ("u4", 2), at(&_s, &_s.vtag)), ("init", ("u1", 2), at(&_s, &_s.init)), ("flags", "u1", at(&_s, &_s.flags)),
    ("last_dir", "u1", at(&_s, &_s.last_dir)), ("state", "u1", at(&_s, &_s.state)),
], sizeof(Sctp))

FLOW_DTYPE = _dtype([
    ("key", KEY_DTYPE, at(&_f, &_f.key)), ("packets", "u8", at(&_f, &_f.packets)), ("bytes", "u8", at(&_f, &_f.bytes)), ("id", "i8", at(&_f, &_f.id)),
], sizeof(Flow))

# tcp, sctp and stream_ts share their memory: which one is meant says flow[0].key.proto. In a snapshot, timeout holds the ticks that are
# left; inside the engine the same four bytes hold the deadline. helper: 0, or the place of its name in nat_rules.HELPERS, counted from 1.
CONN_DTYPE = _dtype([
    ("flow", (FLOW_DTYPE, 2), at(&_e, &_e.flow)), ("tcp", TCP_DTYPE, at(&_e, &_e.l4)), ("sctp", SCTP_DTYPE, at(&_e, &_e.l4)),
    ("stream_ts", "u8", at(&_e, &_e.l4)), ("timeout", "u4", at(&_e, &_e.deadline)), ("status", "u2", at(&_e, &_e.status)),
    ("start", "i8", at(&_e, &_e.start)), ("master", "i8", at(&_e, &_e.master)), ("label", ("u8", 2), at(&_e, &_e.label)),
    ("mark", "u4", at(&_e, &_e.mark)), ("helper", "u1", at(&_e, &_e.extension) + 3),
], sizeof(Entry))

EVENT_DTYPE = _dtype([
    ("kind", "u1", at(&_v, &_v.kind)), ("end", "u1", at(&_v, &_v.end)), ("changes", "u2", at(&_v, &_v.changes)),
    ("timeout", "u4", at(&_v, &_v.timeout)), ("time", "i8", at(&_v, &_v.time)), ("conn", CONN_DTYPE, at(&_v, &_v.conn)),
], sizeof(Event))

EVICTION_DTYPE = _dtype([
    ("time", "i8", at(&_x, &_x.time)), ("conn", "i8", at(&_x, &_x.conn)), ("key", KEY_DTYPE, at(&_x, &_x.key)),
    ("newcomer", KEY_DTYPE, at(&_x, &_x.newcomer)), ("packets", ("u8", 2), at(&_x, &_x.packets)), ("bytes", ("u8", 2), at(&_x, &_x.bytes)),
    ("status", "u2", at(&_x, &_x.status)), ("why", "u1", at(&_x, &_x.why)),
], sizeof(Eviction))
