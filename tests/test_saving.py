"""A recording is whole or not there, nothing is overwritten, and saving never gives up."""

import contextlib
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from checks import (
    check_saved,
    check_wav,
    names_in,
    needs_namespaces,
    play_call,
    python_app,
    shell_app,
)
from recorder import HEADER, PATIENCE, Client
from signalwire import TRACKS, call_messages, media, recording_path, start, stop

AUDIO = {track: random.Random(track).randbytes(3200) for track in TRACKS}
INBOUND = {"inbound": AUDIO["inbound"]}


def begin_call(server, call_sid, audio=AUDIO):
    """Return the client of a call of which all but `stop` has been received."""
    client = Client(server)
    *messages, _ = (message for _, message in call_messages(call_sid, audio))
    client.send(*messages)
    client.wait_received()
    return client


def end_call(client):
    """Send `stop`, and leave."""
    client.send(stop())
    client.socket.close()


def check_call(server, call_sid, folder=None):
    """Wait until both tracks of a call are saved, and check them."""
    for track, audio in AUDIO.items():
        check_saved(server, call_sid, audio, track, folder)


# Names


@pytest.mark.parametrize("existing", ["file", "link to a file", "link to nothing"])
def test_what_exists_is_left_alone(server, call_sid, existing):
    path = recording_path(server.directory, "inbound", call_sid)
    target = path.with_name(f"target of {existing}")
    target.unlink(missing_ok=True)
    if existing != "link to nothing":
        target.write_bytes(b"mine")
    if existing == "file":
        path.hardlink_to(target)
    else:
        path.symlink_to(target)
    for name in [f"{call_sid}-2", f"{call_sid}-3"]:
        play_call(server, call_sid, INBOUND)
        check_saved(server, name, AUDIO["inbound"])
    if existing == "link to nothing":
        assert not path.exists()
    else:
        assert path.read_bytes() == b"mine"


def test_two_processes_on_one_folder_never_take_the_same_name(start_server, tmp_path):
    servers = [start_server(), start_server()]
    audios = [random.randbytes(1600) for _ in range(40)]
    with ThreadPoolExecutor(len(audios)) as pool:
        for server, audio in zip(servers * 20, audios, strict=True):
            pool.submit(play_call, server, "call", {"inbound": audio})
    names = {f"Inbound-call-{number}.wav" for number in range(2, 41)}
    assert names_in(tmp_path) == names | {"Inbound-call.wav"}
    found = [path.read_bytes()[HEADER:] for path in tmp_path.iterdir()]
    assert sorted(found) == sorted(audios)


def test_a_process_that_claims_a_name_which_another_has_finished_takes_the_next(
    start_server, tmp_path
):
    """The other is fast: it finishes between our first look and our claim."""
    lines = [
        "import pathlib",
        "touch = pathlib.Path.touch",
        "def finish_first(path, *args, **options):",
        "    if path.name == 'Inbound-call.wav.part':",
        "        path.with_suffix('').write_bytes(b'theirs')",
        "    touch(path, *args, **options)",
        "pathlib.Path.touch = finish_first",
    ]
    server = start_server(command=python_app(*lines))
    play_call(server, "call", INBOUND)
    check_saved(server, "call-2", AUDIO["inbound"])
    assert (tmp_path / "Inbound-call.wav").read_bytes() == b"theirs"
    assert names_in(tmp_path) == {"Inbound-call.wav", "Inbound-call-2.wav"}


def test_the_part_of_a_killed_process_is_left_alone(start_server, tmp_path):
    lines = ["import os, time", "os.fsync = lambda fd: time.sleep(99)"]
    killed = start_server(command=python_app(*lines))
    with begin_call(killed, "call", INBOUND) as client:
        client.send(stop())
        until = time.monotonic() + PATIENCE
        part = tmp_path / "Inbound-call.wav.part"
        while not (part.exists() and part.stat().st_size == HEADER + 3200):
            assert time.monotonic() < until
        killed.stop(signal.SIGKILL)
    server = start_server()
    play_call(server, "call", INBOUND)
    check_saved(server, "call-2", AUDIO["inbound"])
    check_wav(part, AUDIO["inbound"])
    assert names_in(tmp_path) == {"Inbound-call.wav.part", "Inbound-call-2.wav"}


