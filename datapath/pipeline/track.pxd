from libc.stdint cimport uint8_t

from datapath.pipeline.level cimport Level, Walking
from datapath.pipeline.program cimport Ask

cdef uint8_t track(Walking *w, Level *v, const Ask *ask) noexcept nogil
