"""evervec beside what a user might take instead: `make bench-peers`. See README.md here."""
