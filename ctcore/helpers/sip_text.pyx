"""Reading of SIP (RFC 3261) and SDP (RFC 4566): as far as Linux reads them, and as leniently.

Theory of operation: a header begins a line; lines that begin with a blank go on with it. A search within a header follows it there, and needs at
least one more byte behind what it finds. A name that begins as the wanted one ends the search if no colon follows. A compact name (RFC 3261
7.3.3) is one letter that no letter follows. The message's first line is never taken for a header.
Invariant: nothing outside the message is read; every search goes on, and ends with the message.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset, strlen

from ctcore.helpers.text cimport ANY_END, Text, byte_at, bytes_at, is_digit, lower, read_ip4, read_ip6, word_at

cdef enum:
    DEFAULT_PORT = 5060
    LEAST_PORT = 1024           # lower ones are not believed
    LAST_PORT = 65535

# How a header's value is measured.
cdef enum Measure:
    NUMBER
    ADDRESS                     # with or without a port
    URI                         # the same, behind a user and @, if there is one
    BARE_ADDRESS
    MEDIA                       # a word, a blank, a number

ctypedef struct Form:
    const char *name
    const char *compact         # NULL: there is none
    const char *before          # text in front of the value, NULL: none
    Measure measure

cdef Form[N_HEADERS] FORMS
FORMS[HEADER_CSEQ] = Form(b"CSeq", NULL, NULL, NUMBER)
FORMS[HEADER_FROM] = Form(b"From", b"f", b"sip:", URI)
FORMS[HEADER_TO] = Form(b"To", b"t", b"sip:", URI)
FORMS[HEADER_CONTACT] = Form(b"Contact", b"m", b"sip:", URI)
FORMS[HEADER_VIA_UDP] = Form(b"Via", b"v", b"UDP ", ADDRESS)
FORMS[HEADER_VIA_TCP] = Form(b"Via", b"v", b"TCP ", ADDRESS)
FORMS[HEADER_EXPIRES] = Form(b"Expires", NULL, NULL, NUMBER)
FORMS[HEADER_LENGTH] = Form(b"Content-Length", b"l", NULL, NUMBER)

cdef Form[N_SDP_LINES] LINES
LINES[SDP_VERSION] = Form(b"v=", NULL, NULL, NUMBER)
LINES[SDP_OWNER] = Form(b"o=", NULL, b"IN IP4 ", BARE_ADDRESS)
LINES[SDP_CONNECTION] = Form(b"c=", NULL, b"IN IP4 ", BARE_ADDRESS)
LINES[SDP_MEDIA] = Form(b"m=", NULL, NULL, MEDIA)


# --- characters -------------------------------------------------------------------------------------------------------------------------


cdef inline bint is_blank(int c) noexcept nogil:
    return c == c' ' or c == c'\t'


cdef inline bint is_newline(int c) noexcept nogil:
    return c == c'\r' or c == c'\n'


cdef inline bint is_letter(int c) noexcept nogil:
    """Of Latin-1, as the kernel has it."""
    return (lower(c) >= c'a' and lower(c) <= c'z') or (c >= 0xC0 and c != 0xD7 and c != 0xF7)


cdef uint32_t count_letters(const Text *t, uint32_t i) noexcept nogil:
    cdef uint32_t n = 0
    while is_letter(byte_at(t, i + n)):
        n += 1
    return n


cdef uint32_t read_number(const Text *t, uint32_t i, uint32_t *value) noexcept nogil:
    """Digits, modulo 2^32. Where they end."""
    value[0] = 0
    while is_digit(byte_at(t, i)):
        value[0] = value[0] * 10 + <uint32_t>(byte_at(t, i) - 48)
        i += 1
    return i


# --- lines ------------------------------------------------------------------------------------------------------------------------------


cdef uint32_t next_line(const Text *t, uint32_t i) noexcept nogil:
    """Where the line behind the next newline begins, or NOWHERE. Lines end with CR, LF, or both."""
    while i < t.size and not is_newline(t.at[i]):
        i += 1
    i += 2 if byte_at(t, i) == c'\r' and byte_at(t, i + 1) == c'\n' else 1
    return i if i < t.size else <uint32_t>NOWHERE


cdef uint32_t go_on(const Text *t, uint32_t i, uint32_t limit) noexcept nogil:
    """From a newline to where the header goes on in the next line, up to the limit, or NOWHERE."""
    i += 1
    if i < limit and t.at[i - 1] == c'\r' and t.at[i] == c'\n':
        i += 1
    if i >= limit or not is_blank(t.at[i]):
        return <uint32_t>NOWHERE
    while i < limit and is_blank(t.at[i]):
        i += 1
    return i


cdef uint32_t skip_blanks(const Text *t, uint32_t i) noexcept nogil:
    """Behind blanks and at most one continuation, or NOWHERE if the header ends."""
    while is_blank(byte_at(t, i)):
        i += 1
    return go_on(t, i, t.size) if i < t.size and is_newline(t.at[i]) else i


cdef uint32_t find_in_header(const Text *t, uint32_t i, uint32_t limit, const char *word, uint32_t n) noexcept nogil:
    """Where a word stands in the rest of a header, with something behind it, before the limit; or NOWHERE."""
    if limit < n:
        return <uint32_t>NOWHERE
    limit -= n
    while i < limit:
        if is_newline(t.at[i]):
            i = go_on(t, i, limit)
            if i == <uint32_t>NOWHERE:
                return i
        elif word_at(t, i, word, n):
            return i
        i += 1
    return <uint32_t>NOWHERE


# --- values -----------------------------------------------------------------------------------------------------------------------------


cdef uint32_t read_address(const Text *t, uint32_t i, int family, bint delimited, uint8_t *address) noexcept nogil:
    """An address, and where it ends, or 0. delimited: an IPv6 address stands in brackets; else it may."""
    cdef bint opened
    memset(address, 0, 16)
    if family == 4:
        return read_ip4(t, i, ANY_END, address)
    opened = byte_at(t, i) == c'['
    if delimited and not opened:
        return 0
    i = read_ip6(t, i + opened, ANY_END, address)
    if i and byte_at(t, i) == c']':
        return i + 1
    return 0 if delimited else i


cdef uint32_t read_port(const Text *t, uint32_t i, uint32_t *port) noexcept nogil:
    """A colon and a port that is believed, of up to five digits, or neither. Where they end, with something behind them, or 0."""
    cdef uint32_t end = i
    port[0] = DEFAULT_PORT
    if byte_at(t, i) == c':':
        end = read_number(t, i + 1, port)
        if end == i + 1 or end > i + 6 or port[0] < LEAST_PORT or port[0] > LAST_PORT:
            return 0
    return end if end < t.size else 0


cdef uint32_t measure_address(const Message *m, uint32_t i) noexcept nogil:
    """Bytes of an address with or without a port; 0: it is none."""
    cdef uint8_t address[16]
    cdef uint32_t port
    cdef uint32_t end = read_address(&m.text, i, m.family, True, address)
    end = read_port(&m.text, end, &port) if end else 0
    return end - i if end else 0


cdef uint32_t behind_user(const Text *t, uint32_t i) noexcept nogil:
    """Behind the @ of this line, if there is one."""
    cdef uint32_t start = i
    while i < t.size and t.at[i] != c'@' and not is_newline(t.at[i]):
        i += 1
    return i + 1 if byte_at(t, i) == c'@' else start


cdef bint measure(const Message *m, Measure how, uint32_t i, Span *span) noexcept nogil:
    """The span of a value that begins at i. False if there is none."""
    cdef const Text *t = &m.text
    cdef uint8_t address[16]
    cdef uint32_t end = 0, value
    if how == NUMBER:
        end = read_number(t, i, &value)
    elif how == ADDRESS or how == URI:
        i = behind_user(t, i) if how == URI else i
        end = i + measure_address(m, i)
    elif how == BARE_ADDRESS:
        # No brackets here, though others would allow them.
        end = read_ip4(t, i, ANY_END, address) if m.family == 4 else read_ip6(t, i, ANY_END, address)
    else:
        end = i + count_letters(t, i)
        end = read_number(t, end + 1, &value) if byte_at(t, end) == c' ' else i
    if end <= i:
        return False
    span.at = i
    span.size = end - i
    return True


# --- headers ----------------------------------------------------------------------------------------------------------------------------


cdef inline uint32_t name_at(const Text *t, uint32_t i, const Form *form) noexcept nogil:
    """The length of a header's name at i, or 0."""
    cdef uint32_t n = <uint32_t>strlen(form.name)
    if word_at(t, i, form.name, n):
        return n
    if form.compact != NULL and i + 2 <= t.size and word_at(t, i, form.compact, 1) and not is_letter(t.at[i + 1]):
        return 1
    return 0


