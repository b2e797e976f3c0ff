from ctcore.engine cimport Engine
from ctcore.types cimport Packet

cdef bint find_place(Engine *ct, Packet *p) noexcept nogil
