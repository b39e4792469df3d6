from datetime import timedelta

from evervec.schedule import EVERY, turn_of


def test_installations_take_turns() -> None:
    turns = [turn_of(f"{number:010x}") for number in range(100)]
    assert all(timedelta(0) <= turn < EVERY for turn in turns)
    assert len(set(turns)) > 50
    assert turn_of("0123456789") == turn_of("0123456789")
