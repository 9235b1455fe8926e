"""How many hosts the load needs: those that stay always hold the peak and its headroom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flotilla.rules.capacity import Load, at_each_step, need, peak, room, why_too_small

HOSTS = [f"app-{n}" for n in range(1, 7)]


def pair(most: int, limit: int = 200, hosts: list[str] = HOSTS, **more: int) -> dict[str, Load]:
    limits = dict.fromkeys(hosts, limit)
    return {
        "lb-1": Load(most_sessions=most, limits=limits, uptime_seconds=3600, **more),
        "lb-2": Load(limits=limits),
    }


def test_enough_hosts_stay_for_the_peak_and_its_headroom():
    assert need(pair(most=300), HOSTS, 130).hosts == 2  # 390 of 400
    assert need(pair(most=308), HOSTS, 130).hosts == 3  # 401 of 600
    assert need(pair(most=0), HOSTS, 130).hosts == 0


def test_a_fleet_that_is_full_at_its_peak_is_not_thinned():
    loads = pair(most=800, rate=90, most_rate=250)
    wanted = need(loads, HOSTS, 130)
    assert wanted.hosts == 6
    why = why_too_small(wanted, loads, HOSTS)
    assert why == (
        "6 hosts serve and take 1200 requests at once; with one out, 1000 are left and 1040 are "
        "needed: 130% of 800, the most in flight in the last 60 min (now 90 requests/s, at most "
        "250)"
    )


def test_a_fleet_with_room_may_be_thinned():
    loads = pair(most=700)
    assert why_too_small(need(loads, HOSTS, 130), loads, HOSTS) is None


def test_a_load_that_nobody_can_hold_is_said_and_not_hidden():
    loads = pair(most=5000)
    assert need(loads, HOSTS, 130).hosts == len(HOSTS) + 1
    assert why_too_small(need(loads, HOSTS, 130), loads, HOSTS)


def test_servers_without_a_limit_need_one_host_at_most():
    loads = pair(most=5000, limit=0)
    assert need(loads, HOSTS, 130).hosts == 1
    assert room(loads, HOSTS) is None


def test_what_both_load_balancers_have_in_flight_is_added_and_their_peaks_are_not():
    loads = {"lb-1": Load(sessions=30, most_sessions=40), "lb-2": Load(sessions=25)}
    assert peak(loads) == 55
    assert peak(loads | {"lb-2": Load(sessions=0, most_sessions=90)}) == 90


def test_the_capacity_of_each_step_is_that_of_the_hosts_that_stay():
    steps = at_each_step(pair(most=1), HOSTS, [["app-1"], ["app-2", "app-3", "app-4"]])
    assert steps == [{"serving": 5, "sessions": 1000}, {"serving": 3, "sessions": 600}]


limits = st.dictionaries(st.sampled_from(HOSTS), st.integers(1, 500), min_size=1)


@given(limits, st.integers(0, 3000), st.integers(100, 300), st.data())
def test_whichever_hosts_stay_they_hold_what_is_needed(limits, most, headroom, data):
    loads = {"lb-1": Load(most_sessions=most, limits=limits)}
    wanted = need(loads, list(limits), headroom)
    if wanted.hosts > len(limits):
        assert sum(limits.values()) * 100 < most * headroom
        return
    stay = data.draw(st.permutations(sorted(limits)))[: wanted.hosts]
    assert sum(limits[host] for host in stay) * 100 >= most * headroom


@given(limits, st.integers(0, 3000), st.integers(100, 300))
def test_one_host_less_would_not_always_do(limits, most, headroom):
    wanted = need({"lb-1": Load(most_sessions=most, limits=limits)}, list(limits), headroom)
    if 0 < wanted.hosts <= len(limits):
        least = sorted(limits.values())[: wanted.hosts - 1]
        assert sum(least) * 100 < most * headroom


@given(limits, st.integers(0, 2000), st.integers(0, 2000), st.integers(100, 300))
def test_more_load_never_needs_fewer_hosts(limits, some, more, headroom):
    few = need({"lb-1": Load(most_sessions=some, limits=limits)}, list(limits), headroom)
    many = need({"lb-1": Load(most_sessions=some + more, limits=limits)}, list(limits), headroom)
    assert many.hosts >= few.hosts
