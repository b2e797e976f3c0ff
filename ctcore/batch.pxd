from ctcore.types cimport Packet

cdef class Batch:
    cdef Packet *row
    cdef readonly int size
    cdef readonly int capacity
    cdef object _memory
    cdef object _owner
    cdef bint consumed

    cpdef consume(self)
