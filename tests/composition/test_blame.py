"""Whose fault is it: 200 planted faults, each blamed on the right party, and none of our own machine's on anybody."""

from __future__ import annotations

import dataclasses
import socket

import pytest

from tests.support.planted import DESCRIPTORS, HERE, OFFLINE, PLANTED, Seen, names, plant, without_network
from tests.support.processes import from_child


def seen(where: str) -> list[Seen]:
    with names(servfail=socket.EAI_AGAIN, unknown=socket.EAI_NONAME):
        return [each for fault in PLANTED if fault.where == where for each in plant(fault)]


def seen_in_child(where: str) -> list[Seen]:
    def work() -> list[dict[str, object]]:
        if where == OFFLINE:
            without_network()
        return [dataclasses.asdict(each) for each in seen(where)]

    return [Seen(**each) for each in from_child(work)]


@pytest.fixture(scope="module")
def planted() -> list[Seen]:
    return [*seen_in_child(OFFLINE), *seen_in_child(DESCRIPTORS), *seen(HERE)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_200_planted_faults_are_blamed_on_whose_they_are(planted: list[Seen]) -> None:
    wrong = [each for each in planted if each.found != each.expected]
    assert len(planted) >= 200
    assert wrong == []
