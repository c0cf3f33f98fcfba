"""Who is served, whose pod it is, and which clients may share a cached reply."""

from __future__ import annotations

import pytest

from kproxy.dns.clients import UNCACHED, Clients, Networks, PodView, SearchList, served_networks
from kproxy.dns.names import pack

SEARCHES = (b"\x02ns\x03svc\x07cluster\x05local\0", b"\x03svc\x07cluster\x05local\0")
POD = PodView(address="10.1.0.5", name="ns/a", searches=SEARCHES)


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("10.1.2.3", True),
        ("10.2.0.0", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("fd00::1", True),
        ("fe00::1", False),
        ("0.0.0.0", False),
    ],
)
def test_networks_contain(address: str, inside: bool) -> None:
    assert (pack(address) in Networks(["10.1.0.0/16", "192.0.2.7", "fd00::/8"])) is inside


def test_everything_lies_in_the_whole_internet_of_its_family() -> None:
    networks = Networks(["0.0.0.0/0"])
    assert pack("203.0.113.1") in networks and pack("2001:db8::1") not in networks


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError):
        Clients(["10.0.0.0/33"])


def test_only_the_allowed_are_served_and_pods_of_the_node_always() -> None:
    clients = Clients(["10.2.0.0/16"], [POD])
    assert clients.find("10.2.0.1").allowed
    assert not clients.find("10.1.0.6").allowed
    assert clients.find("10.1.0.5").allowed and clients.find("10.1.0.5").name == "ns/a"
    assert not clients.find("nonsense").allowed


def test_without_networks_everybody_is_served() -> None:
    assert Clients().find("203.0.113.9").allowed


def test_clients_of_one_search_list_and_place_share_a_view() -> None:
    other = PodView(address="10.1.0.6", name="ns/b", searches=SEARCHES)
    clients = Clients((), [POD, other], [["10.1.0.6/32", "10.1.0.9"]])
    assert clients.find("10.1.0.7").view == 0, "nothing is known and it lies nowhere"
    assert clients.find("10.1.0.5").view != clients.find("10.1.0.6").view, "another place"
    assert clients.find("10.1.0.9").view not in (0, clients.find("10.1.0.6").view)
    alike = Clients((), [POD, other])
    assert alike.find("10.1.0.5").view == alike.find("10.1.0.6").view != 0


def test_two_pods_with_one_address_have_both_search_lists() -> None:
    new = PodView(address=POD.address, name="other/b", searches=(b"\x05other" + SEARCHES[0][3:], *SEARCHES[1:]))
    client = Clients((), [POD, new]).find(POD.address)
    assert [one.suffixes for one in client.lists] == [SEARCHES, new.searches] and client.allowed
    unlike = PodView(address=POD.address, name="ns/c", searches=SEARCHES[:1])
    assert Clients((), [POD, unlike]).find(POD.address).lists == (), "which of the two is meant cannot be told"


def test_host_network_pods_do_not_speak_for_the_node() -> None:
    pod = PodView(address="192.0.2.1", name="ns/h", searches=SEARCHES, host_network=True)
    client = Clients((), [pod]).find("192.0.2.1")
    assert client.name == "" and client.lists == (SearchList(SEARCHES),)


def test_everybody_knows_how_lists_begin() -> None:
    clients = Clients((), [POD])
    assert clients.find("203.0.113.9").heads == {SEARCHES[0]} == clients.find(POD.address).heads


def test_the_table_does_not_grow_with_forged_addresses() -> None:
    clients = Clients(capacity=100)
    for number in range(1000):
        clients.find(f"10.0.{number // 250}.{number % 250}")
    assert len(clients.known) <= 100


def test_who_is_served_is_known_by_what_the_kernel_writes() -> None:
    clients = Clients(("10.0.0.0/8",), capacity=100)
    for number in range(1000):
        clients.see(number, f"10.0.{number // 250}.{number % 250}")
        assert clients.seen[number] is clients.find(f"10.0.{number // 250}.{number % 250}")
    clients.see(b"stranger", "192.0.2.1")
    assert b"stranger" not in clients.seen and 0 < len(clients.seen) <= 100


def test_views_are_bounded() -> None:
    pods = [
        PodView(address=f"10.{n // 65536}.{n // 256 % 256}.{n % 256}", name="a/b", searches=(b"%d" % n,))
        for n in range(5000)
    ]
    clients = Clients((), pods)
    views = [clients.find(pod.address).view for pod in pods]
    assert max(views) < 4096 and views[-1] == UNCACHED


def test_the_default_serves_private_ranges_and_what_is_known() -> None:
    clients = Clients(served_networks((), (), ("203.0.113.0/24",)))
    assert (
        clients.find("10.200.1.1").allowed and clients.find("203.0.113.9").allowed and clients.find("fd12::1").allowed
    )
    assert not clients.find("198.51.100.1").allowed and not clients.find("2001:db8::1").allowed


def test_written_networks_are_the_whole_list_but_for_the_node_itself() -> None:
    clients = Clients(served_networks(("10.5.0.0/16",), ("192.0.2.1",), ("10.6.0.0/16",)))
    assert clients.find("127.0.0.1").allowed and clients.find("192.0.2.1").allowed and clients.find("10.5.1.1").allowed
    assert not clients.find("10.6.0.1").allowed
