"""A cluster of Ray that a process starts for itself: it listens on this machine only and asks for a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

FAKE = """
import os
__version__ = os.environ.get("FAKE_VERSION", "2.60.0")
NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
AT_IMPORT = {name: os.environ.get(name) for name in NAMES}
CALLS = []
def is_initialized():
    return False
def init(**given):
    CALLS.append({name: value for name, value in given.items() if name != "logging_level"})
"""
CODE = """
import json, sys, warnings
if {before}:
    import ray
from textenv.utils.ray_session import connect
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    ray = connect({address!r})
told = [str(one.message) for one in seen]
found = {{"env": ray.AT_IMPORT, "init": ray.CALLS, "warnings": told, "torch": "torch" in sys.modules}}
print(json.dumps(found))
"""


def _connect(
    tmp_path: Path, address: str | None = None, *, before: bool = False, **env: str
) -> dict[str, Any]:
    """What a process finds in which ``connect`` starts a Ray that only notes what it is asked for."""
    (tmp_path / "ray").mkdir(exist_ok=True)
    (tmp_path / "ray" / "__init__.py").write_text(FAKE)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(address=address, before=before)],
        env={**clean, "PYTHONPATH": path, "HOME": str(tmp_path), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def test_an_own_cluster_keeps_to_this_machine_and_asks_for_a_token(tmp_path: Path) -> None:
    found = _connect(tmp_path)
    assert found["env"]["RAY_AUTH_MODE"] == "token"
    assert found["env"]["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert len(found["env"]["RAY_AUTH_TOKEN"]) == 64
    assert found["init"] == [{"address": None, "include_dashboard": False}]
    assert (found["warnings"], found["torch"]) == ([], False)
    assert _connect(tmp_path)["env"]["RAY_AUTH_TOKEN"] != found["env"]["RAY_AUTH_TOKEN"]


def test_what_the_user_set_counts(tmp_path: Path) -> None:
    assert _connect(tmp_path, RAY_AUTH_TOKEN="mine")["env"]["RAY_AUTH_TOKEN"] == "mine"
    assert _connect(tmp_path, RAY_AUTH_TOKEN_PATH="file")["env"]["RAY_AUTH_TOKEN"] is None
    assert _connect(tmp_path, RAY_AUTH_MODE="disabled")["env"]["RAY_AUTH_TOKEN"] is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("saved")
    assert _connect(tmp_path)["env"]["RAY_AUTH_TOKEN"] is None


def test_a_cluster_that_is_there_is_its_owners(tmp_path: Path) -> None:
    for found in (_connect(tmp_path, "head:6379"), _connect(tmp_path, RAY_ADDRESS="head:6379")):
        assert set(found["env"].values()) == {None}
    assert _connect(tmp_path, "local")["env"]["RAY_AUTH_MODE"] == "token"


def test_a_ray_that_was_imported_before_is_warned_about(tmp_path: Path) -> None:
    (warning,) = _connect(tmp_path, before=True)["warnings"]
    assert "ray was imported before textenv started a cluster" in warning
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    assert _connect(tmp_path, before=True, **loopback)["warnings"] == []
    assert _connect(tmp_path, "head:6379", before=True)["warnings"] == []


def test_a_ray_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"ray must be version 2.52 or newer \(token authentication\), got 2.51.1"
    ):
        _connect(tmp_path, FAKE_VERSION="2.51.1")


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (extra 'ray')")
def test_a_real_cluster_is_reached_by_the_loopback_address_only(tmp_path: Path) -> None:
    code = (
        "from textenv.utils.ray_session import connect\nray = connect()\n"
        "print('address', ray.nodes()[0]['NodeManagerAddress'])\nray.shutdown()\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": path, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "address 127.0.0.1" in done.stdout, done.stderr[-2000:]
    assert not (tmp_path / ".ray" / "auth_token").exists()
