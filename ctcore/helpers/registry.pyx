"""Which connection has a helper, and what becomes of a packet that it looks at.

Only rules assign one (Config.helpers), by protocol and port of the first packet; an expected connection has none, unless its expectation says.
Invariant: a connection has an extension if and only if it has a helper.
Not here: what helpers do (the modules beside this one).
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from ctcore.engine cimport Engine
from ctcore.expectations cimport expect_remove_owned
from ctcore.extensions cimport Extension, SeqAdjust, extension_give, extension_take
from ctcore.helpers.ftp cimport ftp
from ctcore.helpers.helper cimport HELPER_FTP, HELPER_IRC, HELPER_PPTP, HELPER_SIP, HELPER_TFTP, N_HELPERS, NO_HELPER, Aid, Helper
from ctcore.helpers.irc cimport irc
from ctcore.helpers.payload_nat cimport edit_number
from ctcore.helpers.pptp cimport forget_tunnels, pptp
from ctcore.helpers.sip cimport keep_connection, keep_signalling, sip
from ctcore.helpers.tftp cimport tftp
from ctcore.lowlevel cimport be32, unlikely
from ctcore.seqadj cimport offset_at, offset_of_ack
from ctcore.tuples cimport IP6_HEADER, Chain, skip_extensions
from ctcore.types cimport *

HELPER_IDS = {"ftp": HELPER_FTP, "tftp": HELPER_TFTP, "sip": HELPER_SIP, "irc": HELPER_IRC, "pptp": HELPER_PPTP}

cdef Helper[N_HELPERS] HELP
HELP[HELPER_FTP] = ftp
HELP[HELPER_TFTP] = tftp
HELP[HELPER_SIP] = sip
HELP[HELPER_IRC] = irc
HELP[HELPER_PPTP] = pptp

cdef enum:
    PORTS = 65536
    UDP_HEADER = 8
    TCP_HEADER = 20
    LONGEST_HEADER = 60         # of TCP
    DOFF_AT = 12                # in it
    FLAGS_AT = 13
    QUOTED_AT = 8               # in an ICMP error
    OPT_END = 0
    OPT_NOP = 1
    OPT_SACK = 5


cdef void fill_helpers(Engine *ct, object rules) except *:
    """From rules to two arrays by port, which the tracker has mapped; the first rule for a port counts."""
    for rule in rules:
        at = <size_t>(rule.proto == PROTO_UDP) * PORTS + <size_t>rule.port
        if ct.helper_of[0][<size_t>at] == NO_HELPER:
            ct.helper_of[0][<size_t>at] = <uint8_t>HELPER_IDS[rule.name]


cdef inline bint speaks(uint8_t helper, const Key *key) noexcept nogil:
    """Does Linux have the helper for packets of this protocol and family? DCC and PPTP name no IPv6 addresses."""
    if key.proto == PROTO_UDP:
        return helper == HELPER_TFTP or helper == HELPER_SIP
    return key.proto == PROTO_TCP and helper != HELPER_TFTP and (key.family == 4 or helper == HELPER_FTP or helper == HELPER_SIP)


cdef void assign_helper(Engine *ct, uint32_t conn) noexcept nogil:
    """A connection that is new and was not expected gets the helper of its rule."""
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef const Key *key = &entry.flow[ORIG].key
    cdef uint8_t helper
    if entry.status & EXPECTED or (key.proto != PROTO_TCP and key.proto != PROTO_UDP):
        return
    helper = ct.helper_of[key.proto == PROTO_UDP][key.dport]
    if helper != NO_HELPER and speaks(helper, key) and give_helper(ct, conn, helper):
        entry.status |= HELPER


cdef bint give_helper(Engine *ct, uint32_t conn, uint8_t helper) noexcept nogil:
    """False if there is no extension left, or this is another tracker's business than the first one's that share the work: it goes without."""
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef uint32_t row
    if unlikely(ct.set.share_index):
        ct.ext.refused += 1
        return False
    row = extension_take(&ct.ext)
    if row == 0:
        return False
    ct.ext.row[row].helper = helper
    entry.extension = row | <uint32_t>helper << EXTENSION_BITS
    entry.cold |= COLD_EXTENSION
    return True


cdef void drop_helper(Engine *ct, uint32_t conn) noexcept nogil:
    """The connection dies, or never came to be: with it go what it announced and what its helper remembers."""
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef uint32_t row = entry.extension & EXTENSION_ROW
    expect_remove_owned(&ct.expect, row)
    ct.ext.confirmed -= (entry.status & CONFIRMED) != 0
    if ct.ext.row[row].helper == HELPER_PPTP:
        forget_tunnels(ct, &ct.ext.row[row])
    extension_give(&ct.ext, row)
    entry.extension = 0
    entry.cold &= <uint8_t>~COLD_EXTENSION


cdef void helper_confirmed(Engine *ct, const Entry *entry) noexcept nogil:
    """The connection has its ordinal now, and counts."""
    ct.ext.row[entry.extension & EXTENSION_ROW].master = entry.flow[ORIG].id
    ct.ext.confirmed += 1


cdef inline bint find_payload(const Packet *p, Aid *aid) noexcept nogil:
    """What is behind the transport header. False if the capture does not hold all of it: half a command is worse than none."""
    cdef uint32_t header = p.doff if p.key.proto == PROTO_TCP else UDP_HEADER
    if p.l4_have < p.l4_len or header > p.l4_len:
        return False
    aid.payload.at = p.l4 + header
    aid.payload.size = p.l4_len - header
    return True


cdef bint adjust_sack(Engine *ct, const SeqAdjust *adjust, const uint8_t *header, uint32_t end) noexcept nogil:
    """The edges of all SACK options (RFC 2018) up to `end`, moved back. False if an option is cut off, or there is no memory."""
    cdef uint32_t at = TCP_HEADER, edge, size, number
    cdef int32_t by
    while at < end and header[at] != OPT_END:
        if header[at] == OPT_NOP:
            at += 1
            continue
        if at + 1 == end:
            return False
        size = header[at + 1]
        if size < 2 or at + size > end:
            return False
        if header[at] == OPT_SACK and size >= 10 and size % 8 == 2:
            for edge in range(at + 2, at + size, 4):
                number = be32(header + edge)
                by = offset_of_ack(adjust, number)
                if by != 0 and not edit_number(ct, edge, number - <uint32_t>by):
                    return False
        at += size
    return True


cdef bint adjust_sequence(Engine *ct, const Extension *ext, const Packet *p, int dir) noexcept nogil:
    """Sequence and acknowledgement numbers by what was added to either direction so far. False if the packet cannot leave."""
    cdef Rewrite *rewrite = ct.rewrite
    if rewrite != NULL:
        rewrite.seq_delta = offset_at(&ext.adjust[dir], p.seq)
        rewrite.ack_delta = -offset_of_ack(&ext.adjust[1 - dir], p.ack) if p.tcp_flags & ACK else 0
        if rewrite.seq_delta or rewrite.ack_delta:
            rewrite.flags |= REWRITE_SEQ
    return not p.tcp_flags & ACK or adjust_sack(ct, &ext.adjust[1 - dir], p.l4, p.doff)


# --- ICMP errors ------------------------------------------------------------------------------------------------------------------------


cdef void copy_error(const Entry *entry, const Packet *p, uint8_t *header) noexcept nogil:
    """The first LONGEST_HEADER bytes of an ICMP error of the original direction, as it leaves: what it quotes came in the reply direction.

    Only what is read as options need be right: addresses and ports, not the checksum behind them.
    """
    cdef const Key *quoted = &entry.flow[REPLY].key
    cdef uint32_t size = 4 if p.key.family == 4 else 16
    cdef uint32_t at = QUOTED_AT + (12 if p.key.family == 4 else 8)
    cdef Chain chain
    memset(header, 0, LONGEST_HEADER)
    memcpy(header, p.l4, min(p.l4_have, <uint32_t>LONGEST_HEADER))
    chain.at = (header[QUOTED_AT] & 15) * 4 if p.key.family == 4 else IP6_HEADER
    chain.proto = header[QUOTED_AT + 6]
    if p.key.family == 6 and skip_extensions(p.l4 + QUOTED_AT, p.l4_len - QUOTED_AT, p.l4_have - QUOTED_AT, &chain) != R_OK:
        return
    memcpy(header + at, quoted.src, size)
    memcpy(header + at + size, quoted.dst, size)
    at = QUOTED_AT + chain.at
    if at + 4 <= LONGEST_HEADER:
        header[at], header[at + 1] = quoted.sport >> 8, quoted.sport & 0xFF
        header[at + 2], header[at + 3] = quoted.dport >> 8, quoted.dport & 0xFF


cdef bint adjust_error(Engine *ct, const Entry *entry, const Packet *p) noexcept nogil:
    """The error is moved as a segment would be. False if it is dropped.

    Linux does so to all that leaves in this direction: where a TCP header has its numbers, checksum and options, an error has its own last four
    bytes, and behind them the packet that it quotes. The error's checksum is not made to fit.
    """
    cdef const Extension *ext = &ct.ext.row[entry.extension & EXTENSION_ROW]
    cdef uint32_t end = (p.l4[DOFF_AT] >> 4) * 4
    cdef bint acknowledges = p.l4[FLAGS_AT] & ACK
    cdef uint8_t[LONGEST_HEADER] header
    if ct.rewrite != NULL:
        ct.rewrite.seq_delta = offset_at(&ext.adjust[ORIG], be32(p.l4 + 4))
        ct.rewrite.ack_delta = -offset_of_ack(&ext.adjust[REPLY], be32(p.l4 + 8)) if acknowledges else 0
        ct.rewrite.flags |= REWRITE_SEQ
    if not acknowledges:
        return True
    copy_error(entry, p, header)
    return end <= p.l4_len and adjust_sack(ct, &ext.adjust[REPLY], header, end)


cdef bint help_error(Engine *ct, Entry *entry, const Packet *p) noexcept nogil:
    """An ICMP error of the original direction about a connection with a helper. False if it is dropped.

    Linux takes it for a packet of the connection (nf_confirm), as it does not in the reply direction. Over UDP, SIP keeps its connection for it;
    other helpers see that it is none of theirs.
    """
    if ct.ext.row[entry.extension & EXTENSION_ROW].helper == HELPER_SIP and entry.flow[ORIG].key.proto == PROTO_UDP:
        keep_connection(ct, entry)
    return not entry.status & SEQ_ADJUST or adjust_error(ct, entry, p)


cdef inline bint wants_all(const Aid *aid) noexcept nogil:
    """Does Linux put a packet into one piece for its helper to read? FTP's asks before it looks whether there is any payload, SIP's after that.

    The others copy what they read; whoever edits a packet has it put into one piece as well (edit).
    """
    cdef bint tcp = aid.p.key.proto == PROTO_TCP
    if aid.ext.helper == HELPER_FTP:
        return aid.state == ESTABLISHED
    return aid.ext.helper == HELPER_SIP and aid.p.l4_len > (aid.p.doff if tcp else <uint32_t>UDP_HEADER) and (not tcp or aid.state == ESTABLISHED)


cdef uint8_t run_helper(Engine *ct, uint32_t conn, Packet *p, int dir, uint8_t state) noexcept nogil:
    """An accepted packet of a connection with a helper.   Reads: payload.   Writes: the extension, expectations, ct.changes, ct.rewrite.

    R_OK, or why the packet is dropped: then its changes are told of with the next packet's. A `ct` action may have given a connection a helper
    that does not speak its protocol; that one is never asked.
    """
    cdef Entry *entry = &ct.pool.entry[conn]
    cdef Extension *ext = &ct.ext.row[entry.extension & EXTENSION_ROW]
    cdef uint8_t reason = R_OK
    cdef bint readable = True
    cdef Aid aid
    if not speaks(ext.helper, &p.key):
        return R_OK
    aid.ct = ct
    aid.entry = entry
    aid.ext = ext
    aid.p = p
    aid.conn = conn
    aid.dir = <uint8_t>dir
    aid.state = state
    aid.grown = 0
    # What the helper adds by this packet's payload moves later ones only.
    if entry.status & SEQ_ADJUST and p.key.proto == PROTO_TCP:
        readable = adjust_sequence(ct, ext, p, dir)
    if ct.rewrite != NULL and wants_all(&aid):
        ct.rewrite.flags |= REWRITE_WHOLE
    if ext.helper == HELPER_SIP:
        keep_signalling(&aid)
    if find_payload(p, &aid):
        reason = HELP[ext.helper](&aid)
    if reason == R_OK and not readable:
        reason = R_HELPER_REFUSED
    if reason != R_OK:
        ext.changes |= ct.changes
        ct.changes = 0
        return reason
    ct.changes |= ext.changes
    ext.changes = 0
    return R_OK
