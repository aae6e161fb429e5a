"""The soak: job after job of random casts with faults put in, each outcome checked on each rank, for as long as asked.

plan        what a job does: the same on every rank, from a seed
payloads    random payloads, and whether two values are the same
materializers   what is done to payloads
oracle      how a cast may end on a rank, in plain Python
census      what a process holds: descriptors, threads, children, memory
diary       what a rank writes down, and the job reads
rounds      one object on one rank, from its construction to its end
rank        a process: its rounds, and how it leaves
job         starts the processes of a job, stops and kills them, and judges what they wrote
session     job after job until the time is over
report      what came of it
"""
