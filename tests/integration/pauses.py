"""Where a write-back can be made to pause, so that something happens just there."""

_PAUSE = "public.pause()"  # made by the lab

PAUSES = {
    # Nothing is locked yet.
    "start": ("  EXECUTE format('LOCK TABLE", f"  PERFORM {_PAUSE};\n  EXECUTE format('LOCK TABLE"),
    # The source was read, the items are not locked yet.
    "source": ("  EXECUTE format('SELECT array", f"  PERFORM {_PAUSE};\n  EXECUTE format('SELECT array"),
    # The items are about to be locked, as a snapshot shows them that grows old here.
    "snapshot": ("'WHERE %3$s ", f"'WHERE %3$s AND {_PAUSE} IS NOT NULL "),
    # The items are locked, nothing is written yet.
    "locked": ("  IF vectors > 0", f"  PERFORM {_PAUSE};\n  IF vectors > 0"),
    # The vectors are written, nothing is acknowledged yet.
    "written": ("  RETURN QUERY EXECUTE", f"  PERFORM {_PAUSE};\n  RETURN QUERY EXECUTE"),
    # It was decided what to acknowledge, by a snapshot that grows old here.
    "seen": (
        "(SELECT * FROM seen WHERE",
        f"(SELECT seen.* FROM (SELECT {_PAUSE} IS NOT NULL AS p) AS pause JOIN seen ON pause.p WHERE",
    ),
}
