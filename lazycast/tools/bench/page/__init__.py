"""The benchmarks as one HTML page: `lazycast bench --report DIR`, and `lazycast bench report DIR` for what is there.

The page is made from the JSON files in a folder and from nothing else, so a run can be shown again, and runs of several
backends and numbers of ranks together::

    records    what the page needs of a run         (validated: a file may be old, cut off or not one of ours)
    files      read a folder
    times      what to choose, from broadcasts by size
    requests   what to choose, from requests
    scaling    the same over numbers of ranks
    charts     the plots, as SVG                    (matplotlib)
    render     put it together                      (jinja2)

Importing this package imports neither matplotlib nor jinja2.
"""
