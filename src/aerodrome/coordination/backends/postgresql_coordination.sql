-- The queries of postgresql.py. Each is one statement, and so decides its races by itself.

-- name: join
-- The dead of the past go, or a crash loop would leave a row for each of its lives.
WITH dead AS (
    DELETE FROM node WHERE incarnation IN (
        SELECT incarnation FROM node
        WHERE dies_at <= coordination_clock(%(ahead)s) AND incarnation <> %(incarnation)s
        FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO node (incarnation, name, address, peer_token, load, ttl, dies_at)
VALUES (
    %(incarnation)s, %(name)s, %(address)s, %(peer_token)s, %(load)s, %(ttl)s,
    coordination_clock(%(ahead)s) + %(ttl)s
)
ON CONFLICT (incarnation) DO UPDATE SET
    name = excluded.name, address = excluded.address, peer_token = excluded.peer_token, load = excluded.load,
    ttl = excluded.ttl, dies_at = excluded.dies_at, drain = false

-- name: heartbeat
-- The dead stay dead: a beat that comes too late must not bring back leases that others may count on.
UPDATE node SET dies_at = coordination_clock(%(ahead)s) + ttl, load = coalesce(%(load)s, load)
WHERE incarnation = %(incarnation)s AND dies_at > coordination_clock(%(ahead)s)
RETURNING drain

-- name: leave
WITH vacated AS (DELETE FROM place WHERE incarnation = %(incarnation)s)
DELETE FROM node WHERE incarnation = %(incarnation)s

-- name: nodes
SELECT name, incarnation, address, load, peer_token FROM node
WHERE dies_at > coordination_clock(%(ahead)s) ORDER BY name, incarnation

-- name: ask_to_drain
UPDATE node SET drain = true WHERE incarnation = %(incarnation)s AND dies_at > coordination_clock(%(ahead)s)

-- name: acquire
SELECT coordination_acquire(%(tenant)s, %(session)s, %(incarnation)s, %(floor)s, %(ahead)s)

-- name: release
-- Compared and released in one statement: between a read and a write the lease could change hands.
UPDATE lease SET incarnation = NULL
WHERE tenant = %(tenant)s AND session = %(session)s AND incarnation = %(incarnation)s AND epoch = %(epoch)s

-- name: holders
SELECT tenant, session, incarnation, epoch
FROM unnest(%(tenants)s::text[], %(sessions)s::text[]) AS asked (tenant, session)
JOIN lease USING (tenant, session)
JOIN node USING (incarnation)
WHERE dies_at > coordination_clock(%(ahead)s)

-- name: forget
WITH gone AS (
    DELETE FROM lease
    WHERE tenant = %(tenant)s AND session = %(session)s AND incarnation = %(incarnation)s AND epoch = %(epoch)s
    RETURNING epoch
)
UPDATE epoch_floor SET epoch = greatest(epoch_floor.epoch, gone.epoch) FROM gone

-- name: clear_dead
-- What is seen here may be old: a node may have joined since, and taken one of them. So only what is still as it was
-- seen is cleared. Whoever changes one of them at this moment leaves it to the next time.
WITH clock AS MATERIALIZED (
    SELECT coordination_clock(%(ahead)s) AS now
), alive AS MATERIALIZED (
    SELECT incarnation FROM node, clock WHERE dies_at > clock.now
), dead AS MATERIALIZED (
    SELECT tenant, session, incarnation, epoch FROM lease
    WHERE incarnation IS NOT NULL AND NOT EXISTS (SELECT FROM alive WHERE alive.incarnation = lease.incarnation)
), theirs AS MATERIALIZED (
    SELECT cap, place, incarnation FROM place
    WHERE NOT EXISTS (SELECT FROM alive WHERE alive.incarnation = place.incarnation)
), left_places AS (
    SELECT p.cap, p.place FROM place AS p
    JOIN theirs USING (cap, place, incarnation)
    FOR UPDATE OF p SKIP LOCKED
), vacated AS (
    DELETE FROM place USING left_places AS l WHERE place.cap = l.cap AND place.place = l.place
), kept AS (
    SELECT lease.tenant, lease.session FROM lease
    JOIN dead USING (tenant, session, incarnation, epoch)
    FOR UPDATE OF lease SKIP LOCKED
)
UPDATE lease SET incarnation = NULL FROM kept WHERE lease.tenant = kept.tenant AND lease.session = kept.session

-- name: publish
SELECT pg_notify(%(channel)s, %(payload)s)

-- name: admit
SELECT verdict, which, wait FROM coordination_admit_2(
    %(number)s, %(place)s, %(incarnation)s, %(rates)s::text[], %(limits)s::integer[], %(periods)s::double precision[],
    %(caps)s::text[], %(sizes)s::integer[], %(ahead)s
)

-- name: vacate
DELETE FROM place WHERE place = %(place)s AND incarnation = %(incarnation)s
