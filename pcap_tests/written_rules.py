"""Filters as people write them, one of each form that tc and a rules file know: for tests that compare readers, and kernels, with each other.

A line begins with FILTER. Not here: what they mean.
"""

from __future__ import annotations

from datapath.pipeline.quantities import ETHERTYPES

FILTER = "tc filter add dev eth0 ingress"
WRITTEN = [
    "protocol ip prio 2 chain 0 flower ct_state -trk ip_proto tcp action ct zone 5 pipe action goto chain 1",
    "proto ip pref 0x10 handle 7 flower ip_proto 47 ip_tos 16/0xf0 ip_ttl 10",
    "protocol IPv4 flower ip_proto tcp dst_port 80/0xfff0 tcp_flags 2/12 src_port 100-200",
    "protocol 0x800 flower ip_proto tcp dst_port 80/80",
    "flower ct_state +trk-new ct_zone 0x5/0xff ct_mark 7/0xf ct_label 0102/ff02",
    "protocol ip flower ip_flags nofrag ip_tos 0x20 ip_ttl 0x40",
    "protocol ip flower ip_proto icmp type 8/15 code 0",
    "protocol ipv6 flower ip_proto icmpv6 type 135 dst_ip 2001:db8::/32 src_ip ::/0",
    "protocol 802.1Q flower vlan_id 5 vlan_prio 3 vlan_ethtype ip ip_proto udp dst_port 010",
    "protocol 802.1ad flower vlan_id 5 vlan_ethtype 802.1q cvlan_id 9 cvlan_prio 2 cvlan_ethtype ipv4 ip_proto icmp type 3",
    "protocol arp flower arp_sip 10.0.0.0/8 arp_op request arp_sha 02:00:00:00:00:00/24 arp_tip 10.0.0.1",
    "protocol ip flower src_ip 10.0.0.0/255.0.0.0 dst_mac 02:00:00:00:00:00/ff:00:ff:00:00:00 indev eth1 src_mac 2:0:0:0:0:1",
    "protocol ip flower ip_p 6 dst_port 80 skip_hw act pass",
    "protocol ip flower ct_s +trk+est action ct z 5 co",
    "protocol ip flower action ct",
    "protocol ip flower action ct clear",
    "protocol ip flower action ct nat pipe",
    "protocol ip flower action ct commit nat src addr 10.0.0.1-10.0.0.5 port 100-200 pipe",
    "protocol ipv6 flower action ct commit force nat dst addr 2001:db8::1 port 80 drop",
    "protocol ip flower action ct commit force mark 0x5/0xff label 01/03 zone 0x10 drop",
    "protocol ip flower action ct zone 1 ct zone 2",
    "protocol ip flower action mirred egress redirect dev eth1",
    "protocol ip flower action mirred egress redirect dev eth1 pipe",
    "protocol ip flower action mirred ingress mirror dev eth1 drop",
    "protocol ip flower action gact ok",
    "protocol ip flower action pass drop action continue action reclassify",
    "protocol ip flower action csum ip and udp",
    *(f"protocol ip flower src_ip {address}" for address in ("10/8", "10", "192.168/16", "192.168.3", "10/255.0.0.0")),
    *(f"protocol {name} flower action drop" for name in ETHERTYPES if name not in ("ipv4", "802.1q", "802.1ad")),
    "protocol ip flower action csum iph + tcp or udplite sctp icmp igmp drop",
    "protocol ip flower action skbedit mark 5 priority 1:a queue_mapping 3",
    "protocol ip flower action skbedit mark 0x5/0xff priority 10 ptype host drop",
    "protocol ip flower action vlan push id 0x5",
    "protocol ip flower action vlan push protocol 802.1ad id 5 prio 3 pipe",
    "protocol ip flower action vlan modify id 7 action vlan pop drop",
    "protocol ip flower action police rate 1.5mbit burst 10k",
    "protocol ip flower action police rate 1mibit burst 10kb mtu 2k conform-exceed drop",
    "protocol ip flower action police rate 100kbps burst 1mb drop",
    "protocol ip flower action police rate 1gbit burst 8mbit conform-exceed drop/pipe",
    "protocol ip flower action police rate 1gbit burst 10k conform-exceed goto chain 3 / pipe",
    "protocol ip flower action police pkts_rate 1000 pkts_burst 100 pipe",
    "protocol ip flower action police mtu 1500",
    *(
        f"protocol ip flower action pedit ex munge {change}"
        for change in (
            "eth src set 02:00:00:00:00:01", "eth dst set 2:3:4:5:6:7", "eth type set 0x86dd", "ip src set 192.0.2.1", "ip dst set 192.0.2.1",
            "ip dst set 192.0.2.1 retain 0xff", "ip tos set 0xff", "ip dsfield set 0xb8 retain 0xfc", "ip precedence set 3", "ip ihl set 0xff",
            "ip ttl set 64", "ip protocol set 17", "ip nofrag set 0xff", "ip firstfrag set 0xff", "ip ce set 0xff", "ip df set 0xff",
            "ip mf set 0xff retain 0xff", "ip ttl add 1", "ip ttl decrement", "ip tos add 3 retain 0xf", "ip ttl clear", "ip6 src set 2001:db8::1",
            "ip6 dst set ::1", "ip6 traffic_class set 0xff", "ip6 traffic_class set 0xb8 retain 0xfc", "ip6 flow_lbl set 0xfffff",
            "ip6 flow_lbl set 0xfffff retain 0xfffff", "ip6 payload_len set 0xffff", "ip6 nexthdr set 17", "ip6 hoplimit decrement",
            "tcp sport set 0xffff", "tcp dport set 80", "tcp flags set 0x10", "udp sport set 1", "udp dport set 2 retain 0xff pipe",
            "tcp dport set 80 munge ip ttl set 3 drop", "ip ttl set 3 retain 0x1ff", "ip tos set 3 retain 0", "ip tos set 4 pedit munge ip ttl set 3",
        )
    ),
]  # fmt: skip

