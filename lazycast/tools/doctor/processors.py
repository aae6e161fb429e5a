"""How many cores the ranks of a host have between them, and how many there are for helpers."""

from __future__ import annotations

from collections.abc import Sequence

from lazycast.materialize import cores
from lazycast.materialize.cores import Cores
from lazycast.tools.doctor.finding import Finding


def per_rank(hosts: Sequence[str], ranks: Sequence[Cores]) -> Finding:
    """Whether every rank has a core.

    Args:
        hosts: the host's name of each rank.
        ranks: what each rank may use.
    """
    said, least = [], float("inf")
    for host in dict.fromkeys(hosts):
        here = [own for name, own in zip(hosts, ranks, strict=True) if name == host]
        together = cores.together(here)
        quota = any(own.quota is not None and own.quota < len(own.numbers) for own in here)
        least = min(least, together / len(here))
        limit = " (the cgroup's quota)" if quota else ""
        said.append((host, f"{together:g} core{'s' if together != 1 else ''}{limit} for {len(here)} ranks"))
    texts = {text for _, text in said}
    found = next(iter(texts)) if len(texts) == 1 else "; ".join(f"{host}: {text}" for host, text in said)
    if len(texts) == 1 and len(said) > 1:
        found += f" on each of {len(said)} hosts"
    if least >= 1:
        return Finding("host", "cores", "ok", found)
    remedy = (
        "ranks take turns, so casts take longer: give the job more cores (CPU quota, affinity), or fewer ranks a host"
    )
    return Finding("host", "cores", "note", found, remedy)


def for_helpers(hosts: Sequence[str], ranks: Sequence[Cores]) -> Finding:
    """How many helpers each host can bear beside its ranks, of which each keeps a core.

    Args:
        hosts, ranks: as in `per_rank`.
    """
    said = []
    for host in dict.fromkeys(hosts):
        here = [own for name, own in zip(hosts, ranks, strict=True) if name == host]
        left = max(0, int(cores.together(here) - len(here)))
        text = f"{left} core{'s are' if left != 1 else ' is'} left beside {len(here)} ranks: up to Helpers({left})"
        none = f"no core is left beside {len(here)} ranks: helpers would share theirs"
        said.append((host, text if left else none))
    texts = {text for _, text in said}
    found = next(iter(texts)) if len(texts) == 1 else "; ".join(f"{host}: {text}" for host, text in said)
    return Finding("host", "helpers", "ok", found)
