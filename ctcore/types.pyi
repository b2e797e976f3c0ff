from enum import IntEnum
from typing import Any

import numpy as np

class Dir(IntEnum):
    ORIG = 0
    REPLY = 1

class State(IntEnum):
    NOT_SEEN = 0
    NEW = 1
    ESTABLISHED = 2
    RELATED = 3
    INVALID = 4
    UNTRACKED = 5
    N_STATES = 6

class Verdict(IntEnum):
    PENDING = 0
    ACCEPT = 1
    DROP = 2
    HELD = 3

class Status(IntEnum):
    EXPECTED = 1
    SEEN_REPLY = 2
    ASSURED = 4
    CONFIRMED = 8
    SRC_NAT = 16
    DST_NAT = 32
    SEQ_ADJUST = 64
    SRC_NAT_DONE = 128
    DST_NAT_DONE = 256
    DYING = 512
    FIXED_TIMEOUT = 1024
    NAT_CLASH = 4096
    HELPER = 8192
    OFFLOAD = 16384
    HW_OFFLOAD = 32768

class TcpState(IntEnum):
    TCP_NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    TCP_ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9
    N_TCP_STATES = 10
    TCP_INVALID = 10
    TCP_IGNORE = 11
    N_TCP_TIMEOUTS = 12
    TIMEOUT_RETRANS = 10
    TIMEOUT_UNACK = 11

class TcpIndex(IntEnum):
    TCP_SYN = 0
    TCP_SYNACK = 1
    TCP_FIN = 2
    TCP_ACK = 3
    TCP_RST = 4
    TCP_NO_FLAG = 5
    N_TCP_INDEXES = 6

class TcpFlag(IntEnum):
    TF_WINDOW_SCALE = 1
    TF_SACK_PERM = 2
    TF_CLOSE_INIT = 4
    TF_BE_LIBERAL = 8
    TF_DATA_UNACKED = 16
    TF_MAXACK_SET = 32
    TF_EXP_CHALLENGE_ACK = 64
    TF_SIMULTANEOUS_OPEN = 128

class SctpState(IntEnum):
    SCTP_NONE = 0
    SCTP_CLOSED = 1
    SCTP_COOKIE_WAIT = 2
    SCTP_COOKIE_ECHOED = 3
    SCTP_ESTABLISHED = 4
    SCTP_SHUTDOWN_SENT = 5
    SCTP_SHUTDOWN_RECD = 6
    SCTP_SHUTDOWN_ACK_SENT = 7
    SCTP_HEARTBEAT_SENT = 8
    N_SCTP_STATES = 9
    SCTP_INVALID = 9

class Proto(IntEnum):
    PROTO_ICMP = 1
    PROTO_TCP = 6
    PROTO_UDP = 17
    PROTO_GRE = 47
    PROTO_ICMPV6 = 58
    PROTO_SCTP = 132
    PROTO_UDPLITE = 136

class EventKind(IntEnum):
    EVENT_NEW = 1
    EVENT_UPDATE = 2
    EVENT_DESTROY = 4

class Change(IntEnum):
    CHANGE_REPLY = 1
    CHANGE_ASSURED = 2
    CHANGE_L4STATE = 4
    CHANGE_MARK = 8
    CHANGE_LABEL = 16

class End(IntEnum):
    ALIVE = 0
    END_TIMEOUT = 1
    END_RESET = 2
    END_EVICTED = 3
    END_REPLACED = 4
    END_FLUSHED = 5
    N_ENDS = 6

class Reason(IntEnum):
    R_OK = 0
    R_NOT_IP = 1
    R_FRAME_SHORT = 2
    R_SNAPPED = 3
    R_IP_VERSION = 4
    R_IP_HEADER = 5
    R_IP_LENGTH = 6
    R_IP_TRUNCATED = 7
    R_IP_CHECKSUM = 8
    R_IP6_MALFORMED = 9
    R_FRAGMENT = 10
    R_L4_BEYOND = 11
    R_IP6_CHAIN = 12
    R_TUPLE_SHORT = 13
    R_TABLE_FULL = 14
    R_CLASH = 15
    R_TCP_SHORT = 16
    R_TCP_DOFF = 17
    R_TCP_CHECKSUM = 18
    R_TCP_FLAGS = 19
    R_TCP_NOT_OPENING = 20
    R_TCP_NOT_LOOSE = 21
    R_TCP_STATE = 22
    R_TCP_RST_BELOW_MAXACK = 23
    R_TCP_SEQ_OVER = 24
    R_TCP_ACK_OVER = 25
    R_TCP_IGNORED = 26
    R_TCP_OVERSHOOT = 27
    R_TCP_SEQ_UNDER = 28
    R_TCP_ACK_UNDER = 29
    R_TCP_LIBERAL = 30
    R_TCP_CHALLENGE_ACK = 31
    R_TCP_RST_CHALLENGED = 32
    R_TCP_RST_KILLED = 33
    R_TCP_SYN_AGAIN = 34
    R_TCP_RESYNC = 35
    R_TCP_PICKED_UP = 36
    R_TCP_REOPENED = 37
    R_UDP_SHORT = 38
    R_UDP_LENGTH = 39
    R_UDP_CHECKSUM = 40
    R_ICMP_SHORT = 41
    R_ICMP_CHECKSUM = 42
    R_ICMP_TYPE = 43
    R_ICMP_NO_REQUEST = 44
    R_ICMP_FAMILY = 45
    R_ICMP_INNER = 46
    R_ICMP_INNER_ERROR = 47
    R_ICMP_NO_CONN = 48
    R_ICMP_OUTER = 49
    R_ICMP6_REDIRECT = 50
    R_ICMP6_UNTRACKED = 51
    R_GRE_NOT_PPP = 52
    R_SCTP_SHORT = 53
    R_SCTP_CHECKSUM = 54
    R_SCTP_CHUNKS = 55
    R_SCTP_NOT_OPENING = 56
    R_SCTP_TAG = 57
    R_SCTP_STATE = 58
    R_SCTP_IGNORED = 59
    N_REASONS = 60

KEY_DTYPE: np.dtype[Any]
PACKET_DTYPE: np.dtype[Any]
DECISION_DTYPE: np.dtype[Any]
TCP_SIDE_DTYPE: np.dtype[Any]
TCP_DTYPE: np.dtype[Any]
SCTP_DTYPE: np.dtype[Any]
FLOW_DTYPE: np.dtype[Any]
CONN_DTYPE: np.dtype[Any]
EVENT_DTYPE: np.dtype[Any]
