from ctcore.nat_table cimport NatRule
from ctcore.types cimport Settings

cdef void fill_settings(Settings *settings, object config) except *
cdef void fill_nat_rule(NatRule *out, object rule) except *
