"""A stream that is read in gulps loses nothing and keeps nobody waiting."""

import random
import select
import time

from conftest import RawClient, check_recording
from simulate_call import media, start, stop
from websockets.frames import Opcode

from app import LIVELY

CHUNKS = [random.Random(number).randbytes(160) for number in range(1500)]
MEDIA = [media("inbound", chunk, 20 * n) for n, chunk in enumerate(CHUNKS)]


def check_saved(server, call_sid, count):
    """Wait for the call to be saved; assert that it has the first `count` chunks."""
    path = server.directory / f"Inbound-{call_sid}.wav"
    server.wait_for("Saved", path.name)
    check_recording(path, b"".join(CHUNKS[:count]))


def answers_later(client, other):
    """Tell whether a ping to `client` is answered after a later one to `other`."""
    client.protocol.send_ping(b"")
    client.flush()
    other.sync()
    later = not select.select([client.socket], [], [], 0)[0]
    client.wait_for(lambda event: event.opcode is Opcode.PONG)
    return later


def test_calls_that_end_in_a_nap(start_server):
    server = start_server()
    names = ["stopped", "closed", "reset", "burst", "terminated"]
    clients = {name: RawClient(server) for name in names}
    for name, client in clients.items():
        client.send(start(name, ["inbound"]))
    idle, napping = RawClient(server), []
    began = time.monotonic()
    live = round((LIVELY + 1) * 50)
    for number in range(live):
        time.sleep(max(0, began + number * 0.02 - time.monotonic()))
        for client in clients.values():
            client.send(MEDIA[number])
        if number in (live - 40, live - 20, live - 10):
            napping.append(answers_later(clients["stopped"], idle))
    assert any(napping)
    # They are being left alone now. What each sends at its end is in the kernel only.
    clients["stopped"].send(*MEDIA[live : live + 5], stop())
    clients["closed"].send(*MEDIA[live : live + 5])
    clients["closed"].socket.close()
    clients["burst"].send(*MEDIA[live:], stop())
    clients["reset"].sync()  # which is answered after the nap
    clients["reset"].reset()
    check_saved(server, "stopped", live + 5)
    check_saved(server, "closed", live + 5)
    check_saved(server, "reset", live)
    check_saved(server, "burst", len(CHUNKS))
    clients["terminated"].send(*MEDIA[live : live + 5])
    assert server.stop() == 0
    check_saved(server, "terminated", live + 5)
