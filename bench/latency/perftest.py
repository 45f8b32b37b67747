"""UCX's own benchmark, ``ucx_perftest`` of the libucx wheel: what the wire allows."""

import os
import socket
import subprocess
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

RUN_S = 60.0
US, MIB = 1e-6, 1 << 20
ONE_WAY, STREAM = "ucp_am_lat", "ucp_am_bw"


class UnavailableError(Exception):
    """A baseline cannot run here; says why."""


@cache
def one_way_s(size_bytes: int, tls: str, iterations: int = 1000, peer_errors: bool = True) -> float:
    """Median seconds of half a round trip of ``size_bytes`` each way.

    tls: UCX_TLS. peer_errors: with the reports of lost peers, which our transports always use. Raises UnavailableError.
    """
    return _run(ONE_WAY, size_bytes, iterations, tls, peer_errors)[1] * US


def stream_s(size_bytes: int, tls: str, messages: int, peer_errors: bool = True) -> float:
    """Seconds per message of ``size_bytes``, one way. Raises UnavailableError."""
    return size_bytes / (_run(STREAM, size_bytes, messages, tls, peer_errors)[5] * MIB)


def _run(test: str, size_bytes: int, iterations: int, tls: str, peer_errors: bool) -> list[float]:
    """The numbers of its last line: iterations, us (50 %, average, overall), MB/s (average, overall), messages/s."""
    spec = find_spec("libucx")
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else Path()
    program = folder / "bin" / "ucx_perftest"
    if not program.exists():
        raise UnavailableError("ucx_perftest comes with the libucx wheel, which is not installed")
    environment = {
        **os.environ, "LD_LIBRARY_PATH": str(folder / "lib"), "UCX_TLS": tls, "UCX_MM_ERROR_HANDLING": "y",
        "UCX_WARN_UNUSED_ENV_VARS": "n",
    }  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    base = [str(program), "-p", port, *(["-e"] if peer_errors else [])]
    case = ["-t", test, "-s", str(size_bytes), "-n", str(iterations), "-w", str(max(8, iterations // 10)), "-f"]
    with subprocess.Popen(base, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_listening(int(port), server)
            client = [*base[:1], "127.0.0.1", *base[1:], *case]
            done = subprocess.run(client, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False)
            server.wait(RUN_S)
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"ucx_perftest {test} did not finish in {RUN_S:g} s") from None
        finally:
            server.kill()
    if done.returncode != 0:
        raise UnavailableError(f"ucx_perftest {test}: {done.stderr.strip() or done.stdout.strip()}")
    return [float(word) for word in done.stdout.splitlines()[-1].split() if word[0].isdigit()]


def _wait_listening(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until the server listens. Not by connecting: it serves one client."""
    entry = f":{port:04X} 00000000:0000 0A"
    for _ in range(500):
        if server.poll() is not None or entry in Path("/proc/net/tcp").read_text():
            return
        time.sleep(0.01)
