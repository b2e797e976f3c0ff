def owner(key: bytes, count: int) -> int:
    """The worker, of `count` of them, that a tuple and its answers belong to: key is 40 bytes of KEY_DTYPE. Raises ValueError."""
