-- How other nodes reach this one's gateway as a node; whether somebody has asked it to drain.
ALTER TABLE node ADD COLUMN peer_token TEXT NOT NULL DEFAULT '';
ALTER TABLE node ADD COLUMN drain INTEGER NOT NULL DEFAULT 0;

-- Whom a session is shared with, beside its owner.
CREATE TABLE member (
    tenant  TEXT NOT NULL,
    session TEXT NOT NULL,
    user    TEXT NOT NULL,
    role    TEXT NOT NULL,
    PRIMARY KEY (tenant, session, user)
) WITHOUT ROWID;
CREATE INDEX member_by_user ON member (user, tenant, session);

-- When the next admission under a rate is due (GCRA), on the clock of `node.beat_at`. A name that is not here has
-- been used so little that nothing needs to be remembered.
CREATE TABLE rate (
    name    TEXT PRIMARY KEY,
    arrival REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX rate_by_arrival ON rate (arrival);

-- The places that are taken under a cap, and whose they are.
CREATE TABLE place (
    cap         TEXT NOT NULL,
    place       TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    PRIMARY KEY (cap, place)
) WITHOUT ROWID;
CREATE INDEX place_by_place ON place (place);

-- The latest hints to all nodes. Ids are never used again, so that "what came after" stays true.
CREATE TABLE event (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    kind    TEXT NOT NULL,
    subject TEXT NOT NULL,
    node    TEXT NOT NULL
);
