"""What a signal does to one of several processes, which hear it from terminal and launcher both."""

import signal

import pytest

from main.trainer.loop.guards import StopSignal


def test_of_several_processes_a_second_ctrl_c_acts_once_the_launchers_own_cannot_be_meant(
    monkeypatch,
):
    launcher = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(StopSignal, "AGAIN", 60.0)  # whatever else the machine does
    guard = StopSignal()
    guard.arm()
    try:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # passed on by the launcher
        assert guard.received == signal.SIGINT
        guard._received_at -= 61
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        guard.disarm()
