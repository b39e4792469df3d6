"""Things that neighbours share."""
