-- The message ledger: every accepted prompt and what became of it, in the order of acceptance (`number`).
-- Columns of type bytea hold text that may contain NUL and lone surrogates; attachments, answer, usage and error are
-- JSON, as text, because jsonb refuses both.
CREATE TABLE turn (
    number          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant          text COLLATE "C" NOT NULL,
    session         text COLLATE "C" NOT NULL,
    id              text COLLATE "C" NOT NULL,
    author          text NOT NULL,
    status          text NOT NULL,
    prompt          bytea NOT NULL,
    incarnation     text NOT NULL,
    attachments     text NOT NULL,
    idempotency_key bytea,
    digest          text NOT NULL,
    message_id      text,
    answer          text,
    usage           text,
    error           text,
    retried         boolean NOT NULL,
    tool_ran        boolean NOT NULL,
    created_at      double precision NOT NULL,
    started_at      double precision,
    ended_at        double precision,
    -- Numbers of the writes that made the row and that made it final: one that is repeated finds its own.
    accepted_by     bigint NOT NULL,
    finished_by     bigint,
    UNIQUE (tenant, session, id)
) WITH (fillfactor = 80);

CREATE UNIQUE INDEX turn_by_idempotency_key ON turn (tenant, session, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- A session's history in order; also what is forgotten with it.
CREATE INDEX turn_by_session ON turn (tenant, session, number);

-- Few turns are unfinished at any time; what a restart must look at costs no scan of the history.
CREATE INDEX turn_unfinished ON turn (number) WHERE status IN ('queued', 'running');
