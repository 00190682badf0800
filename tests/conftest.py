"""The recorder as a process of its own."""

import uuid

import pytest
from hypothesis import settings
from stream import Server

settings.register_profile("default", deadline=None, max_examples=25)
settings.load_profile("default")


def end(server):
    """End a server that still runs, and assert that it has nothing to complain of."""
    if server.process.poll() is None:
        assert server.stop() == 0
    assert "Traceback" not in "".join(server.lines)


@pytest.fixture
def start_server(tmp_path):
    """Start servers, with their arguments, that are stopped when the test ends."""
    servers = []

    def start(*args, directory=tmp_path, **options):
        servers.append(Server(directory, *args, **options))
        return servers[-1]

    yield start
    for server in servers:
        end(server)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server for all tests that leave it as it is."""
    server = Server(tmp_path_factory.mktemp("recordings"))
    yield server
    end(server)


@pytest.fixture
def call_sid():
    return str(uuid.uuid4())
