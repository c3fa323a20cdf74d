-- A write names the one before it, and is refused unless that, or itself, is the last that was done. A first attempt
-- that was given up and repeated may reach the server much later, out of a buffer of the network or by a process of the
-- server that had stood still; without this it would be done again, behind what was written since.

-- Lock the session for this transaction. 'again': this very write has been done. 'overtaken': others have been, since
-- the one that it follows.
CREATE FUNCTION file_begin_2(
    a_tenant text, a_session text, an_epoch bigint, a_write bigint, an_earlier bigint,
    OUT code text, OUT number bigint
) LANGUAGE plpgsql AS $$
DECLARE
    s file_session;
BEGIN
    SELECT * INTO s FROM file_session AS f WHERE f.tenant = a_tenant AND f.session = a_session FOR UPDATE;
    IF s.id IS NULL OR s.epoch <> an_epoch THEN
        code := 'fenced'; number := s.epoch;
    ELSIF s.last_write = a_write THEN
        code := 'again';
    ELSIF s.last_write <> an_earlier THEN
        code := 'overtaken';
    ELSE
        code := 'ok';
    END IF;
END $$;

-- What had nothing to change has been done as well.
CREATE FUNCTION file_done_2(a_tenant text, a_session text, a_write bigint) RETURNS void LANGUAGE sql AS $$
    UPDATE file_session SET last_write = a_write
    WHERE tenant = a_tenant AND session = a_session AND last_write <> a_write
$$;

CREATE FUNCTION file_put_2(
    a_tenant text, a_session text, an_epoch bigint, a_write bigint, an_earlier bigint, parents bytea[], names bytea[],
    a_content bytea, replace boolean, now double precision,
    max_file bigint, max_session bigint, compact_after integer, compacted_bytes bigint,
    OUT code text, OUT number bigint
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT b.code, b.number INTO code, number
    FROM file_begin_2(a_tenant, a_session, an_epoch, a_write, an_earlier) AS b;
    IF code <> 'ok' THEN RETURN; END IF;
    SELECT d.code, d.number INTO code, number FROM file_put_1(
        a_tenant, a_session, an_epoch, a_write, parents, names, a_content, replace, now,
        max_file, max_session, compact_after, compacted_bytes
    ) AS d;
END $$;

CREATE FUNCTION file_mkdir_2(
    a_tenant text, a_session text, an_epoch bigint, a_write bigint, an_earlier bigint, parents bytea[], names bytea[],
    recursive boolean, now double precision,
    OUT code text, OUT number bigint
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT b.code, b.number INTO code, number
    FROM file_begin_2(a_tenant, a_session, an_epoch, a_write, an_earlier) AS b;
    IF code <> 'ok' THEN RETURN; END IF;
    SELECT d.code, d.number INTO code, number
    FROM file_mkdir_1(a_tenant, a_session, an_epoch, a_write, parents, names, recursive, now) AS d;
    IF code = 'ok' THEN PERFORM file_done_2(a_tenant, a_session, a_write); END IF;
END $$;

CREATE FUNCTION file_remove_2(
    a_tenant text, a_session text, an_epoch bigint, a_write bigint, an_earlier bigint, parents bytea[], names bytea[],
    path bytea, recursive boolean, force boolean,
    OUT code text, OUT number bigint
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT b.code, b.number INTO code, number
    FROM file_begin_2(a_tenant, a_session, an_epoch, a_write, an_earlier) AS b;
    IF code <> 'ok' THEN RETURN; END IF;
    SELECT d.code, d.number INTO code, number
    FROM file_remove_1(a_tenant, a_session, an_epoch, a_write, parents, names, path, recursive, force) AS d;
    IF code = 'ok' THEN PERFORM file_done_2(a_tenant, a_session, a_write); END IF;
END $$;

CREATE FUNCTION file_rename_2(
    a_tenant text, a_session text, an_epoch bigint, a_write bigint, an_earlier bigint,
    parents bytea[], names bytea[], source bytea, to_parents bytea[], to_names bytea[], target bytea, max_path integer,
    OUT code text, OUT number bigint
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT b.code, b.number INTO code, number
    FROM file_begin_2(a_tenant, a_session, an_epoch, a_write, an_earlier) AS b;
    IF code <> 'ok' THEN RETURN; END IF;
    SELECT d.code, d.number INTO code, number FROM file_rename_1(
        a_tenant, a_session, an_epoch, a_write, parents, names, source, to_parents, to_names, target, max_path
    ) AS d;
    IF code = 'ok' THEN PERFORM file_done_2(a_tenant, a_session, a_write); END IF;
END $$;
