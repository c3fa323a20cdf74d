-- Issued API keys. `digest` is the SHA-256 of the whole key; the key itself is stored nowhere. `roles` is JSON.
CREATE TABLE api_key (
    id         TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL,
    user       TEXT NOT NULL,
    roles      TEXT NOT NULL,
    label      TEXT,
    digest     BLOB NOT NULL,
    created_at REAL NOT NULL
);
CREATE INDEX api_key_by_tenant ON api_key (tenant, created_at, id);
