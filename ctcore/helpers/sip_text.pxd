# SIP messages (RFC 3261) and session descriptions (SDP, RFC 4566) as text: where a header, an address in it, or a parameter is.
#
# Places count from the start of the message. Not here: what a message means (sip), how it is changed (sip_nat).

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from ctcore.helpers.text cimport Text

# What a search ends with. Python: nameless.
cdef enum:
    MISREAD = -1                # it is there, and makes no sense
    ABSENT = 0
    FOUND = 1

cdef enum:
    NOWHERE = 0xFFFFFFFF        # no place

# Nameless as well, since they index arrays.
cdef enum:
    HEADER_CSEQ
    HEADER_FROM
    HEADER_TO
    HEADER_CONTACT
    HEADER_VIA_UDP
    HEADER_VIA_TCP
    HEADER_EXPIRES
    HEADER_LENGTH
    N_HEADERS

cdef enum:
    SDP_NONE
    SDP_VERSION
    SDP_OWNER
    SDP_CONNECTION
    SDP_MEDIA
    N_SDP_LINES

ctypedef struct Message:
    Text text
    uint32_t rest               # bytes of the payload behind it
    int family                  # of the addresses in it

ctypedef struct Span:
    uint32_t at
    uint32_t size

ctypedef struct Uri:
    Span span                   # of address and port
    uint8_t address[16]
    uint16_t port

# Where a walk through all headers of a kind is.
ctypedef struct Walk:
    uint32_t at
    bint in_header              # behind one value, another one may follow a comma

cdef uint32_t read_address(const Text *t, uint32_t i, int family, bint delimited, uint8_t *address) noexcept nogil
cdef uint32_t read_number(const Text *t, uint32_t i, uint32_t *value) noexcept nogil
cdef uint32_t count_letters(const Text *t, uint32_t i) noexcept nogil
cdef int find_header(const Message *m, uint32_t at, int header, Span *span) noexcept nogil
cdef int next_uri(const Message *m, int header, Walk *walk, Uri *uri) noexcept nogil
cdef int find_uri(const Message *m, int header, Uri *uri) noexcept nogil
cdef int find_request_uri(const Message *m, Uri *uri) noexcept nogil
cdef bint find_param(const Message *m, uint32_t at, const char *name, uint32_t n, Text *part, uint32_t *start) noexcept nogil
cdef int number_param(const Message *m, uint32_t at, const char *name, uint32_t n, Span *span, uint32_t *value) noexcept nogil
cdef int find_line(const Message *m, uint32_t at, int line, int stop, Span *span) noexcept nogil
