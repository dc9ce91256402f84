"""Where ranks meet that are all on one machine: on its loopback interface, which no other machine can reach.

PyTorch's own rendezvous listens on every interface, lets everybody in, and ranks unpickle what they read from each
other. ``TCPStore`` takes a socket that is bound already, and torchrun takes rendezvous handlers by name.
"""

import os
import socket
import uuid
from argparse import Namespace

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.run import get_args_parser, parse_min_max_nnodes

ADDRESS = "127.0.0.1"
BACKEND = "patchwork-loopback"


class LoopbackRendezvous(RendezvousHandler):
    """The rendezvous of a launcher that has no other to meet; its ranks use the same store."""

    def __init__(self, run_id: str) -> None:
        self._run_id, self._round, self._closed = run_id, 0, False
        with socket.socket() as listening:
            listening.bind((ADDRESS, 0))
            port = listening.getsockname()[1]
            self._store = TCPStore(
                ADDRESS, port, is_master=True, wait_for_workers=False, master_listen_fd=os.dup(listening.fileno())
            )

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        self._round += 1
        store = PrefixStore(f"launcher.{self._run_id}.{self._round}", self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(ADDRESS, self._store.port))

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed = True
        return True


def _made(parameters: RendezvousParameters) -> RendezvousHandler:
    return LoopbackRendezvous(parameters.run_id)


def meet_on_loopback(options: Namespace) -> None:
    """Change torchrun's options so that ranks meet on loopback, if they ask for no rendezvous with other machines."""
    # 29500 by default in torch 2.11, none from 2.13 on.
    port = options.master_port != get_args_parser().get_default("master_port")
    chosen = options.rdzv_backend != "static" or options.rdzv_endpoint or port
    if parse_min_max_nnodes(options.nnodes)[1] > 1 or (chosen and not options.standalone):
        return
    rendezvous_handler_registry.register(BACKEND, _made)
    options.standalone = False
    options.rdzv_backend, options.rdzv_endpoint, options.rdzv_id = BACKEND, "", str(uuid.uuid4())
