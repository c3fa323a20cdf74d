"""Addresses at which clouds tell whoever asks from a machine about that machine, its secrets included. Pure."""

from __future__ import annotations

import ipaddress

#: Those that are not link-local, as 169.254.169.254 is: of Azure (WireServer, a public address), Alibaba, AWS by IPv6.
OF_THE_PLATFORM = frozenset(map(ipaddress.ip_address, ("168.63.129.16", "100.100.100.200", "fd00:ec2::254")))
