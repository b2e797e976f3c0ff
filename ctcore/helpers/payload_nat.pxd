from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from ctcore.engine cimport Engine
from ctcore.expectations cimport Expectation
from ctcore.helpers.helper cimport Aid
from ctcore.types cimport Entry

cdef enum:
    LARGEST_PACKET = 65535      # bytes, with all headers

# Text to put in another one's place. The longest is an IPv6 address with its port.
ctypedef struct Line:
    uint8_t text[64]
    uint32_t size

cdef uint16_t announce_at_port(Aid *aid, Expectation *draft, uint16_t port) noexcept nogil
cdef void add_byte(Line *line, uint8_t c) noexcept nogil
cdef void add_text(Line *line, const char *text) noexcept nogil
cdef void add_number(Line *line, uint32_t value) noexcept nogil
cdef void add_ip4(Line *line, const uint8_t *address, uint8_t separator) noexcept nogil
cdef void add_ip6(Line *line, const uint8_t *address) noexcept nogil
cdef void add_ip6_short(Line *line, const uint8_t *address) noexcept nogil
cdef bint add_edit(Engine *ct, uint32_t at, uint32_t old_len, const uint8_t *text, uint32_t size) noexcept nogil
cdef bint edit(Aid *aid, uint32_t at, uint32_t old_len, const Line *line) noexcept nogil
cdef bint edit_number(Engine *ct, uint32_t at, uint32_t value) noexcept nogil
cdef void move_sequence(Aid *aid, int32_t by) noexcept nogil
cdef uint32_t set_half(Engine *ct, Entry *child, int manip, const uint64_t *address, int32_t port) noexcept nogil
cdef void follow(Engine *ct, Entry *child, const Expectation *expected, uint32_t own) noexcept nogil
