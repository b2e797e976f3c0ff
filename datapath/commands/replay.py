"""`ctmirror replay`: the main job."""

from __future__ import annotations

import click

from datapath import app
from datapath.cli import INTERRUPTED, USAGE, complain
from datapath.commands.nic_option import KINDS
from datapath.commands.options import refuse_said_by_rules, rules_options, tracking_options
from datapath.commands.progress import progress_bar
from datapath.commands.verbosity import verbosity
from datapath.export import FORMATS, STDOUT
from datapath.names import quoted
from offload.mirror_settings import POLICIES


def _file(value: str | None) -> str | None:
    """ "off" and nothing mean no such file."""
    return None if value in (None, "", "off") else value


def _report(result: app.Replayed, outputs: app.Outputs, verbose: bool) -> None:
    """The summary goes to stdout unless data goes there."""
    from rich.console import Console

    from datapath.report import print_summary

    console = Console(stderr=STDOUT in outputs.names(), soft_wrap=False)
    print_summary(result, console, verbose=verbose)
    if result.nic is not None:
        from datapath.commands.report_nic import indented, nic_lines

        for line in nic_lines(result.nic):
            console.print(indented(line, console.width), highlight=False, soft_wrap=True)


@click.command("replay", short_help="run captures through connection tracking")
@click.argument("captures", nargs=-1, required=True, metavar="CAPTURE...")
@click.option("--packets", metavar="FILE", help="Write a record for each packet; off writes none.")
@click.option("--conns", metavar="FILE", help="Write a record for each connection.")
@click.option("--events", metavar="FILE", help="Write a record for each event: new, update, destroy.")
@click.option("--rule-counters", metavar="FILE", help="Write a record for each rule of --rules: packets, bytes, drops, when it matched last.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Format of the records.  [default: by the file's ending; jsonl for - and none]")
@click.option("-w", "forwarded", metavar="OUT", help="Write what leaves, translated; in .pcapng each packet with its decision as a comment.")
@click.option("--nic", metavar="PROFILE", help=f"A NIC in front, to which established connections are offloaded: {KINDS}.")
@click.option("--nic-policy", type=click.Choice(POLICIES), help="Which connection makes room when the NIC is full.  [default: first-come]")
@verbosity("No summary and no progress bar.", "Counters, reason codes and settings in the summary.")
@tracking_options
@rules_options
def command(captures, packets, conns, events, rule_counters, form, forwarded, nic, nic_policy, quiet, verbose, tracking) -> int:
    """Run captures through connection tracking and say what it says of each packet.

    Captures continue one another. Without options a summary is printed; "-" is stdin or stdout.

    \b
    Examples:
      ctmirror replay office.pcap
      ctmirror replay office.pcap --packets packets.jsonl --conns conns.parquet
      ctmirror replay office.pcap --packets - | jq 'select(.state == "invalid")'
      ctmirror replay office.pcap --conns - --format conntrack      what is alive at the end, as conntrack -L lists it
      ctmirror replay office.pcap -w judged.pcapng     open it in Wireshark: each packet has its number and decision as comment
      ctmirror replay lan.pcap --masquerade 192.0.2.1 -w wan.pcapng        what would leave a router
      ctmirror replay wan.pcap --dnat 'ip_proto tcp dst_port 80 => 10.0.0.2:8080'
      ctmirror replay lan.pcap --snat 'src_ip 10.0.0.0/8 => 192.0.2.1-192.0.2.9:1024-65535,persistent'
      ctmirror replay lan6.pcap --snat '[2001:db8:3::1]:2000-2999,random' --helper ftp:tcp:21
      ctmirror replay vm.pcapng --rules rules.tc           through tc rules: which rule decided, what the flow table served
      ctmirror replay vm.pcapng --rules rules.tc --rule-counters - | jq 'select(.packets == 0)'       which rules matched nothing
      ctmirror replay vm.pcapng --rules rules.tc --nic connectx-7-hw        what a NIC would take, and what stays in software, why
      ctmirror replay office.pcap --nic tiny --events - | jq 'select(.changes[] == "hw-offload")'     into hardware, and out of it
      ctmirror replay monday.pcap tuesday.pcap.zst --tcp-loose 0 --timeouts tcp_timeout_established=3600
    """
    if form and not any(map(_file, (packets, conns, events, rule_counters))):
        raise click.UsageError("--format: expected records to write: --packets, --conns, --events or --rule-counters")
    if _file(rule_counters) and tracking.rules is None:
        raise click.UsageError("--rule-counters: expected --rules with it")
    kind = None
    if nic_policy and nic is None:
        raise click.UsageError("--nic-policy: expected --nic with it")
    if nic is not None:
        from datapath.commands.nic_option import nic_profile

        profile = nic_profile(nic)  # first: without its libraries the rest cannot be imported
        from datapath.commands.offloaded_run import NicGiven, behind_nic

        if tracking.rules is None:
            refuse_said_by_rules("--nic")
        flags = f"--nic {quoted(nic)}" if nic_policy in (None, POLICIES[0]) else ""  # offload why has no other policies
        tracking, kind = behind_nic(tracking, NicGiven(profile, nic_policy or POLICIES[0], flags=flags))
    outputs = app.Outputs(_file(packets), _file(conns), _file(events), forwarded, form, _file(rule_counters))
    with progress_bar(quiet=quiet) as progress:
        result = app.replay(captures, tracking, outputs, summary=not quiet, progress=progress, kind=kind)
    if not quiet and (result.stats["total_packets"] or not result.errors):
        _report(result, outputs, verbose)
    for line in result.errors:
        complain(line)
    return INTERRUPTED if result.interrupted else USAGE if result.errors else 0
