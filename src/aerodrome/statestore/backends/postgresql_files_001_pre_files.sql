-- The sessions that have files, each with the highest epoch seen (the fence), the bytes of all its files, and the
-- number of the last write: one that is repeated because its answer was lost finds that it has been done.
CREATE TABLE file_session (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant     text COLLATE "C" NOT NULL,
    session    text COLLATE "C" NOT NULL,
    epoch      bigint NOT NULL,
    bytes      bigint NOT NULL DEFAULT 0,
    last_write bigint NOT NULL DEFAULT 0,
    UNIQUE (tenant, session)
) WITH (fillfactor = 50);

-- Files and directories. '/a/b' has parent '/a' and name 'b'; the root is '' and has no row. Paths are bytes
-- (UTF-8 that may hold lone surrogates), so that a directory's descendants are one range of `parent`.
CREATE TABLE file (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id   bigint NOT NULL REFERENCES file_session (id) ON DELETE CASCADE,
    parent       bytea NOT NULL,
    name         bytea NOT NULL,
    is_directory boolean NOT NULL,
    size         bigint NOT NULL DEFAULT 0,
    -- Chunks appended since the last compaction of this file.
    fresh        integer NOT NULL DEFAULT 0,
    created_at   double precision NOT NULL,
    modified_at  double precision NOT NULL,
    UNIQUE (session_id, parent, name)
) WITH (fillfactor = 50);

-- The content of a file is its chunks in the order of `id`.
CREATE TABLE file_chunk (
    file_id bigint NOT NULL REFERENCES file (id) ON DELETE CASCADE,
    id      bigint GENERATED ALWAYS AS IDENTITY,
    content bytea NOT NULL,
    PRIMARY KEY (file_id, id)
);

-- The functions below are the writes, each in one round trip. A path comes as the arrays of the parents and names on
-- the way to it, itself the last. They answer with a code ('ok', 'fenced', 'too_large_file', 'too_large_session' or
-- the name of an errno) and a number that belongs to it, and have changed nothing unless the code is 'ok'. A release
-- that wants them otherwise adds others (file_append_2): nodes of two releases call them at the same time.

-- Lock the session for this transaction. 'again': this very write has been done.
CREATE FUNCTION file_begin_1(
    a_tenant text, a_session text, an_epoch bigint, a_write bigint,
    OUT code text, OUT number bigint, OUT session_id bigint, OUT bytes bigint
) LANGUAGE plpgsql AS $$
DECLARE
    s file_session;
BEGIN
    SELECT * INTO s FROM file_session AS f WHERE f.tenant = a_tenant AND f.session = a_session FOR UPDATE;
    IF s.id IS NULL OR s.epoch <> an_epoch THEN
        code := 'fenced'; number := s.epoch;
    ELSIF s.last_write = a_write THEN
        code := 'again';
    ELSE
        code := 'ok'; session_id := s.id; bytes := s.bytes;
    END IF;
END $$;

CREATE FUNCTION file_end_1(a_session_id bigint, a_write bigint, grown bigint) RETURNS void LANGUAGE sql AS $$
    UPDATE file_session SET bytes = bytes + grown, last_write = a_write WHERE id = a_session_id
$$;

-- Whether the way to a path leads through a file.
CREATE FUNCTION file_blocked_1(a_session_id bigint, parents bytea[], names bytea[]) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM unnest(trim_array(parents, 1), trim_array(names, 1)) AS way (parent, name)
        JOIN file AS f ON f.session_id = a_session_id AND f.parent = way.parent AND f.name = way.name
        WHERE NOT f.is_directory
    )
$$;

CREATE FUNCTION file_make_parents_1(a_session_id bigint, parents bytea[], names bytea[], now double precision)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO file (session_id, parent, name, is_directory, created_at, modified_at)
    SELECT a_session_id, way.parent, way.name, true, now, now
    FROM unnest(trim_array(parents, 1), trim_array(names, 1)) AS way (parent, name)
    ON CONFLICT DO NOTHING
$$;

-- Append (`replace` false) or write. After `compact_after` appends the newest chunks become one, as many as fit into
-- `compacted_bytes`: part of the append that makes it due, hence fenced like it.
CREATE FUNCTION file_put_1(
    a_tenant text, a_session text, an_epoch bigint, a_write bigint, parents bytea[], names bytea[],
    a_content bytea, replace boolean, now double precision,
    max_file bigint, max_session bigint, compact_after integer, compacted_bytes bigint,
    OUT code text, OUT number bigint
) LANGUAGE plpgsql AS $$
DECLARE
    s record;
    f file;
    deep integer := cardinality(parents);
    length bigint := octet_length(a_content);
    new_size bigint;
    grown bigint;
    first bigint;
    merged integer;
