"""What evervec costs and gains, measured: `make bench`, `bench-scale`, `bench-peers`. See docs/benchmarks.md."""
