-- The mark of a deletion that has begun: which session it was, by the time it was opened at. Without files and at the
-- deletion's epoch, the row stays until nothing else of that session is left.
ALTER TABLE file_session ADD COLUMN deleted_of double precision;

-- Remove the files, and leave the mark. False: somebody newer has the session, or another one is marked. The same
-- deletion may be begun again.
CREATE FUNCTION file_delete_session_1(a_tenant text, a_session text, an_epoch bigint, a_created_at double precision)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    marked bigint;
BEGIN
    INSERT INTO file_session AS s (tenant, session, epoch, deleted_of)
    VALUES (a_tenant, a_session, an_epoch, a_created_at)
    ON CONFLICT (tenant, session) DO UPDATE
    SET epoch = excluded.epoch, deleted_of = excluded.deleted_of, bytes = 0
    WHERE s.epoch < excluded.epoch AND coalesce(s.deleted_of, excluded.deleted_of) = excluded.deleted_of
       OR s.epoch = excluded.epoch AND s.deleted_of = excluded.deleted_of
    RETURNING s.id INTO marked;
    IF marked IS NULL THEN
        RETURN false;
    END IF;
    -- A statement of its own: it sees what a write that we have waited for has made.
    DELETE FROM file WHERE session_id = marked;
    RETURN true;
END
$$;
