"""Rules as the kernel's TC has them, and back: the only place that knows both rules (datapath.pipeline) and netlink (offload.netlink).

    encode    rules, templates and qdiscs as requests
    decode    what the kernel lists as rules, with what is known of them there: counters, cookies, whether hardware has them
    munges    changes of header fields as the words of pedit, and back
    ask       rules put into the kernel, and listed, with errors that name the rule
    install   a rules file, by what differs from what is there

Not here: the commands (offload_install), connections (offload.exact_rules).
"""
