"""The recorder as a process of its own."""

import contextlib
import signal
import uuid

import pytest
from hypothesis import settings
from stream import Server

settings.register_profile("default", deadline=None, max_examples=25)
settings.load_profile("default")


@contextlib.contextmanager
def running(*args, **options):
    """Run a server; assert that it ends well and without a traceback, if not killed."""
    server = Server(*args, **options)
    yield server
    assert server.stop() in (0, -signal.SIGKILL)
    assert "Traceback" not in "".join(server.lines)


@pytest.fixture
def start_server(tmp_path):
    """Start servers, with their arguments, that are stopped when the test ends."""
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        yield lambda *args, **options: enter(running(tmp_path, *args, **options))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server for all tests that leave it as it is."""
    with running(tmp_path_factory.mktemp("recordings")) as server:
        yield server


@pytest.fixture
def call_sid():
    return str(uuid.uuid4())
