"""A model whose embeddings are in a table beside its own: the same queries, through a one-to-one relation."""

from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.lab import assert_right, outbox, paused, settle
from tests.things.models import Note, NoteEmbedding


def test_every_write_leads_to_a_right_vector_beside_it() -> None:
    note = Note.objects.create(title="Shopping", body="Bread")
    Note.objects.bulk_create([Note(title=f"Note {number}") for number in range(5)])
    assert_right(Note, fresh=6)
    first = note.vector.embedding
    Note.objects.filter(pk=note.pk).update(body="Milk")
    assert_right(Note, fresh=6)
    note.vector.refresh_from_db()
    assert note.vector.embedding != first
    assert note.vector.embedding_model == "stub:8"


def test_the_table_itself_is_written_by_nobody_else() -> None:
    note = Note.objects.create(title="Shopping")
    settle()
    before = NoteEmbedding.objects.filter(note=note).values().get()
    beside = note.vector
    beside.embedding = [1.0] * 8
    beside.save()
    assert NoteEmbedding.objects.filter(note=note).values().get() == before


def test_a_deleted_note_takes_its_vector_along() -> None:
    Note.objects.create(title="Shopping")
    settle()
    Note.objects.get().delete()
    assert not NoteEmbedding.objects.exists()
    assert outbox("things_note") == []


def test_similar_notes_are_those_that_are_eligible() -> None:
    notes = {
        title: Note.objects.create(title=title, body=body)
        for title, body in [("Bread", "one"), ("Bread", "two"), ("A draft", "one"), ("Put away", "one"), ("Other", "x")]
    }
    settle()
    with paused("things_note"):
        # Their vectors stay until somebody looks: they must not be found all the same.
        Note.objects.filter(title="Put away").update(archived=True)
        Note.objects.filter(title="Other").update(title="A draft of it")
        with CaptureQueriesContext(connection) as statements:
            found = list(Note.objects.similar_to(notes["Bread"]))
    assert [note.body for note in found] == ["one"]
    assert 0 < found[0].distance <= 2
    assert len(statements) == 3  # which source it is, the note's own vector, the nearest


def test_the_nearest_of_what_a_filter_leaves() -> None:
    for number in range(10):
        Note.objects.create(title=f"Note {number}", body="even" if number % 2 == 0 else "odd")
    settle()
    vector = Note.objects.get(title="Note 3").vector.embedding
    nearest = Note.objects.filter(body="odd").nearest_to(vector)
    assert nearest.count() == 5
    first = nearest.select_related("vector")[0]
    assert (first.title, round(first.distance, 6)) == ("Note 3", 0)
    assert first.vector.embedding == vector


def test_keys_that_are_no_numbers() -> None:
    note = Note.objects.create(title="Shopping")
    other = Note.objects.create(title="Other")
    settle()
    with paused("things_note"):
        assert Note.objects.filter(pk=note.pk).regenerate_embeddings() == 1
        assert outbox("things_note") == [str(note.pk)]
        assert Note.objects.filter(pk=other.pk).generate_embeddings() == 0
        assert Note.objects.order_by("title")[:1].regenerate_embeddings() == 1
        assert outbox("things_note") == sorted([str(note.pk), str(other.pk)])
        assert Note.objects.none().regenerate_embeddings() == 0
