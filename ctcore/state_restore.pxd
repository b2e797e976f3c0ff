from libc.stdint cimport int64_t

from ctcore.engine cimport Engine

cdef int state_restore(Engine *ct, object memory, object rules, object at) except -1
