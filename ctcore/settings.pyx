"""From Config and the tables of ctcore.spec to what the engine reads: seconds become ticks, texts become arrays. Done once, at a tracker's start."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from ctcore import spec
from ctcore.nat_table cimport NatRule
from ctcore.types cimport MANIP_DST, MANIP_SRC, N_TCP_STATES, TIMEOUT_RETRANS, TIMEOUT_UNACK, SYN_SENT2, Settings
from ctcore.types import RangeFlag

cdef int SYN_SENT2_SECONDS = 120        # has no sysctl


cdef void fill_settings(Settings *settings, object config) except *:
    cdef int d, e, s
    tcp, sctp = spec.tcp(), spec.sctp()
    for s, name in enumerate(tcp.timeouts):
        if s and s != SYN_SENT2:
            settings.tcp_timeout[s] = config.ticks(f"tcp_timeout_{name}")
    settings.tcp_timeout[SYN_SENT2] = SYN_SENT2_SECONDS * config.hz
    settings.tcp_timeout[TIMEOUT_RETRANS] = config.ticks("tcp_timeout_max_retrans")
    settings.tcp_timeout[TIMEOUT_UNACK] = config.ticks("tcp_timeout_unacknowledged")
    for s, name in enumerate(sctp.timeouts):
        if s:
            settings.sctp_timeout[s] = config.ticks(f"sctp_timeout_{name}")
    settings.udp_timeout = [config.ticks("udp_timeout"), config.ticks("udp_timeout_stream")]
    settings.gre_timeout = [config.ticks("gre_timeout"), config.ticks("gre_timeout_stream")]
    settings.icmp_timeout = config.ticks("icmp_timeout")
    settings.icmpv6_timeout = config.ticks("icmpv6_timeout")
    settings.generic_timeout = config.ticks("generic_timeout")
    settings.udp_stream_after = 2 * config.hz
    settings.hopeless_after = 120 * config.hz
    settings.tick_ns = 1_000_000_000 // config.hz
    settings.max = config.capacity
    settings.buckets = config.buckets
    settings.share_index, settings.share_count = config.share
    settings.tcp_liberal = config.tcp_liberal
    settings.tcp_loose = config.tcp_loose
    settings.tcp_ignore_invalid_rst = config.tcp_ignore_invalid_rst
    settings.tcp_max_retrans = config.tcp_max_retrans
    settings.acct = config.acct
    settings.events = config.event_mask
    for d in range(2):
        for e in range(len(spec.TCP_EVENTS)):
            for s in range(N_TCP_STATES):
                settings.tcp_table[d][e][s] = tcp.cells[d][e][s]
        for e in range(len(spec.SCTP_EVENTS)):
            for s in range(len(sctp.states)):
                settings.sctp_table[d][e][s] = sctp.cells[d][e][s]


cdef void store(uint64_t *out, object packed) except *:
    """An address, or a mask, as a Key has it: in network order, zeros behind."""
    cdef bytes padded = packed.ljust(16, b"\0")
    memcpy(out, <const uint8_t *>padded, 16)


cdef void fill_nat_rule(NatRule *out, object rule) except *:
    """rule: a NatRule of ctcore.nat_rules."""
    match, allowed = rule.match, rule.range
    memset(out, 0, sizeof(NatRule))
    if match.src is not None:
        store(out.src, match.src.network_address.packed)
        store(out.src_mask, match.src.netmask.packed)
    if match.dst is not None:
        store(out.dst, match.dst.network_address.packed)
        store(out.dst_mask, match.dst.netmask.packed)
    out.ports = match.sport is not None or match.dport is not None
    out.sport[0], out.sport[1] = match.sport or (0, 0xFFFF)
    out.dport[0], out.dport[1] = match.dport or (0, 0xFFFF)
    out.proto = match.proto or 0
    out.family = rule.family or 0
    out.manip = MANIP_SRC if rule.source else MANIP_DST
    out.interface = rule.kind in ("masquerade", "redirect")
    # The address of nobody keeps the packet's own: then only a port changes, and only if it has to.
    if not allowed.keeps_address:
        out.range.flags |= RangeFlag.RANGE_ADDRESSES
        store(out.range.low, allowed.low.packed)
        store(out.range.high, allowed.high.packed)
    if allowed.ports is not None:
        out.range.flags |= RangeFlag.RANGE_PORTS
        out.range.port_low, out.range.port_high = allowed.ports
    out.range.flags |= (RangeFlag.RANGE_RANDOM * allowed.random | RangeFlag.RANGE_FULLY_RANDOM * allowed.fully_random
                        | RangeFlag.RANGE_PERSISTENT * allowed.persistent)
