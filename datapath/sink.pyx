"""Writing captures: frames and their bytes as pcap or pcapng, compressed where the name says so.

Records are built into one buffer, which goes to the file when it is full; no Python object is made per packet but for its comment.
pcapng gets an interface for each (link, iface) of the frames, in the order of their first write, with nanosecond time stamps; pcap has the
nanosecond magic and one link type. Output is in this machine's byte order and has no time of writing in it: the same frames give the same bytes.
Invariant: a frame is checked against its memory before a byte of it is read. What is written is whole records only.
Not here: reading (capture), which packets are worth writing (app).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import contextlib
import os
import struct

import numpy as np

from ctcore.errors import OutputError
from datapath.create import CODECS, create
from datapath.frame cimport Frame
from datapath.frame import FRAME_DTYPE
from datapath.links import link_name

cdef enum:
    BUFFER = 1 << 20            # bytes collected before they are written
    SNAPLEN_LIMIT = 1 << 24     # what capture believes of a record's length
    BLOCK_ENHANCED = 6
    OPTION_COMMENT = 1
    PCAP_RECORD = 16
    BLOCK_OVERHEAD = 32         # of an enhanced packet block without options
    NS = 1000000000

COMMENT_LIMIT = 65535           # an option's length has 16 bits
FORMATS = {".pcap": "pcap", ".cap": "pcap", ".dmp": "pcap", ".pcapng": "pcapng", ".ntar": "pcapng"}
PCAP_MAGIC = 0xA1B23C4D         # nanoseconds
# The last time stamp of each: 32 bits of seconds, or what a frame's ts can hold. Neither has negative ones.
MAX_TS = {"pcap": 0xFFFFFFFF * 10**9 + 999_999_999, "pcapng": 2**63 - 1}

ctypedef struct Row:
    const uint8_t *data
    const uint8_t *comment
    uint32_t comment_len
    uint32_t iface              # in the file
    uint32_t caplen             # cut to snaplen
    uint32_t len
    int64_t ts

# One call of write(): what is read, and how far it is done.
ctypedef struct Job:
    const uint8_t *memory
    uint64_t size
    const Frame *frames
    const uint32_t *ifaces      # of each frame, in the file
    const uint8_t *comments     # one behind the other; NULL: there are none
    const uint64_t *ends        # of each frame's comment
    uint64_t n
    uint64_t done


cdef inline uint32_t padded(uint32_t length) noexcept nogil:
    return (length + 3) & ~<uint32_t>3


cdef inline uint8_t *put32(uint8_t *at, uint32_t value) noexcept nogil:
    memcpy(at, &value, 4)
    return at + 4


cdef inline uint8_t *put_padded(uint8_t *at, const uint8_t *data, uint32_t length) noexcept nogil:
    memset(at + padded(length) - 4, 0, 4 if length else 0)
    memcpy(at, data, length)
    return at + padded(length)


cdef inline uint8_t *put_option(uint8_t *at, uint16_t code, uint16_t length) noexcept nogil:
    memcpy(at, &code, 2)
    memcpy(at + 2, &length, 2)
    return at + 4


cdef inline uint32_t pcap_size(const Row *row) noexcept nogil:
    return PCAP_RECORD + row.caplen


cdef uint8_t *put_pcap(uint8_t *at, const Row *row) noexcept nogil:
    """Write pcap_size(row) bytes. Seconds are 32 bits, unsigned."""
    cdef int64_t ts = min(max(row.ts, <int64_t>0), <int64_t>0xFFFFFFFF * NS + NS - 1)
    at = put32(at, <uint32_t>(ts // NS))
    at = put32(at, <uint32_t>(ts % NS))
    at = put32(at, row.caplen)
    at = put32(at, row.len)
    memcpy(at, row.data, row.caplen)
    return at + row.caplen


cdef inline uint32_t block_size(const Row *row) noexcept nogil:
    """Bytes of the enhanced packet block; a comment costs its option header and the end of options."""
    return BLOCK_OVERHEAD + padded(row.caplen) + (8 + padded(row.comment_len) if row.comment_len else 0)


cdef uint8_t *put_block(uint8_t *at, const Row *row) noexcept nogil:
    """Write block_size(row) bytes. Time stamps are unsigned."""
    cdef uint64_t ts = <uint64_t>max(row.ts, <int64_t>0)
    cdef uint32_t size = block_size(row)
    at = put32(at, BLOCK_ENHANCED)
    at = put32(at, size)
    at = put32(at, row.iface)
    at = put32(at, <uint32_t>(ts >> 32))
    at = put32(at, <uint32_t>ts)
    at = put32(at, row.caplen)
    at = put32(at, row.len)
    at = put_padded(at, row.data, row.caplen)
    if row.comment_len:
        at = put_option(at, OPTION_COMMENT, row.comment_len)
        at = put_padded(at, row.comment, row.comment_len)
        at = put32(at, 0)
    return put32(at, size)


cdef inline Row row_of(const Job *job, uint64_t i, uint32_t snaplen) noexcept nogil:
    """The i-th frame as it is to be written."""
    cdef const Frame *frame = &job.frames[i]
    cdef uint64_t start
    cdef Row row
    row.data = job.memory + frame.offset
    row.caplen = min(frame.caplen, snaplen)
    row.len = frame.len
    row.ts = frame.ts
    row.iface = job.ifaces[i]
    row.comment, row.comment_len = NULL, 0
    if job.comments != NULL:
        start = job.ends[i - 1] if i else 0
        row.comment = job.comments + start
        row.comment_len = <uint32_t>(job.ends[i] - start)
    return row


cdef uint64_t first_outside(const Job *job) noexcept nogil:
    """The first frame that does not lie within the memory; n: all do."""
    cdef uint64_t i
    for i in range(job.n):
        if job.frames[i].caplen > job.size or job.frames[i].offset > job.size - job.frames[i].caplen:
            return i
    return job.n


cdef class PcapSink:
    """A capture being written. See sink.pyi."""

    cdef readonly str name
    cdef readonly str format
    cdef readonly uint32_t link
    cdef readonly uint32_t snaplen
    cdef readonly object packets
    cdef readonly object clamped
    cdef object _raw
    cdef object _file
    cdef dict _ifaces           # link << 32 | iface of the frames -> interface of the file
    cdef object _names          # iface of the frames -> what the interface is called
    cdef bint _blocks
    cdef bint _to_stdout
    cdef object _buffer
    cdef uint8_t *_start
    cdef uint64_t _used
    cdef uint64_t _capacity
    cdef bint _busy             # a thread is at work, some of the time without the GIL

    def __init__(self, path, *, link=1, format=None, snaplen=262144, ifaces=None):
        if self._start != NULL:
            raise RuntimeError(f"{self.name}: was opened already: expected a sink of its own for each file")
        path = os.fsdecode(path)
        if not 1 <= snaplen <= SNAPLEN_LIMIT:
            raise ValueError(f"snaplen = {snaplen}: expected 1 to {SNAPLEN_LIMIT:,}")
        self._to_stdout = path == "-"
        self.name = "standard output" if self._to_stdout else path
        self.format = _format_of(path, format)
        self._blocks = self.format == "pcapng"
        self.link, self.snaplen = link, snaplen
        self.packets = self.clamped = 0
        self._ifaces = {}
        self._names = ifaces or {}
        try:
            self._raw, self._file = create(path)
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.name!r}: cannot be written: {getattr(error, 'strerror', error)}") from error
        self._reserve(BUFFER)
        self._append(_section_header() if self._blocks else struct.pack("=I2HiI2I", PCAP_MAGIC, 2, 4, 0, 0, snaplen, link))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    cdef int _enter(self) except -1:
        """Take the sink for work: records come one behind the other, whoever writes them."""
        if self._busy:
            raise RuntimeError(f"{self.name}: another thread is writing: expected one at a time")
        self._busy = True

    def close(self):
        if self._file is None:
            return
        self._enter()
        try:
            # Readers refuse a pcapng capture without any interface, so one without packets gets one.
            if self._blocks and not self._ifaces:
                self._append(_interface_block(self.link, self.snaplen, b""))
            self._flush()
            self._file.close()
            self._raw.close()
        except OSError as error:
            raise self._failed(error) from None
        finally:
            self._file, self._busy = None, False
            with contextlib.suppress(OSError):      # closing it tries to write what could not be written
                self._raw.close()

    def write(self, memory, frames, comments=None):
        if self._file is None:
            raise ValueError(f"{self.name or 'sink'}: is closed, or never was opened")
        self._enter()
        try:
            self._write(memory, frames, comments)
        finally:
            self._busy = False

    def _write(self, memory, frames, comments):
        memory = np.ascontiguousarray(memory, dtype=np.uint8)
        frames = np.ascontiguousarray(frames, dtype=FRAME_DTYPE)
        blob, ends = self._comments(comments, len(frames))
        cdef Job job
        job.memory = <const uint8_t *><size_t>memory.ctypes.data
        job.size, job.n, job.done = len(memory), len(frames), 0
        job.frames = <const Frame *><size_t>frames.ctypes.data
        job.comments = <const uint8_t *>blob if blob else NULL
        job.ends = <const uint64_t *><size_t>ends.ctypes.data
        cdef uint64_t outside = first_outside(&job)
        if outside < job.n:
            row = frames[outside]
            raise ValueError(f"frame {outside}: {row['caplen']} bytes from {row['offset']} on are not within the {len(memory)} bytes of memory")
        ifaces = self._ifaces_of(frames)
        job.ifaces = <const uint32_t *><size_t>ifaces.ctypes.data
        self._run(&job)
        last = MAX_TS[self.format]
        self.clamped += int(np.count_nonzero((frames["ts"] < 0) | (frames["ts"] > last)))
        self.packets += len(frames)

    cdef _run(self, Job *job):
        """Build all records, emptying the buffer as it fills."""
        cdef uint64_t size
        while True:
            with nogil:
                size = self._build(job)
            if not size:
                return
            self._flush()
            if size > self._capacity:
                self._reserve(size)

    cdef uint64_t _build(self, Job *job) noexcept nogil:
        """Build records until all are done (0) or the next one, of the size returned, does not fit the buffer."""
        cdef Row row
        cdef uint64_t size
        while job.done < job.n:
            row = row_of(job, job.done, self.snaplen)
            size = block_size(&row) if self._blocks else pcap_size(&row)
            if size > self._capacity - self._used:
                return size
            if self._blocks:
                put_block(self._start + self._used, &row)
            else:
                put_pcap(self._start + self._used, &row)
            self._used += size
            job.done += 1
        return 0

    def _comments(self, comments, n):
        """Comments as bytes one behind the other, and the end of each."""
        if comments is None:
            return b"", np.empty(0, np.uint64)
        if len(comments) != n:
            raise ValueError(f"{len(comments)} comments for {n} frames")
        encoded = [_encoded(comment) if comment else b"" for comment in comments]
        if not self._blocks and any(encoded):
            raise ValueError(f"{self.name}: pcap has no place for comments: expected pcapng")
        return b"".join(encoded), np.cumsum([len(e) for e in encoded], dtype=np.uint64)

    def _ifaces_of(self, frames):
        """Each frame's interface in the file; those not met before are added to it."""
        if not self._blocks:
            if (other := np.flatnonzero(frames["link"] != self.link)).size:
                text = f"packet {self.packets + int(other[0]) + 1:,} has {link_name(int(frames['link'][other[0]]))}, the file {link_name(self.link)}"
                raise OutputError(f"{self.name}: {text}: a pcap file has one link type, expected pcapng for several")
            return np.zeros(len(frames), np.uint32)
        keys = frames["link"].astype(np.uint64) << np.uint64(32) | frames["iface"]
        if len(keys) and (keys == keys[0]).all():
            unique, place = keys[:1], np.zeros(len(keys), np.intp)
        else:
            unique, place = np.unique(keys, return_inverse=True)
        for key in map(int, unique):
            if key not in self._ifaces:
                self._ifaces[key] = len(self._ifaces)
                self._append(_interface_block(key >> 32, self.snaplen, self._names.get(key & 0xFFFFFFFF, "").encode()))
        return np.array([self._ifaces[int(key)] for key in unique], np.uint32)[place]

    cdef _append(self, bytes data):
        """A header or block that is no packet's."""
        if self._capacity - self._used < <uint64_t>len(data):
            self._flush()
        memcpy(self._start + self._used, <const uint8_t *>data, len(data))
        self._used += len(data)

    cdef _flush(self):
        try:
            self._file.write(memoryview(self._buffer)[:self._used])
        except OSError as error:
            raise self._failed(error) from None
        self._used = 0

    cdef _reserve(self, uint64_t capacity):
        """A new, empty buffer."""
        self._buffer = np.empty(capacity, np.uint8)
        self._start = <uint8_t *><size_t>self._buffer.ctypes.data
        self._capacity, self._used = capacity, 0

    def _failed(self, error):
        """What to raise: an error that names the file. That nobody reads stdout any more is for the command to judge."""
        if self._to_stdout and isinstance(error, BrokenPipeError):
            return error
        return OutputError(f"{self.name}: cannot be written: {error.strerror or error}")


