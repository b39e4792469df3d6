"""What evervec costs and gains, measured: `make bench`, `make bench-scale`, `make bench-peers`. See docs/benchmarks.md."""
