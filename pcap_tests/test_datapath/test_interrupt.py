"""Ctrl-C: now, at the end of what is begun, or not ours at all."""

from __future__ import annotations

import signal
import threading

import pytest

from datapath.interrupt import finished_first


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_what_is_begun_is_finished():
    done = []
    with pytest.raises(KeyboardInterrupt), finished_first():
        press()
        done.append("all of it")
    assert done == ["all of it"]


def test_a_second_press_does_not_wait():
    done = []
    with pytest.raises(KeyboardInterrupt), finished_first():
        press()
        press()
        done.append("not this")
    assert done == []


def test_afterwards_all_is_as_before():
    with finished_first():
        pass
    with pytest.raises(KeyboardInterrupt):
        press()


def test_an_error_within_is_the_error():
    with pytest.raises(ValueError), finished_first():
        press()
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_ignores_it_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with finished_first():
            press()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_signals():
    done = []

    def work() -> None:
        with finished_first():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