cdef int read_header(const Message *m, uint32_t i, const Form *form, Span *span) noexcept nogil:
    """From behind its name on. MISREAD: span.at is where to look for another one."""
    cdef const Text *t = &m.text
    i = skip_blanks(t, i)
    if i == <uint32_t>NOWHERE or byte_at(t, i) != c':' or i + 1 >= t.size:
        return ABSENT
    i = skip_blanks(t, i + 1)
    if i == <uint32_t>NOWHERE:
        return ABSENT
    span.at = i
    if form.before != NULL:
        i = find_in_header(t, i, t.size, form.before, <uint32_t>strlen(form.before))
        if i == <uint32_t>NOWHERE:
            return MISREAD
        i += <uint32_t>strlen(form.before)
    return FOUND if measure(m, form.measure, i, span) else MISREAD


cdef int find_header(const Message *m, uint32_t at, int header, Span *span) noexcept nogil:
    """The value of the first such header behind the line of `at`."""
    cdef const Text *t = &m.text
    cdef uint32_t n
    cdef uint32_t i = next_line(t, at)
    while i != <uint32_t>NOWHERE:
        n = 0 if is_blank(t.at[i]) else name_at(t, i, &FORMS[header])
        if n:
            return read_header(m, i + n, &FORMS[header], span)
        i = next_line(t, i + 1)
    return ABSENT


