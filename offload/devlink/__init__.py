"""NICs as devlink knows them: their eswitch, their functions, and the interfaces by which the host meets these.

    attributes        names, numbers and forms of devlink's attributes
    functions         how a NIC and a function are called: pf0vf3@pci/0000:08:00.0
    model             what devlink lists, as values: eswitches, devlink ports
    changes           what can be changed, as a request and as a line of devlink(8)
    family            a socket of pyroute2 that asks all this
    representors      which interface stands for which function, with devlink or without
    names             interfaces by names of functions, for whoever takes either

Not here: rules and connections in a NIC (offload.netlink, offload.exact_rules), what is printed (datapath.commands.offload_devices,
offload_functions).
"""