BEGIN
    s := file_begin_1(a_tenant, a_session, an_epoch, a_write);
    code := s.code; number := s.number;
    IF code <> 'ok' THEN RETURN; END IF;
    SELECT * INTO f FROM file AS x
    WHERE x.session_id = s.session_id AND x.parent = parents[deep] AND x.name = names[deep];
    IF f.is_directory THEN code := 'EISDIR'; RETURN; END IF;
    IF f.id IS NULL AND file_blocked_1(s.session_id, parents, names) THEN code := 'ENOTDIR'; RETURN; END IF;
    new_size := length + CASE WHEN replace THEN 0 ELSE coalesce(f.size, 0) END;
    grown := new_size - coalesce(f.size, 0);
    IF new_size > max_file THEN code := 'too_large_file'; number := new_size; RETURN; END IF;
    IF grown > 0 AND s.bytes + grown > max_session THEN
        code := 'too_large_session'; number := s.bytes + grown; RETURN;
    END IF;
    IF f.id IS NULL THEN
        PERFORM file_make_parents_1(s.session_id, parents, names, now);
        INSERT INTO file (session_id, parent, name, is_directory, created_at, modified_at)
        VALUES (s.session_id, parents[deep], names[deep], false, now, now) RETURNING * INTO f;
    ELSIF replace THEN
        DELETE FROM file_chunk AS c WHERE c.file_id = f.id;
        f.fresh := 0;
    END IF;
    IF length > 0 THEN
        INSERT INTO file_chunk (file_id, content) VALUES (f.id, a_content);
        f.fresh := f.fresh + 1;
    END IF;
    IF f.fresh >= compact_after AND NOT replace THEN
        SELECT min(t.id), count(*) INTO first, merged FROM (
            SELECT n.id, sum(n.size) OVER (ORDER BY n.id DESC) AS total FROM (
                SELECT c.id, octet_length(c.content) AS size FROM file_chunk AS c
                WHERE c.file_id = f.id ORDER BY c.id DESC LIMIT f.fresh + 1
            ) AS n
        ) AS t WHERE t.total <= compacted_bytes;
        IF merged > 1 THEN
            UPDATE file_chunk AS c SET content = (
                SELECT string_agg(p.content, ''::bytea ORDER BY p.id) FROM file_chunk AS p
                WHERE p.file_id = f.id AND p.id >= first
            ) WHERE c.file_id = f.id AND c.id = first;
            DELETE FROM file_chunk AS c WHERE c.file_id = f.id AND c.id > first;
        END IF;
        f.fresh := 0;
    END IF;
    UPDATE file AS x SET size = new_size, fresh = f.fresh, modified_at = now WHERE x.id = f.id;
    PERFORM file_end_1(s.session_id, a_write, grown);
END $$;

-- Empty arrays are the root, here and below.
CREATE FUNCTION file_mkdir_1(
    a_tenant text, a_session text, an_epoch bigint, a_write bigint, parents bytea[], names bytea[],
    recursive boolean, now double precision,
    OUT code text, OUT number bigint
) LANGUAGE plpgsql AS $$
DECLARE
    s record;
    deep integer := cardinality(parents);
    present boolean;
BEGIN
    s := file_begin_1(a_tenant, a_session, an_epoch, a_write);
    code := s.code; number := s.number;
    IF code <> 'ok' THEN RETURN; END IF;
    IF deep = 0 THEN
        IF NOT recursive THEN code := 'EEXIST'; END IF;
        RETURN;
    END IF;
    SELECT x.is_directory INTO present FROM file AS x
    WHERE x.session_id = s.session_id AND x.parent = parents[deep] AND x.name = names[deep];
    IF present IS NOT NULL THEN
        IF NOT (recursive AND present) THEN code := 'EEXIST'; END IF;
        RETURN;
    END IF;
    IF file_blocked_1(s.session_id, parents, names) THEN code := 'ENOTDIR'; RETURN; END IF;
    IF NOT recursive AND deep > 1 AND NOT EXISTS (
        SELECT FROM file AS x
        WHERE x.session_id = s.session_id AND x.parent = parents[deep - 1] AND x.name = names[deep - 1]
    ) THEN
        code := 'ENOENT'; RETURN;
    END IF;
    PERFORM file_make_parents_1(s.session_id, parents, names, now);
    INSERT INTO file (session_id, parent, name, is_directory, created_at, modified_at)
    VALUES (s.session_id, parents[deep], names[deep], true, now, now);
    PERFORM file_end_1(s.session_id, a_write, 0);
END $$;

-- `path` is the path as bytes: everything below it has it as parent, or a parent from path || '/' to path || '0'.
CREATE FUNCTION file_remove_1(
    a_tenant text, a_session text, an_epoch bigint, a_write bigint, parents bytea[], names bytea[], path bytea,
    recursive boolean, force boolean,
    OUT code text, OUT number bigint
) LANGUAGE plpgsql AS $$
DECLARE
    s record;
    f file;
    deep integer := cardinality(parents);
    freed bigint := 0;
