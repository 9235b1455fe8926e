"""The lab's network: a bridge per VPC, a namespace per host, public addresses, and no way out.

Nothing of the lab may reach a network outside it. Three things see to that, each enough by itself:
`unreachable` routes for every address the lab uses, made before anything else (while a bridge
exists its own routes win, and when it is gone packets die here instead of leaving by the default
route); a forward chain that drops what comes from a lab bridge or goes to one; and public addresses
inside 127.0.0.0/8, which no kernel sends out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from lab.layout import (
    API_ADDRESS,
    API_PORT,
    APT_ADDRESS,
    APT_PORT,
    METADATA_ADDRESS,
    OPERATOR_LOOPBACK,
    OPERATOR_NETWORK,
    OPERATOR_SEEN_AS,
    OPERATOR_SEEN_OTHERWISE,
    PREFIX,
    PUBLIC_POOL,
    SERVICE_ADDRESSES,
)
from lab.run import run, tried

TABLE = f"{PREFIX}_net"
SERVICES = f"{PREFIX}-svc"
_RESOLV_CONF = Path("/etc/resolv.conf")
SYSCTLS: Mapping[str, str] = {
    "net.ipv4.ip_forward": "1",
    # Every systemd holds some eight of them, all counted against one root: at the kernel's default
    # of 128 the sixteenth host ended at once with exit code 255.
    "fs.inotify.max_user_instances": "8192",
    # Where br_netfilter is loaded (as by Docker), packets between two hosts on one bridge pass the
    # machine's forward chains too, ours among them, and are dropped. The bridge's own setting does
    # not help: the kernel filters if either is on.
    "net.bridge.bridge-nf-call-iptables": "0",
}
_AT_LEAST = ("fs.inotify.max_user_instances",)


def ruleset(public: Mapping[str, str]) -> str:
    """The machine's side of the lab's network as one nftables transaction.

    `public` maps public to private addresses. An address that moves cuts what was established
    through it, as on AWS: the old connection's packets no longer match `pairs` and are answered
    with a reset.
    """
    moves = sorted(public.items(), key=lambda pair: IPv4Address(pair[0]))
    nat = ", ".join(f"{out} : {inside}" for out, inside in moves)
    pairs = ", ".join(f"{out} . {inside}" for out, inside in moves)
    return f"""table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
  map public {{ type ipv4_addr : ipv4_addr; {f"elements = {{ {nat} }}" if nat else ""} }}
  set pairs {{ type ipv4_addr . ipv4_addr; {f"elements = {{ {pairs} }}" if pairs else ""} }}
{_CHAINS}}}
"""


_SEEN_AS = f"{OPERATOR_LOOPBACK} : {OPERATOR_SEEN_AS}"
_ANSWERING = ", ".join(
    (f"{METADATA_ADDRESS} . 80", f"{APT_ADDRESS} . {APT_PORT}", f"{API_ADDRESS} . {API_PORT}")
)
_CHAINS = f"""
  chain published {{
    type nat hook output priority -100;
    ip daddr {PUBLIC_POOL} dnat to ip daddr map @public
  }}
  chain operator {{
    type nat hook postrouting priority 100;
    oifname "{PREFIX}*" snat ip prefix to ip saddr map {{ {_SEEN_AS} }}
    oifname "{PREFIX}*" ip saddr 127.0.0.0/8 snat to {OPERATOR_SEEN_OTHERWISE}
  }}
  chain output {{
    type filter hook output priority 0;
    # Not by interface: after a DNAT in this hook a packet still shows the one it had before.
    ct direction reply accept
    ct original ip daddr . ip daddr @pairs accept
    ct original ip daddr {PUBLIC_POOL} meta l4proto tcp reject with tcp reset
    ct original ip daddr {PUBLIC_POOL} reject with icmp host-unreachable
    oifname "{PREFIX}*" meta l4proto tcp reject with tcp reset
    oifname "{PREFIX}*" reject with icmp admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority 0;
    iifname "{PREFIX}*" drop
    oifname "{PREFIX}*" drop
  }}
  chain input {{
    type filter hook input priority 0;
    iifname "lo" accept
    iifname != "{PREFIX}*" ip daddr {{ {", ".join(SERVICE_ADDRESSES)} }} drop
    iifname != "{PREFIX}*" accept
    ct state established,related accept
    ip daddr . tcp dport {{ {_ANSWERING} }} accept
    icmp type echo-request accept
    meta l4proto tcp reject with tcp reset
    drop
  }}