# Keys and actions in further company, as a kernel that has flower shows them.
FURTHER = [
    "protocol ip flower ip_proto sctp dst_port 5000 src_port 6000/0xff00",
    "protocol ipv6 flower ip_proto udp dst_port 100-200 src_port 7",
    "protocol ipv6 flower ip_proto tcp src_ip 2001:db8::/32 dst_ip 2001:db8::1 ip_tos 0xb8/0xfc ip_ttl 64",
    "protocol ipv6 flower ip_proto icmpv6 type 128/240 code 1/3",
    "protocol ip flower ip_flags frag/nofirstfrag",
    "protocol ip flower ip_flags frag/firstfrag",
    "protocol arp flower arp_op reply arp_tha 02:00:00:00:00:05 arp_sip 10.0.0.1",
    "protocol rarp flower arp_sha 02:00:00:00:00:00/ff:00:ff:00:ff:00",
    "protocol 802.1Q flower vlan_id 7",
    "protocol 802.1Q flower vlan_prio 5",
    "protocol 802.1Q flower vlan_ethtype ipv6 dst_ip 2001:db8::/64",
    "protocol ip flower ct_state +trk+new-rpl ct_zone 7 ct_mark 0x10000000/0xf0000000 ct_label 00ff/0fff",
    "protocol ip flower ct_state +trk+rel action drop",
    "protocol ip flower ct_state +trk+inv action drop",
    "protocol ip flower ct_state +trk+est+rpl-inv action pass",
    "protocol ip flower dst_mac 02:00:00:00:00:00/8 src_mac 02:00:00:00:00:00/ff:ff:ff:00:00:00",
    "protocol ip flower ip_proto tcp tcp_flags 0x2/0x17 action ct commit zone 7 mark 0x42/0xff pipe action mirred egress redirect dev eth1",
    "protocol ip flower action mirred ingress redirect dev eth1",
    "protocol ip flower action mirred egress mirror dev eth1 pipe action csum ip4h tcp pipe action vlan push id 9 pipe action goto chain 7",
    "protocol ip flower action pedit ex munge eth dst set 02:00:00:00:00:09 munge ip src set 192.0.2.9 munge ip ttl decrement munge tcp sport set 9"
    " pipe action csum ip4h and tcp pipe action ct zone 9 nat pipe action goto chain 8",
    "protocol ip flower action ct commit zone 3 nat dst addr 192.0.2.1 pipe",
    "protocol ip flower action ct commit zone 3 nat src addr 192.0.2.1 port 0-0 pipe",
    "protocol ipv6 flower action ct commit nat src addr 2001:db8::1-2001:db8::9 port 1000-2000",
    "protocol ip flower action ct zone 3 label 0102030405060708090a0b0c0d0e0f10 commit goto chain 268435455",
    "protocol ip flower action skbedit ptype broadcast continue",
    "protocol ip flower action skbedit queue_mapping 65535 ptype otherhost reclassify",
    "protocol ip flower action skbedit mark 0 ptype multicast pass",
    "protocol ip flower action police pkts_rate 5 pkts_burst 3 conform-exceed goto chain 4 / continue",
    "protocol ip flower action police rate 100gbit burst 10mb mtu 9000 conform-exceed drop/pipe",
    "protocol all flower ct_state -trk action ct zone 2 goto chain 1",
]  # fmt: skip


def with_chain(line: str) -> str:
    """We always say the chain; where people do not, it is 0."""
    return line if " chain 0 " in line.partition("flower")[0] else line.replace(" flower", " chain 0 flower", 1)
