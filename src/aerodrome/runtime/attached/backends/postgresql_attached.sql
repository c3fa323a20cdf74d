-- The queries of postgresql.py.

-- name: attach
-- A row of ours that is there already, because the first answer was lost, counts as inserted.
INSERT INTO attached_server AS s (
    address, tenant, token, weight, max_sessions, workspace, attached_at, attached_by, inserted_by
) VALUES (
    %(address)s, %(tenant)s, %(token)s, %(weight)s, %(max_sessions)s, %(workspace)s, %(attached_at)s, %(attached_by)s,
    %(write)s
) ON CONFLICT (address) DO UPDATE SET inserted_by = excluded.inserted_by WHERE s.inserted_by = excluded.inserted_by

-- name: detach
DELETE FROM attached_server WHERE address = %(address)s

-- name: attached
SELECT address, tenant, token, weight, max_sessions, workspace, attached_at, attached_by
FROM attached_server ORDER BY address

-- name: bind
-- The update changes nothing; it is there because only then the row of somebody else is returned as well.
INSERT INTO attached_binding AS b (endpoint, address, tenant, user_name)
VALUES (%(endpoint)s, %(address)s, %(tenant)s, %(user)s)
ON CONFLICT (endpoint) DO UPDATE SET tenant = b.tenant
RETURNING tenant, user_name, release_id

-- name: bindings
SELECT endpoint, tenant, user_name, release_id FROM attached_binding

-- name: release
-- One of ours that is there already, because the first answer was lost, counts as new.
UPDATE attached_binding SET release_id = %(release)s
WHERE (address = %(address)s OR endpoint = %(address)s)
    AND (release_id IS NULL OR release_id = %(release)s)
    AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)

-- name: unbind
DELETE FROM attached_binding WHERE endpoint = %(endpoint)s AND release_id = %(release)s

-- name: drain
INSERT INTO attached_drain (endpoint, address) VALUES (%(endpoint)s, %(address)s)
ON CONFLICT (endpoint) DO UPDATE SET address = excluded.address

-- name: undrain
DELETE FROM attached_drain
WHERE address = %(address)s OR (%(endpoints)s::boolean AND endpoint = %(address)s)

-- name: drained
SELECT endpoint FROM attached_drain
