"""What carries messages: the wire format, links between hosts, and a host's shared memory."""
