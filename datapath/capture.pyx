"""Reading captures: pcap and pcapng, plain or compressed, as rows of Frame over the file's own bytes.

PcapSource knows the file's header and its interfaces, runs the scans (records) over the memory of a stream, and turns damage into one line.
Invariants: packets before damage are handed out first, then the damage is raised, again and again; memory moves only while no row that is
still to be handed out points into it; a record has at most RECORD_LIMIT bytes and a section at most IFACES interfaces, so memory is bounded.
Not here: opening and decompressing (stream), looking into frames (wire), writing (sink).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc

import os
import struct
import sys

import numpy as np

from ctcore.errors import CaptureError
from ctcore.types cimport BATCH
from datapath.frame cimport Frame, Taker
from datapath.records cimport (
    BLOCK_MIN, FULL, HEADER, IFACES, INTERFACE, LINK, MORE, NO_SLOT, PCAP_HEADER, PCAP_RECORD, RECORD_LIMIT, SECTION, SNAPLEN, TRUNCATED,
    Iface, Scan, Stop, scan_pcap, scan_pcapng, u16, u32,
)
from datapath.frame import FRAME_DTYPE, LINK_ETHERNET
from datapath.links import EXPECTED_LINKS, LINK_NAMES, SUPPORTED_LINKS, link_name
from datapath.records import DAMAGE
from datapath.stream import open_stream

cdef enum:
    ROWS = 1 << 20              # most frames handed out at once

NATIVE = "<" if sys.byteorder == "little" else ">"
OPTION_END = 0
OPTION_NAME = 2                 # if_name: where the interface was called so
LONGEST_NAME = 64               # bytes; Linux knows none above 15
OPTIONS = {9: ("tsresol", "B"), 13: ("fcslen", "B"), 14: ("tsoffset", "q")}

# magic number as written -> factor from the fraction of a second to ns
PCAP_MAGIC = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
OTHER_MAGIC = {
    0xA1B2CD34: "is of the modified pcap format of 1990s Linux kernels", 0xA1E2CB12: "is of a modified pcap format",
}


cdef class PcapSource:
    """The packets of one capture, batch by batch. See capture.pyi."""

    def __init__(self, path, *, name=None, window=None):
        if self._stream is not None:
            raise RuntimeError(f"{self.name}: was opened already: expected a source of its own for each capture")
        path = os.fspath(path)
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if window is not None and window < 1:
            raise ValueError(f"window = {window}: expected at least 1 byte")
        self.name = name or ("standard input" if path == "-" else path)
        self.packets = 0
        self.ifaces = []
        self._stream = open_stream(path, self.name, window)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __dealloc__(self):
        free(self._scan.ifaces)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    cdef int _enter(self) except -1:
        """Take the source for work, or say why not: packets come one after the other, whoever reads them."""
        if self._stream is None:
            raise ValueError("source: was never opened: a subclass has to call PcapSource.__init__")
        if self._busy:
            raise RuntimeError(f"{self.name}: another thread is reading: expected one at a time")
        self._busy = True

    def close(self):
        self._enter()
        self._busy = False
        self._stream.close()
        self._damage = self._damage or f"{self.name}: is closed"

    @property
    def links(self):
        return frozenset(LINK_NAMES[link] for slot, link in enumerate(SUPPORTED_LINKS) if self._scan.links >> slot & 1)

    @property
    def position(self):
        return self._stream.position(self._scan.at)

    @property
    def size(self):
        return self._stream.size

    def read(self, n):
        return self.hand(n, None)

    cdef hand(self, n, Taker taker):
        """read(n); unless None, the taker has taken all of its frames by then."""
        if n < 1:
            raise ValueError(f"n = {n}: expected at least 1")
        self._enter()
        try:
            return self._read(n, taker)
        finally:
            self._busy = False

    cdef _read(self, n, Taker taker):
        if self._damage:
            raise CaptureError(self._damage)
        frames = np.empty(min(n, ROWS), dtype=FRAME_DTYPE)
        self._walk(frames, taker)
        cdef uint32_t k = self._scan.n
        self.packets += k
        if self._damage and not k:
            raise CaptureError(self._damage)
        return self._memory, frames[:k]

    cdef _walk(self, frames, Taker taker):
        """Fill the rows as far as the memory goes; the memory moves on only while no row points into it."""
        cdef Scan *s = &self._scan
        cdef uint32_t rows = len(frames)
        cdef Stop why
        s.frames = <Frame *><size_t>frames.ctypes.data
        s.n = 0
        while not self._damage:
            with nogil:
                why = self._find(rows) if taker is None else self._find_for(taker, rows)
            if why == FULL or (why == MORE and s.n):
                break
            if why == MORE:
                self._advance(s.need)
                if s.have - s.at < s.need:
                    self._ended(s.have - s.at)
                    break
            elif why == SECTION:
                self._section()
            elif why == INTERFACE:
                self._interface()
            elif why == LINK:
                self._damaged(f"{link_name(s.a)} is not supported: expected {EXPECTED_LINKS}")
            else:
                self._damaged(self._sentence(why, s.a, s.b))

    cdef Stop _find(self, uint32_t rows) noexcept nogil:
        """Scan on, until this many rows are full or something else is to be done."""
        self._scan.rows = rows
        return scan_pcapng(&self._scan) if self._blocks else scan_pcap(&self._scan)

    cdef Stop _find_for(self, Taker taker, uint32_t rows) noexcept nogil:
        """The same; a taker gets the frames batch by batch, while the scan's memory is still in the nearest caches."""
        cdef Scan *s = &self._scan
        cdef Stop why = FULL
        cdef uint32_t taken
        while why == FULL and s.n < rows:
            taken = s.n
            why = self._find(min(rows, taken + BATCH))
            taker.take(s.memory, s.frames + taken, s.n - taken)
        return why

    cdef _ended(self, uint64_t left):
        """There are no more bytes than these, fewer than are needed: a clean end, if they are none."""
        cdef uint64_t header = BLOCK_MIN if self._blocks else PCAP_RECORD
        cdef uint64_t counted = 0 if self._blocks else PCAP_RECORD     # a block's length includes its header, a record's does not
        if self._stream.damage:
            self._damaged(self._stream.damage)
        elif 0 < left < header:
            self._damaged(self._sentence(HEADER, header, left))
        elif left:
            self._damaged(self._sentence(TRUNCATED, self._scan.need - counted, left - counted))

    cdef _advance(self, uint64_t need):
        """Have `need` bytes from `at` on, or all that are left."""
        self._scan.at = self._stream.advance(self._scan.at, need)
        self._memory = self._stream.memory
        self._scan.memory = <const uint8_t *><size_t>self._memory.ctypes.data
        self._scan.have = self._stream.have

    def _sentence(self, why, a, b):
        unit = "block" if self._blocks else f"record {self.packets + self._scan.n + 1:,}"
        return DAMAGE[why].format(unit=unit, at=self._stream.start + self._scan.at, a=a, b=b)

    def _damaged(self, text):
        """From now on read() raises this, once the packets it has are handed out."""
        count = self.packets + self._scan.n
        after = ("no packet was read", "the first packet was read")[count] if count < 2 else f"the first {count:,} packets were read"
        self._damage = f"{self.name}: {text}; {after}"

    cdef _open(self):
        """Tell the format by the first bytes, and read as far as the first packet."""
        self._advance(PCAP_HEADER)
        head = bytes(self._memory[:min(self._scan.have, <uint64_t>PCAP_HEADER)])
        codec = self._stream.codec
        if len(head) < PCAP_HEADER and self._stream.damage:
            self._refuse(self._stream.damage)
        if not head:
            self._refuse("empty: expected a pcap or pcapng header")
        self._blocks = head[:4] == b"\n\r\r\n"
        self.format = ("pcapng" if self._blocks else "pcap") + (f", {codec.name}" if codec else "")
        if not self._blocks:
            self._pcap_header(head)
        self._walk(np.empty(0, dtype=FRAME_DTYPE), None)

    cdef _refuse(self, text):
        raise CaptureError(f"{self.name}: {text}")

    cdef _pcap_header(self, head):
        """Read the file header: magic, version, snaplen, link type with the length of the frame check sequence in its upper bits."""
        order = next((o for o in "<>" if len(head) >= 4 and struct.unpack(o + "I", head[:4])[0] in PCAP_MAGIC.keys() | OTHER_MAGIC.keys()), None)
        if order is None:
            self._refuse(f"not a capture: starts with {head[:4].hex(' ')}, expected a pcap or pcapng header")
        magic, = struct.unpack(order + "I", head[:4])
        if magic in OTHER_MAGIC:
            self._refuse(f"{OTHER_MAGIC[magic]}, which is not supported: expected a plain pcap or pcapng capture")
        if len(head) < PCAP_HEADER:
            self._refuse(f"truncated: a pcap file has a header of {PCAP_HEADER} bytes, {len(head)} are there")
        major, minor, snaplen, link = struct.unpack(order + "4x2H8x2I", head)
        if major != 2:
            self._refuse(f"is of pcap version {major}.{minor}: expected 2.4")
        if link & 0xFFFF not in SUPPORTED_LINKS:
            self._refuse(f"{link_name(link & 0xFFFF)} is not supported: expected {EXPECTED_LINKS}")
        self._scan.swapped = order != NATIVE
        self._scan.lengths_swapped = minor < 4
        self._scan.limit = max(SNAPLEN, min(snaplen, RECORD_LIMIT))
        # Bit 26 says that the upper four bits hold the length of the frame check sequence, in 16-bit words.
        self._add_iface(link & 0xFFFF, snaplen, (PCAP_MAGIC[magic], 1, 0), 0, (link >> 28) * 2 if link & 1 << 26 else 0)
        self.ifaces.append("")
        self._scan.at = PCAP_HEADER

    cdef _section(self):
        """A sound section header: its interfaces are still to come, and number from 0 again."""
        cdef Scan *s = &self._scan
        cdef uint16_t major = u16(s, s.memory + s.at + 12)
        if major != 1:
            self._damaged(f"section at byte {self._stream.start + s.at:,} is of pcapng version {major}: expected 1")
            return
        s.n_ifaces = 0
        s.at += u32(s, s.memory + s.at + 4)

    cdef _interface(self):
        """A sound interface block. Its options change how time stamps and lengths are read."""
        cdef Scan *s = &self._scan
        cdef uint32_t length = u32(s, s.memory + s.at + 4)
        block = bytes(self._memory[s.at:s.at + length - 4])
        order = ">" if s.swapped == (NATIVE == "<") else "<"
        link, snaplen = struct.unpack_from(order + "H2xI", block, 8)
        try:
            options = _options(block[16:], order)
        except ValueError as error:
            self._damaged(f"damaged: interface block at byte {self._stream.start + s.at:,}: {error}")
            return
        if s.n_ifaces == IFACES:
            self._damaged(f"implausible: interface block at byte {self._stream.start + s.at:,} is one of more than {IFACES:,}")
            return
        self._add_iface(link, snaplen, _resolution(options["tsresol"]), options["tsoffset"], options["fcslen"])
        self.ifaces.append(options["name"])
        s.at += length

    cdef _add_iface(self, link, snaplen, resolution, seconds, fcs):
        """resolution: mul, div, shift of Iface; seconds: added to every time stamp; fcs: bytes at the end of each frame."""
        cdef Scan *s = &self._scan
        cdef Iface *iface
        if s.n_ifaces == s.n_slots:
            iface = <Iface *>realloc(s.ifaces, 2 * (s.n_slots + 8) * sizeof(Iface))
            if iface == NULL:
                raise MemoryError
            s.ifaces, s.n_slots = iface, 2 * (s.n_slots + 8)
        iface = &s.ifaces[s.n_ifaces]
        iface.mul, iface.div, iface.shift = resolution
        iface.seconds, iface.link, iface.snaplen, iface.ordinal = seconds, link, snaplen, self._n_ifaces
        iface.slot = SUPPORTED_LINKS.index(link) if link in SUPPORTED_LINKS else NO_SLOT
        iface.fcs = fcs if link == LINK_ETHERNET else 0
        s.n_ifaces += 1
        self._n_ifaces += 1
        if self.link is None:
            self.link, self.snaplen = link, snaplen


