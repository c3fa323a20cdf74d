-- session -> who owns it, what it was opened with, where it stands. Ids sort by their bytes (COLLATE "C"), as the
-- cursors of listings do. `model` and `title` are a user's text, which may hold NUL and lone surrogates; `options` is
-- JSON, as text, because jsonb refuses both.
CREATE TABLE session (
    tenant           text COLLATE "C" NOT NULL,
    id               text COLLATE "C" NOT NULL,
    owner            text COLLATE "C" NOT NULL,
    kind             text NOT NULL,
    isolation        text NOT NULL,
    state            text NOT NULL,
    model            bytea,
    title            bytea,
    options          text NOT NULL,
    created_at       double precision NOT NULL,
    last_used_at     double precision NOT NULL,
    last_turn_id     text,
    last_turn_status text,
    -- Number of the write that made the row: one that is repeated finds its own.
    inserted_by      bigint NOT NULL,
    PRIMARY KEY (tenant, id)
) WITH (fillfactor = 80);

-- One index a listing, each in the listing's own order: a page costs its rows, not the table's.
CREATE INDEX session_by_use ON session (last_used_at DESC, id, tenant);
CREATE INDEX session_by_tenant ON session (tenant, last_used_at DESC, id);
CREATE INDEX session_by_owner ON session (tenant, owner, last_used_at DESC, id);
CREATE INDEX session_by_owner_anywhere ON session (owner, last_used_at DESC, id, tenant);

-- Whom a session is shared with, beside its owner.
CREATE TABLE member (
    tenant    text COLLATE "C" NOT NULL,
    session   text COLLATE "C" NOT NULL,
    user_name text COLLATE "C" NOT NULL,
    role      text NOT NULL,
    PRIMARY KEY (tenant, session, user_name),
    FOREIGN KEY (tenant, session) REFERENCES session (tenant, id) ON DELETE CASCADE
);
CREATE INDEX member_by_user ON member (user_name, tenant, session);
