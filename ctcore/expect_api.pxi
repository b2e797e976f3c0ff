"""Expectations as people and programs name them: addresses as text, a row for each that is there. Part of tracker.pyx, for class Tracker lives there.

Not here: which packets they are for (expectations), the methods' interface (tracker.pyi).
"""

LONGEST_EXPECTATION = (1 << 31) - 1     # ticks

ExpectationRow = namedtuple(
    "ExpectationRow", "master src dst proto sport dport zone timeout permanent kind inactive follow dir saved saved_port"
)
FOLLOWS = {FOLLOW_NONE: "", FOLLOW_MASTER: "master", FOLLOW_PPTP: "pptp", FOLLOW_SIP: "sip"}


cdef object expectation_row(const Engine *ct, const Expectation *e, object hz):
    return ExpectationRow(
        e.master, "any" if e.any_src else address_text(e.key.src, e.key.family), address_text(e.key.dst, e.key.family), e.key.proto,
        e.key.sport, e.key.dport, e.key.zone, (e.deadline - ct.tick) / hz, bool(e.permanent),
        e.kind, bool(e.inactive), FOLLOWS[e.follow], e.dir, address_text(e.saved, e.key.family), e.saved_port)


cdef int fill_address(uint64_t *words, str text) except -1:
    """An address text into a Key's field; returns its family."""
    cdef bytes packed
    try:
        packed = ipaddress.ip_address(text).packed
    except ValueError:
        raise ConfigError(f"address '{text}': expected an IPv4 or IPv6 address") from None
    words[0] = words[1] = 0
    memcpy(words, <const char *>packed, len(packed))
    return 4 if len(packed) == 4 else 6


cdef str address_text(const uint64_t *words, int family):
    return str(ipaddress.ip_address((<const char *>words)[:4 if family == 4 else 16]))


cdef int fill_expectation(Expectation *draft, str src, str dst, proto, dport, sport, zone) except -1:
    """What it is for; no port: any. Raises ConfigError."""
    memset(draft, 0, sizeof(Expectation))
    draft.key.family = <uint8_t>fill_address(draft.key.src, src)
    if fill_address(draft.key.dst, dst) != draft.key.family:
        raise ConfigError(f"expectation {src} > {dst}: expected two addresses of one family")
    draft.key.proto = whole("expectation: proto =", proto, 0, 255)
    draft.key.dport = whole("expectation: dport =", dport, 0, 65535)
    draft.key.sport = whole("expectation: sport =", sport, 0, 65535)
    draft.key.zone = whole("expectation: zone =", zone, 0, 65535)
    draft.any_sport = draft.key.sport == 0
    return 0
