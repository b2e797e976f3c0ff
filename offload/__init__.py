"""offload: the mirror of what hardware holds. Empty until there is one; the name is taken, so that nothing else takes it."""
