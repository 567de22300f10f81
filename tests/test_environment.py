"""What is written beside every figure."""

import json
import socket
import subprocess
from pathlib import Path

import torch

from pyext import environment, runtime

ROOT = Path(__file__).resolve().parents[1]


def test_it_names_versions_and_threads():
    with runtime.use_threads(2):
        facts = environment.describe()
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["instruction set"] == runtime.isa()
    assert facts["threads"] == facts["threads running"] == 2


def test_it_is_json_without_paths_or_host_names():
    text = json.dumps(environment.describe())
    assert str(ROOT) not in text and str(Path.home()) + "/" not in text
    assert socket.gethostname() not in text


def test_the_commit_is_that_of_the_checkout():
    if not (ROOT / ".git").exists():
        assert environment.commit() is None
        return
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert environment.commit().split()[0] == head.stdout.strip()


def test_it_says_why_there_is_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert environment.cuda() == "none: this torch is a CPU build"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(runtime, "build_info", lambda: {"cuda": ""})
    assert environment.cuda() == "none: pyext was built without its CUDA kernels"
    monkeypatch.setattr(runtime, "build_info", lambda: {"cuda": "13.0.88"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.cuda() == "none: torch has CUDA 13.0, but finds no device"
