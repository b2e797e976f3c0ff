"""The rules language: what rules are, how they are read and written, what they make of packets."""
