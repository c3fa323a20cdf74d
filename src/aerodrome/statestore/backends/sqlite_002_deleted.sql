-- oldest compatible: 1
-- The mark of a deletion that has begun: which session it was, by the time it was opened at. Without files and at the
-- deletion's epoch, the row stays until nothing else of that session is left.
ALTER TABLE file_session ADD COLUMN deleted_of REAL;
