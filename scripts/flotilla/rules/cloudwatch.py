"""What the CloudWatch agent's own schema lets through although the agent then measures nothing.

The schema accepts any measurement name, any plugin and any global dimension; the agent ignores what
it does not know, and the metric is simply missing. The names are those of AWS's documentation
("Metrics collected by the CloudWatch agent", Linux), with and without the plugin's name in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_CPU = "guest guest_nice idle iowait irq nice softirq steal system user active"

MEASUREMENTS: Mapping[str, frozenset[str]] = {
    plugin: frozenset(names.split())
    for plugin, names in {
        "cpu": " ".join(f"time_{kind} usage_{kind}" for kind in _CPU.split()),
        "disk": "free inodes_free inodes_total inodes_used total used used_percent",
        "diskio": "iops_in_progress io_time reads read_bytes read_time writes write_bytes "
        "write_time",
        "mem": "active available available_percent buffered cached free inactive shared total used "
        "used_percent",
        "net": "bytes_recv bytes_sent drop_in drop_out err_in err_out packets_recv packets_sent",
        "netstat": "tcp_close tcp_close_wait tcp_closing tcp_established tcp_fin_wait1 "
        "tcp_fin_wait2 tcp_last_ack tcp_listen tcp_none tcp_syn_sent tcp_syn_recv tcp_time_wait "
        "udp_socket",
        "processes": "blocked dead idle paging running sleeping stopped total total_threads wait "
        "zombies",
        "procstat": "cpu_time cpu_time_system cpu_time_user cpu_usage involuntary_context_switches "
        "memory_data memory_locked memory_rss memory_stack memory_swap memory_vms num_fds "
        "num_threads pid pid_count read_bytes read_count voluntary_context_switches write_bytes "
        "write_count",
        "swap": "free used used_percent",
    }.items()
}
GLOBAL_DIMENSIONS = {
    name: f"${{aws:{name}}}"
    for name in ("ImageId", "InstanceId", "InstanceType", "AutoScalingGroupName")
}


def faults(config: Mapping[str, Any]) -> list[str]:
    """What of a configuration would have no effect, as sentences; empty means all of it has."""
    metrics = config.get("metrics", {})
    return [
        *(
            fault
            for plugin, settings in metrics.get("metrics_collected", {}).items()
            for fault in _plugin_faults(plugin, settings)
        ),
        *(
            f"append_dimensions {name}: {value!r} is dropped; there are only "
            + ", ".join(GLOBAL_DIMENSIONS)
            for name, value in metrics.get("append_dimensions", {}).items()
            if GLOBAL_DIMENSIONS.get(name) != value
        ),
        *_aggregation_faults(metrics),
    ]


def _plugin_faults(
    plugin: str, settings: Mapping[str, Any] | Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    known = MEASUREMENTS.get(plugin)
    if known is None:
        yield f"there is no plugin {plugin}; known here: {', '.join(sorted(MEASUREMENTS))}"
        return
    for section in [settings] if isinstance(settings, Mapping) else settings:
        for measured in section.get("measurement", ()):
            name = measured["name"] if isinstance(measured, Mapping) else measured
            if name.removeprefix(f"{plugin}_") not in known:
                yield f"{plugin} has no measurement {name}"


def _aggregation_faults(metrics: Mapping[str, Any]) -> Iterator[str]:
    """A figure over a dimension that no metric carries is never made."""
    everywhere = set(metrics.get("append_dimensions", {}))
    sections = [
        section
        for settings in metrics.get("metrics_collected", {}).values()
        for section in ([settings] if isinstance(settings, Mapping) else settings)
    ]
    for wanted in metrics.get("aggregation_dimensions", ()):
        for section in sections:
            missing = set(wanted) - everywhere - set(section.get("append_dimensions", {}))
            if missing:
                yield f"aggregation over {', '.join(sorted(missing))}: not every metric has it"
                break
