def cut_up(frame: bytes, kind: int, size: int) -> list[bytes]:
    """The frames that a NIC would have made of one that holds several segments; none if it cannot be cut.

    kind: gso_type of linux/virtio_net.h: 1 TCP over IPv4, 4 TCP over IPv6, 5 UDP, with 0x80 beside TCP for ECN; size: bytes of payload of each.
    """
