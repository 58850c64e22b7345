"""TVM's RPC tracker: who offers machines of which kind. Starting one, and asking one without waiting for ever."""

from __future__ import annotations

import signal
import socket
import struct
from collections import Counter
from dataclasses import dataclass

from tvm.rpc import base

from ...ir import TersorError

LOOPBACK = "127.0.0.1"
TRACKER_PORT = 9190
PORTS = 100  # how many ports from the first one on are tried
_ANSWER_TIMEOUT = 5.0


@dataclass(frozen=True)
class Address:
    """Host and port of a tracker."""

    host: str
    port: int = TRACKER_PORT

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``host`` or ``host:port``; raises TersorError when the port is no number."""
        host, colon, port = text.rpartition(":")
        if not colon:
            return cls(text)
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise TersorError(f"a tracker's address is written host:port, for example {LOOPBACK}:9190, not {text!r}")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def count_servers(address: Address, timeout: float = _ANSWER_TIMEOUT) -> Counter[str]:
    """How many servers the tracker knows, by key.

    Raises
    ------
    TersorError
        When nothing answers within ``timeout`` seconds, or what answers is no tracker.
    """
    try:
        with socket.create_connection((address.host, address.port), timeout) as connection:
            connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            (magic,) = struct.unpack("<i", base.recvall(connection, 4))
            if magic != base.RPC_TRACKER_MAGIC:
                raise TersorError(f"what answers at {address} is no RPC tracker")
            base.sendjson(connection, [base.TrackerCode.SUMMARY])
            code, summary = base.recvjson(connection)
            if code != base.TrackerCode.SUCCESS:
                raise TersorError(f"the RPC tracker at {address} refused to list its servers")
            keys = [str(server["key"]) for server in summary["server_info"]]
    except OSError as error:  # refused, reset, unknown host, or timed out
        reason = str(error) or type(error).__name__
        raise TersorError(
            f"no RPC tracker answered at {address} within {timeout:g} s ({reason}); start one by: tersor rpc-tracker"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise TersorError(f"what answers at {address} is no RPC tracker ({type(error).__name__})") from error
    return Counter(key.removeprefix("server:") for key in keys)


def serve_tracker(host: str, port: int) -> None:
    """Run a tracker in this process until it is ended; tries the ports from ``port`` on.

    Raises
    ------
    TersorError
        When no port is free, or the package that it needs is missing.
    """
    try:
        from tvm.rpc.tracker import PopenTrackerServerState
    except ImportError as error:
        raise TersorError("the RPC tracker needs tornado; install it by: pip install 'tersor[tune]'") from error
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # the tracker's thread would not notice an exception
    try:
        state = PopenTrackerServerState(host, port, port + PORTS, silent=True)
    except (OSError, ValueError) as error:
        raise TersorError(f"cannot listen at {host}, ports {port} to {port + PORTS - 1}: {error}") from error
    print(f"RPC tracker at {host}:{state.port}", flush=True)
    state.thread.join()
