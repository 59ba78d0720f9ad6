"""Python processes forked from one that has imported the large libraries: importing those anew takes seconds.

A forked process has its own working folder, environment and standard streams. Modules of textenv are imported
anew, except those that the server was asked to import.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("accelerate", "gymnasium.vector", "matplotlib", "rich", "safetensors.torch", "stable_baselines3")
LIBRARIES += ("tokenizers", "torch", "transformers")
if find_spec("deepspeed"):  # accelerate imports it where it is installed
    LIBRARIES += ("deepspeed",)
"""What a server imports. ``transformers`` imports its parts when they are used: see ``_PARTS``."""
_PARTS = ("AutoModelForCausalLM", "GPT2LMHeadModel", "PreTrainedTokenizerFast", "GenerationConfig")
ADDRESS = "FORKED_PYTHON"
"""Variable with the address of the server that ``exec_here`` asks."""


class Server:
    """A process that has imported ``LIBRARIES`` and ``modules``; started at its first use, ended at exit."""

    def __init__(self, *modules: str) -> None:
        self.modules = modules
        self.process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self) -> str:
        """The address of the running server."""
        if self.process is None:
            folder = tempfile.mkdtemp(prefix="forked-python-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            self.address = f"{folder}/socket"
            command = [sys.executable, "-m", __name__, self.address, *self.modules]
            # The server ends when its stdin does, which is when this process ends, however that is.
            self.process = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self.process.stdout is not None
            atexit.register(self.end)
            said = iter(self.process.stdout.readline, "")  # libraries may say something, too
            assert "ready\n" in said, "the server did not start"
        return self.address

    def end(self) -> None:
        """End the server and wait for it."""
        if self.process is not None:
            self.process.communicate()
            self.process = None

    def run(
        self,
        arguments: Sequence[str],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """``python ARGUMENTS`` (a file, ``-c CODE`` or ``-m MODULE``, and its arguments), output captured.

        Raises:
            TimeoutError: if it has not ended in time; it is killed.
        """
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            streams = [os.open(os.devnull, os.O_RDONLY), out.fileno(), errors.fileno()]
            status = _ask(self.start(), arguments, cwd or os.getcwd(), env or os.environ, streams, timeout)
            os.close(streams[0])
            out.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(list(arguments), status, out.read(), errors.read())

    def interpreter(self, folder: Path) -> Path:
        """A file in ``folder`` that takes the place of ``sys.executable``: this server runs its arguments."""
        file = folder / "python"
        command = shlex.join([sys.executable, "-S", __file__])
        file.write_text(f'#!/bin/sh\nexport {ADDRESS}={shlex.quote(self.start())}\nexec {command} "$@"\n')
        file.chmod(0o755)
        return file


def _ask(
    address: str,
    arguments: Sequence[str],
    cwd: str | os.PathLike[str],
    env: Mapping[str, str],
    streams: Sequence[int],
    timeout: float | None,
) -> int:
    """Let the server fork a process with these streams; its exit status, negative where a signal ended it.

    The process is killed when this one closes the connection, or ends, before it has the answer.
    """
    request = json.dumps({"arguments": list(arguments), "cwd": os.fspath(cwd), "env": dict(env)}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendmsg(
            [len(request).to_bytes(8, "big")],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))],
        )
        connection.sendall(request)
        connection.settimeout(timeout)
        try:
            return int(connection.recv(8))
        except TimeoutError:
            raise TimeoutError(f"{list(arguments)} has not ended after {timeout} seconds") from None


def exec_here(arguments: Sequence[str] | None = None) -> None:
    """Let the server that ``ADDRESS`` names run this very command in a process of its own, and end like it.

    For scripts that a launcher starts. Without a server nothing happens.

    Args:
        arguments: of Python, instead of this command's.
    """
    address = os.environ.get(ADDRESS)
    if address:
        arguments = sys.argv if arguments is None else arguments
        env = {name: value for name, value in os.environ.items() if name != ADDRESS}
        status = _ask(address, arguments, os.getcwd(), env, [0, 1, 2], None)
        sys.stdout.flush()
        os._exit(status if status >= 0 else 128 - status)


def _execute(arguments: Sequence[str]) -> None:
    """What ``python ARGUMENTS`` does."""
    first, *others = arguments
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *others[1:]], ""
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv, sys.path[0] = others, os.getcwd()
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = list(arguments), str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def _child(connection: socket.socket) -> int:
    """In the forked process: read the request and run it; the exit status."""
    header, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    streams = array.array("i", ancillary[0][2])
    request = json.loads(connection.makefile("rb").read(int.from_bytes(header, "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    try:
        _execute(request["arguments"])
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _serve(address: str, modules: Sequence[str]) -> None:
    """Import, then fork a process for each connection, and a second one that tells how the first ended."""
    import importlib

    for name in (*LIBRARIES, *modules):
        importlib.import_module(name)
    import torch
    import transformers

    for name in _PARTS:
        getattr(transformers, name)
    with tempfile.TemporaryDirectory() as folder:  # what transformers makes once in a process
        config = transformers.GPT2Config(n_layer=1, n_embd=2, n_head=1, n_positions=2, vocab_size=2)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    torch.set_num_threads(1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    waiting: list[int] = []
    print("ready", flush=True)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        waiter = os.fork()
        if waiter:
            connection.close()
            waiting = [pid for pid in waiting if not os.waitpid(pid, os.WNOHANG)[0]] + [waiter]
            continue
        listener.close()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = _child(connection)
            finally:
                _leave(status)
        asker = select.poll()
        asker.register(connection, select.POLLRDHUP)
        asker.register(os.pidfd_open(child), select.POLLIN)
        if all(event & select.POLLRDHUP for _, event in asker.poll()):
            os.kill(child, signal.SIGKILL)
        else:
            connection.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    for pid in waiting:
        os.waitpid(pid, 0)


def _leave(status: int) -> None:
    """End this process as the interpreter would: threads joined, exit functions called, streams flushed."""
    import threading

    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


PYTHON = Server()
"""For all tests that need no modules of their own in it: one server in each process of pytest."""

if __name__ == "__main__":
    exec_here(sys.argv[1:])
    _serve(sys.argv[1], sys.argv[2:])
