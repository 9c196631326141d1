"""Which hosts of the web a tool may reach: none that is private, none blocked."""

import ipaddress
from collections.abc import Iterable

# Where the answers of benchmarks can be found verbatim.
BENCHMARK_HOSTS = (
  'huggingface.co',
  'hf.co',
  'hf-mirror.com',
  'modelscope.cn',
  'kaggle.com',
  'paperswithcode.com',
  'raw.githubusercontent.com',
  'gist.githubusercontent.com',
  'github.com',
  'hotpotqa.github.io',
  'artofproblemsolving.com',
)
# IPv6 ranges that carry an IPv4 address in their last 32 bits: deprecated
# "compatible" ones, and translators'.
_CARRYING = (
  ipaddress.IPv6Network('::/96'),
  ipaddress.IPv6Network('::ffff:0:0:0/96'),
  ipaddress.IPv6Network('64:ff9b::/96'),
)
_CLOSED = (
  ipaddress.IPv6Network('64:ff9b:1::/48'),  # A network's own translator.
  ipaddress.IPv6Network('fec0::/10'),  # Site-local, of old.
  ipaddress.IPv6Network('2001::/32'),  # Teredo tunnels, to any address.
  ipaddress.IPv6Network('3fff::/20'),  # For documentation, as 2001:db8::/32.
  ipaddress.IPv4Network('168.63.129.16/32'),  # Azure's metadata.
  ipaddress.IPv4Network('192.0.0.0/24'),  # Oracle's, among others.
  ipaddress.IPv4Network('192.88.99.0/24'),  # A relay to 6to4.
)


def is_public(address: str) -> bool:
  """Says whether an IP address is one of the public internet.

  What is private, loopback, link-local, shared, reserved, multicast or a cloud's
  metadata is not, however it is wrapped into IPv6. Nor is what is no address.
  """
  try:
    ip = ipaddress.ip_address(address)
  except ValueError:
    return False
  if ip.version == 6:
    if ip.scope_id is not None:
      return False
    carried = ip.ipv4_mapped or ip.sixtofour
    if carried is None and any(ip in network for network in _CARRYING):
      carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if carried is not None:
      return is_public(str(carried))
  return (
    ip.is_global
    and not ip.is_multicast
    and not ip.is_reserved
    and not any(ip.version == n.version and ip in n for n in _CLOSED)
  )


def is_blocked(host: str, blocked: Iterable[str]) -> bool:
  """Says whether a host is one of `blocked`, or below one."""
  host = host.lower().rstrip('.')
  return any(host == b or host.endswith(f'.{b}') for b in blocked)
