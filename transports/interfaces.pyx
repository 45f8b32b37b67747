"""The network interfaces of this host, as the operating system lists them."""

from libc.errno cimport errno

import os
from typing import NamedTuple

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned short sa_family_t
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        sa_family_t sa_family
    enum: AF_INET, AF_INET6

cdef extern from "<netinet/in.h>" nogil:
    cdef struct sockaddr_in:
        pass
    cdef struct sockaddr_in6:
        pass

cdef extern from "<net/if.h>" nogil:
    enum: IFF_UP, IFF_LOOPBACK

cdef extern from "<netdb.h>" nogil:
    enum: NI_NUMERICHOST
    int getnameinfo(const sockaddr*, socklen_t, char*, socklen_t, char*, socklen_t, int)

cdef extern from "<ifaddrs.h>" nogil:
    cdef struct ifaddrs:
        ifaddrs* ifa_next
        const char* ifa_name
        unsigned int ifa_flags
        sockaddr* ifa_addr
    int getifaddrs(ifaddrs** out)
    void freeifaddrs(ifaddrs* first)


class InterfaceAddress(NamedTuple):
    """One address of one interface that is up. ``address`` is numeric; link-local IPv6 carries ``%interface``."""

    interface: str
    address: str
    is_ipv6: bool
    is_loopback: bool


cdef _read_entry(ifaddrs* entry):
    cdef char text[256]
    cdef bint is_ipv6 = entry.ifa_addr.sa_family == AF_INET6
    cdef socklen_t length = sizeof(sockaddr_in6) if is_ipv6 else sizeof(sockaddr_in)
    if getnameinfo(entry.ifa_addr, length, text, sizeof(text), NULL, 0, NI_NUMERICHOST) != 0:
        return None
    return InterfaceAddress(
        os.fsdecode(entry.ifa_name), (<bytes>text).decode(), is_ipv6, bool(entry.ifa_flags & IFF_LOOPBACK))


def list_interface_addresses() -> list:
    """Returns an InterfaceAddress for every IPv4 and IPv6 address of the interfaces that are up. Raises OSError."""
    cdef ifaddrs* first = NULL
    cdef ifaddrs* entry
    cdef list found = []
    if getifaddrs(&first) != 0:
        raise OSError(errno, os.strerror(errno))
    try:
        entry = first
        while entry != NULL:
            if entry.ifa_addr != NULL and entry.ifa_flags & IFF_UP and entry.ifa_addr.sa_family in (AF_INET, AF_INET6):
                found.append(_read_entry(entry))
            entry = entry.ifa_next
    finally:
        freeifaddrs(first)
    return [address for address in found if address is not None]
