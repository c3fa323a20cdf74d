-- Copilot CLI servers that were attached at run time. `token` is the name of one in the settings, never the token.
CREATE TABLE attached_server (
    address      text COLLATE "C" PRIMARY KEY,
    tenant       text COLLATE "C" NOT NULL,
    token        text,
    weight       double precision NOT NULL,
    max_sessions integer,
    workspace    text,
    attached_at  double precision NOT NULL,
    attached_by  text NOT NULL,
    -- Number of the write that made the row: one that is repeated finds its own.
    inserted_by  bigint NOT NULL
);
-- Whom a server serves: one tenant's users, or (user_name is not null) one user of it. `endpoint` is where it listens,
-- `address` what it was attached as then.
CREATE TABLE attached_binding (
    endpoint  text COLLATE "C" PRIMARY KEY,
    address   text COLLATE "C" NOT NULL,
    tenant    text COLLATE "C" NOT NULL,
    user_name text COLLATE "C"
);
