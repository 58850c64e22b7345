"""The commands ``tersor rpc-tracker`` and ``tersor rpc-server``: machines that others measure on."""

from __future__ import annotations

from typing import Annotated

import typer

HostOption = Annotated[
    str, typer.Option(help="Interface to listen at; the default is reachable from this machine only.")
]


def rpc_tracker(
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="First port to try.")] = 9190,
) -> None:
    """Run a tracker, which hands servers to those who measure. Runs until it is interrupted.

    \b
    Examples:
      tersor rpc-tracker
      tersor rpc-tracker --host 192.168.1.10    (reachable from other machines: only in a trusted network)
    """
    from ..targets.tuning.tracker import serve_tracker

    serve_tracker(host, port)


def rpc_server(
    key: Annotated[str, typer.Option(help="What kind of machine this is, for example znver4.")],
    tracker: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The tracker to report to.")] = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="First port to try.")] = 9091,
) -> None:
    """Let others measure kernels on this machine. Whoever can connect can run any code. Runs until it is interrupted.

    \b
    Examples:
      tersor rpc-server --key znver4 --tracker 127.0.0.1:9190
      tersor rpc-server --key znver4 --tracker 192.168.1.10:9190 --host 192.168.1.20
    """
    from ..targets.tuning.server import serve
    from ..targets.tuning.tracker import Address

    serve(host, port, key, None if tracker is None else Address.parse(tracker))
