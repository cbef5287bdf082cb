/** Version 1 of the state file. Instants are ISO 8601 text in UTC, sizes are bytes. */
export const initial = `
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

CREATE TABLE resources (
  address TEXT PRIMARY KEY,
  spec    TEXT NOT NULL,
  file    TEXT NOT NULL,
  serial  INTEGER NOT NULL
) STRICT;

CREATE TABLE suspensions (schedule TEXT PRIMARY KEY, since TEXT NOT NULL) STRICT;

CREATE TABLE protections (
  schedule        TEXT NOT NULL,
  provider        TEXT NOT NULL,
  identity        TEXT NOT NULL,
  vm_path         TEXT NOT NULL,
  state           TEXT NOT NULL CHECK (state IN ('active', 'missing')),
  effective_since TEXT NOT NULL,
  handled_until   TEXT,
  last_success_at TEXT,
  last_duration_ms  INTEGER,
  last_read_bytes   INTEGER,
  last_stored_bytes INTEGER,
  PRIMARY KEY (schedule, provider, identity)
) STRICT;

CREATE TABLE runs (
  id          TEXT PRIMARY KEY,
  schedule    TEXT NOT NULL,
  provider    TEXT NOT NULL,
  identity    TEXT NOT NULL,
  vm_path     TEXT NOT NULL,
  kind        TEXT NOT NULL CHECK (kind IN ('scheduled', 'manual')),
  fire_time   TEXT NOT NULL,
  state       TEXT NOT NULL CHECK (state IN ('queued', 'running', 'storing', 'verifying', 'completed', 'failed', 'cancelled', 'skipped')),
  destination TEXT NOT NULL,
  destination_url TEXT NOT NULL,
  folder      TEXT,
  created_at  TEXT NOT NULL,
  ended_at    TEXT,
  error_code  TEXT,
  error       TEXT,
  UNIQUE (schedule, provider, identity, kind, fire_time)
) STRICT;
CREATE INDEX runs_open ON runs (state) WHERE state IN ('queued', 'running', 'storing', 'verifying');

CREATE TABLE attempts (
  run_id     TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  number     INTEGER NOT NULL,
  started_at TEXT NOT NULL,
  ended_at   TEXT,
  outcome    TEXT,
  error      TEXT,
  PRIMARY KEY (run_id, number)
) STRICT;

CREATE TABLE artifacts (
  id            TEXT PRIMARY KEY,
  run_id        TEXT NOT NULL,
  schedule      TEXT NOT NULL,
  provider      TEXT NOT NULL,
  identity      TEXT NOT NULL,
  vm_path       TEXT NOT NULL,
  destination   TEXT NOT NULL,
  destination_url TEXT NOT NULL,
  manifest_path TEXT NOT NULL,
  instant       TEXT NOT NULL,
  stored_bytes  INTEGER NOT NULL,
  state         TEXT NOT NULL CHECK (state IN ('good', 'bad')),
  held_reason   TEXT,
  expires_at    TEXT,
  expiry_rule   TEXT,
  created_at    TEXT NOT NULL,
  UNIQUE (destination_url, manifest_path)
) STRICT;
CREATE INDEX artifacts_by_vm ON artifacts (schedule, provider, identity, instant);

CREATE TABLE events (
  seq      INTEGER PRIMARY KEY,
  at       TEXT NOT NULL,
  type     TEXT NOT NULL,
  subject  TEXT NOT NULL,
  detail   TEXT NOT NULL,
  commit_id TEXT,
  author   TEXT,
  previous TEXT NOT NULL,
  hash     TEXT NOT NULL
) STRICT;

CREATE TABLE leases (
  scope     TEXT PRIMARY KEY,
  token     TEXT NOT NULL UNIQUE,
  holder    TEXT NOT NULL,
  host      TEXT NOT NULL,
  pid       INTEGER NOT NULL,
  operation TEXT NOT NULL,
  since     TEXT NOT NULL
) STRICT;
`;
