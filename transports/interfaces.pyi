from typing import NamedTuple

class InterfaceAddress(NamedTuple):
    interface: str
    address: str
    is_ipv6: bool
    is_loopback: bool

def list_interface_addresses() -> list[InterfaceAddress]: ...
