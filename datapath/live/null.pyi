from datapath.live.iface import Iface
from datapath.live.umem import Umem

class Null(Iface):
    """Receives nothing; what is sent to it is counted (tx, tx_bytes) and dropped."""
    def __init__(self, umem: Umem, name: str = "null", *, worker: int = 0, ordinal: int = 0) -> None: ...
