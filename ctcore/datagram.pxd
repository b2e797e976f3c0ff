from ctcore.engine cimport Engine, Outcome
from ctcore.types cimport Entry, Packet

cdef Outcome datagram_packet(Engine *ct, Entry *entry, Packet *p, int dir, bint fresh) noexcept nogil
