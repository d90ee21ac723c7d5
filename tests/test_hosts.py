"""Signals: where they stop a run, and that earlier handlers come back."""

import os
import signal

import pytest

from delf_jax import hosts


def send(number):
  os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_once(number):
  before = signal.getsignal(number)
  with pytest.raises(hosts.Stopped), hosts.StopSignals():
    send(number)
  assert signal.getsignal(number) is before


def test_a_deferred_signal_is_told_after_the_step():
  with hosts.StopSignals() as signals:
    with signals.deferred():
      assert not signals.stop_after(1)
      send(signal.SIGTERM)
      assert signals.stop_after(2)
      with pytest.raises(hosts.Stopped), signals.deferred(False):
        pytest.fail("this must not be entered after a signal")


def test_a_signal_interrupts_what_is_not_deferred_inside():
  with hosts.StopSignals() as signals, signals.deferred():
    with pytest.raises(hosts.Stopped), signals.deferred(False):
      send(signal.SIGTERM)
    assert signals.stop_after(1)


def test_a_second_interrupt_does_not_wait():
  with hosts.StopSignals() as signals, signals.deferred():
    send(signal.SIGINT)
    with pytest.raises(hosts.Stopped):
      send(signal.SIGINT)


def test_one_process_agrees_with_itself():
  assert hosts.agree(3, "a number") == 3
  assert hosts.is_primary()
  hosts.wait("nobody")
