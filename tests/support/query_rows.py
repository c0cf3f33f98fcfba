"""The table itself: one line per question; support/queries.py says how a line is read.

Rows T… are the catalogue's; K… are ours, for decisions that the catalogue has no row for; S… are lines of the notes.
"""
# ruff: noqa: E501 - a row is a line, however long

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import dns.reversename

SERIAL = 1_700_000_000

_SRV_HDLS = "; ".join(
    f"SRV 0 16 80 {label}.hdls1.testns.svc"
    for label in ("172-0-0-2", "172-0-0-3", "dup-name", "5678-abcd--1", "5678-abcd--2")
)
_ADD_HDLS = (
    "172-0-0-2.hdls1.testns.svc A 172.0.0.2; 172-0-0-3.hdls1.testns.svc A 172.0.0.3; dup-name.hdls1.testns.svc A 172.0.0.4; "
    "dup-name.hdls1.testns.svc A 172.0.0.5; 5678-abcd--1.hdls1.testns.svc AAAA 5678:abcd::1; "
    "5678-abcd--2.hdls1.testns.svc AAAA 5678:abcd::2"
)
_MANY = ".cluster1.hdls1.testns.svc.clusterset.local."
_SRV_MANY = "; ".join(
    f"SRV 0 16 80 {label}{_MANY}" for label in ("172-0-0-2", "172-0-0-3", "dup-name", "5678-abcd--1", "5678-abcd--2")
)
_ADD_MANY = (
    f"172-0-0-2{_MANY} A 172.0.0.2; 172-0-0-3{_MANY} A 172.0.0.3; dup-name{_MANY} A 172.0.0.4; dup-name{_MANY} A 172.0.0.5; "
    f"5678-abcd--1{_MANY} AAAA 5678:abcd::1; 5678-abcd--2{_MANY} AAAA 5678:abcd::2"
)
_ZONE_MIXED = "cLuStEr.LoCaL."


def _nibbles(address: str) -> str:
    return str(dns.reversename.from_address(str(ipaddress.ip_address(address))))


