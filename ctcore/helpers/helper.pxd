# What every helper works with: one packet of its connection, and what it may do about it.
#
# A helper is a function of an Aid that returns a Reason: R_OK, or why the packet is dropped. It sees packets that the protocol's tracker has
# accepted, after address translation was decided and before a new connection is confirmed. Payload comes from strangers: it is read through a
# Text, which answers every question beyond its end.
# Not here: which connection gets a helper (registry), texts (text).

from libc.stdint cimport int32_t, uint8_t, uint32_t

from ctcore.engine cimport Engine
from ctcore.expectations cimport Announced, Expectation
from ctcore.extensions cimport Extension
from ctcore.helpers.text cimport Text
from ctcore.types cimport Entry, Packet

# Python: nameless, since they index arrays.
cdef enum:
    NO_HELPER
    HELPER_FTP
    HELPER_TFTP
    HELPER_SIP
    HELPER_IRC
    HELPER_PPTP
    N_HELPERS

# Kinds of expectations, each with a limit and a lifetime of its own. Only SIP has more than one.
cdef enum:
    KIND_DEFAULT = 0
    KIND_SIGNALLING = 0
    KIND_AUDIO = 1
    KIND_VIDEO = 2
    KIND_IMAGE = 3
    N_KINDS = 4

ctypedef struct Aid:
    Engine *ct
    Entry *entry
    Extension *ext
    Packet *p
    Text payload
    uint32_t conn               # slot
    int32_t grown               # bytes that edits have added so far
    uint8_t dir
    uint8_t state               # of the packet

ctypedef uint8_t (*Helper)(Aid *aid) noexcept nogil

cdef void draft_new(const Aid *aid, Expectation *draft, uint8_t kind, uint8_t proto) noexcept nogil
cdef Announced announce(Aid *aid, Expectation *draft) noexcept nogil
cdef uint8_t announce_or_drop(Aid *aid, Expectation *draft) noexcept nogil
cdef bint translated(const Aid *aid) noexcept nogil
