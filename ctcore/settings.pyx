"""From Config and the tables of ctcore.spec to the Settings struct: seconds become ticks, texts become arrays. Done once, at a tracker's start."""

from ctcore import spec
from ctcore.types cimport N_TCP_STATES, TIMEOUT_RETRANS, TIMEOUT_UNACK, SYN_SENT2, Settings

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