TABLE = f"""
T001 | U | svc1.testns.svc A | OK | A 10.0.0.1
T002 | U | svcempty.testns.svc A | OK | A 10.0.0.1
T003 | U | svc1.testns.svc SRV | OK | SRV 0 100 80 svc1.testns.svc | svc1.testns.svc A 10.0.0.1
T004 | U | svcempty.testns.svc SRV | OK | SRV 0 100 80 svcempty.testns.svc | svcempty.testns.svc A 10.0.0.1
T005 | U | svc6.testns.svc SRV | OK | SRV 0 100 80 svc6.testns.svc | svc6.testns.svc AAAA 1234:abcd::1
T006 | U | _http._tcp.svc1.testns.svc SRV | OK | SRV 0 100 80 svc1.testns.svc | svc1.testns.svc A 10.0.0.1
T007 | U | _http._tcp.svcempty.testns.svc SRV | OK | SRV 0 100 80 svcempty.testns.svc | svcempty.testns.svc A 10.0.0.1
T008 | U | _http._tcp.svc6.testns.svc SRV | OK | SRV 0 100 80 svc6.testns.svc | svc6.testns.svc AAAA 1234:abcd::1
T009 | U | svc1.testns.svc AAAA | ND
T010 | U | svc6.testns.svc AAAA | OK | AAAA 1234:abcd::1
T011 | U | svc6.testns.svc A | ND
T012 | U | svc0.testns.svc A | NX
T013 | U | svc0.testns.svc AAAA | NX
T014 | U | svc0.svc-nons.svc A, orphan.nons.svc A | NX
T015 | U | svc1.nsnoexist.svc A | NX
T016 | U namespaces=testns | svc1.unexposedns.svc A | NX
T017 | U | svc1.testns.svc TXT | ND
T018 | U | svc0.svc-nons.svc TXT | NX
T019 | U | svc1.testns.svc SOA | ND
T020 | U | svc1.testns.svc MX CNAME NS HINFO HTTPS ANY | ND
T021 | U | svc0.testns.svc HTTPS | NX
T022 | U | svc-dual-stack.testns.svc A | OK | A 10.0.0.3
T023 | U | svc-dual-stack.testns.svc AAAA | OK | AAAA 10::3
T024 | U | svc-dual-stack.testns.svc SRV | OK | SRV 0 50 80 svc-dual-stack.testns.svc | svc-dual-stack.testns.svc A 10.0.0.3; svc-dual-stack.testns.svc AAAA 10::3
T025 | U | _http._udp.svc1.testns.svc SRV | NX
T026 | U | _https._tcp.svc1.testns.svc SRV A | NX
T027 | U | http.tcp.svc1.testns.svc SRV | OK | SRV 0 100 80 svc1.testns.svc | svc1.testns.svc A 10.0.0.1
T028 | U | _http._tcp.svc1.testns.svc A | OK | A 10.0.0.1
T029 | U | ep1a.svc1.testns.svc A | OK | A 172.0.0.1
T030 | U | bogusendpoint.svc0.testns.svc A | NX
T031 | U | a.b.c.svc1.testns.svc A | NX
T032 | U | svc1.testns.pood.cluster.local A | NX
T033 | U ignore_empty_service=true | svcempty.testns.svc A | NX
T034 | U ignore_empty_service=true | svc1.testns.svc A | OK | A 10.0.0.1
T035 | U no_endpoints=true | hdls1.testns.svc A, dup-name.hdls1.testns.svc A, ep1a.svc1.testns.svc A | NX
T035 | U no_endpoints=true | svc1.testns.svc A | OK | A 10.0.0.1
T036 | C | svc-1-a.test-1.svc SRV | OK | SRV 0 50 80 svc-1-a.test-1.svc; SRV 0 50 443 svc-1-a.test-1.svc | svc-1-a.test-1.svc A 10.96.0.100
T037 | C | svc-1-a.test-1.svc A | OK | A 10.96.0.100
T038 | C | bogusservice.test-1.svc A | NX
T039 | C | bogusendpoint.svc-1-a.test-1.svc A | NX
T040 | C | svc-c.test-2.svc A | OK | A 10.96.0.120
T041 | C namespaces=test-1 | svc-c.test-2.svc A | NX
K009 | U labels=tier=front | svc1.testns.svc A | OK | A 10.0.0.1
K009 | U labels=tier=front | svc6.testns.svc AAAA, hdls1.testns.svc A, external.testns.svc CNAME | NX
K010 | U labels=tier+notin+(front),!gone | svc6.testns.svc AAAA | OK | AAAA 1234:abcd::1
K010 | U labels=tier+notin+(front),!gone | svc1.testns.svc A | NX
K011 | U namespace_labels=team+in+(red,blue) | svc1.testns.svc A | OK | A 10.0.0.1
K011 | U namespace_labels=team+in+(red,blue) | kubedns.kube-system.svc A, svc1.unexposedns.svc A, svcns.svc A | NX
T046 | U | node-port.testns.svc A | OK | A 10.0.0.6
T047 | E | kubernetes.default.svc A | OK | A 10.96.0.1
T048 | U | 1kubernetes.testns.svc A | OK | A 10.0.0.7
T202 | U fallthrough=svc.cluster.local | f.b.svc A | OK | A 10.10.10.11
T203 | U fallthrough=svc.cluster.local | foo.cluster.local A, foo.svc.cluster.local.cluster.local A | NX
T204 | U fallthrough=svc.cluster.local | svc1.testns.svc AAAA, testns.svc A | ND
K001 | U | _tcp.svc1.testns.svc A SRV TXT | ND
K002 | U | _udp.svc1.testns.svc A, _udp.two-ports.testns.svc.testns.svc A | NX
K003 | U | _udp.two-ports.testns.svc A | ND
K004 | U | _._.svc1.testns.svc SRV, _http._.svc1.testns.svc SRV | NX
K005 | U | two-ports.testns.svc SRV | OK | SRV 0 50 80 two-ports.testns.svc; SRV 0 50 53 two-ports.testns.svc | two-ports.testns.svc A 10.0.0.8
S015 | U aliases=services | svc1.testns.services.cluster.local A | OK | A 10.0.0.1
S015 | U aliases=services | testns.services.cluster.local A, services.cluster.local A | ND
S015 | U aliases=services | svc0.testns.services.cluster.local A | NX
S015 | U aliases=services | _http._tcp.svc1.testns.services.cluster.local SRV | OK | SRV 0 100 80 svc1.testns.svc | svc1.testns.svc A 10.0.0.1
K006 | U | svc1.testns.services.cluster.local A, testns.services.cluster.local A | NX
T050 | U | hdls1.testns.svc A | OK | A 172.0.0.2; A 172.0.0.3; A 172.0.0.4; A 172.0.0.5
T051 | U | hdls1.testns.svc AAAA | OK | AAAA 5678:abcd::1; AAAA 5678:abcd::2
T052 | U | _http._tcp.hdls1.testns.svc SRV | OK | {_SRV_HDLS} | {_ADD_HDLS}
T053 | U | hdls1.testns.svc SRV | OK | {_SRV_HDLS} | {_ADD_HDLS}
T054 | U | dup-name.hdls1.testns.svc A | OK | A 172.0.0.4; A 172.0.0.5
T055 | U | dup-name.hdls1.testns.svc AAAA | ND
T056 | U | 172-0-0-2.hdls1.testns.svc A | OK | A 172.0.0.2
T057 | U | 172-0-0-3.hdls1.testns.svc A | OK | A 172.0.0.3
T058 | U | 5678-abcd--1.hdls1.testns.svc AAAA | OK | AAAA 5678:abcd::1
T059 | U | 5678-abcd--2.hdls1.testns.svc AAAA | OK | AAAA 5678:abcd::2
T060 | U | 172-0-0-4.hdls1.testns.svc A | NX
T061 | U | bogusendpoint.hdls1.testns.svc A | NX
T062 | U | hdlsprtls.testns.svc A | OK | A 172.0.0.20
T063 | U | 172-0-0-20.hdlsprtls.testns.svc A | OK | A 172.0.0.20
T064 | U | hdlsprtls.testns.svc SRV | ND
T065 | U | _http._tcp.hdlsprtls.testns.svc SRV | NX
T066 | C | headless-svc.test-1.svc A | OK | A 172.17.0.254; A 172.17.0.255
T067 | C | headless-svc.test-1.svc AAAA | OK | AAAA 1234:abcd::1; AAAA 1234:abcd::2
T068 | C | svc-unready.test-1.svc A AAAA SRV | NX
T069 | U | published.testns.svc A | OK | A 172.0.1.1
T070 | U | unsaid.testns.svc A | OK | A 172.0.1.2
T071 | U | leaving.testns.svc A | NX
T072 | U | published.testns.svc AAAA | ND
T073 | C endpoint_pod_names=true | headless-1.test-3.svc SRV | OK | SRV 0 100 80 test-name.headless-1.test-3.svc | test-name.headless-1.test-3.svc A 172.17.0.10
T074 | C endpoint_pod_names=true | headless-2.test-3.svc SRV | OK | SRV 0 100 80 172-17-0-11.headless-2.test-3.svc | 172-17-0-11.headless-2.test-3.svc A 172.17.0.11
T075 | C endpoint_pod_names=true | test-name.headless-1.test-3.svc A | OK | A 172.17.0.10
T076 | C | test-name.headless-1.test-3.svc A | NX
T077 | U | 172-0-0-2.hdls1.testns.svc SRV | OK | SRV 0 100 80 172-0-0-2.hdls1.testns.svc | 172-0-0-2.hdls1.testns.svc A 172.0.0.2
T078 | U | fd00--0.six.testns.svc AAAA | OK | AAAA fd00::
T079 | U | twice.testns.svc A | OK | A 172.0.1.4
T081 | E | dns-querier-2.dns-test-service-2.dns-1.svc A | OK | A 10.244.1.7
T082 | E | dns-test-service-2.dns-1.svc A | OK | A 10.244.1.7
T083 | E | _http._tcp.dns-test-service.dns-1.svc SRV | OK | SRV 0 100 80 10-244-1-8.dns-test-service.dns-1.svc | 10-244-1-8.dns-test-service.dns-1.svc A 10.244.1.8
T083 | E | _http._tcp.test-service-2.dns-1.svc SRV | OK | SRV 0 100 80 test-service-2.dns-1.svc | test-service-2.dns-1.svc A 10.96.3.2
T090 | U | external.testns.svc CNAME | OK | CNAME ext.interwebs.test.
T091 | U | external.testns.svc A | OK | CNAME ext.interwebs.test.; ext.interwebs.test. A 1.2.3.4
T092 | U | external-to-service.testns.svc A | OK | CNAME svc1.testns.svc; svc1.testns.svc A 10.0.0.1
T093 | U | external-to-service.testns.svc AAAA | ND
T094 | U | endpoint.external.testns.svc CNAME | NX
T095 | U | subdomain.subdomain.external.testns.svc CNAME | NX
T096 | U | external.testns.svc SRV TXT MX | ND
T097 | U | _http._tcp.external.testns.svc SRV | NX
T098 | U | homeless.testns.svc A | OK | CNAME missing.test.
T099 | U | failing.testns.svc A | FAIL
T106 | U stub=acme.local | stubbed.testns.svc A | OK | CNAME abc.acme.local.; abc.acme.local. A 1.1.1.1
K012 | U further_zones=other.test | svc1.testns.svc.other.test A | OK | A 10.0.0.1
K012 | U further_zones=other.test | external-to-service.testns.svc.other.test A | OK | CNAME svc1.testns.svc; svc1.testns.svc A 10.0.0.1
K012 | U further_zones=other.test | _http._tcp.svc1.testns.svc.other.test SRV | OK | SRV 0 100 80 svc1.testns.svc.other.test. | svc1.testns.svc.other.test. A 10.0.0.1
K012 | U further_zones=other.test | svc0.testns.svc.other.test A | NX
T100 | U | literal.testns.svc A CNAME | NX
T101 | U | loop-a.testns.svc A | ND
T102 | U ignore_empty_service=true | external.testns.svc CNAME | OK | CNAME ext.interwebs.test.
T103 | C | ext-svc.test-1.svc A | OK | CNAME example.net.; example.net. A 13.14.15.16
T110 | U | cluster.local SOA | OK | SOA ns.dns.cluster.local. hostmaster.cluster.local. {SERIAL} 7200 1800 86400 5
T111 | U | cluster.local A AAAA SRV HINFO | ND
T112 | U | cluster.local NS | OK | NS ns.dns | ns.dns A 127.0.0.1
T113 | C | cluster.local NS | OK | NS kube-dns.kube-system.svc | kube-dns.kube-system.svc A 10.96.0.10
T114 | N | cluster.local NS | OK | NS dns-service.kube-system.svc; NS 10-244-0-20.hdls-dns-service.kube-system.svc; NS dns6-service.kube-system.svc | dns-service.kube-system.svc A 10.0.0.111; 10-244-0-20.hdls-dns-service.kube-system.svc A 10.244.0.20; dns6-service.kube-system.svc AAAA 10::111
T115 | U | svc.cluster.local A | ND
T116 | U | pod.cluster.local A | ND
T117 | U | testns.svc A | ND
T118 | U | svcns.svc A | ND
T119 | U | svc.cluster.local NS, testns.svc NS | ND
T120 | U | foo.cluster.local NS, foo.svc NS | NX
T121 | U | foo.cluster.local A | NX
T122 | U | dns-version TXT | OK | TXT "1.1.0"
T122 | C | dns-version TXT | OK | TXT "1.1.0"
T123 | U | dns-version A | ND
T124 | U | ns.dns A | OK | A 127.0.0.1
T125 | U | dns A | ND
T126 | U | cluster.local TXT, svc.cluster.local TXT, testns.svc TXT | ND
T127 | U | Cluster.LOCAL NS | OK | NS ns.dns.Cluster.LOCAL. | ns.dns.Cluster.LOCAL. A 127.0.0.1
T128 | U unsynced pods=insecure | svc0.testns.svc A, svc1.testns.svc A, 10-240-0-1.podns.pod A | SERVFAIL
T129 | U unsynced pods=insecure fallthrough=cluster.local | svc0.testns.svc A, svc1.testns.svc A | SERVFAIL
T131 | U ttl=30 | svc0.testns.svc A | NX
T132 | U ttl=3600 | cluster.local SOA | OK | SOA ns.dns.cluster.local. hostmaster.cluster.local. {SERIAL} 7200 1800 86400 3600
T135 | U | SvC1.TeStNs.SvC.cLuStEr.LoCaL A | OK | A 10.0.0.1
T136 | U | _HtTp._TcP.sVc1.TeStNs.SvC.cLuStEr.LoCaL SRV | OK | SRV 0 100 80 svc1.testns.svc.{_ZONE_MIXED} | svc1.testns.svc.{_ZONE_MIXED} A 10.0.0.1
T137 | U | not-a-service.testns.svc.ClUsTeR.lOcAl A | NX
T138 | U | Cluster.local SOA | OK | SOA ns.dns.Cluster.local. hostmaster.Cluster.local. {SERIAL} 7200 1800 86400 5
T139 | U | sVc1.TestNS.svc A | OK | A 10.0.0.1
T140 | R | 100.1.168.192.IN-ADDR.ARPA PTR | OK | PTR svc1.testns.svc
T141 | R | 100.0.0.10.in-addr.arpa PTR | OK | PTR ep1a.svc1.testns.svc
T142 | R | 100.1.168.192.in-addr.arpa PTR | OK | PTR svc1.testns.svc
T143 | R | {_nibbles("1234:abcd::1")} PTR | OK | PTR ep1b.svc1.testns.svc
T144 | R | {_nibbles("fd00:77:30::a")} PTR | OK | PTR ip6svc1ex.svc1.testns.svc
T145 | R | {_nibbles("fd00:77:30::2:9ba6")} PTR | OK | PTR ip6svc1in.svc1.testns.svc
T146 | R | 101.0.0.10.in-addr.arpa PTR | NX
T147 | R | 99.0.0.10.in-addr.arpa PTR | OK | PTR double-ep.svc1.testns.svc; PTR double-ep.svc2.testns.svc
T148 | R | svc1.testns.svc PTR | ND
T149 | R | example.org.cluster.local PTR | NX
T150 | R | 100.0.0.10.cluster.local PTR | NX
T151 | R | svc1.testns.svc.0.10.in-addr.arpa A | NX
T152 | R | 100.0.0.10.in-addr.arpa A | ND
T153 | R | 0.0.10.in-addr.arpa PTR | ND
T154 | C | 100.0.96.10.in-addr.arpa PTR | OK | PTR svc-1-a.test-1.svc
T155 | C | 253.0.17.172.in-addr.arpa PTR | OK | PTR svc-1-a.svc-1-a.test-1.svc
T156 | C | {_nibbles("1234:abcd::1")} PTR | OK | PTR headless-svc-3.headless-svc.test-1.svc
T157 | C namespaces=test-1 | 120.0.96.10.in-addr.arpa PTR | NX
T158 | C namespaces=test-1 | 252.0.17.172.in-addr.arpa PTR | NX
T159 | C | 200.0.17.172.in-addr.arpa PTR | NX
T160 | C reverse_zones=in-addr.arpa fallthrough=in-addr.arpa | 53.53.168.192.in-addr.arpa PTR | OK | PTR outside.test.
T161 | E | 123.2.0.192.in-addr.arpa PTR | OK | PTR my.test.
T162 | E | 1.0.96.10.in-addr.arpa PTR | OK | PTR kubernetes.default.svc
T163 | R reverse_zones=192.168.1.0/25 | 127.1.168.192.in-addr.arpa PTR, 100.1.168.192.in-addr.arpa A | ND
T163 | R reverse_zones=192.168.1.0/25 | 100.1.168.192.in-addr.arpa PTR | OK | PTR svc1.testns.svc
T163 | R reverse_zones=192.168.1.0/25 | x.100.1.168.192.in-addr.arpa PTR | NX
S016 | C | 10.0.96.10.in-addr.arpa PTR | OK | PTR kube-dns.kube-system.svc
K007 | R | 1.0.0.10.in-addr.arpa.0.10.in-addr.arpa PTR, 01.0.0.10.in-addr.arpa PTR, 256.0.0.10.in-addr.arpa PTR | NX
T163b | R block=192.168.1.0/25 | 128.1.168.192.in-addr.arpa PTR, 1.2.168.192.in-addr.arpa PTR, svc1.testns.svc A | REFUSED
T163b | R block=192.168.1.0/25 | 100.1.168.192.in-addr.arpa PTR | OK | PTR svc1.testns.svc
T170 | U | 10-240-0-1.podns.pod A | NX
T171 | U | 172-0-0-2.podns.pod A | NX
T172 | U | podns.pod A | NX
T173 | U pods=insecure | 10-240-0-1.podns.pod A | OK | A 10.240.0.1
T174 | U pods=insecure | 172-0-0-2.podns.pod A | OK | A 172.0.0.2
T175 | U pods=insecure | blah.podns.pod A AAAA HINFO | NX
T176 | U pods=insecure | blah.pod-nons.pod A | NX
T177 | U pods=insecure | podns.pod A | ND
T178 | U pods=insecure | 10-240-0-1.podns.pod AAAA SRV | ND
T179 | U pods=insecure | fd00--1.podns.pod AAAA | OK | AAAA fd00::1
T180 | U pods=insecure | 1-2-3-400.podns.pod A, 1-2-3-04.podns.pod A | NX
T181 | U pods=verified | 10-240-0-1.podns.pod A | OK | A 10.240.0.1
T182 | U pods=verified | podns.pod A | ND
T183 | U pods=verified | svcns.svc A | ND
T184 | U pods=verified | pod-nons.pod A | NX
T185 | U pods=verified | 172-0-0-2.podns.pod A | NX
T186 | U pods=verified | 10-240-0-1.testns.pod A | NX
T187 | U pods=verified | fd00-240--1.podns.pod AAAA | OK | AAAA fd00:240::1
T187 | U pods=verified | fd00-240--1.podns.pod A | ND
T191 | C pods=verified | 10-20-0-101.test-1.pod A | NX
T192 | U pods=verified | 10-240-0-9.podns.pod A, 10-240-0-10.podns.pod A | NX
K013 | U pods=verified | 10-240-0-11.podns.pod A | OK | A 10.240.0.11
T188 | C | 10-20-0-101.test-1.pod A | NX
T189 | C pods=insecure | 10-20-0-101.test-1.pod A | OK | A 10.20.0.101
T190 | C pods=insecure | 10-20-0-101.test-X.pod A | NX
T193 | U pods=insecure | x.10-240-0-1.podns.pod A | NX
T190 | C pods=verified | 10-20-0-101.test-X.pod A | NX
T250 | X | svc1.testns.example.com A | OK | A 1.2.3.4
T251 | X | svc1.testns.example.com SRV, _http._tcp.svc1.testns.example.com SRV | OK | SRV 0 100 80 svc1.testns.example.com. | svc1.testns.example.com. A 1.2.3.4
T252 | X | *._not-udp-or-tcp.svc1.testns.example.com SRV | NX
T253 | X | svc1.testns.example.com AAAA TXT | ND
T254 | X | svc0.testns.example.com A AAAA, svc0.svc-nons.example.com A | NX
T255 | X | svc6.testns.example.com AAAA | OK | AAAA 1:2::5
T255 | X | svc6.testns.example.com SRV | OK | SRV 0 100 80 svc6.testns.example.com. | svc6.testns.example.com. AAAA 1:2::5
T256 | X | testns.example.com A SOA | ND
T257 | X | svc11.testns.example.com A | OK | A 2.3.4.5
T258 | X | svc12.testns.example.com A | OK | CNAME dummy.hostname.
T259 | X | svc12.testns.example.com SRV | OK | SRV 0 100 80 dummy.hostname.
K014 | X | svc12.testns.example.com CNAME | OK | CNAME dummy.hostname.
T260 | X headless=true | svc-headless.testns.example.com A | OK | A 1.2.3.4; A 1.2.3.5
T261 | X headless=true | svc-headless.testns.example.com SRV, _http._tcp.svc-headless.testns.example.com SRV | OK | SRV 0 50 80 endpoint-svc-0.svc-headless.testns.example.com.; SRV 0 50 80 endpoint-svc-1.svc-headless.testns.example.com. | endpoint-svc-0.svc-headless.testns.example.com. A 1.2.3.4; endpoint-svc-1.svc-headless.testns.example.com. A 1.2.3.5
T262 | X headless=true | endpoint-svc-0.svc-headless.testns.example.com SRV | OK | SRV 0 100 80 endpoint-svc-0.svc-headless.testns.example.com. | endpoint-svc-0.svc-headless.testns.example.com. A 1.2.3.4
K015 | X | svc-headless.testns.example.com A, endpoint-svc-0.svc-headless.testns.example.com A, plain.testns.example.com A, x.svc1.testns.example.com A | NX
T263 | X | 4.3.2.1.in-addr.arpa PTR | OK | PTR svc1.testns.example.com.
K016 | X | 4.3.2.1.in-addr.arpa A | ND
K016 | X | 5.3.2.1.in-addr.arpa PTR | NX
T264 | X | example.com SOA | OK | SOA ns1.dns.example.com. hostmaster.dns.example.com. {SERIAL} 7200 1800 86400 5
T264 | X | example.com NS | OK | NS ns1.dns.example.com. | ns1.dns.example.com. A 10.96.0.10
T264 | X | example.com SRV | ND
T265 | X | dns.example.com SRV NS, ns1.dns.example.com SRV NS | ND
K017 | X | ns1.dns.example.com A | OK | A 10.96.0.10
K017 | X | ns2.dns.example.com A, x.ns1.dns.example.com A | NX
T266 | Z zonal=true | us-west-2a.pin._zone.hdls.testns.svc A | OK | A 172.0.0.1
T267 | Z zonal=true | us-west-2b.pin._zone.hdls.testns.svc A | OK | A 172.0.0.2; A 172.0.0.3
T267 | Z zonal=true | us-west-2b.pin._zone.hdls.testns.svc SRV | OK | SRV 0 50 80 172-0-0-2.hdls.testns.svc; SRV 0 50 80 172-0-0-3.hdls.testns.svc | 172-0-0-2.hdls.testns.svc A 172.0.0.2; 172-0-0-3.hdls.testns.svc A 172.0.0.3
T268 | Z zonal=true | us-west-2c.pin._zone.hdls.testns.svc A TXT, us-west-2a.pin._zone.hdls.testns.svc AAAA | ND
T269 | Z zonal=true | us-west-2a.prefer._zone.hdls.testns.svc A | OK | A 172.0.0.1
T270 | Z zonal=true | us-west-2c.prefer._zone.hdls.testns.svc A | OK | A 172.0.0.1; A 172.0.0.2; A 172.0.0.3
T270 | Z zonal=true | us-west-2c.prefer._zone.hdls.testns.svc SRV | OK | SRV 0 33 80 172-0-0-1.hdls.testns.svc; SRV 0 33 80 172-0-0-2.hdls.testns.svc; SRV 0 33 80 172-0-0-3.hdls.testns.svc | 172-0-0-1.hdls.testns.svc A 172.0.0.1; 172-0-0-2.hdls.testns.svc A 172.0.0.2; 172-0-0-3.hdls.testns.svc A 172.0.0.3
T271 | Z zonal=true | us-west-2a.florp._zone.hdls.testns.svc A, us-west-2a.pin._zone.ghost.testns.svc A, us-west-2a.pin._zone.clstr.testns.svc A | NX
T272 | Z | us-west-2a.pin._zone.hdls.testns.svc A | NX
T273 | Z zonal=true | corp.example.com.pin._zone.webs.testns.svc A | OK | A 172.0.0.9
K018 | Z zonal=true | pin._zone.hdls.testns.svc A, _zone.hdls.testns.svc A | ND
T286 | M | 172-0-0-2.cluster1.hdls1.testns.svc.clusterset.local A | OK | A 172.0.0.2
T287 | M | 5678-abcd--1.hdls1.testns.svc.clusterset.local AAAA, cluster1.hdls1.testns.svc.clusterset.local A | NX
T288 | M | _http._tcp.hdls1.testns.svc.clusterset.local SRV | OK | {_SRV_MANY} | {_ADD_MANY}
T289 | M | hdls1.testns.svc.clusterset.local A | OK | A 172.0.0.2; A 172.0.0.3; A 172.0.0.4; A 172.0.0.5
T289 | M | hdls1.testns.svc.clusterset.local AAAA | OK | AAAA 5678:abcd::1; AAAA 5678:abcd::2
T289 | M | svc1.testns.svc.clusterset.local A | OK | A 10.0.0.1
T289 | M | svc1.testns.svc.clusterset.local AAAA, testns.svc.clusterset.local A | ND
T289 | M | svc0.testns.svc.clusterset.local A, only-here.testns.svc.clusterset.local A | NX
T289 | M | svc-dual-stack.testns.svc.clusterset.local AAAA | OK | AAAA 10::3
T289 | M | svc-dual-stack.testns.svc.clusterset.local SRV | OK | SRV 0 50 80 svc-dual-stack.testns.svc.clusterset.local. | svc-dual-stack.testns.svc.clusterset.local. A 10.0.0.3; svc-dual-stack.testns.svc.clusterset.local. AAAA 10::3
T289 | M | dns-version.clusterset.local TXT | OK | TXT "1.1.0"
K019 | M | only-here.testns.svc A | OK | A 10.0.0.4
K019 | M | hdls1.testns.svc A, svc1.testns.svc A | NX
K008 | U pods=insecure | 10-1-1-1.10-240-0-1.podns.pod A | NX
"""

# What the upstream of a row's server says: (question, type) → rcode, whether truncated over UDP, records.
UPSTREAM: dict[tuple[str, str], tuple[str, bool, Sequence[str]]] = {
    ("ext.interwebs.test.", "A"): ("NOERROR", True, ("ext.interwebs.test. A 1.2.3.4",)),
    ("example.net.", "A"): ("NOERROR", False, ("example.net. A 13.14.15.16",)),
    ("53.53.168.192.in-addr.arpa.", "PTR"): ("NOERROR", False, ("53.53.168.192.in-addr.arpa. PTR outside.test.",)),
    ("f.b.svc.cluster.local.", "A"): ("NOERROR", False, ("f.b.svc.cluster.local. A 10.10.10.11",)),
    ("missing.test.", "A"): ("NXDOMAIN", False, ()),
    ("failing.test.", "A"): ("SERVFAIL", False, ()),
    ("dummy.hostname.", "A"): ("NXDOMAIN", False, ()),
    ("abc.acme.local.", "A"): ("NOERROR", False, ("abc.acme.local. A 1.1.1.1",)),
    ("123.2.0.192.in-addr.arpa.", "PTR"): ("NOERROR", False, ("123.2.0.192.in-addr.arpa. PTR my.test.",)),
}
