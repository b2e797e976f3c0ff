"""The offload contract as pure functions in plain Python, item by item (A1 to A8, A10): the readable twin of flow table and mirror.

objects: what the others speak of; admission (A2); lookup (A5); rule (A4); aging (A6, A7); why (A10). Each "no" is a Why.
Not here: anything with state of its own; how it is made fast (datapath.flowtable, offload.mirror).
Source: net/sched/act_ct.c, net/netfilter/nf_flow_table_core.c, nf_flow_table_offload.c of Linux 6.18.
"""