def _options(data, order):
    """What is needed of an interface's options. ValueError where they do not fit their block, or have another size than they must."""
    found = {"tsresol": 6, "tsoffset": 0, "fcslen": 0, "name": ""}
    at = 0
    while at + 4 <= len(data):
        code, length = struct.unpack_from(order + "2H", data, at)
        if code == OPTION_END:
            break
        if at + 4 + length > len(data):
            raise ValueError(f"option {code} says {length:,} bytes, {len(data) - at - 4:,} are left")
        if code in OPTIONS:
            name, form = OPTIONS[code]
            if length != struct.calcsize(form):
                raise ValueError(f"option if_{name} says {length:,} bytes, expected {struct.calcsize(form)}")
            found[name], = struct.unpack_from(order + form, data, at + 4)
        elif code == OPTION_NAME:
            found["name"] = data[at + 4:at + 4 + min(length, LONGEST_NAME)].decode("utf-8", "replace").rstrip("\0")
        at += 4 + (length + 3) // 4 * 4
    # The specification counts bits, several writers bytes; no frame check sequence is longer than 8 bytes or shorter than 8 bits.
    found["fcslen"] = found["fcslen"] // 8 if found["fcslen"] > 8 else found["fcslen"]
    return found


def _resolution(tsresol):
    """if_tsresol as mul, div, shift of Iface: the top bit chooses between powers of 2 and of 10, the rest is the negated exponent."""
    exponent = tsresol & 0x7F
    if tsresol & 0x80:
        return 10**9, 1, exponent
    if exponent <= 9:
        return 10 ** (9 - exponent), 1, 0
    return (1, 10 ** (exponent - 9), 0) if exponent <= 28 else (0, 1, 0)    # finer than 10^-28 s, 64 bits do not reach one ns
