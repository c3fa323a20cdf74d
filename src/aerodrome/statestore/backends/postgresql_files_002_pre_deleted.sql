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
    UPDATE file_session AS s SET epoch = an_epoch, deleted_of = a_created_at, bytes = 0
    WHERE s.tenant = a_tenant AND s.session = a_session
      AND (s.epoch = an_epoch AND s.deleted_of IS NULL OR s.epoch <= an_epoch AND s.deleted_of = a_created_at)
    RETURNING s.id INTO marked;
    IF marked IS NULL THEN
        RETURN false;
    END IF;
    -- A statement of its own: it sees what a write that we have waited for has made.
    DELETE FROM file WHERE session_id = marked;
    RETURN true;
END
$$;