"""


def conflict(cidr: IPv4Network, routes: Iterable[IPv4Network]) -> IPv4Network | None:
    """The route of the machine that a VPC of this range would hide, if any."""
    return next((route for route in routes if route.prefixlen > 0 and route.overlaps(cidr)), None)


def resolvers(resolv_conf: str) -> list[IPv4Network]:
    """The IPv4 name servers in the text of a resolv.conf: reached by the default route, so that no
    route of their own names them.
    """
    words = [line.split() for line in resolv_conf.splitlines()]
    named = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
    return [IPv4Network(address) for address in named if ":" not in address]


def machine_routes() -> list[IPv4Network]:
    """Networks this machine needs: its IPv4 routes except the lab's own, and its name servers."""
    listed = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]")
    found = []
    for route in listed:
        lab_made = (
            str(route.get("dev", "")).startswith(PREFIX) or route.get("type") == "unreachable"
        )
        destination = route.get("dst", "default")
        if not lab_made and destination != "default":
            found.append(IPv4Network(destination, strict=False))
    return found + resolvers(_RESOLV_CONF.read_text() if _RESOLV_CONF.exists() else "")


def sysctl(key: str) -> str:
    """Current value of a kernel setting."""
    return Path("/proc/sys", *key.split(".")).read_text().strip()


def sysctls() -> dict[str, str]:
    """Current values of those in `SYSCTLS` that this kernel has."""
    return {key: sysctl(key) for key in SYSCTLS if Path("/proc/sys", *key.split(".")).exists()}


def set_sysctl(key: str, value: str) -> None:
    """Change a kernel setting until the next boot."""
    path = Path("/proc/sys", *key.split("."))
    if path.exists() and path.read_text().strip() != value:
        path.write_text(value)


def block(cidr: str) -> None:
    """Make sure that packets for this range die here while nothing of the lab answers for it."""
    # The largest metric: any bridge's own route to the same range wins over it.
    tried(["ip", "route", "add", "unreachable", cidr, "metric", "4294967295"])


def unblock(cidr: str) -> None:
    """Undo `block`."""
    tried(["ip", "route", "del", "unreachable", cidr, "metric", "4294967295"])


def up() -> None:
    """Prepare the machine, before the first bridge. Note what `sysctls` gives first: `down` wants
    it.
    """
    for cidr in (*(f"{address}/32" for address in SERVICE_ADDRESSES), str(OPERATOR_NETWORK)):
        block(cidr)
    publish({})
    # Dummy interfaces are missing from some kernels; an empty bridge is everywhere. The services
    # listen on it whatever VPCs come and go.
    run(["ip", "link", "add", SERVICES, "type", "bridge"])
    for address in SERVICE_ADDRESSES:
        run(["ip", "address", "add", f"{address}/32", "dev", SERVICES])
    run(["ip", "link", "set", SERVICES, "up"])
    for key, now in sysctls().items():
        if key not in _AT_LEAST or int(now) < int(SYSCTLS[key]):
            set_sysctl(key, SYSCTLS[key])


def publish(public: Mapping[str, str]) -> None:
    """Make the public addresses lead to exactly these hosts, at once."""
    run(["nft", "-f", "-"], stdin=ruleset(public))


def bridge_name(number: int) -> str:
    """Name of the n-th VPC's bridge."""
    return f"{PREFIX}{number}"


