"""An example or two of every command, shown at the end of its help."""

from collections.abc import Mapping, Sequence

from rich.markup import escape

EXAMPLES: Mapping[str, Sequence[tuple[str, str]]] = {
    "up": [
        ("evervec up", "the whole stack, its data in .evervec"),
        ("EVERVEC_DATABASE_URL=postgresql://… evervec up --data-dir /srv/evervec", "with a database of your own"),
    ],
    "demo": [("evervec demo", "takes a minute, and leaves nothing behind")],
    "listener": [("evervec listener", "any number may run: one leads, the others stand by")],
    "worker": [("EVERVEC_BACKEND=openvino evervec worker", "as many as the work needs")],
    "init": [("evervec init", "as the role that owns the tables; again after each upgrade")],
    "watch": [
        ("evervec watch items --text name,description", "embed two columns"),
        ("evervec watch items --text name,description --dry-run", "say what that would take, change nothing"),
        ("evervec watch shop.items --text name --required name --active 'price > 0'", "only some of the rows"),
        ("evervec watch items --text name --model bundled:use-multilingual-v3", "with another model"),
    ],
    "unwatch": [("evervec unwatch items", "the vectors stay in the table")],
    "uninstall": [
        ("evervec uninstall", "says what goes, and asks"),
        ("evervec uninstall --yes", "does not ask"),
    ],
    "status": [
        ("evervec status", "all sources"),
        ("evervec status items --watch", "one of them, live, with rate and time left"),
        ("evervec status --json | jq '.sources[].coverage'", "for programs"),
    ],
    "item": [
        ("evervec item items 42", "why is the row with the key 42 stale?"),
        ("evervec item items 42 --json | jq -r .reason", "in one line"),
    ],
    "failures": [
        ("evervec failures", "of all sources"),
        ("evervec failures items --json | jq -r '.failures[].key'", "the keys alone"),
    ],
    "search": [("evervec search items 'something to drill with' --limit 3", "the three nearest items")],
    "verify": [
        ("evervec verify", "compare every row's hash"),
        ("evervec verify items --sample 100", "embed a hundred items again and compare the vectors"),
        ("evervec verify items --repair", "enqueue what was found"),
    ],
    "doctor": [
        ("evervec doctor", "all of it"),
        ("evervec doctor --quick --json | jq '.checks[] | select(.ok | not)'", "what is wrong, for programs"),
    ],
    "backfill": [
        ("evervec backfill items --wait", "and show how far it is"),
        ("evervec backfill items --where \"created > '2026-01-01'\" --rate 50", "some rows, 50 a second at most"),
    ],
    "regenerate": [
        ("evervec regenerate items --ids 42,43 --wait", "two items"),
        ("evervec regenerate items --all", "all of them; the old vectors are found until the new ones are there"),
    ],
    "retry": [
        ("evervec retry items", "all that failed"),
        ("evervec retry items --ids 42,43", "two of them"),
    ],
    "pause": [("evervec pause items", "changes are recorded, and wait")],
    "resume": [("evervec resume items", "go on with what waits")],
}


def examples_help(command: str) -> str:
    """A command's examples as the last part of its help, in Rich's markup."""
    lines = ["[bold]Examples[/bold]"]
    for line, meaning in EXAMPLES[command]:
        lines += [f"[dim]# {escape(meaning)}[/dim]", f"[cyan]{escape(line)}[/cyan]"]
    return "\n".join(lines)
