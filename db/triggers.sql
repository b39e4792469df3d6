-- evervec: the database contract.
--
-- Complete and idempotent: `psql -f triggers.sql`, as often as you like, by a role that owns the tables to be watched.
-- Needs PostgreSQL 16 or newer; pgvector 0.7 or newer before the first watch(). No superuser, no other extension.
--
--   select evervec.watch('items', '{name,description}', required => '{name}', active => 'active');
--   select * from evervec.status;
--
-- How it works: row triggers put each row that a statement leaves stale into evervec.outbox and ring a bell (NOTIFY).
-- The outbox is the truth, the bell may be missed. A listener turns it into work; workers read items, embed them and
-- call evervec.write_back(), which writes a vector only if the row's content still hashes to what was embedded.
-- SQL that touches a watched table is made here, from evervec.source, and nowhere else.

BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog, pg_temp;
-- Two installers at once would trip over each other's CREATE OR REPLACE.
DO $$
BEGIN
  PERFORM pg_advisory_xact_lock(7310312410226385251);
  IF current_setting('server_version_num')::int < 160000 THEN
    RAISE EXCEPTION 'evervec needs PostgreSQL 16 or newer, this is %', current_setting('server_version');
  END IF;
  IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'vector')
     AND EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') THEN
    CREATE EXTENSION vector SCHEMA public;
  END IF;
EXCEPTION WHEN insufficient_privilege OR undefined_file THEN
  RAISE WARNING 'pgvector is not installed in this database: have an administrator run CREATE EXTENSION vector';
END $$;

-- Whoever owns the schema can replace what is in it, and CREATE OR REPLACE leaves a function to whoever owns it. So all of it
-- belongs to one role: of two superusers, or members of each other, to the first.
DO $$
DECLARE
  present oid := (SELECT nspowner FROM pg_namespace WHERE nspname = 'evervec');
BEGIN
  IF pg_get_userbyid(present) = current_user OR present IS NULL THEN
    RETURN;
  ELSIF pg_has_role(present, current_user, 'USAGE') AND pg_has_role(current_user, present, 'SET') THEN
    PERFORM set_config('role', pg_get_userbyid(present), true);
    RETURN;
  END IF;
  RAISE EXCEPTION 'the schema evervec belongs to another role, %: run this file as that role', present::regrole USING
    ERRCODE = 'insufficient_privilege', HINT = 'If it is no installation of yours, drop the schema first.';
END $$;
CREATE SCHEMA IF NOT EXISTS evervec;
COMMENT ON SCHEMA evervec IS 'Keeps vector embeddings true to the rows they describe.';

---------------------------------------------------------------------------------------------------------------------
-- Tables
---------------------------------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS evervec.instance (
  id             text NOT NULL DEFAULT substr(replace(gen_random_uuid()::text, '-', ''), 1, 10),
  schema_version int NOT NULL,
  home           text,
  only_row       boolean PRIMARY KEY DEFAULT true CHECK (only_row)
);
COMMENT ON TABLE evervec.instance IS 'This installation: its id keeps two databases on one Temporal namespace apart.';

COMMENT ON COLUMN evervec.instance.home IS 'The server and database that the id was made for: a copy gets an id of its own.';

-- One more with each function or column that programs need and earlier versions of this file did not have.
INSERT INTO evervec.instance (schema_version) VALUES (3) ON CONFLICT (only_row) DO UPDATE SET schema_version = 3;

CREATE TABLE IF NOT EXISTS evervec.source (
  name             text PRIMARY KEY,
  id               int GENERATED ALWAYS AS IDENTITY UNIQUE,
  relation         regclass NOT NULL,
  key_column       name NOT NULL,
  key_type         text NOT NULL,
  text_columns     name[] NOT NULL,
  required_columns name[] NOT NULL,
  active           text,
  active_columns   name[] NOT NULL,
  destination      text NOT NULL CHECK (destination IN ('column', 'table')),
  embedding_column name NOT NULL,
  side_table       regclass,
  model            text NOT NULL,
  revision         text NOT NULL,
  dimension        int NOT NULL,
  prompt           text NOT NULL,
  fingerprint      text NOT NULL,
  model_label      text NOT NULL,
  paused           boolean NOT NULL DEFAULT false,
  filling          boolean NOT NULL DEFAULT true,
  filled_to        text,
  rate             real CHECK (rate > 0),
  created_at       timestamptz NOT NULL DEFAULT now(),
  trusted          regrole
);
COMMENT ON TABLE evervec.source IS 'A watched table and how to read it. Change it with evervec.watch().';
COMMENT ON COLUMN evervec.source.active IS 'A boolean column, or a predicate over the row; null: every row is active.';
COMMENT ON COLUMN evervec.source.active_columns IS 'The columns that active reads.';
COMMENT ON COLUMN evervec.source.fingerprint IS 'SHA-256 of what decides a vector besides the text.';
COMMENT ON COLUMN evervec.source.model_label IS 'What write-back puts into embedding_model; search finds only this.';
COMMENT ON COLUMN evervec.source.filling IS 'The first fill is still to run, or running.';
COMMENT ON COLUMN evervec.source.filled_to IS 'The last key that the first fill has seen.';

CREATE SEQUENCE IF NOT EXISTS evervec.outbox_version;

-- Rows come and go all the time: room to update all rows of a page in place, as one big UPDATE of items that wait does, and
-- vacuum before the dead ones pile up. No CHECK on state, 'pending' or 'failed': every statement of a writer would parse
-- it anew. Keys are compared byte by byte, which takes a fraction of the time that a language's order takes, and stays the same
-- when the operating system's locales are updated.
CREATE TABLE IF NOT EXISTS evervec.outbox (
  source       text NOT NULL,
  item_key     text COLLATE "C" NOT NULL,
  content_hash text,
  version      bigint NOT NULL,
  queued_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
  state        text NOT NULL DEFAULT 'pending',
  attempts     int NOT NULL DEFAULT 0,
  forced       boolean NOT NULL DEFAULT false,
  last_error   text,
  failed_at    timestamptz,
  due_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (source, item_key)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
-- What earlier versions of this file did not have. ALTER TABLE locks even where there is nothing to do.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'evervec.outbox'::regclass AND attname = 'due_at') THEN
    ALTER TABLE evervec.outbox ADD COLUMN due_at timestamptz NOT NULL DEFAULT clock_timestamp();
    ALTER TABLE evervec.source ADD COLUMN rate real CHECK (rate > 0);
  END IF;
  IF EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'evervec.outbox'::regclass AND contype = 'c') THEN
    ALTER TABLE evervec.outbox DROP CONSTRAINT outbox_state_check;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'evervec.source'::regclass AND attname = 'trusted') THEN
    ALTER TABLE evervec.source ADD COLUMN trusted regrole;
  END IF;
  IF EXISTS (SELECT FROM pg_class WHERE oid = 'evervec.outbox'::regclass AND 'fillfactor=70' = ANY (reloptions)) THEN
    ALTER TABLE evervec.outbox SET (fillfactor = 50);
  END IF;
  IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'evervec.outbox'::regclass AND attname = 'item_key'
             AND attcollation <> '"C"'::regcollation) THEN
    DROP VIEW IF EXISTS evervec.failures; -- made anew below
    ALTER TABLE evervec.outbox ALTER item_key TYPE text COLLATE "C";
  END IF;
END $$;
COMMENT ON TABLE evervec.outbox IS 'The items waiting. version is new at every enqueue; a worker deletes only the version it saw.';
COMMENT ON COLUMN evervec.outbox.forced IS 'Embed even if the hash is unchanged.';
COMMENT ON COLUMN evervec.outbox.due_at IS 'The last enqueue; after a failed attempt, when the next one is due.';
COMMENT ON COLUMN evervec.source.trusted IS 'The table''s owner, where only evervec.trusted_owners says that it may be.';
COMMENT ON COLUMN evervec.source.rate IS 'Items a second that bulk work may embed, until nothing waits; null: no limit.';

-- What a walk over a source's rows has counted: the last whole one (done), and the one that is under way. It goes with the
-- row of evervec.source that it was made for, which watch() replaces.
CREATE TABLE IF NOT EXISTS evervec.total (
  source       text NOT NULL REFERENCES evervec.source (name) ON DELETE CASCADE,
  done         boolean NOT NULL DEFAULT false,
  last_key     text,
  total        bigint NOT NULL,
  eligible     bigint NOT NULL,
  missing      bigint NOT NULL,
  forced_stale bigint NOT NULL,
  inserted     bigint NOT NULL DEFAULT 0,
  deleted      bigint NOT NULL DEFAULT 0,
  changes      bigint NOT NULL,
  files        bigint NOT NULL,
  started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  counted_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (source, done)
);
COMMENT ON TABLE evervec.total IS 'The counts of large sources, as old as counted_at. evervec.status brings them up to date.';
COMMENT ON COLUMN evervec.total.missing IS 'Stale items that were not in the outbox.';
COMMENT ON COLUMN evervec.total.forced_stale IS 'Stale items among the forced ones in the outbox.';
COMMENT ON COLUMN evervec.total.inserted IS 'PostgreSQL''s counter of rows inserted into the table when the walk ended; deleted: the same.';
COMMENT ON COLUMN evervec.total.changes IS 'All changes that PostgreSQL had counted when the walk began.';
COMMENT ON COLUMN evervec.total.files IS 'The table''s files: others after a TRUNCATE, or when a partition comes or goes.';

-- What waits in an outbox that is too long to be counted at each look.
CREATE TABLE IF NOT EXISTS evervec.backlog (
  source     text PRIMARY KEY REFERENCES evervec.source (name) ON DELETE CASCADE,
  waiting    bigint NOT NULL,
  forced     bigint NOT NULL DEFAULT 0,
  failed     bigint NOT NULL DEFAULT 0,
  oldest     timestamptz,
  counted_at timestamptz NOT NULL DEFAULT '-infinity',
  took       interval NOT NULL DEFAULT '0'
);
COMMENT ON TABLE evervec.backlog IS 'The counts of an outbox of many rows, some seconds old. Empty while there are few.';

-- What the workers have done, as they tell every few seconds. Not bound to the row of evervec.source, which watch() replaces.
CREATE TABLE IF NOT EXISTS evervec.work (
  source   text NOT NULL,
  minute   timestamptz NOT NULL,
  embedded bigint NOT NULL,
  skipped  bigint NOT NULL,
  failed   bigint NOT NULL,
  latency  bigint[] NOT NULL,
  PRIMARY KEY (source, minute)
) WITH (fillfactor = 50);
COMMENT ON TABLE evervec.work IS 'What was done, a row a source and minute, of the last 25 hours. Statistics: some may be lost.';
COMMENT ON COLUMN evervec.work.embedded IS 'Vectors written.';
COMMENT ON COLUMN evervec.work.skipped IS 'Items that needed none: unchanged, ineligible or gone.';
COMMENT ON COLUMN evervec.work.failed IS 'Items given up.';
COMMENT ON COLUMN evervec.work.latency IS 'How many of the vectors came at most 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, '
  '2, 3, 5, 10, 30, 60, 300, 1800, 7200 seconds after their items were enqueued, and how many later; each is counted once.';

---------------------------------------------------------------------------------------------------------------------
-- Expressions: what a source means, as SQL text
---------------------------------------------------------------------------------------------------------------------

-- What counts as blank: Unicode's White_Space, where the encoding has it.
CREATE OR REPLACE FUNCTION evervec.whitespace() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
  -- PostgreSQL 16 takes \v for the letter.
  SELECT E' \t\n\r\f\x0b' || CASE WHEN getdatabaseencoding() = 'UTF8' THEN
    (SELECT string_agg(chr(c), '') FROM unnest(ARRAY[133, 160, 5760, 8192, 8193, 8194, 8195, 8196, 8197, 8198, 8199,
                                                     8200, 8201, 8202, 8232, 8233, 8239, 8287, 12288]) AS c)
    ELSE '' END
$$;

-- True when the column begins with a visible character of ASCII, as texts almost always do.
CREATE OR REPLACE FUNCTION evervec.begins_visibly_sql(p_row text, p_column name) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT format('%1$s COLLATE "C" >= ''!'' AND %1$s COLLATE "C" < E''\x7f''', format('%s.%I::text', p_row, p_column))
$$;

-- True when the column is neither NULL nor whitespace. The first character decides almost always, or the first few, so
-- that a long text is not taken apart.
CREATE OR REPLACE FUNCTION evervec.not_blank_sql(p_row text, p_column name) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT format('(%3$s OR ltrim(left(%1$s, 32), %2$L) <> '''' OR ltrim(%1$s, %2$L) <> '''')',
                format('%s.%I::text', p_row, p_column), evervec.whitespace(), evervec.begins_visibly_sql(p_row, p_column))
$$;

