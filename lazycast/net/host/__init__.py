"""From one rank to the others on its host, through shared memory: one copy in, none out.

`hosts` says which ranks form a host; `mesh` connects them by Unix sockets; `arena` holds what a rank has written and
`views` what it reads of others; `slots` and `headroom` decide; `memory` speaks with the kernel.
"""
