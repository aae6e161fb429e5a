"""What people look at: counts, timings, dumps, traces and metrics."""
