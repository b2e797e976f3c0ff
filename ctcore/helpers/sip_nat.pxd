from libc.stdint cimport uint8_t, uint32_t

from ctcore.engine cimport Engine
from ctcore.expectations cimport Expectation
from ctcore.helpers.helper cimport Aid
from ctcore.helpers.sip_text cimport Message, Span, Uri
from ctcore.types cimport Entry

cdef uint8_t expect_signalling(Aid *aid, Message *m, Expectation *draft, const Uri *contact) noexcept nogil
cdef uint8_t expect_media(Aid *aid, Message *m, Expectation *rtp, Expectation *rtcp, const Span *media) noexcept nogil
cdef uint8_t edit_media_port(Aid *aid, Message *m, const Span *media, uint32_t port) noexcept nogil
cdef uint8_t edit_media_address(Aid *aid, Message *m, uint32_t at, const uint8_t *address) noexcept nogil
cdef uint8_t edit_session(Aid *aid, Message *m, uint32_t at, const uint8_t *address) noexcept nogil
cdef uint8_t edit_headers(Aid *aid, Message *m) noexcept nogil
cdef uint8_t say_edits(Aid *aid, const uint8_t *text, uint32_t size) noexcept nogil
cdef void redirect(Engine *ct, const Entry *entry, int dir) noexcept nogil