def add_bridge(bridge: str, cidr: IPv4Network) -> None:
    """The network of one VPC; the machine is its router, at the range's first address."""
    block(str(cidr))
    run(["ip", "link", "add", bridge, "type", "bridge", "forward_delay", "0"])
    # A machine with br_netfilter would push bridged frames through its own filters.
    tried(["ip", "link", "set", bridge, "type", "bridge", "nf_call_iptables", "0"])
    set_sysctl(f"net.ipv4.conf.{bridge}.route_localnet", "1")
    set_sysctl(f"net.ipv6.conf.{bridge}.disable_ipv6", "1")
    run(["ip", "address", "add", f"{cidr[1]}/{cidr.prefixlen}", "dev", bridge])
    run(["ip", "link", "set", bridge, "up"])


def remove_bridge(bridge: str, cidr: IPv4Network) -> None:
    """Undo `add_bridge`."""
    tried(["ip", "link", "del", bridge])
    unblock(str(cidr))


def namespace_name(instance_id: str) -> str:
    """Name of an instance's network namespace."""
    return f"{PREFIX}-{instance_id}"


def mac(address: str) -> str:
    """The hardware address of a private address.

    Always the same one: a host that is given an address another had before would otherwise stay
    unreachable until its neighbours' ARP entries expire (seen: 8 s).
    """
    return "02:fc:" + ":".join(f"{octet:02x}" for octet in IPv4Address(address).packed)


def add_namespace(instance_id: str, bridge: str, cidr: IPv4Network, address: str) -> str:
    """The host's namespace with its interface, ready before the host boots; returns its name."""
    name = namespace_name(instance_id)
    # An interface's name has 15 characters; 13 of a random id are as good as all 17.
    outside = f"fl{instance_id.removeprefix('i-')[:13]}"
    run(
        ["ip", "-batch", "-"],
        stdin=f"netns add {name}\n"
        f"link add {outside} type veth peer name eth0 address {mac(address)} netns {name}\n"
        f"link set {outside} master {bridge} up\n",
    )
    run(
        ["ip", "-netns", name, "-batch", "-"],
        stdin="link set lo up\n"
        f"address add {address}/{cidr.prefixlen} dev eth0\n"
        "link set eth0 up\n"
        f"route add default via {cidr[1]}\n"
        # Without this the host would reach itself at every public address: they are loopback ones.
        f"route add unreachable {PUBLIC_POOL} table local\n",
    )
    # The kernel's defaults for forwarding and redirects are inherited from the machine; a host of
    # its own has these.
    run(
        [
            "nsenter",
            f"--net=/run/netns/{name}",
            "sysctl",
            "-qw",
            "net.ipv4.ip_forward=0",
            "net.ipv6.conf.eth0.disable_ipv6=1",
        ]
    )
    return name


def remove_namespace(instance_id: str) -> None:
    """Undo `add_namespace`; the interface pair goes with it."""
    tried(["ip", "netns", "del", namespace_name(instance_id)])


def leftovers() -> list[str]:
    """Names of interfaces, tables and routes of a lab that are on the machine now."""
    links = json.loads(run(["ip", "-json", "link", "show"]) or "[]")
    found = [
        link["ifname"]
        for link in links
        if link["ifname"].startswith((PREFIX, "fl")) and _is_ours(link)
    ]
    tables = run(["nft", "list", "tables"], check=False).splitlines()
    found += [line for line in tables if line.split()[-1:] == [TABLE]]
    routes = json.loads(run(["ip", "-json", "route", "show", "type", "unreachable"]) or "[]")
    found += [
        f"route {route['dst']}" for route in routes if int(route.get("metric", 0)) == 4294967295
    ]
    return found


def _is_ours(link: Mapping[str, object]) -> bool:
    name = str(link["ifname"])
    return name.startswith(PREFIX) or len(name) == 15


def down(before: Mapping[str, str]) -> None:
    """Remove everything this module makes, whoever made it; give the kernel its settings back."""
    for name in leftovers():
        if name.startswith("table"):
            tried(["nft", "delete", *name.split()])
        elif name.startswith("route "):
            unblock(name.removeprefix("route "))
        else:
            tried(["ip", "link", "del", name])
    for key, value in before.items():
        set_sysctl(key, value)
