-- The sessions that have files, each with the highest epoch seen (the fence) and the bytes of all its files.
CREATE TABLE file_session (
    id      INTEGER PRIMARY KEY,
    tenant  TEXT NOT NULL,
    session TEXT NOT NULL,
    epoch   INTEGER NOT NULL,
    bytes   INTEGER NOT NULL DEFAULT 0,
    UNIQUE (tenant, session)
);

-- Files and directories. '/a/b' has parent '/a' and name 'b'; the root is '' and has no row. Paths are bytes
-- (UTF-8 that may hold lone surrogates), so that a directory's descendants are one range of `parent`.
CREATE TABLE file (
    id           INTEGER PRIMARY KEY,
    session_id   INTEGER NOT NULL REFERENCES file_session (id) ON DELETE CASCADE,
    parent       BLOB NOT NULL,
    name         BLOB NOT NULL,
    is_directory INTEGER NOT NULL,
    size         INTEGER NOT NULL DEFAULT 0,
    -- Chunks appended since the last compaction of this file.
    fresh        INTEGER NOT NULL DEFAULT 0,
    created_at   REAL NOT NULL,
    modified_at  REAL NOT NULL,
    UNIQUE (session_id, parent, name)
);

-- The content of a file is its chunks in the order of `id`.
CREATE TABLE file_chunk (
    id      INTEGER PRIMARY KEY,
    file_id INTEGER NOT NULL REFERENCES file (id) ON DELETE CASCADE,
    content BLOB NOT NULL
);
CREATE INDEX file_chunk_by_file ON file_chunk (file_id);
