"""NICs as TOML files, which offload.simnic.profile reads."""
