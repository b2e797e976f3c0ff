"""The limit kernel: the least that any tracker must do with a packet, and nothing else.

It reads the same frames (addresses and ports only, Ethernet and IPv4 taken for granted), hashes them with the same hash, fetches the same
buckets and the same two lines of the same entries, in the same batches with the same prefetches, and adds up what it fetched. No bounds, no
checksums, no comparison, no state. Measured beside the engine in one run it says what this machine allows at this moment, so that
benchmarks can give ratios.
Not here: the benchmark itself (benchmark.py).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ctcore.engine cimport Engine
from ctcore.hashing cimport hash_of
from ctcore.lowlevel cimport be16, prefetch
from ctcore.table cimport bucket_of, table_candidate
from ctcore.tracker cimport Tracker
from ctcore.types cimport BATCH, LARGEST_BATCH, NO_FLOW, Entry, Key
from datapath.frame cimport Frame, checked_frames


cdef inline void read_key(const uint8_t *frame, Key *key) noexcept nogil:
    memset(key, 0, sizeof(Key))
    memcpy(key.src, frame + 26, 4)
    memcpy(key.dst, frame + 30, 4)
    key.sport = be16(frame + 34)
    key.dport = be16(frame + 36)
    key.proto = frame[23]
    key.family = 4


cdef uint64_t one_batch(Engine *ct, const uint8_t *memory, const Frame *frames, int n) noexcept nogil:
    cdef uint32_t hashes[LARGEST_BATCH]
    cdef uint32_t flows[LARGEST_BATCH]
    cdef uint64_t total = 0
    cdef Key key
    cdef Entry *entry
    cdef int i
    for i in range(n):
        read_key(memory + frames[i].offset, &key)
        hashes[i] = hash_of(&ct.hash_key, &key)
        prefetch(&ct.table.bucket[bucket_of(&ct.table, hashes[i])])
    for i in range(n):
        flows[i] = table_candidate(&ct.table, hashes[i])
        entry = &ct.pool.entry[flows[i] >> 1 if flows[i] != NO_FLOW else 0]
        prefetch(&entry.flow[flows[i] & 1])
        prefetch(&entry.l4)
    for i in range(n):
        entry = &ct.pool.entry[flows[i] >> 1 if flows[i] != NO_FLOW else 0]
        total += entry.flow[flows[i] & 1].packets + entry.deadline
    return total


def limit_pass(Tracker tracker not None, const uint8_t[::1] memory not None, frames not None, int batch=BATCH):
    """Run the limit kernel over frames.

    memory: uint8[m]; frames: FRAME_DTYPE[n] within it, each an Ethernet frame of at least 54 bytes, meant to be IPv4 without options; batch:
    frames worked on at a time, at most 1,024. Returns a sum that has no meaning, so that no work can be left out.
    """
    if not 1 <= batch <= LARGEST_BATCH:
        raise ValueError(f"batch = {batch}: expected 1 to {<int>LARGEST_BATCH}")
    cdef const Frame *frame = checked_frames(memory, frames)
    if len(frames) and frames["caplen"].min() < 54:
        raise ValueError("frames: expected at least 54 bytes each")
    cdef Py_ssize_t n = len(frames), start = 0
    cdef uint64_t total = 0
    with nogil:
        while start < n:
            total += one_batch(&tracker.ct, &memory[0], frame + start, <int>min(n - start, <Py_ssize_t>batch))
            start += batch
    return total
