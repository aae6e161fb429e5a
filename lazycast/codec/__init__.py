"""Objects to bytes and back: pickle with buffers out of band, plain data, and what may arrive."""
