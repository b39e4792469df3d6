"""What `evervec demo` plays with."""
