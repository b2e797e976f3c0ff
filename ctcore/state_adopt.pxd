from ctcore.engine cimport Engine

cdef object state_adopt(Engine *ct, object conns)
