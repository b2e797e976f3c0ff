"""The TCP and SCTP state tables and the timeouts of Linux 6.18 once more, laid out otherwise: what ctcore/spec/*.txt is compared with.

A line is a packet, a column the old state; in the spec it is the other way round. Written by hand from the kernel's behaviour, never made from
the spec: a cell that is wrong there has to differ from the one here. Not here: guards beside the tables.
"""

from __future__ import annotations

from ctcore.types import Dir

VERDICTS = {"IV": "invalid", "IG": "ignore"}

TCP_STATES = {
    "NO": "NONE", "SS": "SYN_SENT", "SR": "SYN_RECV", "ES": "ESTABLISHED", "FW": "FIN_WAIT", "CW": "CLOSE_WAIT", "LA": "LAST_ACK",
    "TW": "TIME_WAIT", "CL": "CLOSE", "S2": "SYN_SENT2",
}  # fmt: skip
TCP_ORIGINAL = """
            NO SS SR ES FW CW LA TW CL S2
    syn     SS SS IG IG IG IG IG SS SS S2
    synack  IV IV SR IV IV IV IV IV IV SR
    fin     IV IV FW FW LA LA LA TW CL IV
    ack     ES IV ES ES CW CW TW TW CL IV
    rst     IV CL CL CL CL CL CL CL CL CL
    none    IV IV IV IV IV IV IV IV IV IV
"""
TCP_REPLY = """
            NO SS SR ES FW CW LA TW CL S2
    syn     IV S2 IV IV IV IV IV SS IV S2
    synack  IV SR IG IG IG IG IG IG IG SR
    fin     IV IV FW FW LA LA LA TW CL IV
    ack     IV IG SR ES CW CW TW TW CL IG
    rst     IV CL CL CL CL CL CL CL CL CL
    none    IV IV IV IV IV IV IV IV IV IV
"""

SCTP_STATES = {
    "NO": "NONE", "CL": "CLOSED", "CW": "COOKIE_WAIT", "CE": "COOKIE_ECHOED", "ES": "ESTABLISHED", "SS": "SHUTDOWN_SENT", "SR": "SHUTDOWN_RECD",
    "SA": "SHUTDOWN_ACK_SENT", "HS": "HEARTBEAT_SENT",
}  # fmt: skip
SCTP_ORIGINAL = """
                       NO CL CW CE ES SS SR SA HS
    init               CL CL CW CE ES CL CL SA CW
    init_ack           CL CL CW CE ES SS SR SA CL
    abort              CL CL CL CL CL CL CL CL CL
    shutdown           CL CL CW CE SS SS SR SA CL
    shutdown_ack       SA CL CW CE ES SA SA SA SA
    error              CL CL CW CE ES SS SR SA CL
    cookie_echo        CL CL CE CE ES SS SR SA CL
    cookie_ack         CL CL CW ES ES SS SR SA CL
    shutdown_complete  CL CL CW CE ES SS SR CL CL
    heartbeat          HS CL CW CE ES SS SR SA HS
    heartbeat_ack      CL CL CW CE ES SS SR SA HS
    other              NO CL CW CE ES SS SR SA HS
"""
SCTP_REPLY = """
                       NO CL CW CE ES SS SR SA HS
    init               IV CL CW CE ES SS SR SA IV
    init_ack           IV CW CW CE ES SS SR SA IV
    abort              IV CL CL CL CL CL CL CL IV
    shutdown           IV CL CW CE SR SS SR SA IV
    shutdown_ack       IV CL CW CE ES SA SA SA IV
    error              IV CL CW CL ES SS SR SA IV
    cookie_echo        IV CL CE CE ES SS SR SA IV
    cookie_ack         IV CL CW ES ES SS SR SA IV
    shutdown_complete  IV CL CW CE ES SS SR CL IV
    heartbeat          IV CL CW CE ES SS SR SA HS
    heartbeat_ack      IV CL CW CE ES SS SR SA ES
    other              NO CL CW CE ES SS SR SA HS
"""

Cells = dict[tuple[int, str, str], str]


def cells(states: dict[str, str], halves: dict[Dir, str]) -> Cells:
    """(direction, packet, old state) -> new state, "invalid" or "ignore"."""
    found: Cells = {}
    for d, text in halves.items():
        head, *rows = (line.split() for line in text.strip().splitlines())
        for event, *row in rows:
            found |= {(d, event, states[old]): VERDICTS.get(new) or states[new] for old, new in zip(head, row, strict=True)}
    return found


TCP = cells(TCP_STATES, {Dir.ORIG: TCP_ORIGINAL, Dir.REPLY: TCP_REPLY})
SCTP = cells(SCTP_STATES, {Dir.ORIG: SCTP_ORIGINAL, Dir.REPLY: SCTP_REPLY})

# Seconds, by sysctl names without nf_conntrack_. A state's timeout is the one of its name, but SYN_SENT2's, which has no sysctl.
TIMEOUTS = {
    "ipfrag_time": 30, "frag6_timeout": 60,
    "generic_timeout": 600, "gre_timeout": 30, "gre_timeout_stream": 180, "icmp_timeout": 30, "icmpv6_timeout": 30, "udp_timeout": 30,
    "udp_timeout_stream": 120,
    "sctp_timeout_closed": 10, "sctp_timeout_cookie_wait": 3, "sctp_timeout_cookie_echoed": 3, "sctp_timeout_established": 210,
    "sctp_timeout_shutdown_sent": 3, "sctp_timeout_shutdown_recd": 3, "sctp_timeout_shutdown_ack_sent": 3, "sctp_timeout_heartbeat_sent": 30,
    "tcp_timeout_syn_sent": 120, "tcp_timeout_syn_recv": 60, "tcp_timeout_established": 432000, "tcp_timeout_fin_wait": 120,
    "tcp_timeout_close_wait": 60, "tcp_timeout_last_ack": 30, "tcp_timeout_time_wait": 120, "tcp_timeout_close": 10,
    "tcp_timeout_max_retrans": 300, "tcp_timeout_unacknowledged": 300,
}  # fmt: skip
SYN_SENT2_SECONDS = 120
