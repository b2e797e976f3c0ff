"""Differential fuzzing of the engine against the running kernel: `make fuzz-kernel`, or python -m pcap_tests.fuzz_kernel.

Invariant under test: whatever packets come in whatever order, engine and kernel agree on every decision and on every variable of the connection that
datapath.oracle.compare knows. There is no list of exceptions.

    plan      which settings, which talks take part in a trace, from a seed
    draft     a trace in the making; our own engine watches, so that talks can aim at the edges of what a connection remembers
    tcp, sctp, datagrams, icmp, mangle      what talks say
    judge     a trace through engine and kernel in lock step
    shrink    the shortest trace that still differs, and its scenario file
    campaign  many traces, and the summary
"""
