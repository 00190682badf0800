"""A recording is whole or not there, nothing is overwritten, and saving never gives up."""

import contextlib
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from checks import (
    begin_call,
    check_saved,
    check_wav,
    names_in,
    needs_namespaces,
    play_call,
    python_app,
)
from recorder import HEADER
from signalwire import AUDIO, MEDIA, media, start, stop

INBOUND = {"inbound": AUDIO}


def test_what_exists_is_left_alone_and_not_even_opened(start_server, tmp_path):
    lines = [
        "import sys",
        "def tell(event, args):",
        "    if event == 'open': sys.stderr.write(f'open {args[0]}\\n')",
        "sys.addaudithook(tell)",
    ]
    server = start_server(command=python_app(*lines))
    for number in range(4, 1000):
        (tmp_path / f"Inbound-call-{number}.wav").touch()
    file, link = tmp_path / "Inbound-call.wav", tmp_path / "Inbound-call-2.wav"
    file.write_bytes(b"mine")
    link.symlink_to(file)
    (tmp_path / "Inbound-call-3.wav").symlink_to(tmp_path / "nothing")
    for name in "call-1000", "call-1001":
        play_call(server, "call", INBOUND)
        check_saved(server, name, AUDIO)
    assert file.read_bytes() == link.read_bytes() == b"mine"
    assert not (tmp_path / "nothing").exists()
    opened = {f"open Inbound-call-{number}.wav.part\n" for number in (1000, 1001)}
    assert set(server.lines_with("open Inbound-call")) == opened


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


def test_a_name_that_another_process_finishes_first_is_not_taken(
    start_server, tmp_path
):
    lines = [  # As if the file came between the first look at its name and the claim.
        "import os",
        "lexists, first = os.path.lexists, [False]",
        "os.path.lexists = lambda path: first.pop() if first else lexists(path)",
    ]
    server = start_server(command=python_app(*lines))
    (tmp_path / "Inbound-call.wav").write_bytes(b"theirs")
    play_call(server, "call", INBOUND)
    check_saved(server, "call-2", AUDIO)
    assert (tmp_path / "Inbound-call.wav").read_bytes() == b"theirs"
    assert names_in(tmp_path) == {"Inbound-call.wav", "Inbound-call-2.wav"}


def test_until_it_is_on_the_disk_it_is_a_part_file_which_a_kill_leaves_behind(
    start_server, tmp_path
):
    lines = [
        "import os, sys, time",
        "def sync(fd):",
        "    sys.stderr.write(f'fsync {os.fstat(fd).st_size}\\n')",
        "    time.sleep(99)",
        "os.fsync = sync",
    ]
    killed = start_server(command=python_app(*lines))
    with begin_call(killed, start("call"), *MEDIA, stop()):
        killed.wait_for(f"fsync {HEADER + len(AUDIO)}\n")
        killed.stop(signal.SIGKILL)
    server = start_server()
    play_call(server, "call", INBOUND)
    check_saved(server, "call-2", AUDIO)
    check_wav(tmp_path / "Inbound-call.wav.part", AUDIO)
    assert names_in(tmp_path) == {"Inbound-call.wav.part", "Inbound-call-2.wav"}


@pytest.fixture
def setting(start_server, tmp_path):
    """Return a server, the folder for its recordings, and that for temporary files."""
    directory, temporary = tmp_path / "recordings", tmp_path / "temporary"
    directory.mkdir()
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary)}
    server = start_server("--directory", str(directory), environment=environment)
    return server, directory, temporary


def test_a_hiccup_leaves_the_recording_at_home_and_each_reason_in_the_log(setting):
    server, directory, temporary = setting
    with begin_call(server, start("call"), *MEDIA) as client:
        away = directory.rename(directory.with_name("away"))
        client.send(stop())
        server.wait_for("ERROR Could not save Inbound-call.wav", "FileNotFoundError")
        directory.write_text("not a folder any more")
        server.wait_for("ERROR Could not save Inbound-call.wav", "NotADirectoryError")
        directory.unlink()
        away.rename(directory)
        check_saved(server, "call", AUDIO, folder=directory)
    assert names_in(temporary) == set()


@pytest.mark.parametrize("stopped", [True, False], ids=["after stop", "at the end"])
def test_the_temporary_folder_serves_when_the_other_is_gone_for_its_owner_only(
    setting, stopped
):
    server, directory, temporary = setting
    with begin_call(server, start("call"), *MEDIA) as client:
        directory.rmdir()
        began = time.monotonic()
        if stopped:
            client.send(stop())
        else:
            server.process.send_signal(signal.SIGTERM)
            client.wait_closed()
    check_saved(server, "call", AUDIO, folder=temporary)
    assert 2.5 < time.monotonic() - began < 8
    (path,) = temporary.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(server.lines_with("ERROR")) == 1


def test_nothing_is_given_up_while_the_process_lives(setting):
    """Half of the calls have stopped, half are in progress when the server ends."""
    server, directory, temporary = setting
    outbound = media("outbound", AUDIO[::-1], 0)
    names = [f"call-{number}" for number in range(10)]  # more than are saved at once
    clients = [begin_call(server, start(name), *MEDIA, outbound) for name in names]
    directory.rmdir()
    temporary.rmdir()
    for client in clients[:5]:
        client.send(stop())
        client.socket.close()
    server.wait_for("ERROR Could not save ", count=10)
    server.process.send_signal(signal.SIGTERM)
    for client in clients[5:]:
        client.wait_closed()
        client.socket.close()
    server.wait_for("ERROR Still saving: kill -9 would lose those calls")
    directory.mkdir()
    for name in names:
        check_saved(server, name, AUDIO, "inbound", directory)
        check_saved(server, name, AUDIO[::-1], "outbound", directory)
    # For each track, one line about each folder, not one a second
    assert len(server.lines_with("Could not save ")) == 2 * 2 * len(names)
    assert server.wait() == 0


def test_any_error_is_a_reason_to_try_again(start_server, tmp_path):
    lines = [
        "import os",
        "errors = [RuntimeError('no luck')]",
        "def fail_first(fd):",
        "    if errors: raise errors.pop()",
        "os.fsync = fail_first",
    ]
    server = start_server(command=python_app(*lines))
    play_call(server, "call", INBOUND)
    check_saved(server, "call", AUDIO)
    server.wait_for("ERROR Could not save Inbound-call.wav", "RuntimeError('no luck')")
    assert names_in(tmp_path) == {"Inbound-call.wav"}


@needs_namespaces
def test_a_full_disk_only_delays_saving(setting):
    server, directory, temporary = setting
    with contextlib.ExitStack() as stack:
        for folder in directory, temporary:
            mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]
            subprocess.run(mount, check=True)
            stack.callback(subprocess.run, ["umount", folder], check=True)
        large = start("large"), media("inbound", AUDIO * 10, 0), stop()
        stack.enter_context(begin_call(server, *large))
        server.wait_for(f"Inbound-large.wav in {directory}: ", "No space left")
        server.wait_for(f"Inbound-large.wav in {temporary}: ", "No space left")
        stack.enter_context(begin_call(server, start("small"), *MEDIA, stop()))
        check_saved(server, "small", AUDIO, folder=directory)
        subprocess.run(["mount", "-o", "remount,size=1m", directory], check=True)
        check_saved(server, "large", AUDIO * 10, folder=directory)
        assert names_in(directory) == {"Inbound-small.wav", "Inbound-large.wav"}
        assert names_in(temporary) == set()
        assert server.stop() == 0
