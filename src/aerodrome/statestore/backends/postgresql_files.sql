-- The queries of postgresql.py; the functions are made by the migrations beside this file.

-- name: epoch
SELECT epoch FROM file_session WHERE tenant = %(tenant)s AND session = %(session)s

-- name: raise_epoch
-- Once, but for a repetition of this very call whose answer was lost.
INSERT INTO file_session AS s (tenant, session, epoch, last_write)
VALUES (%(tenant)s, %(session)s, %(epoch)s, %(write)s)
ON CONFLICT (tenant, session) DO UPDATE SET epoch = excluded.epoch, last_write = excluded.last_write
WHERE s.deleted_of IS NULL
  AND (s.epoch < excluded.epoch OR s.epoch = excluded.epoch AND s.last_write = excluded.last_write)
RETURNING epoch

-- name: put
SELECT code, number FROM file_put_2(
    %(tenant)s, %(session)s, %(epoch)s, %(write)s, %(earlier)s, %(parents)s::bytea[], %(names)s::bytea[],
    %(content)s, %(replace)s, %(now)s, %(max_file)s, %(max_session)s, %(compact_after)s, %(compacted_bytes)s
)

-- name: mkdir
SELECT code, number FROM file_mkdir_2(
    %(tenant)s, %(session)s, %(epoch)s, %(write)s, %(earlier)s, %(parents)s::bytea[], %(names)s::bytea[],
    %(recursive)s, %(now)s
)

-- name: remove
SELECT code, number FROM file_remove_2(
    %(tenant)s, %(session)s, %(epoch)s, %(write)s, %(earlier)s, %(parents)s::bytea[], %(names)s::bytea[],
    %(path)s, %(recursive)s, %(force)s
)

-- name: rename
SELECT code, number FROM file_rename_2(
    %(tenant)s, %(session)s, %(epoch)s, %(write)s, %(earlier)s,
    %(parents)s::bytea[], %(names)s::bytea[], %(path)s,
    %(to_parents)s::bytea[], %(to_names)s::bytea[], %(to_path)s, %(max_path)s
)

-- name: last_write
SELECT epoch, last_write FROM file_session WHERE tenant = %(tenant)s AND session = %(session)s

-- name: settle
-- A write of which no answer came counts as done; if it was not until now, it will not be.
UPDATE file_session SET last_write = %(write)s
WHERE tenant = %(tenant)s AND session = %(session)s AND epoch = %(epoch)s AND last_write IN (%(earlier)s, %(write)s)

-- name: delete_session
SELECT file_delete_session_1(%(tenant)s, %(session)s, %(epoch)s, %(created_at)s)

-- name: forget_session
DELETE FROM file_session WHERE tenant = %(tenant)s AND session = %(session)s AND epoch = %(epoch)s

-- name: mark
SELECT epoch, deleted_of FROM file_session WHERE tenant = %(tenant)s AND session = %(session)s

-- name: total_bytes
SELECT bytes FROM file_session WHERE tenant = %(tenant)s AND session = %(session)s

-- name: read
SELECT f.is_directory, c.content
FROM file_session AS s
JOIN file AS f ON f.session_id = s.id AND f.parent = %(parent)s AND f.name = %(name)s
LEFT JOIN file_chunk AS c ON c.file_id = f.id
WHERE s.tenant = %(tenant)s AND s.session = %(session)s
ORDER BY c.id

-- name: stat
SELECT f.is_directory, f.size, f.modified_at, f.created_at
FROM file_session AS s
JOIN file AS f ON f.session_id = s.id AND f.parent = %(parent)s AND f.name = %(name)s
WHERE s.tenant = %(tenant)s AND s.session = %(session)s

-- name: listdir
SELECT f.parent = %(path)s AS inside, f.name, f.is_directory, f.size, f.modified_at, f.created_at
FROM file_session AS s
JOIN file AS f ON f.session_id = s.id AND (f.parent = %(path)s OR f.parent = %(parent)s AND f.name = %(name)s)
WHERE s.tenant = %(tenant)s AND s.session = %(session)s
ORDER BY f.name

-- name: blocked
SELECT file_blocked_1(id, %(parents)s::bytea[], %(names)s::bytea[]) FROM file_session
WHERE tenant = %(tenant)s AND session = %(session)s

-- name: sessions
SELECT tenant, session FROM file_session
WHERE (tenant, session) > (%(tenant)s, %(session)s) ORDER BY tenant, session LIMIT %(limit)s
