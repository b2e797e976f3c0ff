from libc.stdint cimport uint8_t

from datapath.pipeline.level cimport Level, Walking
from datapath.pipeline.program cimport Ask, Resume

cdef uint8_t track(Walking *w, Level *v, const Ask *ask) noexcept nogil
cdef bint carry_again(Walking *w, Level *v, const Resume *resume) noexcept nogil
