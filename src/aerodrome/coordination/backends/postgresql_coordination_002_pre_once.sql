-- An admission has a number, by which its repetition is known: one whose answer was lost has been counted, and is not
-- counted again. The number is kept for a minute, beside the rates and in their way: as a name that is due then.
CREATE FUNCTION coordination_admit_2(
    a_number bigint, of_place text, of_incarnation text,
    rates text[], limits integer[], periods double precision[], caps text[], sizes integer[], ahead double precision,
    OUT verdict integer, OUT which integer, OUT wait double precision
) LANGUAGE plpgsql AS $$
DECLARE
    -- No rate is called so: there is no space in a name of ours.
    mark text := 'admission ' || a_number;
    counted boolean := false;
BEGIN
    IF cardinality(rates) > 0 THEN
        -- Waits for an attempt of the same number that is under way.
        INSERT INTO rate (name, arrival) VALUES (mark, coordination_clock(ahead) + 60) ON CONFLICT DO NOTHING;
        counted := NOT FOUND;
    END IF;
    IF counted THEN
        rates := '{}'; limits := '{}'; periods := '{}';
    END IF;
    SELECT a.verdict, a.which, a.wait INTO verdict, which, wait FROM coordination_admit(
        of_place, of_incarnation, rates, limits, periods, caps, sizes, ahead
    ) AS a;
    IF verdict = 1 THEN
        DELETE FROM rate WHERE rate.name = mark;
    END IF;
END
$$;
