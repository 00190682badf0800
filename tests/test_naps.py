"""A call that is read in gulps loses nothing, and keeps nobody else waiting."""

import random
import select
import signal
import time

from checks import check_saved
from stream import PATIENCE, Client, media, start, stop
from websockets.frames import Opcode

CHUNKS = [random.Random(number).randbytes(160) for number in range(1500)]
MEDIA = [media("inbound", chunk, 20 * n) for n, chunk in enumerate(CHUNKS)]


def is_napping(client, other):
    """Tell whether the server answers `other` twice before it reads from `client`."""
    client.protocol.send_ping(b"")
    client.flush()
    other.sync()
    other.sync()
    napping = not select.select([client.socket], [], [], 0)[0]
    client.wait_for(lambda event: event.opcode is Opcode.PONG)
    return napping


def test_only_a_call_in_progress_is_read_in_gulps(server, call_sid):
    with Client(server) as client, Client(server) as other:
        assert not is_napping(client, other)
        client.send(start(call_sid), MEDIA[0])
        until = time.monotonic() + PATIENCE
        while not is_napping(client, other):  # on a busy machine, a nap may be over
            assert time.monotonic() < until
        client.send(stop())
        client.wait_closed()
    check_saved(server, call_sid, CHUNKS[0])


def test_calls_that_end_in_a_nap(start_server):
    server = start_server()
    names = ["stopped", "closed", "reset", "backlog", "terminated"]
    clients = {name: Client(server) for name in names}
    for name, client in clients.items():
        client.send(start(name), *MEDIA[:5])
        client.sync()  # which is answered after a nap, and begins the next
    # They are being left alone now. What each sends at its end is in the kernel only.
    clients["stopped"].send(*MEDIA[5:10], stop())
    clients["closed"].send(*MEDIA[5:10])
    clients["closed"].socket.close()
    clients["backlog"].send(*MEDIA[5:], stop())
    clients["reset"].reset()
    clients["terminated"].send(*MEDIA[5:10])
    server.process.send_signal(signal.SIGTERM)
    assert clients["terminated"].wait_closed()[0] == 1001
    assert server.stop() == 0
    counts = {"reset": 5, "backlog": len(CHUNKS)}
    for name in names:
        check_saved(server, name, b"".join(CHUNKS[: counts.get(name, 10)]))
