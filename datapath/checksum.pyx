"""Checksums for Python, and CRC32c by tables.

CRC32c (RFC 9260 appendix A) goes eight bytes at a time through eight tables (slicing-by-8), made at import: table k holds the remainder of
a byte that k more bytes follow. No instruction-set extension is used.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

POLYNOMIAL = 0x82F63B78                 # Castagnoli, bit-reversed

cdef uint32_t[8][256] _tables


cdef void _make_tables(uint32_t polynomial) noexcept nogil:
    cdef uint32_t crc
    cdef int byte, k
    for byte in range(256):
        crc = byte
        for k in range(8):
            crc = crc >> 1 ^ (polynomial if crc & 1 else 0)
        _tables[0][byte] = crc
    for k in range(1, 8):
        for byte in range(256):
            crc = _tables[k - 1][byte]
            _tables[k][byte] = crc >> 8 ^ _tables[0][crc & 0xFF]


_make_tables(POLYNOMIAL)


cdef uint32_t crc32c(uint32_t crc, const uint8_t *p, size_t n) noexcept nogil:
    """Continue a CRC32c over n bytes. Begin with 0; the result of one call continues in the next."""
    cdef uint32_t low
    crc = ~crc
    while n >= 8:
        low = crc ^ (p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24)
        crc = (_tables[7][low & 0xFF] ^ _tables[6][low >> 8 & 0xFF] ^ _tables[5][low >> 16 & 0xFF] ^ _tables[4][low >> 24]
               ^ _tables[3][p[4]] ^ _tables[2][p[5]] ^ _tables[1][p[6]] ^ _tables[0][p[7]])
        p += 8
        n -= 8
    while n > 0:
        crc = crc >> 8 ^ _tables[0][(crc ^ p[0]) & 0xFF]
        p += 1
        n -= 1
    return ~crc


def internet_checksum(const uint8_t[::1] data):
    """The checksum of RFC 1071 over data, as a number in network order: what a header holds, if its field was 0 in data."""
    cdef uint16_t total = 0
    cdef uint8_t *half = <uint8_t *>&total
    if data.shape[0]:
        total = fold(sum_bytes(&data[0], data.shape[0], 0))
    return 0xFFFF - (half[0] << 8 | half[1])


def castagnoli(const uint8_t[::1] data, uint32_t crc=0):
    """CRC32c of data, or of what crc was made from followed by data. SCTP stores it in little-endian order."""
    return crc32c(crc, &data[0], data.shape[0]) if data.shape[0] else crc
