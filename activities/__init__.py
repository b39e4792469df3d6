"""What a worker does for a workflow: fetch, embed, write back."""
