-- The queries of postgresql.py.

-- name: insert
-- A row of ours that is there already, because the first answer was lost, counts as inserted.
INSERT INTO api_key AS k (id, tenant, user_name, roles, label, created_at, digest, inserted_by)
VALUES (
    %(id)s, %(tenant)s, %(user)s, %(roles)s, %(label)s, %(created_at)s, %(digest)s, %(write)s
) ON CONFLICT (id) DO UPDATE SET inserted_by = excluded.inserted_by WHERE k.inserted_by = excluded.inserted_by

-- name: get
SELECT id, tenant, user_name, roles, label, created_at, digest FROM api_key WHERE id = %(id)s

-- name: list
SELECT id, tenant, user_name, roles, label, created_at FROM api_key ORDER BY created_at, id

-- name: list_of
SELECT id, tenant, user_name, roles, label, created_at FROM api_key WHERE tenant = %(tenant)s ORDER BY created_at, id

-- name: remove
DELETE FROM api_key WHERE id = %(id)s
