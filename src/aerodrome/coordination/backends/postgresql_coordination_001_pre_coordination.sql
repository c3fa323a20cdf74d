-- Who is alive, who runs which session, and what is in use. Nothing here has to survive: tables that change all the
-- time are not logged, and are empty after a crash of the server or on a standby that has taken over.
--
-- Times are seconds since 1970 on the server's own clock. `ahead` moves it (tests only).
CREATE FUNCTION coordination_clock(ahead double precision) RETURNS double precision
LANGUAGE sql VOLATILE AS $$ SELECT extract(epoch FROM clock_timestamp())::double precision + ahead $$;

CREATE UNLOGGED TABLE node (
    incarnation text COLLATE "C" PRIMARY KEY,
    name        text COLLATE "C" NOT NULL,
    address     text NOT NULL,
    peer_token  text NOT NULL,
    load        text NOT NULL,
    -- Seconds that a beat gives it.
    ttl         double precision NOT NULL,
    dies_at     double precision NOT NULL,
    drain       boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);

-- The last lease of each session. A released one stays without an incarnation, for its epoch.
CREATE TABLE lease (
    tenant      text COLLATE "C" NOT NULL,
    session     text COLLATE "C" NOT NULL,
    epoch       bigint NOT NULL,
    incarnation text COLLATE "C",
    PRIMARY KEY (tenant, session)
);

-- The highest epoch of any forgotten session (one row): a session that is deleted and made again under the same id
-- gets an epoch above that of a paused node which still believes in the first one.
CREATE TABLE epoch_floor (
    id    integer PRIMARY KEY CHECK (id = 0),
    epoch bigint NOT NULL
);
INSERT INTO epoch_floor (id, epoch) VALUES (0, 0);

-- When the next admission under a rate is due if all came evenly (GCRA). A name that is not here has been used so
-- little that nothing needs to be remembered.
CREATE UNLOGGED TABLE rate (
    name    text COLLATE "C" PRIMARY KEY,
    arrival double precision NOT NULL
);
CREATE INDEX rate_by_arrival ON rate (arrival);

-- The places that are taken under a cap, and whose they are.
CREATE UNLOGGED TABLE place (
    cap         text COLLATE "C" NOT NULL,
    place       text COLLATE "C" NOT NULL,
    incarnation text COLLATE "C" NOT NULL,
    PRIMARY KEY (cap, place)
);
CREATE INDEX place_by_place ON place (place);
CREATE INDEX place_by_incarnation ON place (incarnation);

-- The new epoch, or null: somebody else holds it, or we are dead.
CREATE FUNCTION coordination_acquire(
    of_tenant text, of_session text, claimant text, at_least bigint, ahead double precision
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    held lease;
BEGIN
    IF NOT EXISTS (
        SELECT FROM node WHERE node.incarnation = claimant AND node.dies_at > coordination_clock(ahead)
    ) THEN
        RETURN NULL;
    END IF;
    LOOP
        INSERT INTO lease (tenant, session, epoch) VALUES (of_tenant, of_session, 0) ON CONFLICT DO NOTHING;
        SELECT * INTO held FROM lease WHERE tenant = of_tenant AND session = of_session FOR UPDATE;
        -- Not there: it was forgotten in between.
        EXIT WHEN FOUND;
    END LOOP;
    IF held.epoch = 0 THEN
        -- Read only now: a `forget` that we may have waited for has raised it.
        SELECT epoch INTO held.epoch FROM epoch_floor;
    END IF;
    IF held.incarnation <> claimant THEN
        -- Whoever is taken from is buried in the same transaction: a beat on its way must not bring it back.
        DELETE FROM node WHERE node.incarnation = held.incarnation AND node.dies_at <= coordination_clock(ahead);
        IF EXISTS (SELECT FROM node WHERE node.incarnation = held.incarnation) THEN
            RETURN NULL;
        END IF;
    END IF;
    UPDATE lease SET epoch = greatest(held.epoch, at_least) + 1, incarnation = claimant
    WHERE tenant = of_tenant AND session = of_session
    RETURNING epoch INTO held.epoch;
    RETURN held.epoch;
END
$$;

-- One admission: `verdict` 0: granted; 1: rate number `which` is used up for `wait` seconds; 2: cap number `which` is full.
CREATE FUNCTION coordination_admit(
    of_place text, of_incarnation text,
    rates text[], limits integer[], periods double precision[], caps text[], sizes integer[], ahead double precision,
    OUT verdict integer, OUT which integer, OUT wait double precision
) LANGUAGE plpgsql AS $$
DECLARE
    now double precision;
    arrivals double precision[] := '{}';
    arrival double precision;
    lock integer;
BEGIN
    -- One at a time for each name, always in the same order.
    FOR lock IN
        SELECT DISTINCT hashtext(concat(current_schema, kind, name)) AS hash
        FROM (SELECT 'rate' AS kind, unnest(rates) AS name UNION ALL SELECT 'cap', unnest(caps)) AS names
        ORDER BY hash
    LOOP
        PERFORM pg_advisory_xact_lock(1634037359, lock);
    END LOOP;
    now := coordination_clock(ahead);
    verdict := 0;
    FOR i IN 1 .. cardinality(rates) LOOP
        SELECT rate.arrival INTO arrival FROM rate WHERE rate.name = rates[i];
        arrival := greatest(coalesce(arrival, now), now);
        wait := arrival - now - periods[i] * (limits[i] - 1) / limits[i];
        -- Each admission may have been rounded by less than a microsecond.
        IF wait > limits[i] * 1e-6 THEN
            verdict := 1;
            which := i;
            RETURN;
        END IF;
        arrivals := arrivals || (arrival + periods[i] / limits[i]);
    END LOOP;
    FOR i IN 1 .. cardinality(rates) LOOP
        INSERT INTO rate AS r (name, arrival) VALUES (rates[i], arrivals[i])
        ON CONFLICT (name) DO UPDATE SET arrival = excluded.arrival;
    END LOOP;
    -- An arrival in the past says as much as none; there would be a row for every user who ever came.
    DELETE FROM rate WHERE rate.name IN (
        SELECT r.name FROM rate AS r WHERE r.arrival < now ORDER BY r.arrival LIMIT 10 FOR UPDATE SKIP LOCKED
    );
    FOR i IN 1 .. cardinality(caps) LOOP
        CONTINUE WHEN EXISTS (SELECT FROM place WHERE place.cap = caps[i] AND place.place = of_place);
        CONTINUE WHEN (SELECT count(*) FROM place WHERE place.cap = caps[i]) < sizes[i];
        -- Only now does it matter who among them is dead.
        DELETE FROM place WHERE place.cap = caps[i] AND NOT EXISTS (
            SELECT FROM node WHERE node.incarnation = place.incarnation AND node.dies_at > now
        );
        IF (SELECT count(*) FROM place WHERE place.cap = caps[i]) >= sizes[i] THEN
            verdict := 2;
            which := i;
            RETURN;
        END IF;
    END LOOP;
    INSERT INTO place AS p (cap, place, incarnation) SELECT unnest(caps), of_place, of_incarnation
    ON CONFLICT (cap, place) DO UPDATE SET incarnation = excluded.incarnation;
END
$$;
