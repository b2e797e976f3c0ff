"""Kubernetes network policies: what they say of traffic (evaluate), and the same as rules of tc (compiler).

    files --documents--> objects --load--> Cluster --evaluate--> Judgement        "may A open a connection to B, and which policy says so?"
                                              \\------clauses--> stages --compiler--> Ruleset

The two ways behind Cluster share the selectors and nothing else: one asks predicates of a single packet, the other makes sets of prefixes and
ports. Tests prove that they say the same. Not here: text of rules (datapath.pipeline.tc_print), the command (datapath.commands.policy).
"""