-- The text made of an item's columns: those that are not blank, joined by ' | '.
CREATE OR REPLACE FUNCTION evervec.content_sql(p_row text, p_columns name[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT 'concat_ws('' | '', '
         || string_agg(format('CASE WHEN %s THEN %s.%I::text END', evervec.not_blank_sql(p_row, c), p_row, c), ', '
                       ORDER BY n) || ')'
  FROM unnest(p_columns) WITH ORDINALITY AS u (c, n)
$$;

-- SHA-256 over the fingerprint and the content in UTF-8, as hexadecimal text. Where the database knows no characters
-- (SQL_ASCII), over the bytes that are there: a conversion would fail, and with it the writer's statement.
CREATE OR REPLACE FUNCTION evervec.content_hash_sql(p_fingerprint text, p_content text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT format('encode(sha256(convert_to(%L || %s, %L)), ''hex'')', p_fingerprint, p_content,
                CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)
$$;

-- Whether an item is to be embedded: active, and no required column blank.
CREATE OR REPLACE FUNCTION evervec.eligible_sql(p_row text, p_active text, p_required name[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT '(' || concat_ws(' AND ', format('(%s) IS TRUE', p_active),
                          (SELECT string_agg(evervec.not_blank_sql(p_row, c) || ' IS TRUE', ' AND ' ORDER BY n)
                           FROM unnest(p_required) WITH ORDINALITY AS u (c, n))) || ')'
$$;

-- The four columns that a write-back fills, named after the embedding column.
CREATE OR REPLACE FUNCTION evervec.hash_column(p_embedding name) RETURNS name
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT (p_embedding || '_hash')::name $$;
CREATE OR REPLACE FUNCTION evervec.model_column(p_embedding name) RETURNS name
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT (p_embedding || '_model')::name $$;
CREATE OR REPLACE FUNCTION evervec.time_column(p_embedding name) RETURNS name
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE p_embedding WHEN 'embedding' THEN 'embedded_at' ELSE p_embedding || '_embedded_at' END::name
$$;

-- The schema that pgvector lives in; an error when there is none.
CREATE OR REPLACE FUNCTION evervec.vector_schema() RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  found_schema text;
BEGIN
  SELECT quote_ident(n.nspname) INTO found_schema
  FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace WHERE x.extname = 'vector';
  IF found_schema IS NULL THEN
    RAISE EXCEPTION 'pgvector is not installed in this database' USING
      ERRCODE = 'undefined_object', HINT = 'Install pgvector 0.7 or newer and run CREATE EXTENSION vector.';
  END IF;
  RETURN found_schema;
END $$;

-- The role whose rights the functions have that others call: the owner of the schema, and of all that is in it.
CREATE OR REPLACE FUNCTION evervec.owner() RETURNS oid
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
  SELECT nspowner FROM pg_namespace WHERE nspname = 'evervec'
$$;

-- Whether a role has the rights of evervec's owner anyway. Whoever owns a table decides what runs when it is read or written
-- (triggers, casts, expressions of indexes and policies), and here it runs with those rights.
CREATE OR REPLACE FUNCTION evervec.has_our_rights(p_role oid) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
  SELECT pg_has_role(p_role, evervec.owner(), 'USAGE')
$$;

-- Whether the setting evervec.trusted_owners, names with commas between, says that a role may do what evervec's owner may.
-- It counts in watch() alone, which nobody else can call.
CREATE OR REPLACE FUNCTION evervec.is_vouched_for(p_role oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT pg_get_userbyid(p_role)::text IN (
    SELECT btrim(n) FROM unnest(string_to_array(current_setting('evervec.trusted_owners', true), ',')) AS n)
$$;

-- Whether a source's tables are there and belong to whom they may belong.
CREATE OR REPLACE FUNCTION evervec.is_sound(s evervec.source) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (SELECT FROM pg_class WHERE oid = s.relation) AND NOT EXISTS (
    SELECT FROM pg_class c, pg_namespace n
    WHERE n.nspname = 'evervec' AND c.oid IN (s.relation, s.side_table) AND c.relowner <> n.nspowner
      AND c.relowner IS DISTINCT FROM s.trusted::oid AND NOT pg_has_role(c.relowner, n.nspowner, 'USAGE'))
$$;

-- A source by name, or one clear error.
CREATE OR REPLACE FUNCTION evervec.get_source(p_source text) RETURNS evervec.source
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s evervec.source;
BEGIN
  SELECT * INTO s FROM evervec.source WHERE name = p_source;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'no source named %', coalesce(quote_literal(p_source), 'NULL') USING
      ERRCODE = 'no_data_found', HINT = 'select name from evervec.source lists them, evervec.watch() adds one.';
  END IF;
  IF NOT EXISTS (SELECT FROM pg_class WHERE oid = s.relation) THEN
    RAISE EXCEPTION 'the table of source % no longer exists', quote_literal(p_source) USING
      ERRCODE = 'undefined_table', HINT = format('select evervec.unwatch(%L) forgets the source.', p_source);
  ELSIF EXISTS (SELECT FROM pg_class c, pg_namespace n WHERE n.nspname = 'evervec'
                AND c.oid IN (s.relation, s.side_table) AND c.relowner <> n.nspowner) -- a call of a function costs more
        AND NOT evervec.is_sound(s) THEN
    RAISE EXCEPTION 'the table of source % was given to another owner', quote_literal(p_source) USING
      ERRCODE = 'insufficient_privilege', HINT = 'evervec.watch() again says what to do; evervec.unwatch() forgets the source.';
  END IF;
  RETURN s;
END $$;

-- The watched table as a FROM item: rows of inheriting tables are not the source's, those of partitions are.
CREATE OR REPLACE FUNCTION evervec.relation_sql(p_relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || p_relation::text FROM pg_class WHERE oid = p_relation
$$;

-- An item's key as it stands in the outbox. By any other collation, as that of the column, the outbox would be compared without
-- its index.
CREATE OR REPLACE FUNCTION evervec.item_key_sql(p_row text, p_key name) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT format('%s.%I::text COLLATE "C"', p_row, p_key)
$$;

-- The items of a source as a sub-select: id (of the key's own type), item_key, eligible, content, content_hash,
-- embedding, embedding_hash (null without a vector), embedding_model, embedded_at. Predicates see the table alone, so that
-- their bare column names can't be ambiguous.
CREATE OR REPLACE FUNCTION evervec.items_sql(s evervec.source, p_where text DEFAULT 'true') RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT format($sql$
    SELECT t.%1$I AS id, %14$s AS item_key, %2$s AS eligible, %3$s AS content, %4$s AS content_hash,
           %5$s.%6$I AS embedding, CASE WHEN %5$s.%6$I IS NOT NULL THEN %5$s.%7$I END AS embedding_hash,
           %5$s.%8$I AS embedding_model, %5$s.%9$I AS embedded_at
    FROM (SELECT t.*, (%10$s
      ) IS TRUE AS evervec_active FROM %11$s AS t WHERE (%12$s
      )) AS t %13$s$sql$,
    s.key_column, evervec.eligible_sql('t', 't.evervec_active', s.required_columns),
    evervec.content_sql('t', s.text_columns),
    evervec.content_hash_sql(s.fingerprint, evervec.content_sql('t', s.text_columns)),
    CASE s.destination WHEN 'table' THEN 'e' ELSE 't' END, s.embedding_column,
    evervec.hash_column(s.embedding_column), evervec.model_column(s.embedding_column),
    evervec.time_column(s.embedding_column), coalesce(s.active, 'true'), evervec.relation_sql(s.relation), p_where,
    CASE s.destination WHEN 'table' THEN
      format('LEFT JOIN %1$s AS e ON e.%2$I = t.%2$I', s.side_table::text, s.key_column) ELSE '' END,
    evervec.item_key_sql('t', s.key_column))
$$;

---------------------------------------------------------------------------------------------------------------------
-- The outbox and the bell
---------------------------------------------------------------------------------------------------------------------

-- Which of the bell's locks is that of a transaction which began at this moment: that of its second, 0 to 59. Without a
-- search_path of its own, so that it is inlined where it is called, and short, since every transaction sets it up.
CREATE OR REPLACE FUNCTION evervec.bell(p_moment timestamptz) RETURNS int LANGUAGE sql STABLE AS $$
  SELECT pg_catalog.trunc(pg_catalog.date_part('second', p_moment))::int
$$;

-- Ring the bell: NOTIFY evervec. Whoever commits a NOTIFY holds a cluster-wide lock through its commit, so of the
-- transactions that began in the same second only one at a time rings: a long one keeps the bell from those of
-- its own age alone. The listener looks into the outbox right after a ring and every second besides. A full queue would
-- fail the writer's commit: nobody rings when it is half full, and a transaction rings no more than a quarter of the
-- smallest queue there can be, which is about 1,000 items. Who rings for no item in particular has enqueued many, and keeps
-- nobody from ringing: beside pages of a re-fire, one after the other, edits would go unheard, and wait for all of it.
CREATE OR REPLACE FUNCTION evervec.ring(p_source text, p_key text DEFAULT NULL, p_hash text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  rung    int := coalesce(nullif(current_setting('evervec.rung', true), ''), '0')::int;
  payload text;
BEGIN
  IF rung >= 131072 OR p_key IS NOT NULL AND NOT pg_try_advisory_xact_lock(731031240, evervec.bell(now()))
     OR (rung = 0 AND pg_notification_queue_usage() > 0.5) THEN
    RETURN;
  END IF;
  payload := '{"source": ' || to_json(p_source) || ', "items": ['
             || coalesce('[' || to_json(p_key) || ', ' || coalesce('"' || p_hash || '"', 'null') || ']', '') || ']}';
  IF octet_length(payload) >= 8000 THEN
    payload := '{"source": ' || to_json(p_source) || ', "items": []}';
  END IF;
  PERFORM pg_notify('evervec', payload);
  payload := set_config('evervec.rung', (rung + octet_length(payload) + 28)::text, true);
END $$;

-- The same as a statement of a trigger function. Where somebody rings already it costs no call, and where a transaction has
-- rung enough no query. Two short conditions, since a transaction sets up all of the one that it comes to.
CREATE OR REPLACE FUNCTION evervec.ring_sql(p_source text, p_arguments text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT format(E'  IF pg_try_advisory_xact_lock(731031240, evervec.bell(CURRENT_TIMESTAMP)) THEN\n'
                '    IF coalesce(nullif(current_setting(''evervec.rung'', true), ''''), ''0'')::int < 131072\n'
                '      AND evervec.ring(%L, %s) IS NULL THEN\n      NULL;\n    END IF;\n  END IF;\n', p_source, p_arguments)
$$;

-- Earlier versions of this file returned less.
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace AND proname = 'enqueue_page'
             AND NOT 'eligible' = ANY (proargnames)) THEN
    DROP FUNCTION evervec.enqueue_page(text, text, boolean, text, bigint);
  END IF;
END $$;

-- Enqueue the eligible items of one page that are stale (or all of them when forced), in the order of their keys.
-- A merge with the side table would begin at its first row, for each page again.
CREATE OR REPLACE FUNCTION evervec.enqueue_page(
  p_source text, p_predicate text, p_forced boolean, p_after text, p_limit bigint,
  OUT last_key text, OUT scanned bigint, OUT enqueued bigint, OUT eligible bigint
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_mergejoin = off AS $$
DECLARE
  s evervec.source := evervec.get_source(p_source);
BEGIN
  EXECUTE format($sql$
    WITH page AS MATERIALIZED (
      SELECT i.id, i.item_key, i.content_hash, i.eligible,
             i.eligible AND ($2 OR i.embedding_hash IS DISTINCT FROM i.content_hash) AS wanted
      FROM (%1$s) AS i WHERE $3 IS NULL OR i.id > $3::%2$s ORDER BY i.id LIMIT $4
    ), enqueued AS (
      INSERT INTO evervec.outbox AS o (source, item_key, content_hash, version, forced)
      SELECT $1, p.item_key, p.content_hash, nextval('evervec.outbox_version'), $2 FROM page p WHERE p.wanted ORDER BY p.id
      ON CONFLICT (source, item_key) DO UPDATE SET content_hash = excluded.content_hash, version = excluded.version,
        state = 'pending', attempts = 0, last_error = NULL, failed_at = NULL, due_at = excluded.due_at,
        forced = o.forced OR excluded.forced
      RETURNING 1
    )
    SELECT (SELECT p.item_key FROM page p ORDER BY p.id DESC LIMIT 1), (SELECT count(*) FROM page),
           (SELECT count(*) FROM enqueued), (SELECT count(*) FROM page p WHERE p.eligible)
    $sql$, evervec.items_sql(s, p_predicate), s.key_type)
  INTO last_key, scanned, enqueued, eligible
  USING p_source, p_forced, p_after, p_limit;
END $$;

---------------------------------------------------------------------------------------------------------------------
-- Triggers on watched tables
---------------------------------------------------------------------------------------------------------------------

-- An error unless the text is one expression over the table's columns.
CREATE OR REPLACE FUNCTION evervec.check_expression(p_relation regclass, p_expression text, p_what text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  probe   refcursor;
  context text;
BEGIN
  -- A cursor takes one SELECT and nothing else, whatever the text holds. What is no expression, but closes a parenthesis
  -- and opens another, does not fit into all of these.
  FOREACH context IN ARRAY ARRAY[
    E'SELECT FROM %1$s AS t WHERE (%2$s\n) LIMIT 0', E'SELECT FROM %1$s AS t WHERE ((%2$s\n)) LIMIT 0',
    E'SELECT (%2$s\n) IS TRUE FROM %1$s AS t LIMIT 0'] LOOP
    OPEN probe FOR EXECUTE format(context, p_relation, p_expression);
    CLOSE probe;
  END LOOP;
EXCEPTION
  WHEN lock_not_available OR deadlock_detected THEN
    RAISE; -- somebody holds the table: no fault of the expression
  WHEN others THEN
    RAISE EXCEPTION '% can''t be evaluated over the rows of %: %', p_what, p_relation, split_part(SQLERRM, E'\n', 1) USING
      ERRCODE = 'invalid_parameter_value',
      HINT = 'Write an expression over the row, such as: status = ''open''. '
             'Functions and types outside pg_catalog need their schema.';
END $$;

-- The columns that a predicate reads, as PostgreSQL's own parser sees it; an error when it reads another table, where
-- changes would not be noticed.
CREATE OR REPLACE FUNCTION evervec.predicate_columns(p_relation regclass, p_predicate text) RETURNS name[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  columns  name[];
  foreigns text;
  stranger text;
BEGIN
  EXECUTE format(E'CREATE TEMP VIEW evervec_probe AS SELECT (%s\n) AS predicate FROM %s AS t', p_predicate, p_relation);
  SELECT array_agg(DISTINCT a.attname) FILTER (WHERE a.attrelid = p_relation),
         string_agg(DISTINCT d.refobjid::regclass::text, ', ') FILTER (WHERE d.refobjid <> p_relation)
  INTO columns, foreigns
  FROM pg_rewrite r
  JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
  LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND a.attnum > 0
  WHERE r.ev_class = 'pg_temp.evervec_probe'::regclass AND d.refobjid <> r.ev_class;
  SELECT pg_describe_object(d.refclassid, d.refobjid, 0) INTO stranger
  FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
  LEFT JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
  LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
  LEFT JOIN pg_type y ON d.refclassid = 'pg_type'::regclass AND y.oid = d.refobjid
  CROSS JOIN LATERAL (SELECT coalesce(p.proowner, o.oprowner, y.typowner) AS role) AS of
  WHERE r.ev_class = 'pg_temp.evervec_probe'::regclass AND of.role IS NOT NULL
    AND NOT evervec.has_our_rights(of.role) AND NOT evervec.is_vouched_for(of.role) LIMIT 1;
  DROP VIEW pg_temp.evervec_probe;
  IF stranger IS NOT NULL THEN
    RAISE EXCEPTION 'active uses %, whose owner could change it and act with the rights of evervec''s owner, %', stranger,
      evervec.owner()::regrole USING ERRCODE = 'insufficient_privilege', HINT = format('ALTER … OWNER TO %s.',
      evervec.owner()::regrole);
  END IF;
  IF foreigns IS NOT NULL THEN
    RAISE EXCEPTION 'active reads other tables (%), where a change would not be noticed', foreigns USING
      ERRCODE = 'invalid_parameter_value', HINT = 'Use columns of the watched table only.';
  END IF;
  RETURN coalesce(columns, '{}');
END $$;

-- Whether an UPDATE left these columns as they were, as an expression over OLD and NEW. What counts is the text: where
-- equal values may have different texts, or a type knows no equality, images are compared, which takes longer.
CREATE OR REPLACE FUNCTION evervec.same_sql(p_relation regclass, p_columns name[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE base AS (
    SELECT a.attname, a.attcollation, t.typname, t.typtype, t.typbasetype
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = p_relation AND a.attname = ANY (p_columns)
    UNION ALL
    SELECT d.attname, d.attcollation, t.typname, t.typtype, t.typbasetype
    FROM base d JOIN pg_type t ON t.oid = d.typbasetype WHERE d.typtype = 'd'
  ), compared AS (
    SELECT b.attname, b.typtype = 'e' OR b.typname = ANY ('{int2,int4,int8,oid,bool,uuid}')
           OR b.typname = ANY ('{text,varchar,bpchar,name}')
              AND (SELECT c.collisdeterministic FROM pg_collation c WHERE c.oid = b.attcollation) AS by_value
    FROM base b WHERE b.typtype <> 'd'
  )
  SELECT concat_ws(' AND ',
    string_agg(format('OLD.%1$I IS NOT DISTINCT FROM NEW.%1$I', attname), ' AND ' ORDER BY attname) FILTER (WHERE by_value),
    'ROW(' || string_agg(format('OLD.%I', attname), ', ' ORDER BY attname) FILTER (WHERE by_value IS NOT TRUE)
      || ')::record *= ROW(' || string_agg(format('NEW.%I', attname), ', ' ORDER BY attname)
                                FILTER (WHERE by_value IS NOT TRUE) || ')::record')
  FROM compared
$$;

-- The columns that decide what an item is: its key, its texts, and whether it is eligible.
CREATE OR REPLACE FUNCTION evervec.read_columns(s evervec.source) RETURNS name[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT array_agg(DISTINCT c ORDER BY c) FROM unnest(s.text_columns || s.required_columns || s.active_columns || s.key_column) AS c
$$;

-- (Re)make the trigger functions of a source. They are generated so that each is a few plain expressions over OLD and NEW
-- and one upsert, and run with the rights of whoever watches, so that writers need none on this schema.
-- Every transaction sets up each expression anew that it comes to, function by function, which costs more than computing
-- it. So the common case has short expressions of its own. What an AFTER trigger returns is ignored, but RETURN NULL
-- would be another expression. A session keeps its plans: one that was made while nothing waited must not read all of the
-- outbox when much does. An upsert goes by the index anyway; what else looks for rows is not allowed to read them all.
CREATE OR REPLACE FUNCTION evervec.make_trigger_functions(s evervec.source) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  has_side  boolean := s.destination = 'table';
  side      text := s.side_table::text;
  same      text := evervec.same_sql(s.relation, evervec.read_columns(s));
  -- A predicate may name columns that are called like a variable.
  header    text := E'\n#variable_conflict use_column\nDECLARE\n  h text;\n  stored text;\n  is_active boolean;\nBEGIN\n';
  is_column boolean := coalesce(s.active_columns = ARRAY[s.active::name], false);
  old_key   text := evervec.item_key_sql('OLD', s.key_column);
  new_key   text := evervec.item_key_sql('NEW', s.key_column);
  same_key  text := evervec.same_sql(s.relation, ARRAY[s.key_column]);
  visible   text := (SELECT string_agg(evervec.begins_visibly_sql('NEW', c), ' AND ') FROM unnest(s.text_columns) AS c);
  hash      text := evervec.content_hash_sql(s.fingerprint, evervec.content_sql('NEW', s.text_columns));
  plain     text := evervec.content_hash_sql(s.fingerprint, (
    SELECT string_agg(format('NEW.%I::text', c), ' || '' | '' || ' ORDER BY n)
    FROM unnest(s.text_columns) WITH ORDINALITY AS u (c, n)));
  hashed    text := format(E'  IF %s THEN\n    h := %s;\n  ELSE\n    h := %s;\n  END IF;\n', visible, plain, hash);
  settle    text;
  moved     text;
  eligible  text := '';
  stale     text;
  enqueue   text;
  functions text[] := ARRAY['row_', 'touch_', 'edit_', 'gone_', 'truncated_'];
  bodies    text[];
BEGIN
  -- An item that needs nothing any more may have failed with what it was before: the worker is to look at it again.
  settle := format(
    E'    IF TG_OP = ''UPDATE'' AND NOT (%s) THEN\n'
    '      PERFORM evervec.look_again(%L, %s);\n    END IF;\n    RETURN NEW;\n', same, s.name, new_key);
  -- A key that changed: the vector in the table travels with its row, the one beside it is taken along where nothing
  -- stands in its way. The new key is always looked at, since several keys may have changed places.
  moved := format(
    E'  IF NOT (%s) AND TG_OP = ''UPDATE'' THEN\n'
    '    PERFORM evervec.leave_key(%L, %s);\n', same_key, s.name, old_key)
    || CASE WHEN has_side THEN format(
      E'    UPDATE %1$s AS e SET %2$I = NEW.%2$I WHERE e.%2$I = OLD.%2$I\n'
      '      AND NOT EXISTS (SELECT FROM %1$s AS taken WHERE taken.%2$I = NEW.%2$I);\n'
      '    IF NOT FOUND THEN DELETE FROM %1$s AS e WHERE e.%2$I = OLD.%2$I; END IF;\n', side, s.key_column) ELSE '' END;
  IF s.active IS NOT NULL AND NOT is_column THEN
    -- The predicate names columns without a row: let it see NEW as a table.
    eligible := format(E'  SELECT (%s\n  ) INTO is_active FROM (SELECT NEW.*) AS t;\n', s.active);
  END IF;
  IF s.active IS NOT NULL OR s.required_columns <> '{}' THEN
    eligible := eligible || format(E'  IF NOT %s THEN\n%s  END IF;\n', evervec.eligible_sql('NEW',
      CASE WHEN is_column THEN 'NEW.' || s.active WHEN s.active IS NULL THEN 'true' ELSE 'is_active' END,
      s.required_columns), settle);
  END IF;
  stale := CASE WHEN has_side THEN
      -- The snapshot of a repeatable read may be older than a write-back to the side table: what it shows proves nothing.
      format(E'  SELECT e.%I INTO stored FROM %s AS e WHERE e.%I = NEW.%I AND e.%I IS NOT NULL;\n'
             '  IF stored = h AND current_setting(''transaction_isolation'') LIKE ''read%%'' THEN\n%s  END IF;\n',
             evervec.hash_column(s.embedding_column), side, s.key_column, s.key_column, s.embedding_column, settle)
    ELSE format(E'  IF NEW.%I = h AND NEW.%I IS NOT NULL THEN\n%s  END IF;\n',
                evervec.hash_column(s.embedding_column), s.embedding_column, settle) END;
  enqueue := format(
    E'  INSERT INTO evervec.outbox (source, item_key, content_hash, version)\n'
    '  VALUES (%1$L, %2$s, h, nextval(''evervec.outbox_version''))\n'
    '  ON CONFLICT (source, item_key) DO UPDATE SET content_hash = excluded.content_hash, version = excluded.version,\n'
    '    state = ''pending'', attempts = 0, last_error = NULL, failed_at = NULL, due_at = excluded.due_at;\n'
    '%3$s  RETURN NEW;\n', s.name, new_key, evervec.ring_sql(s.name, new_key || ', h'));
  -- What is beside a key that changed proves nothing about the item that has this key now.
  moved := moved || CASE WHEN has_side THEN eligible || hashed || enqueue ELSE '' END || E'  END IF;\n';
  bodies := ARRAY[
    header || format(E'  IF %s THEN\n    RETURN NEW;\n  END IF;\n', same)
      || moved || eligible || hashed || stale || enqueue || 'END ',
    header || format(E'  IF NOT (%s) THEN\n    RETURN NEW;\n  END IF;\n', same)
      || eligible || hashed || stale || enqueue || 'END ',
    header || format(E'  IF %s AND %s THEN\n    h := %s;\n  ELSE\n%s    h := %s;\n  END IF;\n',
                     same_key, visible, plain, moved, hash) || eligible || stale || enqueue || 'END ',
    E'\nBEGIN\n' || format(
      E'  DELETE FROM evervec.outbox WHERE source = %1$L AND item_key = %2$s;\n', s.name, old_key)
    || CASE WHEN has_side THEN format(E'  DELETE FROM %s AS e WHERE e.%I = OLD.%I;\n', side, s.key_column, s.key_column)
       ELSE '' END || evervec.ring_sql(s.name, old_key) || E'  RETURN OLD;\nEND ',
    E'\nBEGIN\n' || format(E'  DELETE FROM evervec.outbox WHERE source = %L;\n', s.name)
    || CASE WHEN has_side THEN format(E'  TRUNCATE %s;\n', side) ELSE '' END || E'  RETURN NULL;\nEND '];
  FOR n IN 1 .. cardinality(functions) LOOP
    EXECUTE format('CREATE OR REPLACE FUNCTION evervec.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER '
                   'SET search_path = pg_catalog, pg_temp %s AS %L', functions[n] || s.id,
                   CASE WHEN has_side OR functions[n] = 'gone_' THEN 'SET enable_seqscan = off' ELSE '' END, bodies[n]);
    EXECUTE format('REVOKE ALL ON FUNCTION evervec.%I() FROM PUBLIC', functions[n] || s.id);
  END LOOP;
END $$;

-- An item needs nothing any more: whoever works on what waited of it is to look at it again. In plpgsql, since before
-- PostgreSQL 18 a function in SQL is planned at each call.
CREATE OR REPLACE FUNCTION evervec.look_again(p_source text, p_item_key text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
  UPDATE evervec.outbox SET version = nextval('evervec.outbox_version'), state = 'pending', attempts = 0, last_error = NULL,
    failed_at = NULL, due_at = clock_timestamp()
  WHERE source = p_source AND item_key = p_item_key;
END $$;

-- An item has another key now: this one goes from the outbox, unless the source has an item of that key.
CREATE OR REPLACE FUNCTION evervec.leave_key(p_source text, p_item_key text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
  s     evervec.source := evervec.get_source(p_source);
  taken boolean;
BEGIN
  EXECUTE format('SELECT EXISTS (SELECT FROM %s AS t WHERE t.%I = $1::%s AND t.%2$I::text = $1)',
                 evervec.relation_sql(s.relation), s.key_column, s.key_type) INTO taken USING p_item_key;
  IF NOT taken THEN
    DELETE FROM evervec.outbox WHERE source = p_source AND item_key = p_item_key;
    PERFORM evervec.ring(p_source, p_item_key);
  END IF;
END $$;

-- Whether a statement can change a row's content without naming one of the columns: by a BEFORE trigger of the user's, on the
-- table or a partition of it.
CREATE OR REPLACE FUNCTION evervec.may_change_unnamed(p_relation regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (SELECT FROM pg_trigger WHERE tgtype & 19 = 19 -- FOR EACH ROW, BEFORE, UPDATE
                 AND (tgrelid = p_relation OR tgrelid IN (SELECT relid FROM pg_partition_tree(p_relation))))
$$;

-- Such a trigger may come later. The guard notices at once, in the statement that makes it or attaches the partition that has
-- it, and has the table's rows looked at from then on.
CREATE OR REPLACE FUNCTION evervec.guard() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM evervec.make_triggers(s) FROM evervec.source s
  WHERE evervec.may_change_unnamed(s.relation)
    AND EXISTS (SELECT FROM pg_trigger WHERE tgrelid = s.relation AND tgname = 'evervec_touch_' || s.id)
    AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = s.relation AND tgname = 'evervec_row_' || s.id);
END $$;

-- Only a superuser can make an event trigger.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'evervec_guard') THEN
    CREATE EVENT TRIGGER evervec_guard ON ddl_command_end WHEN TAG IN ('CREATE TRIGGER', 'ALTER TABLE')
      EXECUTE FUNCTION evervec.guard();
    ALTER EVENT TRIGGER evervec_guard ENABLE ALWAYS;
  END IF;
EXCEPTION WHEN insufficient_privilege THEN
  NULL;
END $$;

-- Whether each row of each UPDATE has to be looked at: where its content may change in a statement that does not name
-- it, or where nobody would notice that it may.
CREATE OR REPLACE FUNCTION evervec.looks_at_rows(p_relation regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtfoid = 'evervec.guard'::regproc AND evtenabled = 'A')
         OR evervec.may_change_unnamed(p_relation)
$$;

-- (Re)make the triggers. Where UPDATEs that name none of the columns need no look, `edit` does all that the others need. Else
-- `row` looks at each row of an UPDATE and does nothing where neither the key nor the content changed, whichever way; `touch`
-- looks at those of a statement that names one of their columns, and does nothing where they changed. A WHEN would be
-- parsed anew by every statement, which takes longer than the call that it saves.
CREATE OR REPLACE FUNCTION evervec.make_triggers(s evervec.source) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  relation text := s.relation::text;
  looks    boolean := evervec.looks_at_rows(s.relation);
BEGIN
  IF looks THEN
    EXECUTE format('CREATE OR REPLACE TRIGGER evervec_row_%1$s AFTER UPDATE ON %2$s FOR EACH ROW '
                   'EXECUTE FUNCTION evervec.row_%1$s()', s.id, relation);
  ELSE
    EXECUTE format('DROP TRIGGER IF EXISTS evervec_row_%1$s ON %2$s', s.id, relation);
  END IF;
  EXECUTE format('CREATE OR REPLACE TRIGGER evervec_touch_%1$s AFTER UPDATE OF %3$s ON %2$s FOR EACH ROW '
                 'EXECUTE FUNCTION evervec.%4$s_%1$s()', s.id, relation,
                 (SELECT string_agg(quote_ident(c), ', ') FROM unnest(evervec.read_columns(s)) AS c),
                 CASE WHEN looks THEN 'touch' ELSE 'edit' END);
  EXECUTE format('CREATE OR REPLACE TRIGGER evervec_insert_%1$s AFTER INSERT ON %2$s FOR EACH ROW '
                 'EXECUTE FUNCTION evervec.row_%1$s()', s.id, relation);
  EXECUTE format('CREATE OR REPLACE TRIGGER evervec_gone_%1$s AFTER DELETE ON %2$s FOR EACH ROW '
                 'EXECUTE FUNCTION evervec.gone_%1$s()', s.id, relation);
  EXECUTE format('CREATE OR REPLACE TRIGGER evervec_truncated_%1$s AFTER TRUNCATE ON %2$s FOR EACH STATEMENT '
                 'EXECUTE FUNCTION evervec.truncated_%1$s()', s.id, relation);
END $$;

-- Earlier versions of this file locked one table.
DO $$
BEGIN
  IF to_regprocedure('evervec.lock_briefly(regclass)') IS NOT NULL THEN
    DROP FUNCTION evervec.lock_briefly(regclass);
  END IF;
END $$;

-- Lock tables against everybody for the rest of the transaction without ever keeping anybody waiting for long: whoever
-- queues behind this request waits 100 ms at most, then gets a turn before the next try. An autovacuum gives way to who has
-- waited for deadlock_timeout, which is longer: it is made to by a lock that nobody who reads or writes waits for.
CREATE OR REPLACE FUNCTION evervec.lock_briefly(p_relations regclass[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  tables   text := (SELECT string_agg(DISTINCT relation::text, ', ') FROM unnest(p_relations) AS relation);
  patience timestamptz := clock_timestamp() + interval '30 seconds';
BEGIN
  LOOP
    BEGIN
      PERFORM set_config('lock_timeout', (1 + greatest(extract(epoch FROM patience - clock_timestamp()), 0))::int || 's', true);
      EXECUTE format('LOCK TABLE %s IN SHARE UPDATE EXCLUSIVE MODE', tables);
      PERFORM set_config('lock_timeout', '100ms', true);
      EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', tables);
      RETURN;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
      IF clock_timestamp() > patience THEN
        RAISE EXCEPTION 'could not lock % for a moment: long transactions hold it', tables USING
          ERRCODE = 'lock_not_available', HINT = 'Nothing was changed. Try again when they have ended.';
      END IF;
    END;
    PERFORM pg_sleep(0.1 + random() * 0.3);
  END LOOP;
END $$;

---------------------------------------------------------------------------------------------------------------------
-- watch
---------------------------------------------------------------------------------------------------------------------

-- The dimension of models that are known without loading them; null for all others.
CREATE OR REPLACE FUNCTION evervec.known_dimension(p_model text) RETURNS int
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE
    WHEN p_model IN ('sentence-transformers/paraphrase-multilingual-mpnet-base-v2', 'paraphrase-multilingual-mpnet-base-v2')
      THEN 768
    WHEN p_model = 'bundled:use-multilingual-v3' THEN 512
    WHEN p_model ~ '^stub:[1-9][0-9]{0,4}$' THEN substr(p_model, 6)::int END
$$;

-- Refuse tables, partitions among them, whose owners would come to rights that are not theirs. Returns the owner where only
-- evervec.trusted_owners lets it pass.
CREATE OR REPLACE FUNCTION evervec.check_owners(p_relation regclass) RETURNS regrole
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  part    record;
  trusted regrole;
BEGIN
  FOR part IN
    SELECT oid::regclass AS name, relowner FROM pg_class
    WHERE oid IN (SELECT p_relation UNION SELECT relid FROM pg_partition_tree(p_relation)) ORDER BY oid <> p_relation
  LOOP
    IF NOT pg_has_role(evervec.owner(), part.relowner, 'USAGE') THEN
      RAISE EXCEPTION '% belongs to %, whose rights evervec''s owner, %, does not have', part.name, part.relowner::regrole,
        evervec.owner()::regrole USING ERRCODE = 'insufficient_privilege',
        HINT = 'Install evervec as the role that owns the tables.';
    ELSIF NOT evervec.has_our_rights(part.relowner) THEN
      IF NOT evervec.is_vouched_for(part.relowner) THEN
        RAISE EXCEPTION '% belongs to %, who could act with the rights of evervec''s owner, %, by a trigger or an expression',
          part.name, part.relowner::regrole, evervec.owner()::regrole USING ERRCODE = 'insufficient_privilege',
          HINT = 'Install evervec as the role that owns the tables; or, if that role may do all that evervec''s owner may: '
                 || format('SET evervec.trusted_owners = %L.', pg_get_userbyid(part.relowner));
      ELSIF part.name = p_relation THEN
        trusted := part.relowner;
      END IF;
    END IF;
  END LOOP;
  RETURN trusted;
END $$;

-- Refuse a column whose type's owner could have code run by it: a cast from an enum to text, a domain's CHECK.
CREATE OR REPLACE FUNCTION evervec.check_type(p_relation regclass, p_column name, p_type oid) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  stranger record;
BEGIN
  WITH RECURSIVE base AS (
    SELECT t.oid, t.typowner, t.typbasetype, t.typtype FROM pg_type t WHERE t.oid = p_type
    UNION ALL SELECT t.oid, t.typowner, t.typbasetype, t.typtype FROM base JOIN pg_type t ON t.oid = base.typbasetype)
  -- Nobody but a superuser can have made a base type.
  SELECT base.oid::regtype AS name, base.typowner::regrole AS role INTO stranger FROM base
  WHERE base.typtype <> 'b' AND NOT evervec.has_our_rights(base.typowner) AND NOT evervec.is_vouched_for(base.typowner)
  LIMIT 1;
  IF FOUND THEN
    RAISE EXCEPTION 'the type % of column % of % belongs to %, who could act with the rights of evervec''s owner, %, by a cast',
      stranger.name, quote_ident(p_column), p_relation, stranger.role, evervec.owner()::regrole USING
      ERRCODE = 'insufficient_privilege', HINT = format('ALTER TYPE %s OWNER TO %s.', stranger.name, evervec.owner()::regrole);
  END IF;
END $$;

-- What watch() is asked for, checked against the table; a row of evervec.source that is not stored yet.
-- Nothing is locked and nothing changes here.
CREATE OR REPLACE FUNCTION evervec.describe_source(
  p_relation regclass, p_text name[], p_required name[], p_active text, p_key name, p_source text, p_model text,
  p_dimension int, p_prompt text, p_revision text, p_destination text, p_embedding name
) RETURNS evervec.source
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s       evervec.source;
  present evervec.source;
  c       pg_class;
  a       pg_attribute;
  needed  name;
  -- Types whose text is the same in every session: it does not depend on settings such as DateStyle or TimeZone.
  steady  text[] := ARRAY['text', 'varchar', 'bpchar', 'name', 'int2', 'int4', 'int8', 'numeric', 'bool', 'uuid', 'json',
                          'jsonb', 'citext', 'inet', 'cidr', 'macaddr', 'xml', 'ltree', 'oid'];
BEGIN
  PERFORM evervec.vector_schema();
  SELECT * INTO c FROM pg_class WHERE oid = p_relation;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no such table' USING ERRCODE = 'undefined_table';
  ELSIF c.relkind NOT IN ('r', 'p') THEN
    RAISE EXCEPTION '% is not a table: only tables have rows to watch', p_relation USING
      ERRCODE = 'wrong_object_type', HINT = 'Watch the table behind it.';
  ELSIF c.relpersistence = 't' OR c.relnamespace::regnamespace::text IN ('pg_catalog', 'information_schema', 'evervec') THEN
    RAISE EXCEPTION '% is a temporary or a system table, which can''t be watched', p_relation USING
      ERRCODE = 'wrong_object_type',
      HINT = 'Use a table in a schema of yours. A role named evervec makes its tables in the schema evervec, '
             'unless they are made as public.….';
  ELSIF NOT pg_has_role(c.relowner, 'USAGE') THEN
    RAISE EXCEPTION 'you do not own %', p_relation USING
      ERRCODE = 'insufficient_privilege', HINT = 'Call evervec.watch() as a role that owns the table.';
  END IF;
  s.trusted := evervec.check_owners(p_relation);
  IF row_security_active(p_relation) OR c.relrowsecurity AND c.relforcerowsecurity AND NOT EXISTS (
    SELECT FROM pg_roles WHERE oid = evervec.owner() AND (rolsuper OR rolbypassrls)) THEN
    -- Rows that are not seen would be taken for deleted.
    RAISE EXCEPTION 'row security hides rows of % from you, its owner', p_relation USING
      ERRCODE = 'insufficient_privilege',
      HINT = format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY, or watch as a role with BYPASSRLS.', p_relation);
  END IF;

  s.name := coalesce(p_source, c.relname);
  IF s.name = '' OR s.name ~ '[/[:cntrl:]]' OR octet_length(s.name) > 200 THEN
    RAISE EXCEPTION 'the name % can''t be a source''s: no /, no control characters, 1 to 200 bytes', to_json(s.name)
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Give another one: source => ''…''.';
  END IF;
  SELECT * INTO present FROM evervec.source WHERE name = s.name;
  IF present.relation <> p_relation AND EXISTS (SELECT FROM pg_class WHERE oid = present.relation) THEN
    RAISE EXCEPTION 'the source % is taken by the table %', quote_literal(s.name), present.relation USING
      ERRCODE = 'duplicate_object', HINT = 'Give this one another name: source => ''…''.';
  END IF;

  s.key_column := p_key;
  IF p_key IS NULL THEN
    SELECT attname INTO s.key_column FROM pg_index i JOIN pg_attribute k ON k.attrelid = i.indrelid AND k.attnum = i.indkey[0]
    WHERE i.indrelid = p_relation AND i.indisprimary AND i.indnkeyatts = 1;
    IF NOT FOUND THEN
      RAISE EXCEPTION '% has no primary key of one column', p_relation USING ERRCODE = 'invalid_parameter_value',
        HINT = 'Name a column that is NOT NULL and UNIQUE: key => ''…''.';
    END IF;
  ELSIF EXISTS (SELECT FROM pg_attribute WHERE attrelid = p_relation AND attname = p_key AND attnum > 0) AND NOT EXISTS (
    SELECT FROM pg_index i JOIN pg_attribute k ON k.attrelid = i.indrelid AND k.attnum = i.indkey[0]
    WHERE i.indrelid = p_relation AND i.indisunique AND i.indnkeyatts = 1 AND i.indpred IS NULL AND i.indisvalid
      AND i.indimmediate AND k.attname = p_key AND k.attnotnull) THEN
    RAISE EXCEPTION 'the column % of % is no key: it is not both UNIQUE and NOT NULL', quote_ident(p_key), p_relation
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Add a unique constraint on this column alone and SET NOT NULL.';
  END IF;

  IF coalesce(cardinality(p_text), 0) = 0 OR array_position(p_text, NULL) IS NOT NULL THEN
    RAISE EXCEPTION 'no text columns were named' USING ERRCODE = 'invalid_parameter_value',
      HINT = 'Name at least one: text_columns => ''{name,description}''.';
  END IF;
  FOREACH needed IN ARRAY s.key_column || p_text || p_required LOOP
    SELECT * INTO a FROM pg_attribute WHERE attrelid = p_relation AND attname = needed AND attnum > 0 AND NOT attisdropped;
    IF NOT FOUND THEN
      RAISE EXCEPTION '% has no column %', p_relation, quote_ident(needed) USING ERRCODE = 'undefined_column';
    ELSIF a.attgenerated = 'v' THEN
      RAISE EXCEPTION 'the column % of % is generated when it is read, so that triggers don''t see it',
        quote_ident(needed), p_relation USING ERRCODE = 'invalid_parameter_value', HINT = 'Make it GENERATED … STORED.';
    ELSIF NOT EXISTS (
      WITH RECURSIVE base AS (
        SELECT t.typname, t.typtype, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
        UNION ALL SELECT t.typname, t.typtype, t.typbasetype FROM base JOIN pg_type t ON t.oid = base.typbasetype)
      SELECT FROM base WHERE typtype = 'e' OR typtype = 'b' AND typname = ANY (steady)) THEN
      RAISE EXCEPTION 'the text of column % of % is not the same in every session: its type is %', quote_ident(needed),
        p_relation, format_type(a.atttypid, a.atttypmod) USING ERRCODE = 'invalid_parameter_value',
        HINT = 'Put its text into a column of its own: GENERATED ALWAYS AS (…) STORED, or a trigger.';
    END IF;
    PERFORM evervec.check_type(p_relation, needed, a.atttypid);
  END LOOP;
  SELECT format_type(atttypid, atttypmod) INTO s.key_type FROM pg_attribute
  WHERE attrelid = p_relation AND attname = s.key_column;

  s.active := nullif(btrim(p_active), '');
  s.active_columns := '{}';
  IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = p_relation AND attname = s.active AND attnum > 0
             AND NOT attisdropped AND atttypid = 'boolean'::regtype) THEN
    s.active_columns := ARRAY[s.active];
    s.active := quote_ident(s.active);
  ELSIF s.active IS NOT NULL THEN
    PERFORM evervec.check_expression(p_relation, s.active, 'active');
    s.active_columns := evervec.predicate_columns(p_relation, s.active);
  END IF;
  IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = p_relation AND attname = ANY (s.active_columns) AND attgenerated = 'v')
  THEN
    RAISE EXCEPTION 'active reads a column that is generated when it is read, so that triggers don''t see it' USING
      ERRCODE = 'invalid_parameter_value', HINT = 'Make it GENERATED … STORED.';
  END IF;

  s.destination := p_destination;
  s.embedding_column := p_embedding;
  IF p_destination NOT IN ('column', 'table') OR p_destination IS NULL THEN
    RAISE EXCEPTION 'the destination is ''column'' or ''table'', not %', coalesce(quote_literal(p_destination), 'NULL')
      USING ERRCODE = 'invalid_parameter_value';
  ELSIF p_embedding IS NULL OR p_embedding = '' OR octet_length(p_embedding) > 50 THEN
    RAISE EXCEPTION 'the embedding column needs a name of 1 to 50 bytes' USING ERRCODE = 'invalid_parameter_value';
  ELSIF ARRAY[p_embedding, evervec.hash_column(p_embedding), evervec.model_column(p_embedding),
              evervec.time_column(p_embedding)] && (s.key_column || p_text || p_required || s.active_columns) THEN
    RAISE EXCEPTION 'a column that the embedding % is written to is read as well', quote_ident(p_embedding) USING
      ERRCODE = 'invalid_parameter_value', HINT = 'Name another column: embedding => ''…''.';
  ELSIF p_destination = 'table' AND octet_length(c.relname || '_' || p_embedding) > 63 THEN
    RAISE EXCEPTION 'the name %_% would be longer than 63 bytes', c.relname, p_embedding USING
      ERRCODE = 'name_too_long', HINT = 'Use destination => ''column'', or a shorter name: embedding => ''…''.';
  ELSIF EXISTS (SELECT FROM evervec.source o WHERE o.relation = p_relation AND o.destination = p_destination
                AND o.embedding_column = p_embedding AND o.name <> s.name) THEN
    RAISE EXCEPTION 'another source writes the same embedding' USING
      ERRCODE = 'duplicate_object', HINT = 'Name another column: embedding => ''…''.';
  END IF;

  -- Without a name a source that exists keeps its model.
  s.model := coalesce(nullif(p_model, ''), nullif(current_setting('evervec.model', true), ''), present.model,
                      'sentence-transformers/paraphrase-multilingual-mpnet-base-v2');
  s.dimension := coalesce(p_dimension, evervec.known_dimension(s.model),
                          CASE s.model WHEN present.model THEN present.dimension END);
  IF s.dimension IS NULL THEN
    RAISE EXCEPTION 'the dimension of the model % is not known here', quote_literal(s.model) USING
      ERRCODE = 'invalid_parameter_value', HINT = 'Give it: dimension => 384.';
  ELSIF s.dimension NOT BETWEEN 1 AND 16000 THEN
    RAISE EXCEPTION 'pgvector stores 1 to 16000 dimensions, not %', s.dimension USING
      ERRCODE = 'invalid_parameter_value';
  ELSIF s.dimension <> evervec.known_dimension(s.model) THEN
    RAISE EXCEPTION 'the model % gives % dimensions, not %', quote_literal(s.model), evervec.known_dimension(s.model),
      s.dimension USING ERRCODE = 'invalid_parameter_value', HINT = 'Leave the dimension out.';
  END IF;

  s.id := present.id;
  s.relation := p_relation;
  s.text_columns := p_text;
  s.required_columns := coalesce(p_required, '{}');
  s.revision := coalesce(p_revision, '');
  s.prompt := coalesce(p_prompt, '');
  -- The vectors are always brought to length 1 (l2).
  s.fingerprint := encode(sha256(convert_to(
    jsonb_build_array(s.model, s.revision, s.dimension, s.prompt, 'l2')::text, 'UTF8')), 'hex');
  s.model_label := s.model || CASE s.revision WHEN '' THEN '' ELSE '@' || s.revision END
    || CASE s.prompt WHEN '' THEN '' ELSE '#' || left(encode(sha256(convert_to(s.prompt, 'UTF8')), 'hex'), 8) END;
  s.paused := coalesce(present.paused, false);
  s.filling := true;
  s.created_at := coalesce(present.created_at, now());
  RETURN s;
END $$;

-- The dimension of a column that holds vectors: 0 when it is not declared, null when there is no such column. An error
-- when the column is no vector, unless it may be overwritten.
CREATE OR REPLACE FUNCTION evervec.embedding_dimension(p_table regclass, p_column name, p_overwrite boolean) RETURNS int
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  a pg_attribute;
BEGIN
  SELECT * INTO a FROM pg_attribute WHERE attrelid = p_table AND attname = p_column AND attnum > 0 AND NOT attisdropped;
  IF NOT FOUND THEN
    RETURN NULL;
  ELSIF a.atttypid = (evervec.vector_schema() || '.vector')::regtype THEN
    RETURN greatest(a.atttypmod, 0);
  ELSIF p_overwrite THEN
    RETURN -1;
  END IF;
  RAISE EXCEPTION 'the column % of % is % and no vector', quote_ident(p_column), p_table,
    format_type(a.atttypid, a.atttypmod) USING ERRCODE = 'datatype_mismatch',
    HINT = 'Name another column: embedding => ''…''; or give up what it holds: overwrite => true.';
END $$;

-- Refuse to touch vectors, or columns beside them, that evervec did not make.
CREATE OR REPLACE FUNCTION evervec.check_destination(s evervec.source, p_table regclass, p_overwrite boolean) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  strange boolean := false;
  expected text[] := ARRAY[evervec.hash_column(s.embedding_column), 'text', evervec.model_column(s.embedding_column), 'text',
                           evervec.time_column(s.embedding_column), 'timestamp with time zone'];
  a pg_attribute;
BEGIN
  FOR n IN 1 .. 5 BY 2 LOOP
    SELECT * INTO a FROM pg_attribute WHERE attrelid = p_table AND attname = expected[n] AND attnum > 0 AND NOT attisdropped;
    IF FOUND AND format_type(a.atttypid, a.atttypmod) <> expected[n + 1] AND NOT p_overwrite THEN
      RAISE EXCEPTION 'the column % of % is % where evervec keeps %', quote_ident(expected[n]), p_table,
        format_type(a.atttypid, a.atttypmod), expected[n + 1] USING ERRCODE = 'datatype_mismatch',
        HINT = 'Name another column: embedding => ''…''; or give up what it holds: overwrite => true.';
    END IF;
  END LOOP;
  IF evervec.embedding_dimension(p_table, s.embedding_column, p_overwrite) >= 0 AND NOT p_overwrite AND NOT EXISTS (
    SELECT FROM evervec.source o WHERE o.name = s.name AND o.relation = s.relation AND o.destination = s.destination
      AND o.embedding_column = s.embedding_column) THEN
    EXECUTE format('SELECT EXISTS (SELECT FROM %s AS t WHERE t.%I IS NOT NULL%s)', evervec.relation_sql(p_table),
                   s.embedding_column,
                   CASE WHEN EXISTS (SELECT FROM pg_attribute WHERE attrelid = p_table AND NOT attisdropped
                                     AND attname = evervec.hash_column(s.embedding_column))
                   THEN format(' AND t.%I IS NULL', evervec.hash_column(s.embedding_column)) ELSE '' END) INTO strange;
  END IF;
  IF strange THEN
    RAISE EXCEPTION 'the column % of % holds vectors that evervec did not write', quote_ident(s.embedding_column), p_table
      USING ERRCODE = 'object_not_in_prerequisite_state',
      HINT = 'Name another column: embedding => ''…''; or give them up: overwrite => true.';
  END IF;
END $$;

-- Add or replace the four columns of a destination. A column is replaced, not converted: that takes no time, whatever
-- the size of the table.
CREATE OR REPLACE FUNCTION evervec.make_columns(s evervec.source, p_table regclass, p_overwrite boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  present  int := evervec.embedding_dimension(p_table, s.embedding_column, p_overwrite);
  columns  text[] := ARRAY[evervec.hash_column(s.embedding_column), 'text', evervec.model_column(s.embedding_column), 'text',
                           evervec.time_column(s.embedding_column), 'timestamp with time zone'];
  strange  boolean;
  replaced boolean := present <> s.dimension;
BEGIN
  IF replaced THEN
    EXECUTE format('ALTER TABLE %s DROP COLUMN %I', p_table, s.embedding_column);
  END IF;
  IF replaced OR present IS NULL THEN
    EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s.vector(%s)', p_table, s.embedding_column, evervec.vector_schema(),
                   s.dimension);
  END IF;
  FOR n IN 1 .. 5 BY 2 LOOP
    SELECT format_type(atttypid, atttypmod) <> columns[n + 1] INTO strange FROM pg_attribute
    WHERE attrelid = p_table AND attname = columns[n] AND attnum > 0 AND NOT attisdropped;
    IF strange THEN
      EXECUTE format('ALTER TABLE %s DROP COLUMN %I', p_table, columns[n]);
    END IF;
    IF strange IS NOT FALSE THEN
      EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s', p_table, columns[n], columns[n + 1]);
    END IF;
  END LOOP;
END $$;

-- The table beside a watched one, in its schema, keyed as it is. No foreign key: with one, TRUNCATE of the watched table
-- would fail; the triggers cascade instead. Whoever may read the watched table may read this one: of a table with row
-- security, the rows whose items they see.
CREATE OR REPLACE FUNCTION evervec.make_side_table(s evervec.source) RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  side   text;
  reader record;
  c      pg_class;
BEGIN
  SELECT * INTO c FROM pg_class WHERE oid = s.relation;
  side := evervec.side_table_name(s.relation, s.embedding_column);
  IF to_regclass(side) IS NULL THEN
    EXECUTE format('CREATE TABLE %s (%I %s %s PRIMARY KEY)', side, s.key_column, s.key_type, (
      SELECT 'COLLATE ' || a.attcollation::regcollation FROM pg_attribute a
      WHERE a.attrelid = s.relation AND a.attname = s.key_column AND a.attcollation <> 0));
    EXECUTE format('ALTER TABLE %s OWNER TO %I', side, pg_get_userbyid(c.relowner));
    FOR reader IN SELECT DISTINCT grantee FROM aclexplode(c.relacl) WHERE privilege_type = 'SELECT' LOOP
      EXECUTE format('GRANT SELECT ON %s TO %s', side,
                     CASE reader.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(reader.grantee)) END);
    END LOOP;
  END IF;
  IF c.relrowsecurity
     AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = side::regclass AND polname = 'evervec_as_item') THEN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', side);
    EXECUTE format('CREATE POLICY evervec_as_item ON %1$s FOR SELECT USING (EXISTS (SELECT FROM %2$s AS t '
                   'WHERE t.%3$I = %1$s.%3$I))', side, s.relation, s.key_column);
  END IF;
  RETURN side::regclass;
END $$;

CREATE OR REPLACE FUNCTION evervec.side_table_name(p_relation regclass, p_embedding name) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT format('%I.%I', n.nspname, c.relname || '_' || p_embedding)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = p_relation
$$;

-- The table that keeps a source's vectors, null when it is yet to be made; an error when it holds what evervec may not touch.
CREATE OR REPLACE FUNCTION evervec.check_target(s evervec.source, p_overwrite boolean) RETURNS regclass
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  target regclass := s.relation;
BEGIN
  IF s.destination = 'table' THEN
    target := to_regclass(evervec.side_table_name(s.relation, s.embedding_column));
    IF target IS NOT NULL THEN
      PERFORM evervec.check_side_table(s, target);
    END IF;
  END IF;
  IF target IS NOT NULL THEN
    PERFORM evervec.check_destination(s, target, p_overwrite);
  END IF;
  RETURN target;
END $$;

-- Watch a table: from now on each eligible row's embedding follows its text columns. Returns the source's name.
-- Called again it alters the source: vectors that no longer fit are replaced, and stay out of every search until then.
-- Rows that are there already are enqueued afterwards, page by page, by the pipeline (the first fill).
CREATE OR REPLACE FUNCTION evervec.watch(
  relation regclass, text_columns name[], required name[] DEFAULT '{}', active text DEFAULT NULL, key name DEFAULT NULL,
  source text DEFAULT NULL, model text DEFAULT NULL, dimension int DEFAULT NULL, prompt text DEFAULT '',
  revision text DEFAULT '', destination text DEFAULT 'column', embedding name DEFAULT 'embedding',
  overwrite boolean DEFAULT false
) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
  s      evervec.source;
  former evervec.source;
  target regclass;
BEGIN
  PERFORM evervec.take_turn(relation);
  s := evervec.describe_source($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);
  overwrite := coalesce(overwrite, false);
  -- All that takes time comes before the lock.
  target := evervec.check_target(s, overwrite);

  PERFORM evervec.lock_source(s.name);
  PERFORM evervec.lock_briefly(ARRAY[s.relation, target]);
  SELECT * INTO former FROM evervec.source AS o WHERE o.name = s.name;
  IF former.name IS NOT NULL THEN
    s.id := former.id;
    PERFORM evervec.drop_triggers(former);
    DELETE FROM evervec.source AS o WHERE o.name = s.name;
    -- What failed may succeed now. The items of a table that is gone are none of this one's.
    PERFORM evervec.retry_items(s.name, NULL);
    DELETE FROM evervec.outbox AS o WHERE o.source = s.name AND former.relation <> s.relation;
  ELSE
    s.id := nextval(pg_get_serial_sequence('evervec.source', 'id'));
  END IF;
  IF s.destination = 'column' THEN
    PERFORM evervec.make_columns(s, s.relation, overwrite);
  ELSE
    s.side_table := evervec.make_side_table(s);
    PERFORM evervec.make_columns(s, s.side_table, overwrite);
  END IF;
  INSERT INTO evervec.source OVERRIDING SYSTEM VALUE SELECT (s).*;
  PERFORM evervec.make_trigger_functions(s);
  PERFORM evervec.hand_over(s);
  PERFORM evervec.make_triggers(s);
  PERFORM evervec.ring(s.name);
  RETURN s.name;
END $$;

-- What watch() would do with the same arguments: it is checked and counted, and nothing changes. Of a table with more than
-- p_exact rows the counts are estimates, from a sample of so many rows. bytes is the size of the table without its vectors
-- that are stored apart; texts are contents of some items, to try a model with.
CREATE OR REPLACE FUNCTION evervec.plan_watch(
  p_relation regclass, p_text name[], p_required name[], p_active text, p_key name, p_source text, p_model text,
  p_dimension int, p_prompt text, p_revision text, p_destination text, p_embedding name, p_overwrite boolean,
  p_exact bigint, p_texts int, OUT source text, OUT relation text, OUT alters boolean, OUT model text, OUT revision text,
  OUT dimension int, OUT prompt text, OUT destination text, OUT added_table text, OUT added_columns name[],
  OUT replaced_columns name[], OUT dropped_indexes text[], OUT exact boolean, OUT rows bigint, OUT eligible bigint,
  OUT fitting bigint, OUT stale bigint, OUT cleared bigint, OUT bytes bigint, OUT texts text[]
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
#variable_conflict use_column
DECLARE
  s        evervec.source := evervec.describe_source($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);
  target   regclass := evervec.check_target(s, coalesce(p_overwrite, false));
  present  int;
  live     bigint := coalesce((evervec.changes(s)).live, 0);
  vector   text := 'NULL::text';
  stored   text := 'NULL::text';
  beside   text := '';
  sampled  text := '';
  factor   double precision := 1;
BEGIN
  source := s.name;
  relation := s.relation::text;
  alters := EXISTS (SELECT FROM evervec.source o WHERE o.name = s.name);
  model := s.model;
  revision := s.revision;
  dimension := s.dimension;
  prompt := s.prompt;
  destination := s.destination;
  added_table := CASE WHEN target IS NULL THEN evervec.side_table_name(s.relation, s.embedding_column) END;
  present := evervec.embedding_dimension(target, s.embedding_column, true);
  WITH wanted (n, name, type) AS (VALUES
    (1, s.embedding_column, NULL), (2, evervec.hash_column(s.embedding_column), 'text'::regtype),
    (3, evervec.model_column(s.embedding_column), 'text'::regtype),
    (4, evervec.time_column(s.embedding_column), 'timestamp with time zone'::regtype))
  SELECT coalesce(array_agg(w.name ORDER BY w.n) FILTER (WHERE a.attname IS NULL), '{}'),
         coalesce(array_agg(w.name ORDER BY w.n) FILTER (
           WHERE CASE w.n WHEN 1 THEN present <> s.dimension ELSE a.atttypid <> w.type END), '{}')
  INTO added_columns, replaced_columns
  FROM wanted w LEFT JOIN pg_attribute a
    ON a.attrelid = target AND a.attname = w.name AND a.attnum > 0 AND NOT a.attisdropped;
  SELECT coalesce(array_agg(DISTINCT i.indexrelid::regclass::text), '{}') INTO dropped_indexes
  FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
  WHERE i.indrelid = target AND a.attname = ANY (replaced_columns);

  IF present IS NOT NULL THEN
    vector := format('%s.%I::text', CASE s.destination WHEN 'table' THEN 'e' ELSE 't' END, s.embedding_column);
    IF evervec.hash_column(s.embedding_column) <> ALL (added_columns || replaced_columns) THEN
      stored := replace(vector, format('.%I::text', s.embedding_column), format('.%I', evervec.hash_column(s.embedding_column)));
    END IF;
    IF s.destination = 'table' THEN
      beside := format('LEFT JOIN %1$s AS e ON e.%2$I = t.%2$I', target, s.key_column);
    END IF;
  END IF;
  exact := live <= p_exact;
  IF NOT exact THEN
    sampled := format('TABLESAMPLE SYSTEM (%s)', least(100, 100.0 * p_exact / live));
  END IF;
  EXECUTE format($sql$
    WITH item AS MATERIALIZED (
      SELECT %1$s AS eligible, %2$s AS content, %3$s AS content_hash, %4$s IS NOT NULL AS has_vector, %5$s AS stored
      FROM (SELECT t.*, (%6$s
        ) IS TRUE AS evervec_active FROM %7$s AS t %8$s) AS t %9$s)
    SELECT count(*), count(*) FILTER (WHERE eligible),
           count(*) FILTER (WHERE eligible AND has_vector AND stored = content_hash),
           count(*) FILTER (WHERE eligible AND has_vector AND stored IS DISTINCT FROM content_hash),
           count(*) FILTER (WHERE has_vector),
           ARRAY(SELECT content FROM item WHERE eligible ORDER BY random() LIMIT $1)
    FROM item
    $sql$, evervec.eligible_sql('t', 't.evervec_active', s.required_columns), evervec.content_sql('t', s.text_columns),
    evervec.content_hash_sql(s.fingerprint, evervec.content_sql('t', s.text_columns)), vector, stored,
    coalesce(s.active, 'true'), evervec.relation_sql(s.relation), sampled, beside)
  INTO rows, eligible, fitting, stale, cleared, texts USING p_texts;
  IF NOT exact THEN
    factor := live / greatest(rows, 1)::double precision;
  END IF;
  IF s.embedding_column = ANY (replaced_columns) THEN
    fitting := 0;
    stale := 0;
  ELSE
    cleared := 0;
  END IF;
  rows := rows * factor;
  eligible := eligible * factor;
  fitting := fitting * factor;
  stale := stale * factor;
  cleared := cleared * factor;
  SELECT sum(pg_relation_size(p.oid)) INTO bytes
  FROM (SELECT s.relation::oid AS oid UNION SELECT relid FROM pg_partition_tree(s.relation)) AS p;
END $$;

-- Trigger functions have the rights of whoever made them: of evervec's owner, whoever calls watch(). Nobody else may put
-- them on a table of his own, whatever the default privileges say.
CREATE OR REPLACE FUNCTION evervec.hand_over(s evervec.source) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  made pg_proc;
BEGIN
  FOR made IN
    SELECT * FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace
      AND proname IN ('row_' || s.id, 'touch_' || s.id, 'edit_' || s.id, 'gone_' || s.id, 'truncated_' || s.id)
  LOOP
    EXECUTE coalesce((
      SELECT string_agg(format('REVOKE ALL ON FUNCTION %s FROM %s', made.oid::regprocedure, a.grantee::regrole), '; ')
      FROM aclexplode(made.proacl) AS a WHERE a.grantee NOT IN (0, made.proowner)), 'SELECT');
    IF made.proowner <> evervec.owner() THEN
      EXECUTE format('ALTER FUNCTION %s OWNER TO %s', made.oid::regprocedure, evervec.owner()::regrole);
    END IF;
  END LOOP;
END $$;

-- One watch() or unwatch() at a time on a table: two that have both read it would keep each other from locking it.
CREATE OR REPLACE FUNCTION evervec.take_turn(p_relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '60s' AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(731031241, p_relation::oid::int);
END $$;

-- Wait for a page of the first fill that holds the source; that may take longer than a table is kept waiting.
CREATE OR REPLACE FUNCTION evervec.lock_source(p_source text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
BEGIN
  PERFORM FROM evervec.source WHERE name = p_source FOR UPDATE;
END $$;

-- A side table that is there already must be one of evervec's, keyed like the watched table, and no other source's.
CREATE OR REPLACE FUNCTION evervec.check_side_table(s evervec.source, p_side regclass) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT EXISTS (
    SELECT FROM pg_index i JOIN pg_attribute k ON k.attrelid = i.indrelid AND k.attnum = i.indkey[0]
    WHERE i.indrelid = p_side AND i.indisprimary AND i.indnkeyatts = 1 AND k.attname = s.key_column
      AND format_type(k.atttypid, k.atttypmod) = s.key_type)
    OR ARRAY(SELECT attname FROM pg_attribute WHERE attrelid = p_side AND attnum > 0 AND NOT attisdropped ORDER BY 1)
      <> ARRAY(SELECT c FROM unnest(ARRAY[
        s.key_column, s.embedding_column, evervec.hash_column(s.embedding_column),
        evervec.model_column(s.embedding_column), evervec.time_column(s.embedding_column)]) AS c ORDER BY 1)
    OR EXISTS (SELECT FROM evervec.source o WHERE o.side_table = p_side AND o.name <> s.name) THEN
    RAISE EXCEPTION '% exists and is not this source''s table of embeddings, keyed by % (%)', p_side,
      quote_ident(s.key_column), s.key_type USING ERRCODE = 'duplicate_table',
      HINT = 'Rename or drop it, or name another column: embedding => ''…''.';
  END IF;
END $$;

CREATE OR REPLACE FUNCTION evervec.drop_triggers(s evervec.source) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  made record;
BEGIN
  FOR made IN
    SELECT format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass) AS statement
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE p.pronamespace = 'evervec'::regnamespace AND t.tgparentid = 0
      AND p.proname IN ('row_' || s.id, 'touch_' || s.id, 'edit_' || s.id, 'key_' || s.id, 'gone_' || s.id,
                        'truncated_' || s.id)
  LOOP
    EXECUTE made.statement;
  END LOOP;
END $$;

-- Forget a source: its triggers, its registration and its outbox rows. The embeddings stay.
CREATE OR REPLACE FUNCTION evervec.unwatch(source text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
  s evervec.source;
BEGIN
  SELECT * INTO s FROM evervec.source AS o WHERE o.name = $1;
  IF NOT FOUND THEN
    s := evervec.get_source($1);
  END IF;
  PERFORM evervec.take_turn(s.relation);
  PERFORM evervec.lock_source(s.name);
  IF EXISTS (SELECT FROM pg_class WHERE oid = s.relation) THEN
    PERFORM evervec.lock_briefly(ARRAY[s.relation]);
  END IF;
  PERFORM evervec.drop_triggers(s);
  EXECUTE format('DROP FUNCTION IF EXISTS evervec.row_%1$s(), evervec.touch_%1$s(), evervec.edit_%1$s(), '
                 'evervec.key_%1$s(), evervec.gone_%1$s(), evervec.truncated_%1$s()', s.id);
  DELETE FROM evervec.outbox AS o WHERE o.source = s.name;
  DELETE FROM evervec.work AS o WHERE o.source = s.name;
  DELETE FROM evervec.source AS o WHERE o.name = s.name;
END $$;

-- Remove everything but the embeddings, and the roles where other databases need them.
CREATE OR REPLACE FUNCTION evervec.uninstall() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  watched text;
BEGIN
  FOR watched IN SELECT name FROM evervec.source LOOP
    PERFORM evervec.unwatch(watched);
  END LOOP;
  DROP SCHEMA evervec CASCADE;
END $$;

---------------------------------------------------------------------------------------------------------------------
-- For the DBA
---------------------------------------------------------------------------------------------------------------------

-- Re-fire: enqueue the eligible stale items that satisfy the predicate, failed ones too; with force, all eligible ones.
-- Returns how many. One statement, whose rows others can't enqueue until it commits: on a large table prefer
-- `evervec backfill`, which does the same page by page.
CREATE OR REPLACE FUNCTION evervec.refire(source text, predicate text DEFAULT 'true', force boolean DEFAULT false)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  page record;
BEGIN
  page := evervec.refire_page(source, predicate, force, NULL, NULL);
  RETURN page.enqueued;
END $$;

-- A user's transaction may hold the outbox rows of some items and be about to enqueue others: it must not be the one that
-- a deadlock ends. So whoever does many items at once, and has let go of them, waits a little here and begins anew.
CREATE OR REPLACE FUNCTION evervec.give_way(p_patience timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF clock_timestamp() > p_patience THEN
    RAISE EXCEPTION 'long transactions hold some of these items' USING
      ERRCODE = 'lock_not_available', HINT = 'Nothing was changed. Try again when they have ended.';
  END IF;
  PERFORM pg_sleep(random() * 0.2);
END $$;

-- The same for the next rows in the order of their keys; last_key is null when there are none left.
CREATE OR REPLACE FUNCTION evervec.refire_page(
  p_source text, p_predicate text, p_force boolean, p_after text, p_limit bigint,
  OUT last_key text, OUT scanned bigint, OUT enqueued bigint
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' AS $$
DECLARE
  patience timestamptz := clock_timestamp() + interval '30 seconds';
BEGIN
  LOOP
    BEGIN
      PERFORM evervec.check_expression(
        (evervec.get_source(p_source)).relation, coalesce(p_predicate, 'true'), 'the predicate');
      SELECT * INTO last_key, scanned, enqueued
      FROM evervec.enqueue_page(p_source, coalesce(p_predicate, 'true'), coalesce(p_force, false), p_after, p_limit);
      EXIT;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
      PERFORM evervec.give_way(patience);
    END;
  END LOOP;
  IF enqueued > 0 THEN
    PERFORM evervec.ring(p_source);
  END IF;
END $$;

CREATE OR REPLACE FUNCTION evervec.pause(source text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE evervec.source AS s SET paused = true WHERE s.name = (evervec.get_source($1)).name;
END $$;

CREATE OR REPLACE FUNCTION evervec.resume(source text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE evervec.source AS s SET paused = false WHERE s.name = (evervec.get_source($1)).name;
  PERFORM evervec.ring($1);
END $$;

-- Let bulk work embed at most so many items a second; null: as fast as it can. It takes effect while a sweep runs, and
-- ends when nothing of the source waits any more. Live edits are not held back.
CREATE OR REPLACE FUNCTION evervec.throttle(source text, rate real DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT (rate > 0 AND rate < 'Infinity') THEN
    RAISE EXCEPTION 'a rate is a number of items a second above 0, not %', rate USING
      ERRCODE = 'invalid_parameter_value', HINT = 'evervec.pause() stops the work; null lifts the limit.';
  END IF;
  UPDATE evervec.source AS s SET rate = $2 WHERE s.name = (evervec.get_source($1)).name;
END $$;

-- Failed items back to pending, with all their attempts before them. Returns how many.
CREATE OR REPLACE FUNCTION evervec.retry(source text, item_keys text[] DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' AS $$
DECLARE
  patience timestamptz := clock_timestamp() + interval '30 seconds';
  retried  bigint;
BEGIN
  LOOP
    BEGIN
      retried := evervec.retry_items((evervec.get_source($1)).name, $2);
      EXIT;
    EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
      PERFORM evervec.give_way(patience);
    END;
  END LOOP;
  IF retried > 0 THEN
    PERFORM evervec.ring($1);
  END IF;
  RETURN retried;
END $$;

-- Two statements: where a worker touched a row meanwhile, the first waits for it and the second sees it as it is then.
CREATE OR REPLACE FUNCTION evervec.retry_items(p_source text, p_item_keys text[]) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  places  tid[];
  retried bigint;
BEGIN
  places := ARRAY(
    SELECT o.place FROM (
      SELECT k.item_key FROM unnest(coalesce(p_item_keys, ARRAY(
        SELECT f.item_key FROM evervec.outbox f WHERE f.source = p_source AND f.state = 'failed'))) AS k (item_key)
      ORDER BY k.item_key) AS wanted
    CROSS JOIN LATERAL (
      SELECT o.ctid AS place FROM evervec.outbox o
      WHERE o.source = p_source AND o.item_key = wanted.item_key AND o.state = 'failed' FOR UPDATE) AS o);
  UPDATE evervec.outbox o SET state = 'pending', attempts = 0, failed_at = NULL, due_at = clock_timestamp(),
    version = nextval('evervec.outbox_version')
  WHERE o.ctid = ANY (places);
  GET DIAGNOSTICS retried = ROW_COUNT;
  RETURN retried;
END $$;

-- Enqueue some items if they are stale; with force, whatever they are. Returns how many.
CREATE OR REPLACE FUNCTION evervec.refire_keys(p_source text, p_item_keys text[], p_force boolean) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
  s evervec.source := evervec.get_source(p_source);
BEGIN
  RETURN evervec.refire(p_source, format('%I = ANY (%L::%s[])', s.key_column, evervec.valid_keys(s, p_item_keys),
                                         s.key_type), p_force);
END $$;

-- Those of the keys that the key column's type can read.
CREATE OR REPLACE FUNCTION evervec.valid_keys(s evervec.source, p_item_keys text[]) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT coalesce(array_agg(k), '{}') FROM unnest(p_item_keys) AS k WHERE pg_input_is_valid(k, s.key_type)
$$;

-- The condition that an item's key is one of an array of texts, given as a parameter such as $1; uses the key's index.
CREATE OR REPLACE FUNCTION evervec.keys_sql(s evervec.source, p_parameter text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT format('t.%I = ANY (%s::text[]::%s[])', s.key_column, p_parameter, s.key_type)
$$;

---------------------------------------------------------------------------------------------------------------------
-- For the listener
---------------------------------------------------------------------------------------------------------------------

-- The short id of this installation. A copy of the database (CREATE DATABASE … TEMPLATE, pg_restore) is another one.
CREATE OR REPLACE FUNCTION evervec.instance_id() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  here     text := (SELECT c.system_identifier || '/' || d.oid FROM pg_control_system() AS c, pg_database AS d
                    WHERE d.datname = current_database());
  instance evervec.instance;
BEGIN
  SELECT * INTO instance FROM evervec.instance;
  IF instance.home IS DISTINCT FROM here THEN
    UPDATE evervec.instance SET home = here, id = DEFAULT RETURNING * INTO instance;
  END IF;
  RETURN instance.id;
END $$;

-- The next pending items of sources that are not paused, in the order of their sources and keys. Source by source, so that
-- the items of a paused one cost nothing; by the index alone, since an outbox that just grew has no statistics to plan by.
CREATE OR REPLACE FUNCTION evervec.pending_items(p_after_source text, p_after_key text, p_limit bigint)
RETURNS TABLE (source text, item_key text, content_hash text, version bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
  rest     bigint := p_limit;
  returned bigint;
  watched  text;
BEGIN
  FOR watched IN
    SELECT s.name FROM evervec.source s WHERE NOT s.paused AND s.name >= coalesce(p_after_source, '') ORDER BY s.name
  LOOP
    RETURN QUERY SELECT o.source, o.item_key, o.content_hash, o.version FROM evervec.outbox o
    WHERE o.source = watched AND o.state = 'pending'
      AND o.item_key >= CASE watched WHEN p_after_source THEN p_after_key ELSE '' END
      AND (o.source, o.item_key) IS DISTINCT FROM (p_after_source, p_after_key)
    ORDER BY o.item_key LIMIT rest;
    GET DIAGNOSTICS returned = ROW_COUNT;
    rest := rest - returned;
    EXIT WHEN rest <= 0;
  END LOOP;
END $$;

-- The last few items that are due, of each source that is not paused; p_limit for each source. The last, since a sweep
-- empties the outbox from the front, and what it leaves there until the next vacuum would have to be waded through.
CREATE OR REPLACE FUNCTION evervec.waiting_items(p_limit bigint)
RETURNS TABLE (source text, item_key text, content_hash text, version bigint, throttled boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
  SELECT s.name, w.item_key, w.content_hash, w.version, s.rate IS NOT NULL
  FROM evervec.source s CROSS JOIN LATERAL (
    SELECT o.item_key, o.content_hash, o.version FROM evervec.outbox o
    WHERE o.source = s.name AND o.state = 'pending' AND o.due_at <= clock_timestamp()
    ORDER BY o.item_key DESC LIMIT p_limit) AS w
  WHERE NOT s.paused
$$;

-- Some items of a source, unless it is paused, that were enqueued not longer ago than p_age. Reads all of the outbox, since
-- an index by time would cost the writers; in one pass, since by the key's index a million rows would take much longer.
CREATE OR REPLACE FUNCTION evervec.newest_items(p_source text, p_age interval, p_limit bigint)
RETURNS TABLE (source text, item_key text, content_hash text, version bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_indexscan = off SET enable_bitmapscan = off AS $$
  SELECT o.source, o.item_key, o.content_hash, o.version FROM evervec.outbox o
  WHERE o.source = p_source AND o.state = 'pending' AND o.attempts = 0 AND o.due_at > now() - p_age
    AND NOT (SELECT s.paused FROM evervec.source s WHERE s.name = p_source)
  LIMIT p_limit
$$;

-- Those of the given items that are pending, in sources that are not paused: what was heard of is only a hint, and what
-- was signalled has left the outbox when it is done.
CREATE OR REPLACE FUNCTION evervec.pending_among(p_sources text[], p_item_keys text[])
RETURNS TABLE (source text, item_key text, content_hash text, version bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
  SELECT o.source, o.item_key, o.content_hash, o.version
  FROM unnest(p_sources, p_item_keys) AS k (source, item_key)
  CROSS JOIN LATERAL (
    SELECT * FROM evervec.outbox WHERE outbox.source = k.source AND outbox.item_key = k.item_key OFFSET 0) AS o
  JOIN evervec.source s ON s.name = o.source
  WHERE o.state = 'pending' AND NOT s.paused
$$;

-- Keep the bell silent for a moment: whoever would ring finds it taken, and goes on. False when another listener does.
-- One statement, so that the server itself lets go in time, whatever becomes of the caller; a second at most, since
-- meanwhile nothing is heard.
CREATE OR REPLACE FUNCTION evervec.hush(p_time interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
BEGIN
  IF p_time IS NULL OR p_time <= interval '0' OR p_time > interval '1 s' THEN
    RAISE EXCEPTION 'the bell may be silent for a second at most, not for %', coalesce(p_time::text, 'NULL')
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  BEGIN
    -- The bells of the coming seconds, which nobody has but another listener that hushes.
    FOR later IN REVERSE ceil(date_part('epoch', p_time))::int + 1 .. 1 LOOP
      PERFORM pg_advisory_xact_lock(731031240, evervec.bell(now() + later * interval '1 s'));
    END LOOP;
  EXCEPTION WHEN lock_not_available THEN
    RETURN false;
  END;
  BEGIN
    -- That of this one: who waits for a lock keeps others from trying for it, so writers ring no more from here on.
    PERFORM pg_advisory_xact_lock(731031240, evervec.bell(now()));
  EXCEPTION WHEN lock_not_available THEN
    NULL; -- a long transaction has it: nobody else rings this one
  END;
  PERFORM pg_sleep_for(p_time);
  RETURN true;
END $$;

-- One page of a first fill, in its own short transaction; no row when no fill is waiting. An item that a user's
-- transaction has in the outbox at this moment makes the page wait; it gives up soon, so that nobody waits for the page.
CREATE OR REPLACE FUNCTION evervec.fill_page(p_limit bigint)
RETURNS TABLE (source text, scanned bigint, enqueued bigint, done boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
  s    evervec.source;
  page record;
BEGIN
  SELECT f.* INTO s FROM evervec.source f WHERE f.filling AND evervec.is_sound(f)
  ORDER BY f.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  IF s.filled_to IS NULL THEN
    PERFORM evervec.begin_count(s);
  END IF;
  SELECT * INTO page FROM evervec.enqueue_page(s.name, 'true', false, s.filled_to, p_limit);
  UPDATE evervec.source AS f SET filling = page.scanned = p_limit, filled_to = coalesce(page.last_key, f.filled_to)
  WHERE f.name = s.name;
  -- A fill sees every row: it counts them by the way.
  PERFORM evervec.add_count(s, page.last_key, page.scanned, page.eligible, page.enqueued, 0);
  IF page.scanned < p_limit THEN
    UPDATE evervec.total AS t SET missing = 0 WHERE t.source = s.name AND NOT t.done; -- all in the outbox now
    PERFORM evervec.end_count(s);
  END IF;
  -- Or they would pass for fresh until the outbox is counted.
  INSERT INTO evervec.backlog AS b (source, waiting) VALUES (s.name, page.enqueued)
  ON CONFLICT ON CONSTRAINT backlog_pkey DO UPDATE SET waiting = b.waiting + excluded.waiting;
  RETURN QUERY SELECT s.name, page.scanned, page.enqueued, page.scanned < p_limit;
END $$;

-- Earlier versions of this file returned less, and looked at large sources only.
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace AND proname = 'census_page'
             AND NOT 'enqueued' = ANY (proargnames)) THEN
    DROP FUNCTION evervec.census_page(bigint);
  END IF;
END $$;

-- One page of the walk over a source that was not walked over yet, or has changed since, in its own short transaction; no
-- row when there is nothing to walk over. Large sources only, or also those that a look at evervec.status counts by itself
-- (p_small). A source that cannot be read, or that somebody holds, keeps no other from its turn; the error comes when there
-- is nothing else to do.
CREATE OR REPLACE FUNCTION evervec.census_page(p_limit bigint, p_small boolean DEFAULT false)
RETURNS TABLE (source text, scanned bigint, enqueued bigint, done boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  s       evervec.source;
  watched text;
  problem text;
  state   text;
BEGIN
  FOR watched IN SELECT f.name FROM evervec.source f ORDER BY f.id LOOP
    SELECT f.* INTO s FROM evervec.source f
    WHERE f.name = watched AND NOT f.filling AND evervec.is_sound(f)
    FOR KEY SHARE SKIP LOCKED;
    CONTINUE WHEN NOT FOUND;
    BEGIN
      CONTINUE WHEN NOT (p_small OR evervec.is_large(s)) OR NOT evervec.wants_count(s)
        OR NOT pg_try_advisory_xact_lock(731031242, s.id);
      SELECT p.scanned, p.enqueued, p.done INTO scanned, enqueued, done FROM evervec.walk_page(s, p_limit) AS p;
    EXCEPTION WHEN others THEN
      GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, problem = MESSAGE_TEXT;
      CONTINUE;
    END;
    source := s.name;
    RETURN NEXT;
    RETURN;
  END LOOP;
  IF state IS NOT NULL THEN
    RAISE EXCEPTION '%', problem USING ERRCODE = state;
  END IF;
END $$;

-- Walk over the next page of a source, whoever alters it being kept waiting: count, for evervec.status, and enqueue each
-- stale item that no trigger saw, written while triggers were off or by a replica's apply. In one snapshot no other stale
-- item is missing in the outbox.
CREATE OR REPLACE FUNCTION evervec.walk_page(
  s evervec.source, p_limit bigint, OUT scanned bigint, OUT enqueued bigint, OUT done boolean
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  after text := (SELECT t.last_key FROM evervec.total t WHERE t.source = s.name AND NOT t.done);
  page  record;
BEGIN
  IF after IS NULL THEN
    PERFORM evervec.begin_count(s);
  END IF;
  EXECUTE format($sql$
    WITH page AS MATERIALIZED (
      SELECT i.id, i.item_key, i.eligible, i.content_hash, i.embedding_hash = i.content_hash AS fresh
      FROM (%s) AS i WHERE $1 IS NULL OR i.id > $1::%s ORDER BY i.id LIMIT $2
    ), stale AS MATERIALIZED (
      SELECT p.id, p.item_key, p.content_hash, o.version IS NULL AS missing, o.forced,
             o.version IS NULL OR o.state = 'failed' AND o.content_hash <> p.content_hash AS lost
      FROM page p LEFT JOIN LATERAL (
        SELECT * FROM evervec.outbox WHERE source = $3 AND outbox.item_key = p.item_key OFFSET 0) AS o ON true
      WHERE p.eligible AND p.fresh IS NOT TRUE
    )
    SELECT (SELECT p.item_key FROM page p ORDER BY p.id DESC LIMIT 1) AS last_key, (SELECT count(*) FROM page) AS total,
           (SELECT count(*) FROM page p WHERE p.eligible) AS eligible, count(*) FILTER (WHERE missing) AS missing,
           count(*) FILTER (WHERE forced) AS forced_stale, array_agg(item_key ORDER BY id) FILTER (WHERE lost) AS lost,
           array_agg(content_hash ORDER BY id) FILTER (WHERE lost) AS hashes
    FROM stale
    $sql$, evervec.items_sql(s), s.key_type)
  INTO page USING after, p_limit, s.name;
  scanned := page.total;
  enqueued := evervec.enqueue_lost(s.name, page.lost, page.hashes);
  done := page.total < p_limit;
  PERFORM evervec.add_count(s, page.last_key, page.total, page.eligible,
                            CASE enqueued WHEN 0 THEN page.missing ELSE 0 END, page.forced_stale);
  IF done THEN
    PERFORM evervec.end_count(s);
  END IF;
END $$;

-- Enqueue items that a walk found stale and not in the outbox, or failed with other content. Returns how many: none where a
-- user's transaction is enqueueing one of them right now, the next walk comes soon then. One that was enqueued since stays.
CREATE OR REPLACE FUNCTION evervec.enqueue_lost(p_source text, p_item_keys text[], p_hashes text[]) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  lost bigint := coalesce(cardinality(p_item_keys), 0);
BEGIN
  IF lost = 0 THEN
    RETURN 0;
  END IF;
  INSERT INTO evervec.outbox AS o (source, item_key, content_hash, version)
  SELECT p_source, k.item_key, k.hash, nextval('evervec.outbox_version')
  FROM unnest(p_item_keys, p_hashes) WITH ORDINALITY AS k (item_key, hash, n) ORDER BY k.n
  ON CONFLICT (source, item_key) DO UPDATE SET content_hash = excluded.content_hash, version = excluded.version,
    state = 'pending', attempts = 0, last_error = NULL, failed_at = NULL, due_at = excluded.due_at
  WHERE o.state = 'failed' AND o.content_hash <> excluded.content_hash;
  -- Or they would pass for fresh until a long outbox is counted.
  UPDATE evervec.backlog AS b SET waiting = b.waiting + lost WHERE b.source = p_source;
  PERFORM evervec.ring(p_source);
  RETURN lost;
EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
  RETURN 0;
END $$;

-- Count what waits, source by source, if that is much; returns whether it is. One pass over the outbox, before anything is
-- locked. Pages of a first fill add to the counts meanwhile: what is found is added too, as the difference to what was there.
CREATE OR REPLACE FUNCTION evervec.count_outbox() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
  began timestamptz := clock_timestamp();
BEGIN
  IF NOT pg_try_advisory_xact_lock(731031243, 0) THEN
    RETURN true; -- another counts
  END IF;
  IF NOT evervec.outbox_is_long() THEN
    DELETE FROM evervec.backlog;
    RETURN false;
  END IF;
  INSERT INTO evervec.backlog AS b (source, waiting, forced, failed, oldest, counted_at, took)
  SELECT s.name, coalesce(w.waiting, 0) - coalesce(former.waiting, 0), coalesce(w.forced, 0), coalesce(w.failed, 0), w.oldest,
         began, clock_timestamp() - began
  FROM evervec.source s
  LEFT JOIN evervec.backlog former ON former.source = s.name
  LEFT JOIN (
    SELECT o.source, count(*) AS waiting, count(*) FILTER (WHERE o.forced) AS forced,
           count(*) FILTER (WHERE o.state = 'failed') AS failed,
           min(o.queued_at) FILTER (WHERE o.state = 'pending') AS oldest
    FROM evervec.outbox o GROUP BY o.source) AS w ON w.source = s.name
  ON CONFLICT (source) DO UPDATE SET waiting = b.waiting + excluded.waiting, forced = excluded.forced,
    failed = excluded.failed, oldest = excluded.oldest, counted_at = excluded.counted_at, took = excluded.took;
  RETURN true;
END $$;

-- More than this is not counted anew by each look at evervec.status.
CREATE OR REPLACE FUNCTION evervec.outbox_limit() RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$ SELECT 50000::bigint $$;

CREATE OR REPLACE FUNCTION evervec.outbox_is_long() RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (SELECT FROM evervec.outbox OFFSET evervec.outbox_limit())
$$;

-- What PostgreSQL's counters say of a source's table: rows inserted and deleted, all changes (of the side table too), rows
-- that are there (an estimate), and which files hold them. A session reports what it did within seconds.
CREATE OR REPLACE FUNCTION evervec.changes(
  s evervec.source, OUT inserted bigint, OUT deleted bigint, OUT changes bigint, OUT live bigint, OUT files bigint
) LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH parts AS (SELECT s.relation::oid AS oid UNION SELECT relid FROM pg_partition_tree(s.relation)),
  counted AS (SELECT oid FROM parts UNION ALL SELECT s.side_table WHERE s.side_table IS NOT NULL)
  SELECT sum(pg_stat_get_tuples_inserted(p.oid)), sum(pg_stat_get_tuples_deleted(p.oid)),
         (SELECT sum(pg_stat_get_tuples_inserted(oid) + pg_stat_get_tuples_updated(oid) + pg_stat_get_tuples_deleted(oid))
          FROM counted),
         -- A partitioned table has no rows but its partitions', of which ANALYZE keeps the sum as well.
         sum(greatest(pg_stat_get_live_tuples(p.oid), c.reltuples::bigint)) FILTER (WHERE c.relkind <> 'p'),
         sum(c.relfilenode::bigint)
  FROM parts p JOIN pg_class c ON c.oid = p.oid
$$;

-- A source with more rows than this is not counted anew by each look at evervec.status.
CREATE OR REPLACE FUNCTION evervec.count_limit() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$ SELECT 5000::bigint $$;

CREATE OR REPLACE FUNCTION evervec.is_large(s evervec.source) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  large boolean;
BEGIN
  EXECUTE format('SELECT EXISTS (SELECT FROM %s OFFSET $1)', evervec.relation_sql(s.relation))
  INTO large USING evervec.count_limit();
  RETURN large;
END $$;

-- Whether the next page of a source is to be walked over: its walk is under way; or there was none, or it was changed
-- since, and has been left alone four times as long as its walk took. While much waits every write-back is such a change,
-- which the outbox tells by itself, and while writers are many they need the machine: longer. Where the last walk missed something in the outbox a repair is to be expected: sooner.
CREATE OR REPLACE FUNCTION evervec.wants_count(s evervec.source) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (SELECT FROM evervec.total t WHERE t.source = s.name AND NOT t.done)
    OR NOT EXISTS (
      SELECT FROM evervec.total t, evervec.changes(s) AS c
      WHERE t.source = s.name AND t.files = c.files AND (t.changes = c.changes AND t.missing = 0
        OR t.counted_at + (t.counted_at - t.started_at) * CASE
          WHEN c.changes - t.changes > greatest(1000, 200 * date_part('epoch', clock_timestamp() - t.started_at)) THEN 20
          WHEN EXISTS (SELECT FROM evervec.backlog b WHERE b.source = s.name AND b.waiting > evervec.outbox_limit()) THEN 20
          WHEN t.missing = 0 THEN 4 ELSE 1 END > clock_timestamp()))
$$;

-- Begin a walk over a source's rows. Before its first page is read: a change that the page does not show is not yet counted.
CREATE OR REPLACE FUNCTION evervec.begin_count(s evervec.source) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  DELETE FROM evervec.total AS t WHERE t.source = s.name AND NOT t.done;
  INSERT INTO evervec.total (source, total, eligible, missing, forced_stale, changes, files)
  SELECT s.name, 0, 0, 0, 0, c.changes, c.files FROM evervec.changes(s) AS c;
END $$;

-- Earlier versions of this file began a walk here.
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace AND proname = 'add_count' AND pronargs = 7) THEN
    DROP FUNCTION evervec.add_count(evervec.source, text, text, bigint, bigint, bigint, bigint);
  END IF;
END $$;

-- Add a page to the walk over a source's rows.
CREATE OR REPLACE FUNCTION evervec.add_count(
  s evervec.source, p_last_key text, p_total bigint, p_eligible bigint, p_missing bigint, p_forced_stale bigint
) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
  UPDATE evervec.total AS t SET last_key = coalesce(p_last_key, t.last_key), total = t.total + p_total,
    eligible = t.eligible + p_eligible, missing = t.missing + p_missing, forced_stale = t.forced_stale + p_forced_stale
  WHERE t.source = s.name AND NOT t.done
$$;

-- The walk has seen all rows: it takes the place of the last one.
CREATE OR REPLACE FUNCTION evervec.end_count(s evervec.source) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  DELETE FROM evervec.total AS t WHERE t.source = s.name AND t.done;
  UPDATE evervec.total AS t SET done = true, counted_at = clock_timestamp(), inserted = c.inserted, deleted = c.deleted
  FROM evervec.changes(s) AS c WHERE t.source = s.name;
END $$;

---------------------------------------------------------------------------------------------------------------------
-- For the worker
---------------------------------------------------------------------------------------------------------------------

-- The models that the sources name.
CREATE OR REPLACE FUNCTION evervec.models()
RETURNS TABLE (name text, revision text, dimension int, prompt text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT DISTINCT s.model, s.revision, s.dimension, s.prompt FROM evervec.source s
$$;

-- The next keys of a source that a sweep may take now, in their order, beyond p_after. Where a pass begins with an empty
-- page, wait_seconds says when the first pending item may be taken: null when none is pending, and then the rate goes too.
-- An item may be taken when it has been quiet for p_quiet, or has waited for p_longest; after a failed attempt, when it is due.
CREATE OR REPLACE FUNCTION evervec.sweep_page(
  p_source text, p_after text, p_limit int, p_quiet interval, p_longest interval,
  OUT item_keys text[], OUT paused boolean, OUT rate real, OUT wait_seconds double precision
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
  s      evervec.source := evervec.get_source(p_source);
  moment timestamptz := clock_timestamp();
BEGIN
  item_keys := '{}';
  paused := s.paused;
  rate := s.rate;
  IF paused THEN
    RETURN;
  END IF;
  item_keys := ARRAY(
    SELECT o.item_key FROM evervec.outbox o
    WHERE o.source = p_source AND o.state = 'pending'
      AND o.item_key >= coalesce(p_after, '') AND o.item_key IS DISTINCT FROM p_after
      AND CASE o.attempts WHEN 0 THEN least(o.due_at + p_quiet, o.queued_at + p_longest) ELSE o.due_at END <= moment
    ORDER BY o.item_key LIMIT p_limit);
  IF p_after IS NULL AND item_keys = '{}' THEN
    SELECT extract(epoch FROM min(
      CASE o.attempts WHEN 0 THEN least(o.due_at + p_quiet, o.queued_at + p_longest) ELSE o.due_at END) - moment)
    INTO wait_seconds FROM evervec.outbox o WHERE o.source = p_source AND o.state = 'pending';
    IF wait_seconds IS NULL AND rate IS NOT NULL AND NOT s.filling THEN
      -- watch() may hold the row: whoever comes next clears it. A backfill sets its rate in the transaction that enqueues its
      -- first page: who holds the row sees both or neither.
      PERFORM FROM evervec.source n WHERE n.name = p_source FOR NO KEY UPDATE SKIP LOCKED;
      IF FOUND THEN
        UPDATE evervec.source AS f SET rate = NULL
        WHERE f.name = p_source
          AND NOT EXISTS (SELECT FROM evervec.outbox o WHERE o.source = p_source AND o.state = 'pending');
      END IF;
    END IF;
  END IF;
END $$;

-- The sources, none of them paused, in which an item that could be embedded has waited for longer than p_age.
CREATE OR REPLACE FUNCTION evervec.sources_waiting(p_age interval) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
  SELECT s.name FROM evervec.source s
  WHERE NOT s.paused AND evervec.is_sound(s) AND EXISTS (
    SELECT FROM evervec.outbox o WHERE o.source = s.name AND o.state = 'pending'
      AND greatest(o.queued_at + p_age, o.due_at) <= clock_timestamp())
  ORDER BY s.name
$$;

-- An earlier version's returns other columns.
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'evervec'::regnamespace AND proname = 'read_items'
             AND NOT 'waited_seconds' = ANY (proargnames)) THEN
    DROP FUNCTION evervec.read_items(text, text[]);
  END IF;
END $$;

-- What there is to know about items, all in one snapshot: a version seen here belongs to the content seen with it.
CREATE OR REPLACE FUNCTION evervec.read_items(p_source text, p_item_keys text[])
RETURNS TABLE (item_key text, outbox_version bigint, outbox_state text, forced boolean, paused boolean, row_exists boolean,
               eligible boolean, content text, content_hash text, embedding_hash text, model text, revision text,
               dimension int, prompt text, waited_seconds double precision)
-- By indexes: for some hundred keys of a table that is not large the planner would read all of it, four times in all.
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_mergejoin = off AS $$
DECLARE
  s evervec.source := evervec.get_source(p_source);
BEGIN
  RETURN QUERY EXECUTE format($sql$
    WITH item AS MATERIALIZED (SELECT * FROM (%s) AS i)
    SELECT k.item_key, o.version, o.state, coalesce(o.forced, false), $3, i.id IS NOT NULL, coalesce(i.eligible, false),
           i.content, i.content_hash, i.embedding_hash, $4, $5, $6, $7,
           extract(epoch FROM clock_timestamp() - o.queued_at)::double precision
    FROM unnest($1) AS k (item_key)
    -- One look-up a key, whatever the planner believes of an outbox without statistics.
    LEFT JOIN LATERAL (
      SELECT * FROM evervec.outbox WHERE source = $2 AND outbox.item_key = k.item_key OFFSET 0) AS o ON true
    LEFT JOIN item AS i ON i.item_key = k.item_key
    $sql$, evervec.items_sql(s, evervec.keys_sql(s, '$8')))
  USING p_item_keys, p_source, s.paused, s.model, s.revision, s.dimension, s.prompt, evervec.valid_keys(s, p_item_keys);
END $$;

-- Compare and set. For each item: write its vector if its content still hashes to what was embedded, the hash being
-- computed on the row that is locked; then acknowledge exactly the outbox version that was read, and only for items that
-- were written or seen fresh, ineligible or gone. Items without a vector (hash null) are acknowledged only.
-- Rows that somebody holds are skipped, and stay in the outbox.
--   p_versions: the outbox version that was read, null where the item was not in the outbox
--   p_hashes:   the content hash of what was embedded, null where nothing was
--   p_vectors:  the vectors of those with a hash, one after the other
-- Locks are taken in the order item, outbox row, as a writer's trigger takes them, and never waited for long.
CREATE OR REPLACE FUNCTION evervec.write_back(
  p_source text, p_item_keys text[], p_versions bigint[], p_hashes text[], p_vectors real[]
) RETURNS TABLE (item_key text, outcome text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms'
SET enable_seqscan = off SET enable_mergejoin = off AS $$
DECLARE
  s       evervec.source;
  keys    text[];
  vectors int := cardinality(array_remove(p_hashes, NULL));
  locked  text[];
  places  tid[];
  written text[];
BEGIN
  -- With the table held, no watch() can alter the source between what is read of it here and the end.
  EXECUTE format('LOCK TABLE ONLY %s IN ROW SHARE MODE', (evervec.get_source(p_source)).relation);
  s := evervec.get_source(p_source);
  keys := evervec.valid_keys(s, p_item_keys);
  EXECUTE format('SELECT array_agg(x.k), array_agg(x.place) FROM (SELECT t.%1$I::text AS k, t.ctid AS place FROM %2$s AS t '
                 'WHERE %3$s ORDER BY t.%1$I FOR NO KEY UPDATE SKIP LOCKED) AS x', s.key_column,
                 evervec.relation_sql(s.relation), evervec.keys_sql(s, '$1')) INTO locked, places USING keys;

  -- The locked rows can't change any more: this statement sees what the vectors are compared with.
  -- Vectors of another model's dimension come with hashes that fit no row; pgvector refuses them where a hash does fit.
  IF vectors > 0 THEN
    IF cardinality(p_vectors) % vectors <> 0 THEN
      RAISE EXCEPTION '% numbers can''t be % vectors of the same dimensions', cardinality(p_vectors), vectors USING
        ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE evervec.write_sql(s) INTO written
    USING locked, p_item_keys, p_hashes, p_vectors, cardinality(p_vectors) / vectors, s.model_label, clock_timestamp(), places;
  END IF;

  RETURN QUERY EXECUTE format($sql$
    WITH item AS MATERIALIZED (
      SELECT i.id, i.item_key, i.eligible, i.embedding_hash, i.content_hash FROM (%s) AS i
    ), seen AS MATERIALIZED (
      SELECT k.item_key, k.version, CASE
        WHEN k.item_key = ANY ($4) THEN 'embedded'
        WHEN i.id IS NULL THEN 'gone'
        WHEN NOT k.item_key = ANY ($3) THEN 'locked'
        WHEN NOT i.eligible THEN 'ineligible'
        WHEN i.embedding_hash = i.content_hash THEN 'unchanged'
        ELSE 'superseded' END AS outcome
      FROM unnest($1, $2) AS k (item_key, version) LEFT JOIN item AS i ON i.item_key = k.item_key
    ), waiting AS MATERIALIZED (
      SELECT o.place
      FROM (SELECT * FROM seen WHERE seen.outcome IN ('embedded', 'unchanged', 'ineligible', 'gone')
            ORDER BY seen.item_key) AS done
      CROSS JOIN LATERAL (
        SELECT o.ctid AS place FROM evervec.outbox o
        WHERE o.source = $5 AND o.item_key = done.item_key AND o.version = done.version FOR UPDATE SKIP LOCKED) AS o
    ), acknowledged AS (
      DELETE FROM evervec.outbox o USING waiting w WHERE o.ctid = w.place
    )
    SELECT seen.item_key, seen.outcome FROM seen
    $sql$, evervec.items_sql(s, evervec.keys_sql(s, '$6')))
  -- What was written needs no second look.
  USING p_item_keys, p_versions, coalesce(locked, '{}'), coalesce(written, '{}'), p_source,
        ARRAY(SELECT unnest(keys) EXCEPT ALL SELECT unnest(written));
END $$;

-- The write of a write-back: $1 the locked keys, $2 all keys, $3 hashes, $4 vectors, $5 dimension, $6 model, $7 time, $8 where
-- the locked rows are: by that they are found again, whatever the planner believes of the table, but for partitions.
CREATE OR REPLACE FUNCTION evervec.write_sql(s evervec.source) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT format($sql$
    WITH given AS MATERIALIZED (
      SELECT g.k::%1$s AS id, l.place, g.h, ($4[(g.n - 1) * $5 + 1 : g.n * $5])::%2$s.vector AS v
      FROM (SELECT u.k, u.h, count(u.h) OVER (ORDER BY u.ord) AS n
            FROM unnest($2, $3) WITH ORDINALITY AS u (k, h, ord)) AS g
      JOIN unnest($1, $8) AS l (k, place) ON l.k = g.k
      WHERE g.h IS NOT NULL
    ), item AS MATERIALIZED (
      -- Each hash is computed once, whichever way the join goes.
      SELECT i.id, i.content_hash FROM (%3$s) AS i WHERE i.eligible
    ), fit AS MATERIALIZED (
      SELECT i.id, g.place, g.h, g.v FROM item AS i JOIN given g ON g.id = i.id AND g.h = i.content_hash
    ), written AS (%4$s)
    SELECT array_agg(written.k) FROM written
    $sql$, s.key_type, evervec.vector_schema(), evervec.items_sql(s, evervec.keys_sql(s, '$1')),
    format(CASE s.destination
      WHEN 'column' THEN
        'UPDATE %1$s AS t SET %3$I = fit.v, %4$I = fit.h, %5$I = $6, %6$I = $7 FROM fit '
        'WHERE ' || CASE WHEN (SELECT c.relkind FROM pg_class c WHERE c.oid = s.relation) = 'r'
          THEN 't.ctid = fit.place' ELSE 't.%2$I = fit.id' END || ' RETURNING t.%2$I::text AS k'
      ELSE
        'INSERT INTO %7$s AS e (%2$I, %3$I, %4$I, %5$I, %6$I) SELECT fit.id, fit.v, fit.h, $6, $7 FROM fit '
        'ON CONFLICT (%2$I) DO UPDATE SET %3$I = excluded.%3$I, %4$I = excluded.%4$I, %5$I = excluded.%5$I, '
        '%6$I = excluded.%6$I RETURNING e.%2$I::text AS k'
      END, evervec.relation_sql(s.relation), s.key_column, s.embedding_column, evervec.hash_column(s.embedding_column),
      evervec.model_column(s.embedding_column), evervec.time_column(s.embedding_column), s.side_table::text))
$$;

-- Attempts at items failed: count them, and give an item up after p_max_attempts; else the next attempt is due after a
-- second, doubled each time up to five minutes. Returns the keys that are given up now.
-- A version that is not the present one belongs to older content and counts for nothing. A row that somebody holds is about
-- to be another version. One that is given up already, since both lanes tried it at once, has had its attempts.
CREATE OR REPLACE FUNCTION evervec.record_failures(
  p_source text, p_item_keys text[], p_versions bigint[], p_errors text[], p_max_attempts int
) RETURNS SETOF text
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms'
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
  WITH bad AS MATERIALIZED (
    SELECT o.place, o.attempts, k.error FROM unnest(p_item_keys, p_versions, p_errors) AS k (item_key, version, error)
    CROSS JOIN LATERAL (
      SELECT o.ctid AS place, o.attempts + (o.state = 'pending')::int AS attempts FROM evervec.outbox o
      WHERE o.source = p_source AND o.item_key = k.item_key AND o.version = k.version FOR UPDATE SKIP LOCKED) AS o
  ), failed AS (
    UPDATE evervec.outbox o SET attempts = bad.attempts, last_error = left(bad.error, 500),
      state = CASE WHEN bad.attempts >= p_max_attempts THEN 'failed' ELSE 'pending' END,
      failed_at = CASE WHEN bad.attempts >= p_max_attempts THEN clock_timestamp() END,
      due_at = clock_timestamp() + least(2 ^ least(o.attempts, 10), 300) * interval '1 second'
    FROM bad WHERE o.ctid = bad.place
    RETURNING o.item_key, o.state
  )
  SELECT failed.item_key FROM failed WHERE failed.state = 'failed'
$$;

-- Say why items wait, where it is not their fault: nothing is counted. Rows that somebody holds are left alone.
CREATE OR REPLACE FUNCTION evervec.note_errors(
  p_source text, p_item_keys text[], p_versions bigint[], p_error text
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms'
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
  WITH waiting AS MATERIALIZED (
    SELECT o.place FROM unnest(p_item_keys, p_versions) AS k (item_key, version)
    CROSS JOIN LATERAL (
      SELECT o.ctid AS place FROM evervec.outbox o
      WHERE o.source = p_source AND o.item_key = k.item_key AND o.version = k.version
        AND o.last_error IS DISTINCT FROM left(p_error, 500) FOR UPDATE SKIP LOCKED) AS o
  )
  UPDATE evervec.outbox o SET last_error = left(p_error, 500) FROM waiting WHERE o.ctid = waiting.place
$$;

-- A worker tells what it has done since it last told, of some sources at once: it counts for the present minute.
--   p_latency: the counts of evervec.work.latency, one source's after the other's
-- A source that is unwatched or altered at this moment is passed over, since nobody waits for statistics.
CREATE OR REPLACE FUNCTION evervec.record_work(
  p_sources text[], p_embedded bigint[], p_skipped bigint[], p_failed bigint[], p_latency bigint[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' AS $$
DECLARE
  counts int := cardinality(p_latency) / nullif(cardinality(p_sources), 0);
  moment timestamptz := clock_timestamp();
  begun  boolean;
BEGIN
  WITH present AS MATERIALIZED (
    SELECT s.name FROM evervec.source s WHERE s.name = ANY (p_sources) ORDER BY s.name FOR KEY SHARE SKIP LOCKED
  ), told AS (
    INSERT INTO evervec.work AS w (source, minute, embedded, skipped, failed, latency)
    SELECT u.source, date_trunc('minute', moment, 'UTC'), u.embedded, u.skipped, u.failed,
           p_latency[(u.n - 1) * counts + 1 : u.n * counts]
    FROM unnest(p_sources, p_embedded, p_skipped, p_failed) WITH ORDINALITY AS u (source, embedded, skipped, failed, n)
    JOIN present ON present.name = u.source ORDER BY u.source
    ON CONFLICT (source, minute) DO UPDATE SET
      embedded = w.embedded + excluded.embedded, skipped = w.skipped + excluded.skipped, failed = w.failed + excluded.failed,
      latency = ARRAY(SELECT coalesce(l.a, 0) + coalesce(l.b, 0)
                      FROM unnest(w.latency, excluded.latency) WITH ORDINALITY AS l (a, b, n) ORDER BY l.n)
    RETURNING w.xmax = 0 AS is_new
  )
  SELECT bool_or(told.is_new) INTO begun FROM told;
  IF begun THEN -- a source's first row of a minute
    DELETE FROM evervec.work AS w WHERE w.minute < moment - interval '25 hours';
  END IF;
END $$;

---------------------------------------------------------------------------------------------------------------------
-- For people
---------------------------------------------------------------------------------------------------------------------

-- The eligible items nearest to a vector (cosine distance) that have a vector of the source's present model.
CREATE OR REPLACE FUNCTION evervec.search(p_source text, p_vector real[], p_limit int)
RETURNS TABLE (item_key text, distance double precision, content text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s evervec.source := evervec.get_source(p_source);
BEGIN
  RETURN QUERY EXECUTE format(
    'SELECT i.item_key, i.embedding OPERATOR(%1$s.<=>) $1::%1$s.vector(%2$s), i.content FROM (%3$s) AS i '
    'WHERE i.eligible AND i.embedding_model = $2 AND i.embedding IS NOT NULL '
    'ORDER BY i.embedding OPERATOR(%1$s.<=>) $1::%1$s.vector(%2$s) LIMIT $3',
    evervec.vector_schema(), s.dimension, evervec.items_sql(s)) USING p_vector, s.model_label, p_limit;
END $$;

-- The exact counts of the next rows in the order of their keys; last_key is null when there are none left.
CREATE OR REPLACE FUNCTION evervec.count_page(
  p_source text, p_after text, p_limit bigint,
  OUT last_key text, OUT total bigint, OUT eligible bigint, OUT fresh bigint
) LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_mergejoin = off AS $$
DECLARE
  s evervec.source := evervec.get_source(p_source);
BEGIN
  EXECUTE format(
    'WITH page AS MATERIALIZED (SELECT i.id, i.item_key, i.eligible, i.embedding_hash = i.content_hash AS fresh '
    'FROM (%s) AS i WHERE $1 IS NULL OR i.id > $1::%s ORDER BY i.id LIMIT $2) '
    'SELECT (SELECT p.item_key FROM page p ORDER BY p.id DESC LIMIT 1), count(*), count(*) FILTER (WHERE page.eligible), '
    'count(*) FILTER (WHERE page.eligible AND page.fresh) FROM page', evervec.items_sql(s), s.key_type)
  INTO last_key, total, eligible, fresh USING p_after, p_limit;
END $$;

-- The exact counts of a source.
CREATE OR REPLACE FUNCTION evervec.count_items(p_source text, OUT total bigint, OUT eligible bigint, OUT fresh bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  EXECUTE format(
    'SELECT count(*), count(*) FILTER (WHERE i.eligible), count(*) FILTER (WHERE i.eligible AND i.embedding_hash = '
    'i.content_hash) FROM (%s) AS i', evervec.items_sql(evervec.get_source(p_source))) INTO total, eligible, fresh;
END $$;

-- The present counts of a source; zeros when its table is gone. Those of a large one come from the last walk over its rows
-- and from what has changed since: stale is what waits in the outbox (p_waiting; p_forced are those to be embedded though
-- nothing changed), and what the walk found stale beside it. Until the first walk ends, the rows that it has not seen are
-- taken to be like those that it has. Without any walk: exact.
CREATE OR REPLACE FUNCTION evervec.count_now(
  p_source text, p_waiting bigint, p_forced bigint, OUT total bigint, OUT eligible bigint, OUT fresh bigint
) LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s      evervec.source;
  walk   evervec.total;
  c      record;
  unseen bigint;
  stale  bigint;
BEGIN
  -- No subtransaction may catch the error of a table that is gone: the view's query may be a parallel one.
  SELECT * INTO s FROM evervec.source f WHERE f.name = p_source AND evervec.is_sound(f)
    AND (f.side_table IS NULL OR EXISTS (SELECT FROM pg_class WHERE oid = f.side_table));
  IF NOT FOUND THEN
    total := 0;
    eligible := 0;
    fresh := 0;
    RETURN;
  END IF;
  IF evervec.is_large(s) THEN
    SELECT * INTO c FROM evervec.changes(s);
    SELECT * INTO walk FROM evervec.total t WHERE t.source = p_source AND t.files = c.files ORDER BY t.done DESC LIMIT 1;
  END IF;
  IF walk.source IS NULL THEN
    SELECT * INTO total, eligible, fresh FROM evervec.count_items(p_source);
    RETURN;
  END IF;

  unseen := CASE WHEN NOT walk.done THEN greatest(c.live - walk.total, 0)
    -- Counters that ran backwards have been reset.
    WHEN c.inserted >= walk.inserted AND c.deleted >= walk.deleted THEN
      greatest(c.inserted - walk.inserted - (c.deleted - walk.deleted), -walk.total)
    ELSE 0 END;
  stale := p_waiting + least(p_forced, walk.forced_stale)
    -- What a first fill has found it has put into the outbox.
    + CASE WHEN s.filling THEN 0 ELSE walk.missing END
    + CASE WHEN walk.done THEN 0 ELSE unseen * walk.missing / greatest(walk.total, 1) END;
  eligible := greatest(p_waiting, walk.eligible + CASE walk.total WHEN 0 THEN unseen
                                                  ELSE round(unseen * walk.eligible::numeric / walk.total) END);
  total := greatest(eligible, walk.total + unseen);
  fresh := greatest(eligible - stale, 0);
END $$;

-- Outbox rows whose item is not there.
CREATE OR REPLACE FUNCTION evervec.orphans(p_source text) RETURNS TABLE (item_key text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s evervec.source := evervec.get_source(p_source);
BEGIN
  RETURN QUERY EXECUTE format(
    'SELECT o.item_key FROM (SELECT item_key COLLATE "default" AS item_key FROM evervec.outbox WHERE source = $1) AS o '
    'WHERE NOT EXISTS (SELECT FROM %s AS t WHERE t.%I = CASE '
    'WHEN pg_input_is_valid(o.item_key, %L) THEN o.item_key::%s END)', evervec.relation_sql(s.relation), s.key_column,
    s.key_type, s.key_type) USING p_source;
END $$;

-- Random fresh items with their vectors, at most p_wanted of the next rows in the order of their keys, for verify.
DROP FUNCTION IF EXISTS evervec.sample_items(text, int);
CREATE OR REPLACE FUNCTION evervec.sample_page(p_source text, p_after text, p_limit bigint, p_wanted bigint)
RETURNS TABLE (item_key text, content text, embedding real[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_mergejoin = off AS $$
DECLARE
  s evervec.source := evervec.get_source(p_source);
BEGIN
  RETURN QUERY EXECUTE format(
    'WITH page AS MATERIALIZED (SELECT i.id, i.item_key, i.content, i.embedding, '
    'i.eligible AND i.embedding_hash = i.content_hash AS fresh FROM (%s) AS i WHERE $1 IS NULL OR i.id > $1::%s '
    'ORDER BY i.id LIMIT $2) SELECT p.item_key, p.content, p.embedding::real[] FROM page p WHERE p.fresh '
    'ORDER BY random() LIMIT $3', evervec.items_sql(s), s.key_type) USING p_after, p_limit, p_wanted;
END $$;

-- One item, explained.
CREATE OR REPLACE FUNCTION evervec.explain_item(p_source text, p_item_key text)
RETURNS TABLE (row_exists boolean, active boolean, blank_columns text[], eligible boolean, paused boolean, content_hash text,
               embedding_hash text, embedding_model text, embedded_at timestamptz, model_label text, outbox jsonb)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s     evervec.source := evervec.get_source(p_source);
  blank text;
BEGIN
  SELECT string_agg(format('CASE WHEN %s THEN NULL ELSE %L::text END', evervec.not_blank_sql('t', c), c), ', ') INTO blank
  FROM unnest(s.required_columns) AS c;
  RETURN QUERY EXECUTE format($sql$
    SELECT i.id IS NOT NULL, coalesce(r.active, false), coalesce(r.blank, '{}'), coalesce(i.eligible, false), $3,
           i.content_hash, i.embedding_hash, i.embedding_model, i.embedded_at, $4, to_jsonb(o)
    FROM (SELECT $2) AS k (item_key)
    LEFT JOIN (%1$s) AS i ON i.item_key = k.item_key
    LEFT JOIN LATERAL (
      SELECT t.evervec_active AS active, array_remove(ARRAY[%2$s]::text[], NULL) AS blank
      FROM (SELECT t.*, (%3$s
        ) IS TRUE AS evervec_active FROM %4$s AS t WHERE %6$s) AS t WHERE t.%5$I = i.id) AS r ON true
    LEFT JOIN evervec.outbox o ON o.source = $1 AND o.item_key = k.item_key
    $sql$, evervec.items_sql(s, evervec.keys_sql(s, '$5')), blank, coalesce(s.active, 'true'),
    evervec.relation_sql(s.relation), s.key_column, evervec.keys_sql(s, '$5'))
  USING p_source, p_item_key, s.paused, s.model_label, evervec.valid_keys(s, ARRAY[p_item_key]);
END $$;

-- The items nearest to an item, by the vector that is stored of it: none where it has none of the source's present model.
CREATE OR REPLACE FUNCTION evervec.neighbours(p_source text, p_item_key text, p_limit int)
RETURNS TABLE (item_key text, distance double precision, content text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  s      evervec.source := evervec.get_source(p_source);
  stored real[];
BEGIN
  EXECUTE format('SELECT i.embedding::real[] FROM (%s) AS i WHERE i.embedding_model = $2',
                 evervec.items_sql(s, evervec.keys_sql(s, '$1')))
  INTO stored USING evervec.valid_keys(s, ARRAY[p_item_key]), s.model_label;
  IF stored IS NOT NULL THEN
    RETURN QUERY SELECT n.item_key, n.distance, n.content FROM evervec.search(p_source, stored, p_limit + 1) AS n
    WHERE n.item_key <> p_item_key LIMIT p_limit;
  END IF;
END $$;

-- The next items in the order of their keys, beyond p_after, and how each stands; the beginning of its content.
CREATE OR REPLACE FUNCTION evervec.item_page(p_source text, p_after text, p_limit int)
RETURNS TABLE (item_key text, state text, attempts int, last_error text, queued_at timestamptz, embedded_at timestamptz,
               content text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_mergejoin = off AS $$
DECLARE
  s evervec.source := evervec.get_source(p_source);
BEGIN
  RETURN QUERY EXECUTE format($sql$
    WITH page AS MATERIALIZED (
      SELECT i.id, i.item_key, i.eligible, i.embedding_hash = i.content_hash AS fresh, i.embedded_at, left(i.content, 200) AS content
      FROM (%s) AS i WHERE $1 IS NULL OR i.id > $1::%s ORDER BY i.id LIMIT $2
    )
    SELECT p.item_key, CASE WHEN NOT p.eligible THEN 'ineligible' WHEN o.state = 'failed' THEN 'failed'
                            WHEN p.fresh THEN 'fresh' ELSE 'stale' END,
           o.attempts, o.last_error, o.queued_at, p.embedded_at, p.content
    FROM page p LEFT JOIN LATERAL (
      SELECT * FROM evervec.outbox WHERE source = $3 AND outbox.item_key = p.item_key OFFSET 0) AS o ON true
    ORDER BY p.id
    $sql$, evervec.items_sql(s), s.key_type) USING p_after, p_limit, p_source;
END $$;

-- The next items in the outbox that are in a state ('pending', 'failed'; null: either), in the order of their keys as
-- texts, beyond p_after. It looks at p_reach rows and no further; go_on_after is the last of those where there may be more.
CREATE OR REPLACE FUNCTION evervec.outbox_page(p_source text, p_state text, p_after text, p_limit int, p_reach int)
RETURNS TABLE (item_key text, state text, attempts int, last_error text, queued_at timestamptz, failed_at timestamptz,
               due_at timestamptz, go_on_after text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
  found bigint;
BEGIN
  RETURN QUERY SELECT o.item_key, o.state, o.attempts, o.last_error, o.queued_at, o.failed_at, o.due_at, NULL::text
  FROM (SELECT * FROM evervec.outbox WHERE outbox.source = p_source AND outbox.item_key >= coalesce(p_after, '')
        AND outbox.item_key IS DISTINCT FROM p_after ORDER BY outbox.item_key LIMIT p_reach) AS o
  WHERE p_state IS NULL OR o.state = p_state LIMIT p_limit;
  GET DIAGNOSTICS found = ROW_COUNT;
  IF found < p_limit THEN
    RETURN QUERY SELECT NULL::text, NULL::text, NULL::int, NULL::text, NULL::timestamptz, NULL::timestamptz,
                        NULL::timestamptz, o.item_key
    FROM evervec.outbox o WHERE o.source = p_source AND o.item_key >= coalesce(p_after, '')
      AND o.item_key IS DISTINCT FROM p_after ORDER BY o.item_key OFFSET p_reach - 1 LIMIT 1;
  END IF;
END $$;

-- The listeners that are connected to this database, and which of them leads: sessions that hold the shared lock of all
-- listeners, and the leader's.
CREATE OR REPLACE FUNCTION evervec.listeners() RETURNS TABLE (pid int, leads boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT l.pid, EXISTS (
    SELECT FROM pg_locks m WHERE m.locktype = 'advisory' AND m.granted AND m.database = l.database AND m.pid = l.pid
      AND m.objsubid = 1 AND m.classid::bigint << 32 | m.objid::bigint = 7310312410226385252)
  FROM pg_locks l
  WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid = 731031244 AND l.objid = 0
    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  ORDER BY 2 DESC, 1
$$;

-- Call off what was to be embedded though nothing changed: the next items in the order of their keys, beyond p_after. They
-- stay in the outbox, since a change may have joined them; a worker that finds one fresh lets it go. A row that somebody
-- holds is left alone. last_key is null when there are none left.
CREATE OR REPLACE FUNCTION evervec.call_off_page(
  p_source text, p_after text, p_limit int, OUT last_key text, OUT called_off bigint
) LANGUAGE sql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off AS $$
  WITH page AS MATERIALIZED (
    SELECT o.item_key, o.forced FROM evervec.outbox o WHERE o.source = (evervec.get_source(p_source)).name
      AND o.item_key >= coalesce(p_after, '') AND o.item_key IS DISTINCT FROM p_after ORDER BY o.item_key LIMIT p_limit
  ), free AS MATERIALIZED (
    SELECT o.place FROM page CROSS JOIN LATERAL (
      SELECT o.ctid AS place FROM evervec.outbox o WHERE o.source = p_source AND o.item_key = page.item_key AND o.forced
      FOR UPDATE SKIP LOCKED) AS o
    WHERE page.forced
  ), done AS (
    UPDATE evervec.outbox o SET forced = false FROM free WHERE o.ctid = free.place RETURNING 1
  )
  SELECT (SELECT max(page.item_key) FROM page HAVING count(*) = p_limit), (SELECT count(*) FROM done)
$$;

-- Whether evervec.backlog says what waits: there is much, and a listener has counted it not long ago. By the time of the
-- statement, so that all processes of a parallel query agree.
CREATE OR REPLACE FUNCTION evervec.backlog_is_known() RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (SELECT FROM evervec.backlog b WHERE b.counted_at > statement_timestamp() - interval '15 s' - 25 * b.took)
         AND evervec.outbox_is_long()
$$;

-- What waits is counted in one pass over the outbox, by several processes when that is long; or it has been. No row of a
-- source of which nothing waits.
CREATE OR REPLACE VIEW evervec.waiting AS
SELECT o.source, count(*) AS waiting, count(*) FILTER (WHERE o.forced) AS forced,
       count(*) FILTER (WHERE o.state = 'failed') AS failed,
       min(o.queued_at) FILTER (WHERE o.state = 'pending') AS oldest
FROM evervec.outbox o WHERE NOT evervec.backlog_is_known() GROUP BY o.source
UNION ALL
SELECT b.source, b.waiting, b.forced, b.failed, b.oldest FROM evervec.backlog b WHERE evervec.backlog_is_known();
COMMENT ON VIEW evervec.waiting IS 'What waits in the outbox, a row a source.';

CREATE OR REPLACE VIEW evervec.status AS
SELECT s.name AS source, c.total, c.eligible, c.fresh, c.eligible - c.fresh AS stale,
       coalesce(w.waiting - w.failed, 0) AS pending, coalesce(w.failed, 0) AS failed,
       CASE c.eligible WHEN 0 THEN 1 ELSE c.fresh::double precision / c.eligible END AS coverage,
       coalesce(greatest(extract(epoch FROM clock_timestamp() - w.oldest), 0), 0)::double precision AS oldest_pending_seconds,
       s.model, s.dimension, s.paused
FROM evervec.source s
LEFT JOIN evervec.waiting AS w ON w.source = s.name
CROSS JOIN LATERAL evervec.count_now(s.name, coalesce(w.waiting - w.forced, 0), coalesce(w.forced, 0)) AS c;
COMMENT ON VIEW evervec.status IS 'One row a source: eligible = fresh + stale; failed items are stale; coverage = fresh / eligible.';

-- How deep the outbox is, a row a source, for those who measure.
CREATE OR REPLACE FUNCTION evervec.outbox_depth()
RETURNS TABLE (source text, pending bigint, failed bigint, oldest_pending_seconds double precision, paused boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT s.name, coalesce(w.waiting - w.failed, 0), coalesce(w.failed, 0),
         coalesce(greatest(extract(epoch FROM clock_timestamp() - w.oldest), 0), 0)::double precision, s.paused
  FROM evervec.source s LEFT JOIN evervec.waiting w ON w.source = s.name
$$;

-- A barrier, so that no function in a reader's query sees the rows that are not shown.
CREATE OR REPLACE VIEW evervec.failures WITH (security_barrier) AS
SELECT source, item_key, attempts, last_error, failed_at FROM evervec.outbox WHERE state = 'failed';
COMMENT ON VIEW evervec.failures IS 'One row an item that was given up until its content changes or somebody retries it.';

CREATE OR REPLACE VIEW evervec.work_history AS
SELECT source, minute, embedded, skipped, failed, latency FROM evervec.work
WHERE minute > clock_timestamp() - interval '1 hour';
COMMENT ON VIEW evervec.work_history IS 'What was done in the last hour, a row a source and minute; minutes without work have none.';

---------------------------------------------------------------------------------------------------------------------
-- For the doctor: facts about the set-up, which name tables and columns and quote no row
---------------------------------------------------------------------------------------------------------------------

-- This installation's id and its schema's version, and the version of the latest enqueue.
CREATE OR REPLACE FUNCTION evervec.diagnose(OUT instance text, OUT schema_version int, OUT last_version bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT i.id, i.schema_version, CASE WHEN v.is_called THEN v.last_value ELSE 0 END
  FROM evervec.instance i, evervec.outbox_version v
$$;

-- One row a source: what its table, columns, triggers and vectors are like, and what waits; relation is null when the table
-- is gone. Of what is pending, only versions up to p_until are counted.
CREATE OR REPLACE FUNCTION evervec.diagnose_sources(p_until bigint DEFAULT NULL)
RETURNS TABLE (
  source text, relation text, sound boolean, owner text, missing_columns name[], has_key boolean, missing_triggers text[],
  disabled_triggers text[], hidden boolean, subscribed boolean, live bigint, vectors text, embedding text,
  column_dimension int, indexed boolean, model text, revision text, dimension int, prompt text, paused boolean,
  filling boolean, rate real, pending bigint, failed bigint, oldest_seconds double precision
) LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT s.name, c.oid::regclass::text, evervec.is_sound(s), pg_get_userbyid(c.relowner)::text,
    ARRAY(
      SELECT n.name FROM (
        SELECT s.relation AS relation, unnest(evervec.read_columns(s)) AS name
        UNION ALL SELECT v.oid, unnest(ARRAY[
          s.embedding_column, evervec.hash_column(s.embedding_column), evervec.model_column(s.embedding_column),
          evervec.time_column(s.embedding_column)])) AS n
      WHERE NOT EXISTS (SELECT FROM pg_attribute a
                        WHERE a.attrelid = n.relation AND a.attname = n.name AND a.attnum > 0 AND NOT a.attisdropped)),
    EXISTS (
      SELECT FROM pg_index i JOIN pg_attribute k ON k.attrelid = i.indrelid AND k.attnum = i.indkey[0]
      WHERE i.indrelid = s.relation AND i.indisunique AND i.indnkeyatts = 1 AND i.indpred IS NULL AND i.indisvalid
        AND k.attname = s.key_column AND k.attnotnull),
    ARRAY(
      SELECT e.name
      FROM (
        SELECT 'evervec_' || unnest(ARRAY['insert', 'touch', 'gone', 'truncated']) || '_' || s.id
        UNION ALL SELECT 'evervec_row_' || s.id WHERE c.oid IS NOT NULL AND evervec.looks_at_rows(s.relation)) AS e (name)
      WHERE NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = s.relation AND t.tgname = e.name)),
    -- Those of partitions are triggers of their own.
    ARRAY(
      SELECT DISTINCT t.tgname::text FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
      WHERE p.pronamespace = 'evervec'::regnamespace AND t.tgenabled IN ('D', 'R')
        AND p.proname IN ('row_' || s.id, 'touch_' || s.id, 'edit_' || s.id, 'gone_' || s.id, 'truncated_' || s.id)),
    CASE WHEN c.oid IS NOT NULL THEN row_security_active(c.oid) ELSE false END,
    EXISTS (SELECT FROM pg_subscription_rel r WHERE r.srrelid = s.relation
            OR r.srrelid IN (SELECT relid FROM pg_partition_tree(s.relation))),
    CASE WHEN c.oid IS NOT NULL THEN (SELECT l.live FROM evervec.changes(s) AS l) END,
    v.oid::regclass::text, quote_ident(s.embedding_column),
    (SELECT nullif(a.atttypmod, -1) FROM pg_attribute a
     WHERE a.attrelid = v.oid AND a.attname = s.embedding_column AND NOT a.attisdropped),
    EXISTS (
      SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
      JOIN pg_attribute k ON k.attrelid = i.indrelid AND k.attnum = i.indkey[0]
      WHERE i.indrelid = v.oid AND i.indisvalid AND m.amname IN ('hnsw', 'ivfflat') AND k.attname = s.embedding_column),
    s.model, s.revision, s.dimension, s.prompt, s.paused, s.filling, s.rate, coalesce(o.pending, 0), coalesce(o.failed, 0),
    coalesce(extract(epoch FROM clock_timestamp() - o.oldest), 0)::double precision
  FROM evervec.source s
  LEFT JOIN pg_class c ON c.oid = s.relation
  LEFT JOIN pg_class v ON v.oid = coalesce(s.side_table, s.relation)
  LEFT JOIN (
    SELECT source, count(*) FILTER (WHERE state = 'pending' AND (p_until IS NULL OR version <= p_until)) AS pending,
           count(*) FILTER (WHERE state = 'failed') AS failed, min(queued_at) FILTER (WHERE state = 'pending') AS oldest
    FROM evervec.outbox GROUP BY source) AS o ON o.source = s.name
  ORDER BY s.name
$$;

---------------------------------------------------------------------------------------------------------------------
-- Roles and rights
---------------------------------------------------------------------------------------------------------------------

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA evervec FROM PUBLIC;

SET LOCAL client_min_messages = notice;
DO $$
DECLARE
  role_name text;
  rights    text[][] := ARRAY[
    ['evervec_listener', 'EXECUTE ON FUNCTION evervec.instance_id()'],
    ['evervec_listener', 'EXECUTE ON FUNCTION evervec.pending_items(text, text, bigint)'],
    ['evervec_listener', 'EXECUTE ON FUNCTION evervec.waiting_items(bigint)'],
    ['evervec_listener', 'EXECUTE ON FUNCTION evervec.newest_items(text, interval, bigint)'],
    ['evervec_listener', 'EXECUTE ON FUNCTION evervec.pending_among(text[], text[])'],
    ['evervec_listener', 'EXECUTE ON FUNCTION evervec.hush(interval)'],
    ['evervec_listener', 'EXECUTE ON FUNCTION evervec.fill_page(bigint)'],
    ['evervec_listener', 'EXECUTE ON FUNCTION evervec.census_page(bigint, boolean)'],
    ['evervec_listener', 'EXECUTE ON FUNCTION evervec.count_outbox()'],
    ['evervec_listener', 'EXECUTE ON FUNCTION evervec.outbox_depth()'],
    ['evervec_listener', 'EXECUTE ON FUNCTION evervec.diagnose(), evervec.diagnose_sources(bigint)'],
    ['evervec_worker', 'EXECUTE ON FUNCTION evervec.instance_id()'],
    ['evervec_worker', 'EXECUTE ON FUNCTION evervec.models()'],
    ['evervec_worker', 'EXECUTE ON FUNCTION evervec.read_items(text, text[])'],
    ['evervec_worker', 'EXECUTE ON FUNCTION evervec.write_back(text, text[], bigint[], text[], real[])'],
    ['evervec_worker', 'EXECUTE ON FUNCTION evervec.record_failures(text, text[], bigint[], text[], int)'],
    ['evervec_worker', 'EXECUTE ON FUNCTION evervec.note_errors(text, text[], bigint[], text)'],
    ['evervec_worker', 'EXECUTE ON FUNCTION evervec.sweep_page(text, text, int, interval, interval)'],
    ['evervec_worker', 'EXECUTE ON FUNCTION evervec.sources_waiting(interval)'],
    ['evervec_worker', 'EXECUTE ON FUNCTION evervec.record_work(text[], bigint[], bigint[], bigint[], bigint[])'],
    ['evervec_worker', 'EXECUTE ON FUNCTION evervec.census_page(bigint, boolean)'],
    ['evervec_worker', 'EXECUTE ON FUNCTION evervec.diagnose(), evervec.diagnose_sources(bigint)'],
    ['evervec_viewer', 'SELECT ON evervec.status, evervec.failures, evervec.work_history'],
    ['evervec_viewer', 'EXECUTE ON FUNCTION evervec.diagnose(), evervec.diagnose_sources(bigint)'],
    ['evervec_viewer', 'EXECUTE ON FUNCTION evervec.listeners()'],
    ['evervec_viewer', 'EXECUTE ON FUNCTION evervec.backlog_is_known()'],
    ['evervec_viewer', 'EXECUTE ON FUNCTION evervec.count_now(text, bigint, bigint)']];
BEGIN
  PERFORM evervec.instance_id();
  -- Sources that an earlier version of this file watches get this version's trigger functions.
  PERFORM evervec.make_trigger_functions(s) FROM evervec.source s WHERE EXISTS (SELECT FROM pg_class WHERE oid = s.relation);
  -- And its triggers, which takes the table for a moment, where they are not these functions' already.
  PERFORM evervec.lock_briefly(ARRAY[s.relation]), evervec.make_triggers(s) FROM evervec.source s
  WHERE EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                WHERE t.tgrelid = s.relation AND t.tgname = 'evervec_touch_' || s.id AND p.proname <>
                  CASE WHEN evervec.looks_at_rows(s.relation) THEN 'touch_' ELSE 'edit_' END || s.id);

  FOREACH role_name IN ARRAY ARRAY['evervec_listener', 'evervec_worker', 'evervec_viewer'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
      EXCEPTION
        WHEN insufficient_privilege THEN
          RAISE NOTICE 'you may not create the role %: have an administrator run CREATE ROLE %, then run this file again',
            role_name, role_name;
          CONTINUE;
        WHEN duplicate_object OR unique_violation THEN
          NULL; -- another database's installer was faster: roles belong to the whole cluster
      END;
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA evervec TO %I', role_name);
    FOR n IN 1 .. array_length(rights, 1) LOOP
      CONTINUE WHEN rights[n][1] <> role_name;
      EXECUTE format('GRANT %s TO %I', rights[n][2], role_name);
    END LOOP;
  END LOOP;
END $$;

COMMIT;