cdef int next_value(const Message *m, uint32_t at, int header, Span *span) noexcept nogil:
    """The next one in a list separated by commas. MISREAD: span.at is where to go on."""
    cdef const Text *t = &m.text
    cdef const Form *form = &FORMS[header]
    cdef uint32_t n = <uint32_t>strlen(form.before)
    cdef uint32_t i = find_in_header(t, at, t.size, b",", 1)
    if i != <uint32_t>NOWHERE:
        i = find_in_header(t, i, t.size, form.before, n)
    if i == <uint32_t>NOWHERE:
        return ABSENT
    span.at = i + n
    return FOUND if measure(m, form.measure, i + n, span) else MISREAD


cdef bint next_span(const Message *m, int header, Walk *walk, Span *span) noexcept nogil:
    """The next value that can be read, in this header or in a later one."""
    cdef uint32_t at = walk.at
    cdef int found
    while walk.in_header:
        found = next_value(m, at, header, span)
        if found == FOUND:
            return True
        walk.in_header = found == MISREAD
        at = span.at if found == MISREAD else at
    while True:
        found = find_header(m, at, header, span)
        if found != MISREAD:
            walk.in_header = found == FOUND
            return found == FOUND
        at = span.at


cdef int read_uri(const Message *m, uint32_t i, Uri *uri) noexcept nogil:
    """Address and port at i. uri.span covers both."""
    cdef uint32_t port
    cdef uint32_t end = read_address(&m.text, i, m.family, True, uri.address)
    end = read_port(&m.text, end, &port) if end else 0
    if end == 0:
        return MISREAD
    uri.span.at = i
    uri.span.size = end - i
    uri.port = <uint16_t>port
    return FOUND


