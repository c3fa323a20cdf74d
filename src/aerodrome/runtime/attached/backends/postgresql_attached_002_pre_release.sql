-- oldest compatible: 1
-- Set by who detaches the server: the row is deleted when no node holds anything in it any more.
ALTER TABLE attached_binding ADD COLUMN release_id text COLLATE "C";
