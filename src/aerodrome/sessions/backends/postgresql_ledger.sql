-- The queries of postgresql.py.

-- name: accept
INSERT INTO turn (
    tenant, session, id, author, status, prompt, incarnation, attachments, idempotency_key, digest, message_id,
    answer, usage, error, retried, tool_ran, created_at, started_at, ended_at, accepted_by
) VALUES (
    %(tenant)s, %(session)s, %(id)s, %(author)s, %(status)s, %(prompt)s, %(incarnation)s, %(attachments)s,
    %(idempotency_key)s, %(digest)s, %(message_id)s, %(answer)s, %(usage)s, %(error)s, %(retried)s, %(tool_ran)s,
    %(created_at)s, %(started_at)s, %(ended_at)s, %(write)s
) ON CONFLICT DO NOTHING

-- name: earlier
-- What kept a row from being accepted: the one of its idempotency key, else the one of its id.
SELECT {columns}, accepted_by FROM turn
WHERE tenant = %(tenant)s AND session = %(session)s AND idempotency_key = %(idempotency_key)s
UNION ALL
SELECT {columns}, accepted_by FROM turn
WHERE tenant = %(tenant)s AND session = %(session)s AND id = %(id)s

-- name: start
UPDATE turn SET status = 'running', started_at = coalesce(started_at, %(at)s)
WHERE tenant = %(tenant)s AND session = %(session)s AND id = %(id)s AND status IN ('queued', 'running')

-- name: note
UPDATE turn SET
    message_id = coalesce(%(message_id)s, message_id),
    tool_ran = coalesce(%(tool_ran)s, tool_ran),
    retried = coalesce(%(retried)s, retried)
WHERE tenant = %(tenant)s AND session = %(session)s AND id = %(id)s AND status IN ('queued', 'running')

-- name: finish
-- One statement, so that two who finish a turn cannot both be right.
UPDATE turn SET
    status = %(status)s,
    ended_at = %(at)s,
    answer = %(answer)s,
    usage = %(usage)s,
    error = %(error)s,
    message_id = coalesce(%(message_id)s, message_id),
    idempotency_key = CASE WHEN %(free_key)s THEN NULL ELSE idempotency_key END,
    finished_by = %(write)s
WHERE tenant = %(tenant)s AND session = %(session)s AND id = %(id)s
  AND (status IN ('queued', 'running') OR finished_by = %(write)s)

-- name: get
SELECT {columns} FROM turn WHERE tenant = %(tenant)s AND session = %(session)s AND id = %(id)s

-- name: by_idempotency_key
SELECT {columns} FROM turn
WHERE tenant = %(tenant)s AND session = %(session)s AND idempotency_key = %(idempotency_key)s

-- name: unfinished
SELECT {columns} FROM turn
WHERE status IN ('queued', 'running') AND incarnation <> ALL (%(except_of)s::text[])
ORDER BY number LIMIT %(limit)s

-- name: unfinished_of
SELECT {columns} FROM turn
WHERE tenant = %(tenant)s AND session = %(session)s
  AND status IN ('queued', 'running') AND incarnation <> ALL (%(except_of)s::text[])
ORDER BY number LIMIT %(limit)s

-- name: turns
SELECT {columns} FROM turn WHERE tenant = %(tenant)s AND session = %(session)s ORDER BY number

-- name: forget
DELETE FROM turn WHERE tenant = %(tenant)s AND session = %(session)s AND id = ANY (%(ids)s::text[])

-- name: turn_ids
SELECT id FROM turn WHERE tenant = %(tenant)s AND session = %(session)s ORDER BY number

-- name: sessions
SELECT DISTINCT tenant, session FROM turn
WHERE (tenant, session) > (%(tenant)s, %(session)s) ORDER BY tenant, session LIMIT %(limit)s
