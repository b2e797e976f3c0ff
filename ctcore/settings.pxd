from ctcore.types cimport Settings

cdef void fill_settings(Settings *settings, object config) except *
