"""The local stack: PostgreSQL, the Temporal server, listener and worker as child processes of one command."""
