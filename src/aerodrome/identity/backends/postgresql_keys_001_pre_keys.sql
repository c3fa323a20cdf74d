-- Issued API keys. `digest` is the SHA-256 of the whole key; the key itself is stored nowhere. `roles` is JSON.
CREATE TABLE api_key (
    id          text COLLATE "C" PRIMARY KEY,
    tenant      text COLLATE "C" NOT NULL,
    user_name   text COLLATE "C" NOT NULL,
    roles       text NOT NULL,
    label       text,
    digest      bytea NOT NULL,
    created_at  double precision NOT NULL,
    -- Number of the write that made the row: one that is repeated finds its own.
    inserted_by bigint NOT NULL
);
CREATE INDEX api_key_by_age ON api_key (created_at, id);
CREATE INDEX api_key_by_tenant ON api_key (tenant, created_at, id);
