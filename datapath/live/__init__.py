"""Ifaces of the live datapath: frames taken from the machine's own interfaces, and sent there, in memory that all of them share."""