BEGIN
    s := file_begin_1(a_tenant, a_session, an_epoch, a_write);
    code := s.code; number := s.number;
    IF code <> 'ok' THEN RETURN; END IF;
    IF deep > 0 THEN
        SELECT * INTO f FROM file AS x
        WHERE x.session_id = s.session_id AND x.parent = parents[deep] AND x.name = names[deep];
        IF f.id IS NULL THEN
            IF file_blocked_1(s.session_id, parents, names) THEN code := 'ENOTDIR';
            ELSIF NOT force THEN code := 'ENOENT';
            END IF;
            RETURN;
        END IF;
        freed := f.size;
    END IF;
    IF deep = 0 OR f.is_directory THEN
        IF NOT recursive THEN code := 'EISDIR'; RETURN; END IF;
        WITH gone AS (
            DELETE FROM file AS x
            WHERE x.session_id = s.session_id
              AND (x.parent = path OR x.parent > path || '/'::bytea AND x.parent < path || '0'::bytea)
            RETURNING x.size
        ) SELECT freed + coalesce(sum(gone.size), 0) INTO freed FROM gone;
    END IF;
    DELETE FROM file AS x WHERE x.id = f.id;
    PERFORM file_end_1(s.session_id, a_write, -freed);
END $$;

CREATE FUNCTION file_rename_1(
    a_tenant text, a_session text, an_epoch bigint, a_write bigint,
    parents bytea[], names bytea[], source bytea, to_parents bytea[], to_names bytea[], target bytea, max_path integer,
    OUT code text, OUT number bigint
) LANGUAGE plpgsql AS $$
DECLARE
    s record;
    moved file;
    replaced file;
    deep integer := cardinality(parents);
    to_deep integer := cardinality(to_parents);
    above boolean;
    longest integer;
BEGIN
    s := file_begin_1(a_tenant, a_session, an_epoch, a_write);
    code := s.code; number := s.number;
    IF code <> 'ok' THEN RETURN; END IF;
    IF deep > 0 THEN
        SELECT * INTO moved FROM file AS x
        WHERE x.session_id = s.session_id AND x.parent = parents[deep] AND x.name = names[deep];
        IF moved.id IS NULL THEN
            code := CASE WHEN file_blocked_1(s.session_id, parents, names) THEN 'ENOTDIR' ELSE 'ENOENT' END;
            RETURN;
        END IF;
    END IF;
    IF deep = 0 OR to_deep = 0 THEN code := 'EBUSY'; RETURN; END IF;
    IF source = target THEN RETURN; END IF;
    IF substr(target, 1, octet_length(source) + 1) = source || '/'::bytea THEN code := 'EINVAL_TARGET'; RETURN; END IF;
    IF file_blocked_1(s.session_id, to_parents, to_names) THEN code := 'ENOTDIR_TARGET'; RETURN; END IF;
    IF to_deep > 1 AND NOT EXISTS (
        SELECT FROM file AS x
        WHERE x.session_id = s.session_id AND x.parent = to_parents[to_deep - 1] AND x.name = to_names[to_deep - 1]
    ) THEN
        code := 'ENOENT_PARENT'; RETURN;
    END IF;
    SELECT * INTO replaced FROM file AS x
    WHERE x.session_id = s.session_id AND x.parent = to_parents[to_deep] AND x.name = to_names[to_deep];
    IF replaced.id IS NOT NULL THEN
        IF replaced.is_directory AND NOT moved.is_directory THEN code := 'EISDIR_TARGET'; RETURN; END IF;
        IF moved.is_directory AND NOT replaced.is_directory THEN code := 'ENOTDIR_TARGET'; RETURN; END IF;
        IF EXISTS (SELECT FROM file AS x WHERE x.session_id = s.session_id AND x.parent = target) THEN
            code := 'ENOTEMPTY_TARGET'; RETURN;
        END IF;
    END IF;
    SELECT max(octet_length(x.parent) + octet_length(x.name)) INTO longest FROM file AS x
    WHERE x.session_id = s.session_id
      AND (x.parent = source OR x.parent > source || '/'::bytea AND x.parent < source || '0'::bytea);
    IF moved.is_directory AND longest + octet_length(target) - octet_length(source) >= max_path THEN
        code := 'ENAMETOOLONG_TARGET'; RETURN;
    END IF;
    DELETE FROM file AS x WHERE x.id = replaced.id;
    UPDATE file AS x SET parent = to_parents[to_deep], name = to_names[to_deep] WHERE x.id = moved.id;
    IF moved.is_directory THEN
        UPDATE file AS x SET parent = target || substr(x.parent, octet_length(source) + 1)
        WHERE x.session_id = s.session_id
          AND (x.parent = source OR x.parent > source || '/'::bytea AND x.parent < source || '0'::bytea);
    END IF;
    PERFORM file_end_1(s.session_id, a_write, -coalesce(replaced.size, 0));
END $$;
