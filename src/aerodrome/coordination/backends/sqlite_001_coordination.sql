-- One aerodrome process in one life. `beat_at` is the machine's monotonic clock, which means nothing after a
-- reboot: hence `boot_id`.
CREATE TABLE node (
    incarnation TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    address     TEXT NOT NULL,
    load        TEXT NOT NULL,
    ttl         REAL NOT NULL,
    boot_id     TEXT NOT NULL,
    beat_at     REAL NOT NULL
) WITHOUT ROWID;

-- The last lease of each session. A released one stays with incarnation NULL, for its epoch.
CREATE TABLE lease (
    tenant      TEXT NOT NULL,
    session     TEXT NOT NULL,
    epoch       INTEGER NOT NULL,
    incarnation TEXT,
    PRIMARY KEY (tenant, session)
) WITHOUT ROWID;

-- The highest epoch of any forgotten session (one row): a session that is deleted and made again under the
-- same id gets an epoch above that of a paused node which still believes in the first one.
CREATE TABLE epoch_floor (
    id    INTEGER PRIMARY KEY CHECK (id = 0),
    epoch INTEGER NOT NULL
);
INSERT INTO epoch_floor (id, epoch) VALUES (0, 0);

CREATE TABLE session (
    tenant           TEXT NOT NULL,
    id               TEXT NOT NULL,
    owner            TEXT NOT NULL,
    kind             TEXT NOT NULL,
    isolation        TEXT NOT NULL,
    state            TEXT NOT NULL,
    model            TEXT,
    title            BLOB,  -- text that may hold lone surrogates
    options          TEXT NOT NULL,
    created_at       REAL NOT NULL,
    last_used_at     REAL NOT NULL,
    last_turn_id     TEXT,
    last_turn_status TEXT,
    PRIMARY KEY (tenant, id)
) WITHOUT ROWID;

-- One index a listing, each in the listing's own order: a page costs its rows, not the table's.
CREATE INDEX session_by_use ON session (last_used_at DESC, id, tenant);
CREATE INDEX session_by_tenant ON session (tenant, last_used_at DESC, id);
CREATE INDEX session_by_owner ON session (tenant, owner, last_used_at DESC, id);
