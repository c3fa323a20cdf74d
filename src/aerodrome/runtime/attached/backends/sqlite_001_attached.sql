-- Copilot CLI servers that were attached at run time. `token` is the name of one in the settings, never the token.
CREATE TABLE attached_server (
    address      TEXT PRIMARY KEY,
    tenant       TEXT NOT NULL,
    token        TEXT,
    weight       REAL NOT NULL,
    max_sessions INTEGER,
    workspace    TEXT,
    attached_at  REAL NOT NULL,
    attached_by  TEXT NOT NULL
);
-- Whom a server serves: one tenant's users, or (user is not null) one user of it. `endpoint` is where it listens,
-- `address` what it was attached as then.
CREATE TABLE attached_binding (
    endpoint TEXT PRIMARY KEY,
    address  TEXT NOT NULL,
    tenant   TEXT NOT NULL,
    user     TEXT
);
