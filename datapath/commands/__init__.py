"""The sub-commands of ctmirror, a module each: `command` is what datapath.cli calls. Options and examples only; the work is done elsewhere."""