def test_a_recording_gets_its_name_when_it_is_on_the_disk(start_server):
    lines = [
        "import os, sys",
        "fsync, rename = os.fsync, os.rename",
        "def tell(*words): print(*words, file=sys.stderr)",
        "os.fsync = lambda fd: tell('fsync', os.fstat(fd).st_size, fsync(fd))",
        "os.rename = lambda old, new: tell('rename', old, new, rename(old, new))",
    ]
    server = start_server(command=python_app(*lines))
    play_call(server, "call", INBOUND)
    check_saved(server, "call", AUDIO["inbound"])
    (synced,) = server.lines_with(f"fsync {HEADER + 3200} None\n")
    (renamed,) = server.lines_with(
        "rename Inbound-call.wav.part Inbound-call.wav None\n"
    )
    assert server.lines.index(synced) < server.lines.index(renamed)


def test_the_next_name_is_soon_found_among_many(start_server, tmp_path):
    for number in range(2, 20_000):
        (tmp_path / f"Inbound-call-{number}.wav").touch()
    (tmp_path / "Inbound-call.wav").touch()
    lines = [
        "import os",
        "opened = os.open",
        "def count(path, *args, **options):",
        "    with open('claims', 'a') as file: print(path, file=file)",
        "    return opened(path, *args, **options)",
        "os.open = count",
    ]
    server = start_server(command=python_app(*lines))
    play_call(server, "call", INBOUND)
    check_saved(server, "call-20000", AUDIO["inbound"])
    claims = (tmp_path / "claims").read_text().splitlines()
    assert [name for name in claims if "call" in name] == [
        "Inbound-call-20000.wav.part"
    ]


# When the folder cannot be written to


@pytest.fixture
def folders(tmp_path):
    """Return a folder for the recordings, and one for the system's temporary files."""
    paths = tmp_path / "recordings", tmp_path / "temporary"
    for path in paths:
        path.mkdir()
    return paths


@pytest.fixture
def server_with_folders(start_server, folders):
    directory, temporary = folders
    environment = {"TMPDIR": str(temporary)}
    return start_server("--directory", str(directory), environment=environment)


def test_a_hiccup_of_the_folder_leaves_the_recording_at_home(
    server_with_folders, folders, tmp_path
):
    directory, temporary = folders
    client = begin_call(server_with_folders, "call")
    directory.rename(tmp_path / "away")
    end_call(client)
    server_with_folders.wait_for("ERROR Could not save", count=2)
    time.sleep(1.5)  # It is this long that the folder is away.
    (tmp_path / "away").rename(directory)
    check_call(server_with_folders, "call", directory)
    assert names_in(temporary) == set()


@pytest.mark.parametrize("stopped", [True, False], ids=["after stop", "at the end"])
def test_the_temporary_folder_when_there_is_no_other(
    server_with_folders, folders, stopped
):
    directory, temporary = folders
    client = begin_call(server_with_folders, "call")
    directory.rmdir()
    began = time.monotonic()
    if stopped:
        end_call(client)
    else:
        server_with_folders.process.send_signal(signal.SIGTERM)
        client.wait_closed()
    check_call(server_with_folders, "call", temporary)
    assert 2.5 < time.monotonic() - began < 8  # 3 s, and at most 2 s for the peer
    for path in temporary.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert len(server_with_folders.lines_with("ERROR")) == 2
    client.socket.close()


