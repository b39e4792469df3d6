from hypothesis import given, settings
from hypothesis import strategies as st

from listener.debounce import Debouncer, Key

WINDOW, LONGEST = 0.1, 1.0
A, B = Key("items", "a"), Key("items", "b")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def debouncer(clock: Clock, *, window: float = WINDOW, longest: float = LONGEST, capacity: int = 10_000) -> Debouncer:
    return Debouncer(window, longest, capacity, clock)


def popped(items: Debouncer, limit: int) -> list[tuple[Key, str | None]]:
    """What is taken out: keys and last hashes."""
    return [(due.key, due.content_hash) for due in items.pop_due(limit)]


def test_an_item_is_due_when_it_was_quiet_for_the_window() -> None:
    clock = Clock()
    items = debouncer(clock)
    items.put(A, "1")
    clock.now = 0.0625
    items.put(A, "2")
    clock.now = 0.125
    assert popped(items, 10) == []
    clock.now = 0.1875
    assert popped(items, 10) == [(A, "2")]
    assert len(items) == 0
    assert items.due_in() is None


def test_an_item_that_is_never_quiet_is_due_after_the_longest_wait() -> None:
    clock = Clock()
    items = debouncer(clock)
    for step in range(20):
        clock.now = step / 20
        items.put(A, str(step))
        assert popped(items, 10) == []
    clock.now = 1.0
    items.put(A, "last")
    assert popped(items, 10) == [(A, "last")]


def test_what_is_due_tells_how_long_it_has_waited() -> None:
    clock = Clock()
    items = debouncer(clock)
    items.put(A, "1")
    clock.now = 0.0625
    items.put(A, "2")
    clock.now = 0.25
    assert [due.waited for due in items.pop_due(10)] == [0.25]


def test_nothing_waits_without_a_window() -> None:
    items = debouncer(Clock(), window=0, longest=0)
    items.put(A, "1")
    assert items.due_in() == 0
    assert popped(items, 10) == [(A, "1")]


def test_due_in_tells_the_one_timer_when_to_ring() -> None:
    clock = Clock()
    items = debouncer(clock, window=0.25)
    assert items.due_in() is None
    items.put(A, "1")
    clock.now = 0.125
    items.put(B, "1")
    assert items.due_in() == 0.125
    items.put(A, "2")
    assert items.due_in() == 0.25
    clock.now = 5
    assert items.due_in() == 0


def test_a_full_debouncer_takes_no_other_item_but_changes_of_those_it_holds() -> None:
    items = debouncer(Clock(), capacity=1)
    assert items.put(A, "1")
    assert not items.put(B, "1")
    assert items.put(A, "2")
    assert len(items) == 1
    assert B not in items


def test_what_is_dropped_is_forgotten() -> None:
    clock = Clock()
    items = debouncer(clock)
    items.put(A, "1")
    items.put(B, "1")
    items.drop(A)
    items.drop(A)
    clock.now = 1
    assert popped(items, 10) == [(B, "1")]


def test_no_more_are_taken_than_asked_for() -> None:
    clock = Clock()
    items = debouncer(clock)
    for key in (A, B):
        items.put(key, "1")
    clock.now = 1
    assert popped(items, 1) == [(A, "1")]
    assert popped(items, 1) == [(B, "1")]


def test_seeing_a_waiting_item_again_does_not_hold_it_back() -> None:
    clock = Clock()
    items = debouncer(clock)
    items.put(A, "1")
    clock.now = 0.0625
    items.see(A, "1", seen_at=0.0625)
    clock.now = 0.1
    assert popped(items, 10) == [(A, "1")]


def test_seeing_another_hash_is_a_change_that_was_not_heard_of() -> None:
    clock = Clock()
    items = debouncer(clock)
    items.put(A, "1")
    clock.now = 0.0625
    items.see(A, "2", seen_at=0.0625)
    clock.now = 0.125
    assert popped(items, 10) == []
    clock.now = 0.1875
    assert popped(items, 10) == [(A, "2")]


def test_what_was_seen_before_the_last_change_is_old_news() -> None:
    clock = Clock()
    items = debouncer(clock)
    clock.now = 0.0625
    items.put(A, "2")
    items.see(A, "1", seen_at=0.03125)
    clock.now = 1
    assert popped(items, 10) == [(A, "2")]


def test_each_source_is_counted() -> None:
    items = debouncer(Clock())
    items.put(A, "1")
    items.put(A, "2")
    items.put(Key("other", "a"), "1")
    assert (items.count("items"), items.count("other"), items.count("none")) == (1, 1, 0)
    items.drop(A)
    assert items.count("items") == 0


steps = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=12),  # sixteenths of a second since the step before
        st.sampled_from("abcdef"),
        st.one_of(st.none(), st.text("0123456789abcdef", min_size=1, max_size=2)),  # None: only time passes
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=300)
@given(steps=steps, capacity=st.integers(min_value=1, max_value=6))
def test_it_behaves_like_a_list_that_is_searched(steps: list[tuple[int, str, str | None]], capacity: int) -> None:
    """Against the plain definition: due when quiet for the window or waiting for the longest time, last hash wins."""
    window, longest = 0.25, 1.0
    clock = Clock()
    items = debouncer(clock, window=window, longest=longest, capacity=capacity)
    model: dict[Key, tuple[float, float, str]] = {}
    for pause, name, content_hash in steps:
        clock.now += pause / 16
        if content_hash is not None:
            key = Key("items", name)
            first = model[key][0] if key in model else clock.now
            taken = key in model or len(model) < capacity
            assert items.put(key, content_hash) == taken
            if taken:
                model[key] = (first, clock.now, content_hash)
        due = {k: h for k, (first, last, h) in model.items() if min(last + window, first + longest) <= clock.now}
        ends = [min(last + window, first + longest) for first, last, _ in model.values()]
        assert items.due_in() == (max(0, min(ends) - clock.now) if ends else None)
        assert dict(popped(items, 100)) == due
        model = {k: v for k, v in model.items() if k not in due}
        assert len(items) == items.count("items") == len(model) <= capacity
