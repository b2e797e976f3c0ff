from ctcore.engine cimport Engine

cdef object state_save(const Engine *ct, object rules)