@pytest.mark.parametrize("stopped", [True, False], ids=["after stop", "at the end"])
def test_nothing_is_given_up_while_the_process_lives(
    server_with_folders, folders, stopped
):
    directory, temporary = folders
    names = [f"call-{number}" for number in range(10)]  # more than are saved at once
    clients = [begin_call(server_with_folders, name) for name in names]
    for folder in folders:
        folder.rmdir()
    if stopped:
        for client in clients:
            end_call(client)
    else:
        server_with_folders.process.send_signal(signal.SIGTERM)
        for client in clients:
            client.wait_closed()
    server_with_folders.wait_for("Could not save Inbound-", str(temporary), count=10)
    server_with_folders.wait_for("Could not save Outbound-", str(temporary), count=10)
    server_with_folders.process.send_signal(signal.SIGTERM)  # the first or a second one
    server_with_folders.wait_for("ERROR Still saving: kill -9 would lose those calls")
    directory.mkdir()
    for name in names:
        check_call(server_with_folders, name, directory)
    # One line each for the folder and for the temporary folder, not one a second
    assert len(server_with_folders.lines_with("Could not save")) == 2 * 2 * len(names)
    assert server_with_folders.wait() == 0
    for client in clients:
        client.socket.close()


def test_the_log_says_when_the_reason_changes(server_with_folders, folders):
    directory, _ = folders
    client = begin_call(server_with_folders, "call", INBOUND)
    directory.rmdir()
    end_call(client)
    server_with_folders.wait_for("Could not save Inbound-call.wav", "FileNotFoundError")
    directory.write_text("not a folder any more")
    server_with_folders.wait_for(
        "Could not save Inbound-call.wav", "NotADirectoryError"
    )


def test_any_error_is_a_reason_to_try_again(start_server):
    lines = [
        "import pywav",
        "write, tries = pywav.WavWrite.write, []",
        "def fail_first(wav, data):",
        "    tries.append(1)",
        "    if len(tries) == 1: raise RuntimeError('no luck')",
        "    write(wav, data)",
        "pywav.WavWrite.write = fail_first",
    ]
    server = start_server(command=python_app(*lines))
    play_call(server, "call", INBOUND)
    check_saved(server, "call", AUDIO["inbound"])
    server.wait_for("ERROR Could not save Inbound-call.wav", "RuntimeError('no luck')")
    assert names_in(server.directory) == {"Inbound-call.wav"}


def test_a_file_that_cannot_be_finished_is_removed(start_server, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = shell_app("ulimit -f 512")  # KiB, which a file may have
    environment = {"TMPDIR": str(temporary)}
    server = start_server(command=command, environment=environment)
    with Client(server) as client:
        client.send(start("large"), *[media("inbound", bytes(40_000), 0)] * 20, stop())
        server.wait_for("Could not save Inbound-large.wav", str(temporary))
        play_call(server, "small", INBOUND)
        check_saved(server, "small", AUDIO["inbound"])
        assert names_in(tmp_path) == {"temporary", "Inbound-small.wav"}
        assert names_in(temporary) == set()
        server.process.kill()  # It would not end by itself.
        server.wait()


@needs_namespaces
def test_a_disk_that_is_full_for_a_while(server_with_folders, folders):
    directory, temporary = folders
    with contextlib.ExitStack() as stack:
        for folder in folders:
            mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]
            subprocess.run(mount, check=True)
            stack.callback(subprocess.run, ["umount", folder], check=True)
        audio = random.randbytes(80_000)
        client = begin_call(server_with_folders, "large", {"inbound": audio})
        end_call(client)
        for folder in folders:
            server_with_folders.wait_for(
                "Inbound-large.wav", str(folder), "No space left"
            )
        play_call(server_with_folders, "small", AUDIO)
        check_call(server_with_folders, "small", directory)
        subprocess.run(["mount", "-o", "remount,size=1m", directory], check=True)
        check_saved(server_with_folders, "large", audio, folder=directory)
        assert names_in(temporary) == set()
        assert server_with_folders.stop() == 0
