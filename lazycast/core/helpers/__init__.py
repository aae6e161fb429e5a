"""Processes that materialize and are no ranks: `placement=Helpers(count)`.

On the leader's side `pool` starts them and gives each value to whoever is free, `process` is one of them, `maker`
carries out the leader's part of a cast by the pool, `reading` takes values out of a helper's memory. On the other side
`child` is what runs in a helper, `program` brings the job's program there. `talk` is what both say.
"""
