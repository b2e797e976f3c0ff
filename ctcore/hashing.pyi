def key_hash(key: bytes, seed: int) -> int:
    """The 32-bit hash the engine gives to a tuple: key is 40 bytes of KEY_DTYPE, seed Config.seed. Raises ValueError for another length."""
