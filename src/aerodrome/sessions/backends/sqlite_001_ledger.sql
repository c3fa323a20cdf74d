-- The message ledger: every accepted prompt and what became of it, in the order of acceptance (`number`).
-- Columns of type BLOB hold text that may contain lone surrogates; attachments, answer, usage and error are JSON.
CREATE TABLE turn (
    number          INTEGER PRIMARY KEY,
    tenant          TEXT NOT NULL,
    session         TEXT NOT NULL,
    id              TEXT NOT NULL,
    author          TEXT NOT NULL,
    status          TEXT NOT NULL,
    prompt          BLOB NOT NULL,
    incarnation     TEXT NOT NULL,
    attachments     TEXT NOT NULL,
    idempotency_key BLOB,
    digest          TEXT NOT NULL,
    message_id      TEXT,
    answer          TEXT,
    usage           TEXT,
    error           TEXT,
    retried         INTEGER NOT NULL,
    tool_ran        INTEGER NOT NULL,
    created_at      REAL NOT NULL,
    started_at      REAL,
    ended_at        REAL,
    UNIQUE (tenant, session, id)
);

CREATE UNIQUE INDEX turn_by_idempotency_key ON turn (tenant, session, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- Few turns are unfinished at any time; what a restart must look at costs no scan of the history.
CREATE INDEX turn_unfinished ON turn (number) WHERE status IN ('queued', 'running');
