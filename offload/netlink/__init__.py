"""Netlink by hand: TC's filters, chains and actions, and the errors that the kernel gives for them.

    attributes        names, numbers and forms of attributes: one table for all of the following
    read, pack        bytes as values, strictly; values as bytes, fast
    flower, actions   keys of a filter, and what it does, as attributes
    filters           whole messages: filters, chains, qdiscs
    channel, extack   a socket that asks many things at once; why the kernel refused one of them
    classes           the same tables as classes of pyroute2, for its sockets

Not here: rules (datapath), connections (ctcore.ctnetlink), when anything is offloaded (mirror).
"""
