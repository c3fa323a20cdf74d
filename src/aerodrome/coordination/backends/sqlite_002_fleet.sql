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
CREATE INDEX member_by_user ON member (tenant, user, session);
