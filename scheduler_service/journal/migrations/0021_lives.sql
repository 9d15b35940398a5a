-- Which server answers, and which of its lives: what was read in one may be gone in the next.

-- A life lasts from a start, or a promotion, to the next. `life` is a digest of the other columns. The timeline is that
-- of the log that is being written: the control file would show the old one until the first checkpoint.
CREATE FUNCTION server_life_v1()
RETURNS TABLE (life bigint, system_identifier bigint, timeline int, started_at timestamptz, standby boolean)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
    SELECT hashtextextended(concat_ws('/', s.system_identifier, t.timeline, extract(epoch FROM pg_postmaster_start_time())), 0),
           s.system_identifier, t.timeline, pg_postmaster_start_time(), pg_is_in_recovery()
    FROM pg_control_system() s,
         LATERAL (SELECT CASE WHEN pg_is_in_recovery() THEN 0
             ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END AS timeline) t
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_scheduler')
       OR NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_executor') THEN
        RAISE NOTICE 'roles backburner_scheduler and backburner_executor do not exist: no grants (see deploy/roles.sql)';
        RETURN;
    END IF;
    GRANT EXECUTE ON FUNCTION server_life_v1() TO backburner_scheduler, backburner_executor;
END
$$;
