from libc.stdint cimport uint16_t, uint32_t

from ctcore.engine cimport Engine
from ctcore.state cimport StateConn
from ctcore.state_check cimport Fault

cdef Fault enter_conn(Engine *ct, const StateConn *c, uint32_t left, const uint32_t *hash, const uint16_t *rule, uint32_t *slot) noexcept nogil
cdef int state_restore(Engine *ct, object memory, object rules, object at) except -1
cdef object state_take_share(Engine *ct, object memory, object rules, object at)
