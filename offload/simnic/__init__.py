"""A NIC, simulated: what an mlx5-shaped NIC does with frames while a host offloads rules and connections to it.

    rules -> capability -> program    which rules are in hardware, as arrays
    parse, change                     what it reads of a frame, and does to its bytes
    tables, commands, lines           connections in hardware: entries, what a mirror asks, and when that is done
    walk                              a frame through all of it
    profile, faults                   what kind of NIC, and what goes wrong with it
    nic                               put together

Frames, rules and commands go in as arrays, decisions come out as arrays; numba compiles what is done for each of them. Only who has a NIC imports it.
Not here: what to offload and when (mirror), where software goes on (datapath).
"""
