"""SIP messages for tests: what an endpoint says, over IPv4 or IPv6, with or without a session description.

Written by call(), so that their content lengths are right until a test breaks them.
"""

from __future__ import annotations

CLIENT, SERVER, OUTSIDE = ("10.0.0.1", "[2001:db8::1]"), ("10.0.0.2", "[2001:db8::2]"), ("192.0.2.99", "[2001:db8:9::99]")


def session(address: str, *media: str) -> bytes:
    """A description (RFC 4566); media: lines, m= and their own c=."""
    bare, version = address.strip("[]"), "IP6" if ":" in address else "IP4"
    lines = ["v=0", f"o=x 1 1 IN {version} {bare}", "s=-", f"c=IN {version} {bare}", "t=0 0", *media]
    return "".join(f"{line}\r\n" for line in lines).encode()


def call(first: str, *headers: str, body: bytes = b"") -> bytes:
    """A message: its first line, headers, body."""
    length = f"Content-Length: {len(body)}"
    return "".join(f"{line}\r\n" for line in (first, *headers, length, "")).encode() + body


def said(six: int) -> tuple[tuple[int, bytes], ...]:
    """What client (0) and server (1) say in a registration and two calls. The client is known as OUTSIDE to the server, or as itself."""
    me, you, out = CLIENT[six], SERVER[six], OUTSIDE[six]
    mine, yours = session(me, "m=audio 4000 RTP/AVP 0", "m=video 4003 RTP/AVP 31"), session(you, "m=image 5000 udptl t38", "m=audio 0 RTP/AVP 0")
    own = session(me, "m=audio 4000 RTP/AVP 0", f"c=IN {'IP6' if six else 'IP4'} {me.strip('[]')}", "m=text 1 x", "m=video 65534 RTP/AVP 31")
    via = f"Via: SIP/2.0/UDP {me}:40000;branch=z;maddr={me}"
    return (
        (0, call(f"REGISTER sip:{you} SIP/2.0", via, f"Contact: <sip:a@{me}:40000>;expires=300, <sip:a@{me}>", "CSeq: 1 REGISTER", "Expires: 9")),
        *((1, call("SIP/2.0 200 OK", f"m: <sip:z@{you}>,\r\n <sip:a@{a}:40000>;expires=30", "CSeq: 1 REGISTER")) for a in (me, out)),
        (0, call(f"INVITE sip:b@{you}:5060 SIP/2.0", via, f"f: <sip:a@{me}:40000>", f"t: <sip:b@{you}>", f"Contact: <sip:a@{me}:40000>",
                 "CSeq: 7 INVITE", body=mine)),
        *((1, call("SIP/2.0 183 Progress", f"Via: SIP/2.0/UDP {a}:40000;received={a.strip('[]')};rport=40000", f"From: <sip:a@{a}:40000>",
                   "CSeq: 7 INVITE", body=yours)) for a in (me, out)),
        (0, call(f"UPDATE sip:b@{you} SIP/2.0", f"Via: SIP/2.0/UDP {me}:5062", "CSeq: 8 UPDATE", body=own)),
        (1, call("SIP/2.0 486 Busy", "CSeq: 7 INVITE")),
        (0, call(f"REGISTER sip:{you} SIP/2.0", "CSeq: 2 REGISTER", f"Contact: <sip:a@{me}:5070;transport=tcp>;expires=0x10")),
        (0, call(f"BYE sip:b@{you} SIP/2.0", "CSeq: 9 BYE") + call("ACK sip:x SIP/2.0", "CSeq: 1 ACK", body=mine)),
    )  # fmt: skip


MESSAGES = said(0) + said(1)
