"""EmbeddingTemporalService, against the real Temporal server and evervec's own worker."""

import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.test import override_settings

from django_evervec.errors import NotWatchedError, TemporalError, WorkflowNotFoundError
from django_evervec.temporal import EmbeddingTemporalService, WorkflowStatus
from items.models import Item
from tests.lab import assert_right, outbox, paused, settle, until
from tests.test_commands import without_triggers
from tests.test_writes import item


@pytest.fixture
def service() -> EmbeddingTemporalService:
    return EmbeddingTemporalService()


def status_when(service: EmbeddingTemporalService, workflow_id: str, wanted: Callable[[Any], bool]) -> WorkflowStatus:
    def look() -> WorkflowStatus | None:
        status = service.get_embedding_status(workflow_id)
        return status if wanted(status) else None

    found: WorkflowStatus = until(look)
    return found


def test_an_item_that_no_trigger_saw_is_embedded(service: EmbeddingTemporalService) -> None:
    one = item()
    one.save()
    settle()
    without_triggers("UPDATE items_item SET description = 'Loaded'")
    workflow_id = service.start_item_embedding(one.pk, model=Item)
    assert workflow_id.startswith("item-embedding/")
    assert workflow_id.endswith(f"/items_item/{one.pk}")
    status = status_when(service, workflow_id, lambda it: it.details and it.state == "fresh" and not outbox())
    assert (status.id, status.status) == (workflow_id, "running")
    assert status.details
    assert (status.details["item_key"], status.details["last_error"]) == (str(one.pk), None)
    assert_right(fresh=1)


def test_an_unchanged_item_is_embedded_when_forced(service: EmbeddingTemporalService) -> None:
    one = item()
    one.save()
    settle()
    before = Item.objects.get().embedded_at
    service.start_item_embedding(one.pk, model=Item, force_regenerate=True)
    until(lambda: Item.objects.get().embedded_at != before)


def test_a_batch_is_a_workflow_each_or_the_sweep(service: EmbeddingTemporalService) -> None:
    made = Item.objects.bulk_create([item(f"Thing {number}") for number in range(70)])
    settle()
    some = service.start_batch_embedding([one.pk for one in made[:3]], model=Item, force_regenerate=True)
    assert [workflow_id.rpartition("/")[2] for workflow_id in some] == [str(one.pk) for one in made[:3]]
    [sweep] = service.start_batch_embedding([one.pk for one in made], model=Item, force_regenerate=True)
    assert sweep.startswith("embedding-sweep/")
    status = status_when(service, sweep, lambda it: it.details and it.status == "completed")
    assert status.state is None
    assert status.details
    assert status.details["items"] > 0
    assert_right(fresh=70)


def test_what_is_cancelled_stays_in_the_outbox(service: EmbeddingTemporalService) -> None:
    one = item()
    one.save()
    settle()
    workflow_id = service.start_item_embedding(one.pk, model=Item)
    with paused():
        Item.objects.update(description="Waits")
        service.cancel_embedding_workflow(workflow_id)
        assert status_when(service, workflow_id, lambda status: status.status == "canceled")
        assert outbox() == [str(one.pk)]
    assert_right(fresh=1)


def test_an_unknown_workflow(service: EmbeddingTemporalService) -> None:
    with pytest.raises(WorkflowNotFoundError):
        service.get_embedding_status("item-embedding/none/items_item/1")
    with pytest.raises(WorkflowNotFoundError):
        service.cancel_embedding_workflow("item-embedding/none/items_item/1")


def test_one_instance_whoever_asks(service: EmbeddingTemporalService) -> None:
    found = []
    threads = [threading.Thread(target=lambda: found.append(EmbeddingTemporalService())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [service] * 8


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # it is what gunicorn does
def test_a_forked_process_has_an_instance_of_its_own(service: EmbeddingTemporalService) -> None:
    with pytest.raises(WorkflowNotFoundError):
        service.get_embedding_status("none")  # connected
    child = multiprocessing.get_context("fork").Process(target=ask_in_the_child)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def ask_in_the_child() -> None:
    try:
        EmbeddingTemporalService().get_embedding_status("none")
    except WorkflowNotFoundError:
        return
    raise AssertionError


def test_temporal_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmbeddingTemporalService, "_instances", {})
    with (
        override_settings(EVERVEC_TEMPORAL_ADDRESS="127.0.0.1:9"),
        pytest.raises(TemporalError, match=r"does not answer at 127.0.0.1:9 .*check EVERVEC_TEMPORAL_ADDRESS"),
    ):
        EmbeddingTemporalService().get_embedding_status("none")


def test_several_models_must_be_named(service: EmbeddingTemporalService) -> None:
    with pytest.raises(NotWatchedError, match=r"name the model: .*items.Item, things.Note, things.Poem"):
        service.start_item_embedding(1)