cdef int next_uri(const Message *m, int header, Walk *walk, Uri *uri) noexcept nogil:
    """The next address of such a header; the walk goes on behind it."""
    cdef Span span
    if not next_span(m, header, walk, &span):
        return ABSENT
    if read_uri(m, span.at, uri) == MISREAD:
        return MISREAD
    walk.at = uri.span.at + uri.span.size
    return FOUND


cdef int find_uri(const Message *m, int header, Uri *uri) noexcept nogil:
    """The first one."""
    cdef Walk walk = Walk(0, False)
    return next_uri(m, header, &walk, uri)


cdef int find_request_uri(const Message *m, Uri *uri) noexcept nogil:
    """The address in the first line: Method SP Request-URI SP SIP-Version (RFC 3261 7.1)."""
    cdef const Text *t = &m.text
    cdef uint32_t i = count_letters(t, 0)
    if i == 0 or i + 1 >= t.size:
        return ABSENT
    i += 1
    while i + 4 < t.size:
        if is_newline(t.at[i]):
            return MISREAD
        if word_at(t, i, b"sip:", 4):
            i += 4
            break
        i += 1
    i = behind_user(t, i)
    return read_uri(m, i, uri) if measure_address(m, i) else ABSENT


# --- parameters -------------------------------------------------------------------------------------------------------------------------


cdef bint find_param(const Message *m, uint32_t at, const char *name, uint32_t n, Text *part, uint32_t *start) noexcept nogil:
    """Where the value of name= begins, up to the next comma, which is where `part` ends. False if there is no such parameter."""
    cdef const Text *t = &m.text
    cdef uint32_t limit = find_in_header(t, at, t.size, b",", 1)
    part.at = t.at
    part.size = t.size if limit == <uint32_t>NOWHERE else limit
    start[0] = find_in_header(t, at, part.size, name, n)
    if start[0] == <uint32_t>NOWHERE:
        return False
    start[0] += n
    return True


cdef int number_param(const Message *m, uint32_t at, const char *name, uint32_t n, Span *span, uint32_t *value) noexcept nogil:
    """The value is written only if the parameter is there."""
    cdef Text part
    cdef uint32_t start, end
    if not find_param(m, at, name, n, &part, &start):
        return ABSENT
    end = read_number(&m.text, start, value)
    span.at = start
    span.size = end - start
    return FOUND if span.size else MISREAD


# --- session descriptions ---------------------------------------------------------------------------------------------------------------


cdef int read_line(const Message *m, uint32_t i, const Form *form, Span *span) noexcept nogil:
    """From behind its name on."""
    cdef const Text *t = &m.text
    cdef uint32_t n = 0
    span.at = i
    if form.before != NULL:
        n = <uint32_t>strlen(form.before)
        while i + n < t.size and not is_newline(t.at[i]) and not bytes_at(t, i, form.before if m.family == 4 else <const char *>b"IN IP6 ", n):
            i += 1
        if i + n >= t.size or is_newline(t.at[i]):
            return MISREAD
    return FOUND if measure(m, form.measure, i + n, span) else MISREAD


cdef int find_line(const Message *m, uint32_t at, int line, int stop, Span *span) noexcept nogil:
    """The value of the first such line behind that of `at`, and before one of `stop`."""
    cdef const Text *t = &m.text
    cdef uint32_t i = next_line(t, at)
    while i != <uint32_t>NOWHERE:
        if stop != SDP_NONE and word_at(t, i, LINES[stop].name, 2):
            return ABSENT
        if word_at(t, i, LINES[line].name, 2):
            return read_line(m, i + 2, &LINES[line], span)
        i = next_line(t, i + 1)
    return ABSENT
