-- The queries of postgresql_directory.py. `{row}` is a row of the directory, its members as one JSON object.

-- name: insert
WITH added AS (
    INSERT INTO session (
        tenant, id, owner, kind, isolation, state, model, title, options, created_at, last_used_at,
        last_turn_id, last_turn_status, inserted_by
    ) VALUES (
        %(tenant)s, %(id)s, %(owner)s, %(kind)s, %(isolation)s, %(state)s, %(model)s, %(title)s, %(options)s,
        %(created_at)s, %(last_used_at)s, %(last_turn_id)s, %(last_turn_status)s, %(write)s
    ) ON CONFLICT (tenant, id) DO NOTHING
    RETURNING tenant, id
)
, shared AS (
    INSERT INTO member (tenant, session, user_name, role)
    SELECT added.tenant, added.id, given.user_name, given.role
    FROM added, unnest(%(users)s::text[], %(roles)s::text[]) AS given (user_name, role)
)
SELECT FROM added

-- name: inserted
SELECT {row}, s.inserted_by FROM session AS s WHERE s.tenant = %(tenant)s AND s.id = %(id)s

-- name: get
SELECT {row} FROM session AS s WHERE s.tenant = %(tenant)s AND s.id = %(id)s

-- name: update
UPDATE session SET
    state = coalesce(%(state)s, state),
    title = coalesce(%(title)s, title),
    model = coalesce(%(model)s, model),
    options = coalesce(%(options)s, options),
    last_used_at = greatest(last_used_at, %(last_used_at)s),
    last_turn_id = coalesce(%(last_turn_id)s, last_turn_id),
    last_turn_status = coalesce(%(last_turn_status)s, last_turn_status)
WHERE tenant = %(tenant)s AND id = %(id)s

-- name: set_member
-- Only where there is a session, which is kept for that long: one that is deleted meanwhile leaves no member behind.
INSERT INTO member (tenant, session, user_name, role)
SELECT tenant, id, %(user)s, %(role)s FROM session WHERE tenant = %(tenant)s AND id = %(id)s FOR KEY SHARE
ON CONFLICT (tenant, session, user_name) DO UPDATE SET role = excluded.role

-- name: remove_member
DELETE FROM member WHERE tenant = %(tenant)s AND session = %(id)s AND user_name = %(user)s

-- name: remove
DELETE FROM session WHERE tenant = %(tenant)s AND id = %(id)s AND created_at = %(created_at)s

-- name: list
SELECT {row} FROM session AS s WHERE {after} ORDER BY s.last_used_at DESC, s.id, s.tenant LIMIT %(limit)s

-- name: list_of_tenant
SELECT {row} FROM session AS s WHERE s.tenant = %(tenant)s AND {after}
ORDER BY s.last_used_at DESC, s.id LIMIT %(limit)s

-- name: list_of_user
-- Two listings, each found by an index, rather than one that looks at everybody's sessions.
(
    SELECT {row} FROM session AS s WHERE s.tenant = %(tenant)s AND s.owner = %(user)s AND {after}
    ORDER BY s.last_used_at DESC, s.id LIMIT %(limit)s
) UNION ALL (
    SELECT {row} FROM member AS mine JOIN session AS s ON s.tenant = mine.tenant AND s.id = mine.session
    WHERE mine.user_name = %(user)s AND mine.tenant = %(tenant)s AND {after}
    ORDER BY s.last_used_at DESC, s.id LIMIT %(limit)s
)

-- name: list_of_user_anywhere
(
    SELECT {row} FROM session AS s WHERE s.owner = %(user)s AND {after}
    ORDER BY s.last_used_at DESC, s.id, s.tenant LIMIT %(limit)s
) UNION ALL (
    SELECT {row} FROM member AS mine JOIN session AS s ON s.tenant = mine.tenant AND s.id = mine.session
    WHERE mine.user_name = %(user)s AND {after}
    ORDER BY s.last_used_at DESC, s.id, s.tenant LIMIT %(limit)s
)

-- name: unused_since
SELECT {row} FROM session AS s WHERE s.last_used_at < %(before)s
ORDER BY s.last_used_at, s.id DESC, s.tenant DESC LIMIT %(limit)s OFFSET %(skip)s

-- name: count
SELECT count(*) FROM session

-- name: count_of_tenant
SELECT count(*) FROM session WHERE tenant = %(tenant)s
