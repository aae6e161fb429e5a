"""How a materializer gets to the ranks, and which of them runs it."""
