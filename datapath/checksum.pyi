"""Checksums: the one's-complement sum of RFC 1071 and CRC32c. For tests and tools; the packet path uses the inline forms."""

from typing_extensions import Buffer

POLYNOMIAL: int

def internet_checksum(data: Buffer) -> int:
    """The checksum of RFC 1071 over data: the number a header holds, if its field was 0 in data. 0 to 0xFFFF."""

def castagnoli(data: Buffer, crc: int = 0) -> int:
    """CRC32c of data, or of what crc was made from followed by data. SCTP stores it in little-endian order (RFC 9260 appendix A)."""
