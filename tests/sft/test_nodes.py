"""Ranks on several nodes without a Slurm: how many, who is let in, and what is refused."""

from __future__ import annotations

import os
import socket
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, wait
from pathlib import Path

import pytest
import torch

from orchestrator.errors import StageFailure
from orchestrator.sft.distributed import launcher, nodes, parallel
from orchestrator.stage import Config, Context, Inputs

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a job of two nodes, of which the other is this machine too."""
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(nodes, "_another_node", lambda: "127.0.0.1")


def test_ranks_are_spread_over_all_nodes_of_a_job_and_only_of_a_job() -> None:
    assert nodes.count(JOB) == 2
    assert nodes.count({**JOB, "SLURM_JOB_NUM_NODES": "1"}) == 1
    assert [nodes.count({k: v for k, v in JOB.items() if k != name}) for name in JOB] == [1, 1, 1]


def test_without_a_number_there_is_a_process_for_each_gpu_of_the_job(
    job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert parallel.num_processes(None, torch.device("cuda"), section="trainer") == 8
    assert parallel.num_processes(6, torch.device("cuda"), section="trainer") == 6
    assert parallel.num_processes(None, torch.device("cpu"), section="trainer") == 1
    with pytest.raises(StageFailure, match=r"evaluation\.num_processes=9, but 8 GPUs are visible"):
        parallel.num_processes(9, torch.device("cuda"), section="evaluation")


def test_a_number_that_does_not_divide_is_refused(job: None, tmp_path: Path) -> None:
    with pytest.raises(StageFailure, match="3 processes cannot be spread evenly over 2 nodes") as caught:
        launcher.run("a:b", Config({}), Inputs({}), Context(tmp_path), num_processes=3, device="cpu")
    assert caught.value.cause == "config"


def test_who_does_not_know_the_key_is_not_let_in_and_keeps_nobody_waiting(
    job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_HANDSHAKE_S", 1)
    meeting = nodes.Meeting(2, 3)
    host, _, port = meeting.environment[nodes.SOCKET].rpartition(":")
    for name, value in meeting.environment.items():
        monkeypatch.setenv(name, value)
    refused: list[type[Exception]] = []

    def guess() -> None:
        try:
            Client((host, int(port)), authkey=b"guess")
        except (AuthenticationError, EOFError, OSError) as error:
            refused.append(type(error))

    stranger = threading.Thread(target=guess)
    stranger.start()
    assert meeting.accept() is None
    stranger.join()
    assert refused
    with socket.create_connection((host, int(port))):  # says nothing
        assert meeting.accept() is None
    monkeypatch.setattr(nodes, "_HANDSHAKE_S", 60)
    joined: list[object] = []
    guest = threading.Thread(target=lambda: joined.append(nodes.join()))
    guest.start()
    pipe = meeting.accept()
    guest.join()
    assert pipe is not None and host == "127.0.0.1" and nodes.interface() == "lo"
    (theirs,) = joined
    theirs.send("word")  # type: ignore[attr-defined]
    with socket.socket(fileno=os.dup(pipe.fileno())) as heard:  # the patience with strangers has ended
        patience = heard.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
    assert patience == bytes(16)
    assert pipe.recv() == "word"
    nodes.hang_up(pipe)
    assert wait([theirs], 60)  # type: ignore[list-item]
    with pytest.raises(EOFError):
        theirs.recv()  # type: ignore[attr-defined]
    theirs.send("still heard")  # type: ignore[attr-defined]
    assert pipe.recv() == "still heard"
    meeting.close()
