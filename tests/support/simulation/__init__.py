"""A deterministic simulation of a fleet: nodes, stores, network and clocks in virtual time, all of it from one seed.

The nodes run Aerodrome's own code of heartbeats, leases, epochs and fenced writes. What surrounds it is simulated:

- `world`: virtual time, one event loop a node, which can be paused or killed;
- `network`: calls that are late, lost, or carried out without an answer;
- `sites`: the coordination store and the durable store behind that network, and what they see go wrong;
- `fleet`: a node, with sessions, turns and hibernation;
- `plan`: what happens in one run, drawn from the seed;
- `run`: a run from its seed to its end, and the search for the shortest plan that still fails.
"""
