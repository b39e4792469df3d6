-- Tables like the watched one, with other triggers or none. Run when `items` has its rows and their vectors.

CREATE TABLE plain (LIKE items INCLUDING ALL);
INSERT INTO plain SELECT * FROM items;

-- As pgai 0.12 makes it, in our words: a row trigger puts the key of what is inserted, or changed in its key or its
-- text, into a queue table that has an index on the key. Nobody is notified; its worker polls.
CREATE TABLE pgai (LIKE items INCLUDING ALL);
INSERT INTO pgai SELECT * FROM items;
CREATE TABLE pgai_queue (
  id                  bigint NOT NULL,
  loading_retries     int NOT NULL DEFAULT 0,
  loading_retry_after timestamptz
);
CREATE INDEX ON pgai_queue (id);
CREATE FUNCTION pgai_enqueue() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF TG_OP = 'UPDATE' THEN
    IF OLD.id IS DISTINCT FROM NEW.id OR OLD.body IS DISTINCT FROM NEW.body THEN
      INSERT INTO public.pgai_queue (id) VALUES (NEW.id);
    END IF;
  ELSE
    INSERT INTO public.pgai_queue (id) VALUES (NEW.id);
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER pgai_enqueue AFTER INSERT OR UPDATE ON pgai FOR EACH ROW EXECUTE FUNCTION pgai_enqueue();

-- What one writes first: hash the text, one row an item in a queue, and NOTIFY in every transaction.
CREATE TABLE notify (LIKE items INCLUDING ALL);
INSERT INTO notify SELECT * FROM items;
CREATE TABLE notify_queue (
  id        bigint PRIMARY KEY,
  hash      text NOT NULL,
  queued_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION notify_enqueue() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  new_hash text := encode(sha256(convert_to(NEW.body, 'UTF8')), 'hex');
BEGIN
  IF new_hash IS DISTINCT FROM encode(sha256(convert_to(OLD.body, 'UTF8')), 'hex') THEN
    INSERT INTO notify_queue (id, hash) VALUES (NEW.id, new_hash)
    ON CONFLICT (id) DO UPDATE SET hash = excluded.hash, queued_at = clock_timestamp();
  END IF;
  PERFORM pg_notify('evervec_bench', json_build_object('id', NEW.id, 'hash', new_hash)::text);
  RETURN NULL;
END $$;
CREATE TRIGGER notify_enqueue AFTER UPDATE ON notify FOR EACH ROW EXECUTE FUNCTION notify_enqueue();
