"""The envelope around a UCX worker address, and the proofs of the job."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intentpm.foundation.errors import TransportError, VersionMismatchError
from intentpm.transports import ucx_address
from intentpm.transports.ucx_address import PeerAddress, hello_proof, job_tag, pack_address, unpack_address

SECRET = b"secret of this job"
ADDRESS = PeerAddress(b"where the worker is", 1234, bytes(range(16)))


@given(st.binary(min_size=1, max_size=2000), st.integers(1, 2**31 - 1), st.binary(min_size=16, max_size=16))
def test_what_is_packed_is_unpacked(worker_address: bytes, process: int, table: bytes) -> None:
    address = PeerAddress(worker_address, process, table)
    assert unpack_address(SECRET, 3, 8, pack_address(SECRET, 3, 8, address)) == address


@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    envelope = bytearray(pack_address(SECRET, 3, 8, ADDRESS))
    place = data.draw(st.integers(0, len(envelope) - 1))
    envelope[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises((TransportError, VersionMismatchError)):
        unpack_address(SECRET, 3, 8, bytes(envelope))


@given(st.binary(max_size=200))
def test_what_is_no_address_is_an_error(envelope: bytes) -> None:
    with pytest.raises(TransportError, match="rank 3"):
        unpack_address(SECRET, 3, 8, envelope)


def test_another_job_rank_or_size_is_named() -> None:
    with pytest.raises(TransportError, match="another secret"):
        unpack_address(SECRET, 3, 8, pack_address(b"of another job", 3, 8, ADDRESS))
    with pytest.raises(TransportError, match="rank 2 of 8"):
        unpack_address(SECRET, 3, 8, pack_address(SECRET, 2, 8, ADDRESS))
    with pytest.raises(TransportError, match="rank 3 of 9"):
        unpack_address(SECRET, 3, 8, pack_address(SECRET, 3, 9, ADDRESS))


def test_another_protocol_is_a_version_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    envelope = pack_address(SECRET, 3, 8, ADDRESS)
    monkeypatch.setattr(ucx_address, "PROTOCOL_VERSION", 77)
    with pytest.raises(VersionMismatchError, match=r"version 1.*77"):
        unpack_address(SECRET, 3, 8, envelope)


def test_proofs_differ_by_job_rank_and_size() -> None:
    proofs = {hello_proof(secret, rank, size) for secret in (SECRET, b"x") for rank in (0, 1) for size in (2, 3)}
    assert len(proofs) == 8
    assert {len(proof) for proof in proofs} == {ucx_address.PROOF_BYTES}
    assert job_tag(SECRET) != job_tag(b"x")
    assert 0 <= job_tag(SECRET) < 1 << 24