def _format_of(path, format):
    """pcap or pcapng, by what the caller says or the name's ending does."""
    if format is not None:
        if format not in MAX_TS:
            raise ValueError(f"format = {format!r}: expected pcap or pcapng")
        return format
    if path == "-":
        return "pcapng"
    base, ending = os.path.splitext(path)
    if ending in CODECS:
        ending = os.path.splitext(base)[1]
    if ending not in FORMATS:
        raise OutputError(f"{path}: expected a name ending in .pcap or .pcapng, and .gz, .xz or .zst behind it for compression")
    return FORMATS[ending]


def _encoded(comment):
    """A comment as UTF-8, cut between characters where an option cannot hold it."""
    data = comment.encode("utf-8", "replace")
    return data if len(data) <= COMMENT_LIMIT else data[:COMMENT_LIMIT].decode("utf-8", "ignore").encode()


def _block(kind, body):
    """A block: kind, length, body, length."""
    return struct.pack("=2I", kind, 12 + len(body)) + body + struct.pack("=I", 12 + len(body))


def _section_header():
    """Version 1.0, length of the section not said; option 4 names the application."""
    return _block(0x0A0D0D0A, struct.pack("=I2Hq", 0x1A2B3C4D, 1, 0, -1) + struct.pack("=2H8s", 4, 8, b"ctmirror") + bytes(4))


def _interface_block(link, snaplen, name):
    """Option 2: the name, if there is one; option 9: time stamps count 10^-9 s."""
    named = struct.pack("=2H", 2, len(name)) + name + bytes((4 - len(name) % 4) % 4) if name else b""
    return _block(1, struct.pack("=2HI", link, 0, snaplen) + named + struct.pack("=2HB3x", 9, 1, 9) + bytes(4))
